"""Reads a timeline as strictly as the Trace Event Format lets one, and counts what is in it."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Keys that every event of a phase has, and of which kinds they are.
ALWAYS: dict[str, type | tuple[type, ...]] = {"ph": str, "name": str, "pid": int}
KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "M": {"tid": int, "args": dict},
    "X": {"tid": int, "ts": (int, float), "dur": (int, float), "args": dict},
    "b": {"ts": (int, float), "cat": str, "id2": dict, "args": dict},
    "e": {"ts": (int, float), "cat": str, "id2": dict},
    "s": {"tid": int, "ts": (int, float), "cat": str, "id": int},
    "t": {"tid": int, "ts": (int, float), "cat": str, "id": int},
    "f": {"tid": int, "ts": (int, float), "cat": str, "id": int},
    "i": {"tid": int, "ts": (int, float), "s": str},
    "C": {"ts": (int, float), "args": dict},
}


@dataclass
class Timeline:
    """What a reader finds.

    Attributes:
        slices: {name: X events}.
        pairs: {name: b events, whose `dur` is the time until their e}.
        instants, counters: {name: events}.
        arrows: (name of the slice it leaves, of the one it leads to, whether that is another process).
    """

    about: dict[str, Any]
    processes: dict[int, str] = field(default_factory=dict)
    slices: dict[str, list[Any]] = field(default_factory=dict)
    pairs: dict[str, list[Any]] = field(default_factory=dict)
    instants: dict[str, list[Any]] = field(default_factory=dict)
    counters: dict[str, list[Any]] = field(default_factory=dict)
    arrows: list[tuple[str, str, bool]] = field(default_factory=list)

    def count(self, start: str) -> int:
        """Slices whose name begins so."""
        return sum(len(events) for name, events in self.slices.items() if name.startswith(start))


def read(path: Path) -> Timeline:
    """A file, checked event by event."""
    data = path.read_bytes()
    document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    assert set(document) == {"displayTimeUnit", "otherData", "traceEvents"}
    timeline = Timeline(document["otherData"])
    events = document["traceEvents"]
    for event in events:
        _check_keys(event)
    timeline.processes = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert {event["pid"] for event in events} == set(timeline.processes)
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] in "Xi"} <= named
    for event in events:
        places = {"X": timeline.slices, "i": timeline.instants, "C": timeline.counters}.get(event["ph"])
        if places is not None:
            places.setdefault(event["name"], []).append(event)
    _check_nesting(events)
    _pair(events, timeline)
    _follow(events, timeline)
    return timeline


def _check_keys(event: dict[str, Any]) -> None:
    for key, kind in (ALWAYS | KEYS[event["ph"]]).items():
        assert isinstance(event[key], kind), event
        assert not isinstance(event[key], bool), event
    for key in ("ts", "dur"):
        assert 0.0 <= event.get(key, 0.0) < math.inf, event
    if event["ph"] == "C":
        assert event["args"], event
        assert all(type(value) in (int, float) for value in event["args"].values()), event


def _check_nesting(events: list[Any]) -> None:
    """Slices of one track lie one after the other; readers drop those that overlap."""
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        slices.sort()
        for (_, ended), (began, _) in itertools.pairwise(slices):
            assert began >= ended - 0.002, (ended, began)  # two times are rounded to the nanosecond


def _pair(events: list[Any], timeline: Timeline) -> None:
    opened: dict[Any, Any] = {}
    for event in events:
        key = (event["pid"], event["name"], event.get("cat"), event.get("id2", {}).get("local"))
        if event["ph"] == "b":
            assert key not in opened, event
            opened[key] = event
        elif event["ph"] == "e":
            began = opened.pop(key)
            began["dur"] = event["ts"] - began["ts"]
            assert began["dur"] >= 0.0, began
            timeline.pairs.setdefault(event["name"], []).append(began)
    assert not opened


def _follow(events: list[Any], timeline: Timeline) -> None:
    at: dict[Any, str] = {}
    for event in events:
        if event["ph"] == "X":
            place = (event["pid"], event["tid"], event["ts"])
            assert place not in at, "an arrow at a time at which two slices begin leads to the wrong one"
            at[place] = event["name"]
    chains: dict[int, list[Any]] = {}
    for event in events:
        if event["ph"] in "stf":
            chains.setdefault(event["id"], []).append(event)
    for chain in chains.values():
        phases = Counter(event["ph"] for event in chain)
        assert (chain[0]["ph"], chain[-1]["ph"], phases["s"], phases["f"]) == ("s", "f", 1, 1), chain
        assert len({event["name"] for event in chain}) == 1, chain
        for one, other in itertools.pairwise(chain):
            names = [at[event["pid"], event["tid"], event["ts"]] for event in (one, other)]
            timeline.arrows.append((names[0], names[1], one["pid"] != other["pid"]))

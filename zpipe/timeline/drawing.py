"""The lives of all nodes as events of one timeline, in the Trace Event Format that ui.perfetto.dev opens.

Source: "Trace Event Format" (Chromium project, 2016), as Perfetto's importer reads it: phases X (slice), b and e (slices that may
overlap, each pair with an id), s, t and f (arrows between slices), i (instant), C (counter), M (name); times in µs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from zpipe.timeline.clocks import Clock
from zpipe.timeline.life import Attempt, Ended, Frame, Life, Ran

Event: TypeAlias = "dict[str, Any]"

#: Tracks of a node, from the top.
SAMPLES, STAGES, LINKS, NOTES = 1, 2, 100, 99
#: Times are told in steps of this, µs.
GRAIN = 0.001
#: So many samples of a batch or a frame are named.
NAMED = 16
_WAITING = {"run": "waiting to run", "sent": "waiting to be sent"}
#: Where in its sample's chain a station stands: before every stage, and behind it.
_SUBMITTED, _ENDED = -1, math.inf


class Station(NamedTuple):
    """A slice that a sample passed: its arrows go from each to the next."""

    order: float
    ts: float
    pid: int
    tid: int


class Drawing:
    """Draws lives on a common clock that begins with the first of them.

    Args:
        lives: all of them; those of one rank share its tracks.
        clocks: of each.
        every: one sample in so many is drawn in person (its waiting, its arrows); batches, frames and counters tell of all.
    """

    def __init__(self, lives: Sequence[Life], clocks: Sequence[Clock], *, every: int = 1) -> None:
        self._lives, self._clocks, self._every = lives, clocks, every
        self.began_at = min(clock.common(life.began_at) for life, clock in zip(lives, clocks, strict=True))
        self._arrived = self._arrivals()
        self._ranks = {life.rank for life in lives}
        self._chains: dict[Attempt, list[Station]] = {}
        self._next_id = 0

    def events(self) -> Iterator[Event]:
        """Every event; not sorted."""
        for rank in sorted(self._ranks):
            yield from self._names(rank)
        for number, life in enumerate(self._lives):
            micros = self._micros(number)
            yield from self._stages(life, micros)
            yield from self._waits(life, micros)
            yield from self._frames(life, micros)
            yield from self._stalls(life, micros)
            yield from self._samples(life, micros)
            yield from self._notes(life, micros)
            yield from self._counters(life, micros)
        yield from self._arrows()

    # ---- times and names -----------------------------------------------------------------------

    def _micros(self, number: int) -> Callable[[float], float]:
        """A node's clock -> microseconds since the first moment, to the nanosecond."""
        clock, began_at = self._clocks[number], self.began_at
        return lambda now: round(1e6 * (clock.common(now) - began_at), 3)

    def _arrivals(self) -> dict[tuple[int, int, int, int], float]:
        """{(from, to, epoch, first number): when a frame arrived, common clock}."""
        found = {}
        for life, clock in zip(self._lives, self._clocks, strict=True):
            for (peer, epoch, first), now in life.arrived.items():
                found[peer, life.rank, epoch, first] = clock.common(now)
        return found

    def _names(self, rank: int) -> Iterator[Event]:
        lives = [life for life in self._lives if life.rank == rank]
        stages = ", ".join(map(str, lives[0].stages))
        yield _named(rank, 0, "process_name", name="node")  # readers put the pid, its rank, behind it
        yield _named(rank, 0, "process_labels", labels=f"stage {stages}" if stages else "no stage")
        yield _named(rank, 0, "process_sort_index", sort_index=rank)
        tracks = {STAGES: "stages", NOTES: "notes"}
        if any(life.is_source for life in lives):
            tracks[SAMPLES] = "samples"
        for life in lives:
            tracks |= {LINKS + peer: f"no credit of node {peer}" for peer, _, _ in life.stalls}
        for tid, name in sorted(tracks.items()):
            yield _named(rank, tid, "thread_name", name=name)
            yield _named(rank, tid, "thread_sort_index", sort_index=tid)

    # ---- tracks --------------------------------------------------------------------------------

    def _stages(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        last = -GRAIN
        for run in life.runs:
            began = last = _after(last, micros(run.began_at))
            ended = micros(run.ended_at)
            says = {"stage": run.stage, "batch": len(run.rows), "samples": _samples_of(run.rows), **_outcome_of(run)}
            yield _slice(life.rank, STAGES, f"stage {run.stage}", began, ended, says)
            for row in run.rows:
                self._station(row, run.stage, began, life.rank, STAGES)

    def _waits(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        for wait in life.waits:
            if wait.ended_at > wait.began_at and self._is_drawn(wait.row):
                says = {"sample": _name_of(wait.row), "stage": wait.stage}
                yield from self._pair(life.rank, _WAITING[wait.until], micros(wait.began_at), micros(wait.ended_at), says)

    def _frames(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        for frame in life.frames:
            sent = micros(frame.sent_at)
            says = {"stage": frame.stage, "tasks": len(frame.rows), "samples": _samples_of(frame.rows), "frame": frame.first}
            if frame.bytes:
                says["bytes"] = frame.bytes
            arrived = self._arrived.get((life.rank, frame.peer, frame.epoch, frame.first))
            if arrived is not None:
                yield from self._pair(life.rank, f"to node {frame.peer}", sent, 1e6 * (arrived - self.began_at), says)
            else:
                yield _instant(
                    life.rank, f"frame to node {frame.peer}, arrival not seen", sent, {**says, "why": self._unseen(frame)}
                )

    def _unseen(self, frame: Frame) -> str:
        return (
            "it was lost, or refused, or came after the end of that trace"
            if frame.peer in self._ranks
            else f"no trace of node {frame.peer} was given"
        )

    def _stalls(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        for peer, began_at, ended_at in life.stalls:
            yield _slice(life.rank, LINKS + peer, "no credit", micros(began_at), micros(ended_at), {"of node": peer})

    def _samples(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        moments: list[tuple[float, bool, Ended]] = []
        for outcome in life.outcomes:
            if outcome.sample % self._every == 0:
                began, ended = micros(outcome.submitted_at), micros(outcome.ended_at)
                yield from self._pair(life.rank, f"sample: {outcome.kind}", began, ended, _told(outcome))
                moments += (began, False, outcome), (ended, True, outcome)
        moments.sort(key=lambda moment: moment[:2])
        last = -GRAIN
        for ts, is_end, outcome in moments:
            last = _after(last, ts)
            says = _told(outcome) if is_end else {"sample": outcome.sample}
            yield _slice(life.rank, SAMPLES, outcome.kind if is_end else "submit", last, last, says)
            if outcome.answered is not None:
                row = outcome.answered if is_end else (outcome.answered[0], 1)
                self._station(row, _ENDED if is_end else _SUBMITTED, last, life.rank, SAMPLES)

    def _notes(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        yield _instant(life.rank, "trace begins", micros(life.began_at), {"file": life.path.name})
        for note in life.notes:
            yield _instant(life.rank, note.name, micros(note.at), note.says)
        if life.differs_at is not None:
            yield _instant(life.rank, "counters end", micros(life.differs_at), {"why": "this zpipe decides otherwise"})
        name = {"closed": "closed", "limit": "trace ends at its limit"}.get(life.end, "killed, or still running")
        yield _instant(life.rank, f"broke: {life.broke}" if life.broke else name, micros(life.ended_at), {})

    def _counters(self, life: Life, micros: Callable[[float], float]) -> Iterator[Event]:
        for name, rows in life.counters.items():
            for now, values in rows:
                yield {"ph": "C", "name": name, "pid": life.rank, "ts": micros(now), "args": values}

    # ---- arrows --------------------------------------------------------------------------------

    def _is_drawn(self, row: Attempt) -> bool:
        return row[0].sample % self._every == 0

    def _station(self, row: Attempt, order: float, ts: float, rank: int, tid: int) -> None:
        if self._is_drawn(row):
            self._chains.setdefault(row, []).append(Station(order, ts, rank, tid))

    def _arrows(self) -> Iterator[Event]:
        for number, (row, stations) in enumerate(self._chains.items()):
            stations.sort()  # by stage, not by time: clocks leave some doubt
            last = len(stations) - 1
            for place, station in enumerate(stations if last else ()):
                phase = "s" if not place else "f" if place == last else "t"
                arrow = {"ph": phase, "cat": "sample", "name": _name_of(row), "id": number, "bp": "e"}
                yield {**arrow, "ts": station.ts, "pid": station.pid, "tid": station.tid}

    def _pair(self, rank: int, name: str, began: float, ended: float, says: dict[str, Any]) -> Iterator[Event]:
        """A slice that may overlap others of its name."""
        self._next_id += 1
        both = {"cat": "zpipe", "name": name, "pid": rank, "tid": 0, "id2": {"local": f"{self._next_id:x}"}}
        yield {**both, "ph": "b", "ts": began, "args": says}
        yield {**both, "ph": "e", "ts": max(began, round(ended, 3))}


def _after(last: float, ts: float) -> float:
    """A time behind the last one of a track: an arrow belongs to the slice that was last begun at its time."""
    return ts if ts > last else round(last + GRAIN, 3)


def _named(rank: int, tid: int, what: str, **says: Any) -> Event:
    return {"ph": "M", "name": what, "pid": rank, "tid": tid, "args": says}


def _slice(rank: int, tid: int, name: str, began: float, ended: float, says: dict[str, Any]) -> Event:
    return {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": tid,
        "ts": began,
        "dur": round(max(0.0, ended - began), 3),
        "args": says,
    }


def _instant(rank: int, name: str, ts: float, says: dict[str, Any]) -> Event:
    return {"ph": "i", "s": "t", "name": name, "pid": rank, "tid": NOTES, "ts": ts, "args": says}


def _name_of(row: Attempt) -> str:
    key, attempt = row
    return f"{key.source}/{key.sample}" + (f", attempt {attempt}" if attempt > 1 else "")


def _samples_of(rows: Sequence[Attempt]) -> str:
    return " ".join(f"{key.source}/{key.sample}" for key, _ in rows[:NAMED]) + (" ..." if len(rows) > NAMED else "")


def _outcome_of(run: Ran) -> dict[str, Any]:
    if run.failed:
        return {"failed": run.failed}
    return {"exited": run.exited} if run.exited is not None else {"unfinished": True}


def _told(outcome: Ended) -> dict[str, Any]:
    says: dict[str, Any] = {
        "sample": outcome.sample,
        "attempts": outcome.attempts,
        "latency_ms": round(1e3 * (outcome.ended_at - outcome.submitted_at), 4),
    }
    if outcome.answered is None:
        return {**says, "cause": outcome.cause}
    timings = {"queued_ms": round(1e3 * outcome.queued_seconds, 4), "service_ms": round(1e3 * outcome.service_seconds, 4)}
    return {**says, "label": outcome.label, "confidence": outcome.confidence, "exit_stage": outcome.exit_stage, **timings}

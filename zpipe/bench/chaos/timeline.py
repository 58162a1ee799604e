"""What became of a run with faults: from its events and its log to the report's `chaos`. No clock, no IO.

A sample *needed a repair* from a fault when it had been submitted before it, had no outcome yet, and came back as the result of a
second or later attempt. `repaired_after_seconds` is from the fault to the first such result, `all_repaired_after_seconds` to the
last. A sample that had been sent again before the fault for another reason counts, too: `calm.sent_again` says how often that is.

A *repair* goes from a fault until its target was back and the last sample that needed one had its result. Of several sources each
is told by itself: what became of its samples, and how long those took that were open during some repair, beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bench.chaos.answers import Answers
from zpipe.bench.chaos.director import Event
from zpipe.bench.chaos.spec import Chaos
from zpipe.report import KINDS, RunLog, spread

#: Most entries of the throughput series; a longer run has longer steps.
MOST_STEPS = 1200
#: Events kept in the timeline; the summary is of all of them.
MOST_EVENTS = 5000
RESULT = KINDS.index("result")

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def chaos_report(
    chaos: Chaos,
    events: Sequence[Event],
    log: RunLog,
    *,
    started_at: float,
    deadlines: Mapping[int, float],
    classes: Mapping[int, int],
    seconds: float,
    damage: Mapping[str, Mapping[str, int]],
    bad_frames: int,
    answers: Mapping[int, Answers],
) -> dict[str, Any]:
    """The report's `chaos`; plain values.

    Args:
        chaos: what was asked for.
        events: what was done.
        log: every sample; its clock began at `started_at`.
        deadlines: {source: seconds that each of its samples has}.
        classes: {source: class of its samples}.
        seconds: from the first offer to the last outcome.
        damage: per link, as its relay counted.
        bad_frames: refused by all nodes; what a process counted that was ended meanwhile (`nodes_ended` of the report) went
            with it, and what it was sent at its end nobody read.
        answers: {source: the right ones}, of those where that can be said.
    """
    columns = log.columns()
    allowed = np.array([deadlines[source] for source in columns["source"].tolist()])
    submitted = np.array(log.deadlines) - allowed - started_at
    ended = np.where(columns["kind"] > 0, submitted + columns["latency"], np.inf)
    answered = columns["kind"] == RESULT
    again = answered & (columns["attempts"] > 1)
    rows = [_row(event, submitted, ended, again) for event in events]
    return {
        "spec": chaos.text,
        "timeline": rows[:MOST_EVENTS],
        "summary": _summary(rows),
        "throughput": _throughput(chaos, ended[answered], seconds),
        "outcomes_per_step": _series(columns["kind"], ended, seconds),
        "expired_late_seconds": _late(columns, allowed),
        "calm": _calm(chaos, submitted, ended, answered, again),
        "labels": _labels(columns, answered, answers) if answers else None,
        "sources": _sources(columns, classes, rows, submitted, ended, again),
        "damage": {link: dict(counts) for link, counts in damage.items()},
        "bad_frames": bad_frames,
        "nodes_ended": sum(row.get("back_after_seconds") is not None for row in rows),
    }


def _row(event: Event, submitted: Floats, ended: Floats, again: Mask) -> dict[str, Any]:
    fault, at = event.fault, event.at_seconds
    row: dict[str, Any] = {"at_seconds": at, "action": fault.action, "target": fault.target}
    if event.skipped:
        return {**row, "skipped": event.skipped}
    row |= {"lasted_seconds": event.lasted_seconds, "back_after_seconds": event.back_after_seconds}
    if fault.action == "corrupt":  # damage all the time has no moment to be repaired from
        return row
    held = (submitted < at) & (ended > at)
    repaired = ended[held & again] - at
    return row | {
        "outstanding": int(held.sum()),
        "needed_repair": len(repaired),
        "repaired_after_seconds": float(repaired.min()) if len(repaired) else None,
        "all_repaired_after_seconds": float(repaired.max()) if len(repaired) else None,
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per action: how many, after how many no sample needed a repair, and how long repairs and returns took."""
    found: dict[str, Any] = {}
    for action in dict.fromkeys(row["action"] for row in rows):
        mine = [row for row in rows if row["action"] == action]
        done = [row for row in mine if "skipped" not in row]
        found[action] = {
            "events": len(done),
            "skipped": len(mine) - len(done),
            "harmless": sum(row.get("needed_repair") == 0 for row in done),
            **{
                key: spread(np.array([row[key] for row in done if row.get(key) is not None]))
                for key in ("back_after_seconds", "repaired_after_seconds", "all_repaired_after_seconds")
            },
        }
    return found


def _series(kinds: npt.NDArray[Any], ended: Floats, seconds: float) -> dict[str, Any]:
    """Outcomes of each kind in each step of a second, or of several where there were too many."""
    step = max(1, math.ceil(seconds / MOST_STEPS))
    found: dict[str, Any] = {"step_seconds": step}
    for number, kind in enumerate(KINDS[1:], 1):
        steps = (ended[kinds == number] / step).astype(int).clip(0)
        found[kind] = np.bincount(steps, minlength=math.ceil(seconds / step)).tolist()
    return found


def _late(columns: Mapping[str, npt.NDArray[Any]], allowed: Floats) -> float | None:
    """How long after its deadline the last expired sample was told so; None of none."""
    expired = columns["kind"] == KINDS.index("expired")
    late = columns["latency"][expired] - allowed[expired]
    return float(late.max()) if len(late) else None


def _throughput(chaos: Chaos, ended: Floats, seconds: float) -> dict[str, Any]:
    """Results a second with faults and without, over all, and in each cycle that was completed."""
    if not chaos.calm_seconds:
        return {"calm_hz": None, "faults_hz": _rate(ended, 0.0, seconds), "ratio": None, "cycles": []}
    cycles = []
    calm = faults = calm_seconds = faults_seconds = 0.0
    for number in range(math.ceil(seconds / chaos.cycle_seconds)):
        start = number * chaos.cycle_seconds
        middle, end = min(start + chaos.calm_seconds, seconds), min(start + chaos.cycle_seconds, seconds)
        found = {"calm_hz": _rate(ended, start, middle), "faults_hz": _rate(ended, middle, end)}
        if end == start + chaos.cycle_seconds:
            cycles.append({**found, "ratio": found["faults_hz"] / found["calm_hz"] if found["calm_hz"] else None})
        calm, calm_seconds = calm + found["calm_hz"] * (middle - start), calm_seconds + middle - start
        faults, faults_seconds = faults + found["faults_hz"] * (end - middle), faults_seconds + end - middle
    calm_hz = calm / calm_seconds if calm_seconds else None
    faults_hz = faults / faults_seconds if faults_seconds else None
    ratio = faults_hz / calm_hz if calm_hz and faults_hz is not None else None
    return {"calm_hz": calm_hz, "faults_hz": faults_hz, "ratio": ratio, "cycles": cycles}


def _rate(ended: Floats, start: float, end: float) -> float:
    return float(((ended >= start) & (ended < end)).sum()) / (end - start) if end > start else 0.0


def _calm(chaos: Chaos, submitted: Floats, ended: Floats, answered: Mask, again: Mask) -> dict[str, int]:
    """Samples that came and went in the calm, and how many of them were sent again though nothing was wrong."""
    calm = np.array([chaos.is_calm(time) for time in submitted], dtype=np.bool_)
    ended_calm = np.array([chaos.is_calm(time) if math.isfinite(time) else False for time in ended], dtype=np.bool_)
    whole = answered & calm & ended_calm & (ended - submitted < chaos.calm_seconds)
    return {"submitted": int(calm.sum()), "results": int(whole.sum()), "sent_again": int((whole & again).sum())}


def _labels(columns: Mapping[str, npt.NDArray[Any]], answered: Mask, answers: Mapping[int, Answers]) -> dict[str, int]:
    found = {"compared": 0, "other_label": 0, "other_exit": 0}
    for source, right in answers.items():
        mine = answered & (columns["source"] == source)
        index = columns["index"][mine]
        found["compared"] += len(index)
        if right.joined is not None:
            found["other_label"] += int((columns["label"][mine] != right.joined[columns["missing"][mine], index]).sum())
            continue
        found["other_label"] += int((columns["label"][mine] != right.labels[index]).sum())
        found["other_exit"] += int((columns["stage"][mine] != right.stages[index]).sum())
    return found


def _sources(
    columns: Mapping[str, npt.NDArray[Any]],
    classes: Mapping[int, int],
    rows: Sequence[dict[str, Any]],
    submitted: Floats,
    ended: Floats,
    again: Mask,
) -> list[dict[str, Any]]:
    """Of each source, the highest class first."""
    open_then = np.zeros(len(submitted), dtype=np.bool_)
    for row in rows:
        if "skipped" in row or row["action"] == "corrupt":
            continue
        start = row["at_seconds"]
        end = start + max(row["lasted_seconds"] or 0.0, row["all_repaired_after_seconds"] or 0.0)
        open_then |= (submitted <= end) & (ended >= start)
    found = []
    for source in sorted(classes, key=lambda rank: (-classes[rank], rank)):
        mine, kinds = columns["source"] == source, columns["kind"]
        results = mine & (kinds == RESULT)
        counts = {kind: int((mine & (kinds == number)).sum()) for number, kind in enumerate(KINDS) if kind}
        found.append(
            {
                "rank": source,
                "class": classes[source],
                "submitted": int(mine.sum()),
                **counts,
                "lost": int((mine & (kinds == 0)).sum()),
                "needed_repair": int((results & again).sum()),
                "repair_ms": _mean_ms(columns["latency"][results & open_then]),
                "else_ms": _mean_ms(columns["latency"][results & ~open_then]),
            }
        )
    return found


def _mean_ms(seconds: Floats) -> float | None:
    return 1e3 * float(seconds.mean()) if len(seconds) else None

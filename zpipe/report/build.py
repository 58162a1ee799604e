"""From a run's log and its nodes' counters to the report, and what every report holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np

from zpipe.model import OperatingPoint, Promise
from zpipe.report.curves import latency_curve, point_rows
from zpipe.report.log import KINDS, RunLog
from zpipe.report.machine import machine

SCHEMA = "zpipe.report/1"
PERCENTILES = (50, 90, 95, 99)

#: What every report holds at least: {key: type}, a dict or a list of dicts within. None where nothing could be measured.
REPORT = {
    "schema": str,
    "topology": str,
    "bundle": str,
    "policy": str,
    "seed": int,
    "machine": {"cpu": str, "cores": int, "os": str, "python": str, "versions": {}},
    "shared_machine": bool,
    "simulated": bool,
    "generated_inputs": bool,
    "seconds": float,
    "counts": dict.fromkeys(("submitted", *KINDS[1:], "lost", "duplicate", "hung", "second_results", "resubmitted"), int),
    "strangers": int,
    "causes": {},
    "throughput_hz": float,
    "goodput_hz": float,
    "latency_ms": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), float | None),
    "queueing_ms": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), float | None),
    "latency_curve": {"shares": [float], "ms": [float], "exits": [list]},
    "accuracy": float | None,
    "mean_macs": float | None,
    "mean_macs_share": float | None,
    "bytes_per_sample": float | None,
    "raw_inputs_sent": int,
    "cpu_efficiency": float | None,
    "overhead_us_per_task": float | None,
    "sources": [
        {"rank": int, "name": str, "weight": float, "priority": int, "throughput_hz": float, "goodput_hz": float}
        | dict.fromkeys(("latency_ms", "queueing_ms"), dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), float | None))
        | {"accuracy": float | None, "accuracy_wanted": float | None, "promised": dict | None, "drift": dict | None}
        | dict.fromkeys(("submitted", *KINDS[1:], "lost", "duplicate", "hung"), int)
    ],
    "operating_points": [{"name": str, "macs_share": float, "calibration": float, "test": float}],
    "severities": [{"severity": int, "samples": int, "accuracy": float | None, "exit_shares": list}],
    "exits": [{"stage": int, "share": float, "accuracy": float | None}],
    "nodes": [
        {
            "rank": int,
            "stages": list,
            "executor": str | None,
            "tasks": int,
            "sent_bytes": int,
            "sent_inputs": int,
            "queue_p95": float,
            "queue_max": float,
        }
        | dict.fromkeys(("busy", "batch_mean"), float)
        | dict.fromkeys(("cpu_s", "stage_cpu_s", "rss_mb"), float | None)  # a simulated node is no process
    ],
    "links": [{}],
    "linked": [list],
    "series": [{"t": float}],
    "memory": [{}],
}


class Described(Protocol):
    """What a report says of a source beside what became of its samples."""

    @property
    def rank(self) -> int:
        """The node."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def weight(self) -> float:
        """Gamma of PA-MDI."""

    @property
    def priority(self) -> int:
        """The class of its tasks."""


def build_report(
    log: RunLog,
    *,
    topology: str,
    bundle: str,
    policy: str,
    seed: int,
    seconds: float,
    stage_macs: Sequence[int],
    nodes: list[dict[str, Any]],
    links: list[dict[str, Any]],
    series: list[dict[str, Any]],
    memory: list[dict[str, Any]],
    second_results: int,
    resubmitted: int,
    copies: Mapping[str, int] | None = None,
    shared_machine: bool,
    simulated: bool = False,
    generated_inputs: bool = False,
    severity: Sequence[int] = (),
    operating_points: Sequence[OperatingPoint] = (),
    linked: Sequence[tuple[int, int]] = (),
    sources: Sequence[Described] = (),
    promises: Mapping[int, tuple[float, Promise]] | None = None,
    drift: Mapping[int, dict[str, Any]] | None = None,
    parts: Sequence[float] = (),
) -> dict[str, Any]:
    """The report of one run, JSON values only, no NaN.

    Args:
        log: every sample of the run.
        topology, bundle, policy: names, as shown to people.
        seconds: from the first offer to the last outcome.
        stage_macs: multiply-adds of each stage, per sample.
        nodes: one dict per node: rank, stages, executor (what ran them, None if nothing did), busy, queue_p95, queue_max,
            batch_mean, tasks, cpu_s, stage_cpu_s, rss_mb, sent_bytes, sent_inputs.
        links: one dict per direction of a link, with the `bytes` of its tasks.
        series: the source's admission state over time.
        memory: every node's resident set over time.
        second_results, resubmitted: of this run, as the source counted them.
        copies: of students, in `counts` too: `copies` of samples that the sources sent, how many of these were `hedged` (sent
            since an earlier one was late), and `partial`, results without every part. None where there are no students.
        shared_machine: all nodes ran on this one, so throughput measures the sum of their computing.
        simulated: no node ran at all.
        generated_inputs: samples are made up and their labels are the network's own answers; accuracy is agreement with these.
        severity: of each evaluation sample; () = not known.
        operating_points: the bundle's, to compare the run with.
        linked: ranks of each link of the topology, lower first; `links` has those that were opened.
        sources: those of the run, each with a row of the report even where it offered nothing.
        promises: {source: (the accuracy it wants, what the bundle's table promises)}.
        drift: {source: what the drift test said of its answers}, where it could be done.
        parts: of students, the test accuracy of each set of parts (`zpipe.bundle.Join`). Their answers are joined, no stage's: the
            report then has `missing`, a row for each set of parts that was not in, and nothing of exits and multiply-adds.
    """
    columns = log.columns()
    answered = columns["kind"] == KINDS.index("result")
    stages = 0 if parts else len(stage_macs)
    exits = _exit_rows(columns, answered, stages)
    mean_macs = float(np.dot([row["share"] for row in exits], np.cumsum(stage_macs))) if exits and answered.any() else None
    tasks, cpu, stage_cpu = (sum(node[key] or 0 for node in nodes) for key in ("tasks", "cpu_s", "stage_cpu_s"))
    report = {
        "schema": SCHEMA,
        "topology": topology,
        "bundle": bundle,
        "policy": policy,
        "seed": seed,
        "machine": machine(),
        "shared_machine": shared_machine,
        "simulated": simulated,
        "generated_inputs": generated_inputs,
        "seconds": seconds,
        "counts": {**_counts(log, columns["kind"]), "second_results": second_results, "resubmitted": resubmitted, **(copies or {})},
        "strangers": log.strangers,
        "causes": dict(log.causes.most_common()),
        "throughput_hz": int(answered.sum()) / seconds if seconds else 0.0,
        "goodput_hz": int((answered & ~columns["late"]).sum()) / seconds if seconds else 0.0,
        "latency_ms": spread(1e3 * columns["latency"][answered]),
        "queueing_ms": spread(1e3 * columns["queued"][answered]),
        "latency_curve": latency_curve(columns, answered, stages),
        "accuracy": _accuracy(columns, answered),
        "mean_macs": mean_macs,
        "mean_macs_share": mean_macs / sum(stage_macs) if mean_macs is not None else None,
        "bytes_per_sample": sum(link["bytes"] for link in links) / int(answered.sum()) if answered.any() else None,
        "raw_inputs_sent": sum(node["sent_inputs"] for node in nodes),
        "cpu_efficiency": stage_cpu / cpu if cpu else None,
        "overhead_us_per_task": 1e6 * (cpu - stage_cpu) / tasks if tasks and cpu else None,
        "sources": [
            {**row, **_promise(promises, row["rank"]), "drift": (drift or {}).get(row["rank"])}
            for row in _source_rows(log, columns, answered, seconds, sources)
        ],
        "operating_points": point_rows(operating_points, sum(stage_macs)),
        "severities": _severity_rows(columns, answered, severity, stages),
        "exits": exits,
        **({"missing": _missing_rows(columns, answered, parts)} if parts else {}),
        "nodes": nodes,
        "links": links,
        "linked": linked,
        "series": series,
        "memory": memory,
    }
    return cast("dict[str, Any]", _json_values(report))


def _counts(log: RunLog, kinds: np.ndarray[Any, Any]) -> dict[str, int]:
    """What the log alone can say; the kinds and `lost` add up to `submitted`."""
    ended = {kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS) if kind}
    broken = {"duplicate": log.duplicate, "hung": log.hung}
    return {"submitted": len(log), **ended, "lost": int((kinds == 0).sum()), **broken}


def _source_rows(
    log: RunLog,
    columns: dict[str, np.ndarray[Any, Any]],
    answered: np.ndarray[Any, Any],
    seconds: float,
    sources: Sequence[Described],
) -> list[dict[str, Any]]:
    """What became of the samples of each source."""
    rows, broken, described = [], log.broken, {source.rank: source for source in sources}
    for rank in sorted({*np.unique(columns["source"]).tolist(), *described}):
        mine = columns["source"] == rank
        kinds, right = columns["kind"][mine], mine & answered
        source = described.get(rank)
        rows.append(
            {
                "rank": rank,
                "name": source.name if source else f"source-{rank}",
                "weight": source.weight if source else 1.0,
                "priority": source.priority if source else 0,
                "submitted": len(kinds),
                **{kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS) if kind},
                "lost": int((kinds == 0).sum()),
                **{name: found[rank] for name, found in broken.items()},
                "throughput_hz": int(right.sum()) / seconds if seconds else 0.0,
                "goodput_hz": int((right & ~columns["late"]).sum()) / seconds if seconds else 0.0,
                "accuracy": _accuracy(columns, right),
                "latency_ms": spread(1e3 * columns["latency"][right]),
                "queueing_ms": spread(1e3 * columns["queued"][right]),
            }
        )
    return rows


def _promise(promises: Mapping[int, tuple[float, Promise]] | None, rank: int) -> dict[str, Any]:
    """What a source wanted, and what the table said it would get on both splits."""
    if promises is None or rank not in promises:
        return {"accuracy_wanted": None, "promised": None}
    wanted, row = promises[rank]
    test = None if row.test is None else row.test.accuracy
    promised = {"calibration": row.calibration.accuracy, "test": test, "test_interval": row.test_interval}
    return {"accuracy_wanted": wanted, "promised": {**promised, "thresholds": row.thresholds}}


def _severity_rows(
    columns: dict[str, np.ndarray[Any, Any]], answered: np.ndarray[Any, Any], severity: Sequence[int], stages: int
) -> list[dict[str, Any]]:
    """The answers to each severity of distortion by themselves."""
    if not len(severity):
        return []
    levels = np.asarray(severity)[columns["index"]]
    rows = []
    for level in np.unique(levels[answered]).tolist():
        mine = answered & (levels == level)
        shares = np.bincount(columns["stage"][mine], minlength=stages)[:stages] / max(1, int(mine.sum()))
        accuracy = _accuracy(columns, mine)
        rows.append({"severity": level, "samples": int(mine.sum()), "accuracy": accuracy, "exit_shares": shares.tolist()})
    return rows


def _missing_rows(
    columns: dict[str, np.ndarray[Any, Any]], answered: np.ndarray[Any, Any], expected: Sequence[float]
) -> list[dict[str, Any]]:
    """The answers with each set of parts missing, the set of none first, then the most frequent."""
    rows, total = [], max(1, int(answered.sum()))
    for mask in {0, *np.unique(columns["missing"][answered]).tolist()}:
        mine = answered & (columns["missing"] == mask)
        missing = [part for part in range(len(expected).bit_length() - 1) if mask >> part & 1]
        count, accuracy = int(mine.sum()), _accuracy(columns, mine)
        promised = expected[len(expected) - 1 - mask]
        rows.append({"parts": missing, "samples": count, "share": count / total, "accuracy": accuracy, "expected": promised})
    return sorted(rows, key=lambda row: (bool(row["parts"]), -row["samples"], row["parts"]))


def _accuracy(columns: dict[str, np.ndarray[Any, Any]], rows: np.ndarray[Any, Any]) -> float | None:
    """Share of right labels among the answered samples that `rows` (a mask) selects; None of none."""
    right = (columns["label"] == columns["truth"])[rows]
    return float(right.mean()) if len(right) else None


def _exit_rows(columns: dict[str, np.ndarray[Any, Any]], answered: np.ndarray[Any, Any], stages: int) -> list[dict[str, Any]]:
    """Per stage the share of all answers that were given there, and how many of those are right."""
    at = [answered & (columns["stage"] == stage) for stage in range(stages)]
    total = max(1, int(answered.sum()))
    return [
        {"stage": stage, "share": int(rows.sum()) / total, "accuracy": _accuracy(columns, rows)} for stage, rows in enumerate(at)
    ]


def _json_values(value: Any) -> Any:
    """The same with NumPy's numbers as Python's, and None for infinity and NaN (an unbounded window or rate), which JSON lacks."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_schema(report: Any, wanted: Any = REPORT, at: str = "report") -> None:
    """Compare a report with REPORT; further keys are allowed.

    Raises:
        ValueError: names the first key that is absent or of another type, with what was found and expected.
    """
    if isinstance(wanted, dict | list):
        if not isinstance(report, type(wanted)):
            raise ValueError(f"{at}: found {report!r}, expected a {type(wanted).__name__}")
        items = wanted.items() if isinstance(wanted, dict) else [(i, wanted[0]) for i in range(len(report))]
        for key, inner in items:
            if isinstance(wanted, dict) and key not in report:
                raise ValueError(f"{at}.{key}: found no such key, expected one in every {SCHEMA}")
            check_schema(report[key], inner, f"{at}.{key}" if isinstance(wanted, dict) else f"{at}[{key}]")
        return
    allowed = wanted | int if wanted in (float, float | None) else wanted  # a whole number will do for a float, not for a bool
    if not isinstance(report, allowed) or (isinstance(report, bool) and wanted is not bool):
        raise ValueError(f"{at}: found {report!r}, expected {getattr(wanted, '__name__', wanted)}")
    if at == "report.schema" and report != SCHEMA:
        raise ValueError(f"{at}: found {report!r}, expected {SCHEMA!r}")


def spread(values: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Mean, percentiles and maximum; all None of nothing."""
    if not len(values):
        return {"mean": None, **{f"p{p}": None for p in PERCENTILES}, "max": None}
    found = np.percentile(values, PERCENTILES)
    return {
        "mean": float(values.mean()),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)},
        "max": float(values.max()),
    }

"""The run report: everything computed from sample ids, nothing assumed.

lost             ids without an outcome at the end
duplicate        ids whose outcome the caller saw more than once (the first one counts)
hung             ids still open 100 ms past their deadline, whatever became of them later
strangers        outcomes of numbers that were never offered
second_results   answers of another attempt, dropped at the source (allowed)
goodput          results that came before their deadline
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from zpipe.model import Outcome

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "zpipe.report/1"
#: What an outcome may be late by before its sample counts as hung (design section 7).
HUNG_SECONDS = 0.1
KINDS = ("", "result", "rejected", "expired", "failed")
PERCENTILES = (50, 90, 95, 99)
#: Different causes kept apart in a report; a cause that names a sample must not make it grow with the run.
MOST_CAUSES = 20

#: What every report holds at least: {key: type}, a dict or a list of dicts within. None where nothing could be measured.
REPORT = {
    "schema": str,
    "topology": str,
    "bundle": str,
    "policy": str,
    "seed": int,
    "machine": {"cpu": str, "cores": int, "os": str, "python": str, "versions": {}},
    "shared_machine": bool,
    "seconds": float,
    "counts": dict.fromkeys(("submitted", *KINDS[1:], "lost", "duplicate", "hung", "second_results", "resubmitted"), int),
    "strangers": int,
    "causes": {},
    "throughput_hz": float,
    "goodput_hz": float,
    "latency_ms": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), float | None),
    "queueing_ms": dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), float | None),
    "accuracy": float | None,
    "mean_macs": float | None,
    "mean_macs_share": float | None,
    "cpu_efficiency": float | None,
    "overhead_us_per_task": float | None,
    "exits": [{"stage": int, "share": float, "accuracy": float | None}],
    "nodes": [
        {"rank": int, "stages": list, "tasks": int, "sent_bytes": int, "queue_p95": float, "queue_max": float}
        | dict.fromkeys(("busy", "batch_mean", "cpu_s", "stage_cpu_s", "rss_mb"), float)
    ],
    "links": [{}],
    "series": [{"t": float}],
    "memory": [{}],
}


class RunLog:
    """What became of every sample of a run, by number. Columns of plain arrays: 67 bytes a sample, however long the run.

    Args:
        first: the number of the run's first sample; they follow each other from there.

    Attributes:
        causes: {why samples ended without a result: how many}; at most MOST_CAUSES, then "other causes".
        strangers: outcomes of numbers that were never offered.
    """

    def __init__(self, *, first: int = 0) -> None:
        self.first = first
        self._index, self._truth, self._kind = array("l"), array("l"), array("b")
        self._label, self._stage, self._attempts = array("l"), array("b"), array("l")
        self._confidence, self._latency, self._queued, self._deadline = array("d"), array("d"), array("d"), array("d")
        self._late = array("b")
        self._repeated: set[int] = set()  # both are empty in a run that keeps the promise, so a set costs nothing
        self._hung: set[int] = set()
        self.causes: Counter[str] = Counter()
        self.strangers = 0

    def __len__(self) -> int:
        return len(self._kind)

    @property
    def duplicate(self) -> int:
        """Samples whose outcome was seen more than once."""
        return len(self._repeated)

    @property
    def hung(self) -> int:
        """Samples seen open too long after their deadline."""
        return len(self._hung)

    def submitted(self, sample: int, index: int, truth: int, *, deadline: float) -> None:
        """A sample is about to be offered: `index` into the evaluation set, `truth` its label, `deadline` on the caller's clock."""
        assert sample == self.first + len(self), "samples of a run are numbered without gaps"
        self._index.append(index)
        self._truth.append(truth)
        self._deadline.append(deadline)
        for column in (self._kind, self._attempts, self._late):
            column.append(0)
        for column in (self._label, self._stage):
            column.append(-1)
        for values in (self._confidence, self._latency, self._queued):
            values.append(math.nan)

    def outcome(self, outcome: Outcome, *, now: float) -> None:
        """A sample ended; `now` on the clock of the deadlines."""
        row = outcome.sample - self.first
        if not 0 <= row < len(self):
            self.strangers += 1
            return
        if self._kind[row]:
            self._repeated.add(row)
            return
        self._kind[row] = KINDS.index(outcome.kind)
        self._attempts[row] = outcome.attempts
        self._latency[row] = outcome.latency_seconds
        self._late[row] = now > self._deadline[row]
        if now > self._deadline[row] + HUNG_SECONDS:
            self._hung.add(row)
        if outcome.kind != "result":
            cause = f"{outcome.kind}: {outcome.cause or 'no cause given'}"
            self.causes[cause if cause in self.causes or len(self.causes) < MOST_CAUSES else "other causes"] += 1
        if outcome.result is not None:
            result = outcome.result
            self._label[row], self._stage[row] = result.label, result.exit_stage
            self._confidence[row] = result.confidence
            self._queued[row] = outcome.latency_seconds - result.service_seconds

    def ended(self, *, now: float) -> None:
        """The run is over: what is open past its deadline now is hung."""
        for row, (kind, deadline) in enumerate(zip(self._kind, self._deadline, strict=True)):
            if not kind and now > deadline + HUNG_SECONDS:
                self._hung.add(row)

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """The log as arrays `[samples]`; `kind` indexes KINDS."""
        return {
            "index": np.array(self._index),
            "truth": np.array(self._truth),
            "kind": np.array(self._kind),
            "late": np.array(self._late, dtype=np.bool_),
            "label": np.array(self._label),
            "stage": np.array(self._stage),
            "attempts": np.array(self._attempts),
            "confidence": np.array(self._confidence),
            "latency": np.array(self._latency),
            "queued": np.array(self._queued),
        }

    def samples_jsonl(self, path: Path) -> None:
        """One JSON line per sample: its id, its index in the evaluation set, how it ended, what was answered and what is true."""
        with path.open("w", encoding="utf-8") as file:
            for row in range(len(self)):
                answered = KINDS[self._kind[row]] == "result"
                line = {
                    "id": self.first + row,
                    "index": self._index[row],
                    "outcome": KINDS[self._kind[row]] or None,
                    "label": self._label[row] if answered else None,
                    "truth": self._truth[row],
                    "confidence": self._confidence[row] if answered else None,
                    "exit_stage": self._stage[row] if answered else None,
                    "latency_ms": 1e3 * self._latency[row] if self._kind[row] else None,
                    "attempts": self._attempts[row],
                }
                file.write(json.dumps(line) + "\n")


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
    shared_machine: bool,
) -> dict[str, Any]:
    """The report of one run, JSON values only, no NaN.

    Args:
        log: every sample of the run.
        topology, bundle, policy: names, as shown to people.
        seconds: from the first offer to the last outcome.
        stage_macs: multiply-adds of each stage, per sample.
        nodes: one dict per node: rank, stages, busy, queue_p95, queue_max, batch_mean, tasks, cpu_s, stage_cpu_s, rss_mb,
            sent_bytes.
        links: one dict per link.
        series: the source's admission state over time.
        memory: every node's resident set over time.
        second_results, resubmitted: of this run, as the source counted them.
        shared_machine: all nodes ran on this one, so throughput measures the sum of their computing.
    """
    columns = log.columns()
    answered = columns["kind"] == KINDS.index("result")
    exits = _exit_rows(columns, answered, len(stage_macs))
    mean_macs = float(np.dot([row["share"] for row in exits], np.cumsum(stage_macs))) if answered.any() else None
    tasks, cpu, stage_cpu = (sum(node[key] for node in nodes) for key in ("tasks", "cpu_s", "stage_cpu_s"))
    report = {
        "schema": SCHEMA,
        "topology": topology,
        "bundle": bundle,
        "policy": policy,
        "seed": seed,
        "machine": machine(),
        "shared_machine": shared_machine,
        "seconds": seconds,
        "counts": {**_counts(log, columns["kind"]), "second_results": second_results, "resubmitted": resubmitted},
        "strangers": log.strangers,
        "causes": dict(log.causes.most_common()),
        "throughput_hz": int(answered.sum()) / seconds if seconds else 0.0,
        "goodput_hz": int((answered & ~columns["late"]).sum()) / seconds if seconds else 0.0,
        "latency_ms": spread(1e3 * columns["latency"][answered]),
        "queueing_ms": spread(1e3 * columns["queued"][answered]),
        "accuracy": _accuracy(columns, answered),
        "mean_macs": mean_macs,
        "mean_macs_share": mean_macs / sum(stage_macs) if mean_macs is not None else None,
        "cpu_efficiency": stage_cpu / cpu if cpu else None,
        "overhead_us_per_task": 1e6 * (cpu - stage_cpu) / tasks if tasks else None,
        "exits": exits,
        "nodes": nodes,
        "links": links,
        "series": series,
        "memory": memory,
    }
    return cast("dict[str, Any]", _json_values(report))


def _counts(log: RunLog, kinds: np.ndarray[Any, Any]) -> dict[str, int]:
    """What the log alone can say; the kinds and `lost` add up to `submitted`."""
    ended = {kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS) if kind}
    broken = {"duplicate": log.duplicate, "hung": log.hung}
    return {"submitted": len(log), **ended, "lost": int((kinds == 0).sum()), **broken}


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


def machine() -> dict[str, Any]:
    """What the figures were made on: no host name, no path."""
    versions = {package: version(package) for package in ("zpipe", "pyzmq", "onnxruntime", "numpy", "uvloop")}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "os": f"{platform.system()} {platform.release()}",
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions,
    }


def version(package: str) -> str | None:
    """The installed version of a distribution, None where it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.lower().startswith(("model name", "hardware")):
            return line.partition(":")[2].strip()
    return platform.machine()


# ---- for a terminal ----------------------------------------------------------------------------


def render(report: dict[str, Any]) -> RenderableType:
    """The report as a person reads it, for 80 columns and more."""
    from rich.console import Group
    from rich.text import Text

    parts = (_headline, _latency, _exits, _nodes, _footnotes)
    lines: list[RenderableType] = [item for part in parts for item in (Text(), part(report))]
    return Group(*lines)


def _number(value: float | None, form: str = ",.1f", *, none: str = "–") -> str:
    return none if value is None else format(value, form)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _headline(report: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    counts = report["counts"]
    text = Text()
    text.append(f"{report['topology']}", style="bold")
    text.append(f" · {report['bundle']} · {report['policy']}\n", style="dim")
    text.append(f"{_number(report['throughput_hz'], ',.0f')} results/s", style="bold green")
    text.append(f"   accuracy {_percent(report['accuracy'])}", style="bold")
    text.append(f"   {counts['submitted']:,} samples in {report['seconds']:.1f} s\n")
    ends = "   ".join(f"{kind} {counts[kind]:,}" for kind in KINDS[1:])
    text.append(f"{ends}\n")
    broken = counts["lost"] + counts["duplicate"] + counts["hung"] + report["strangers"]
    promise = f"lost {counts['lost']:,}  duplicate {counts['duplicate']:,}  hung {counts['hung']:,}"
    promise += f"  strangers {report['strangers']:,}" if report["strangers"] else ""
    text.append(promise, style="bold red" if broken else "green")
    for cause, times in list(report["causes"].items())[:3]:
        text.append(f"\n{times:,} {cause}", style="yellow")
    return text


def _latency(report: dict[str, Any]) -> RenderableType:
    stats = ("mean", *[f"p{p}" for p in PERCENTILES], "max")
    table = _table(("ms", "left"), *[(stat, "right") for stat in stats])
    for name, key in (("latency", "latency_ms"), ("queueing", "queueing_ms")):
        table.add_row(name, *[_number(report[key][stat]) for stat in stats])
    return table  # type: ignore[no-any-return]


def _table(*columns: tuple[str, str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def _exits(report: dict[str, Any]) -> RenderableType:
    table = _table(("exit", "right"), ("share", "right"), ("accuracy", "right"), ("", "left"))
    for row in report["exits"]:
        bar = "█" * round(30 * row["share"])
        table.add_row(str(row["stage"]), _percent(row["share"]), _percent(row["accuracy"]), f"[green]{bar}[/]")
    return table  # type: ignore[no-any-return]


def _nodes(report: dict[str, Any]) -> RenderableType:
    names = ("node", "stages", "busy", "batch", "queue p95", "max", "tasks", "CPU s", "RSS MB", "sent MB")
    table = _table(*[(name, "left" if name == "stages" else "right") for name in names])
    for row in report["nodes"]:
        table.add_row(
            str(row["rank"]),
            " ".join(map(str, row["stages"])),
            _percent(row["busy"], 0),
            _number(row["batch_mean"]),
            str(row["queue_p95"]),
            str(row["queue_max"]),
            f"{row['tasks']:,}",
            _number(row["cpu_s"], ".2f"),
            _number(row["rss_mb"], ".0f"),
            _number(row["sent_bytes"] / 1e6),
        )
    return table  # type: ignore[no-any-return]


def _footnotes(report: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    overhead = report["overhead_us_per_task"]
    lines = [
        f"multiply-adds per sample: {_percent(report['mean_macs_share'])} of the full network",
        f"CPU in stages {_percent(report['cpu_efficiency'])}, outside them {_number(overhead, '.0f')} µs a task",
    ]
    if report["shared_machine"] and len(report["nodes"]) > 1:
        cores = report["machine"]["cores"]
        lines.append(
            f"all nodes shared {cores} cores of this machine: throughput measures the sum of their computing, not a line of boards"
        )
    return Text("\n".join(lines), style="dim")

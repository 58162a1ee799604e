"""Runs many simulations on all cores, each distinct one once."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from zpipe.bench.suites.statistics import Interval, interval
from zpipe.sim import SimOptions, run_sim
from zpipe.topology import Topology

Progress = Callable[[str, float], None]

#: What of a report is averaged over seeds: {name: (report) -> value}.
_FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "rate_hz": lambda report: report["throughput_hz"],
    "answered": lambda report: report["counts"]["result"] / report["counts"]["submitted"],
    "accuracy": lambda report: report["accuracy"] or 0.0,
    "right": lambda report: (report["accuracy"] or 0.0) * report["counts"]["result"] / report["counts"]["submitted"],
    "latency_ms": lambda report: report["latency_ms"]["mean"] or 0.0,
    "latency_p95_ms": lambda report: report["latency_ms"]["p95"] or 0.0,
    "bytes_per_sample": lambda report: report["bytes_per_sample"] or 0.0,
    "macs_share": lambda report: report["mean_macs_share"] or 0.0,
    "raw_inputs": lambda report: report["raw_inputs_sent"] / max(1, report["counts"]["result"]),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table before it is run: its labels, and a run for each seed.

    Attributes:
        labels: what the row says of itself.
        options: of the runs; the seed is the suite's.
    """

    labels: dict[str, Any]
    options: SimOptions


def broken(report: dict[str, Any]) -> int:
    """Samples of a run that were lost, answered twice or left hanging; the promise is 0."""
    counts = report["counts"]
    return int(counts["lost"] + counts["duplicate"] + counts["hung"])


def key_of(options: SimOptions) -> str:
    """The same for two runs that cannot differ: whatever the topology is called."""
    plain = asdict(replace(options, topology=""))
    assert isinstance(options.topology, Topology)
    return json.dumps(plain, sort_keys=True, default=str) + replace(options.topology, name="").digest()


async def run_cases(cases: Sequence[Case], seeds: Sequence[int], *, progress: Progress) -> list[dict[str, Any]]:
    """A row for each case: its labels and the means over seeds of its figures."""
    wanted = {(key_of(case.options), seed): replace(case.options, seed=seed) for case in cases for seed in seeds}
    reports = await run_all(wanted, _figures, progress=progress)
    rows = []
    for case in cases:
        found = [reports[key_of(case.options), seed] for seed in seeds]
        exits = [sum(report["exits"][stage] for report in found) / len(found) for stage in range(len(found[0]["exits"]))]
        means = {name: _means(found, name) for name in _FIGURES}
        rows.append({**case.labels, **means, "exits": exits, "broken": sum(report["broken"] for report in found)})
    return rows


def _means(found: Sequence[dict[str, Any]], name: str) -> Interval:
    return interval([report[name] for report in found])


async def run_all(
    wanted: dict[Any, SimOptions], take: Callable[[SimOptions], dict[str, Any]], *, progress: Progress
) -> dict[Any, dict[str, Any]]:
    """{name: what `take` makes of its run}, on as many processes as there are cores."""
    loop = asyncio.get_running_loop()
    # Not fork: this process has threads, which a fork would leave behind half way.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=_cores(), mp_context=context)
    running = {name: loop.run_in_executor(pool, take, options) for name, options in wanted.items()}
    try:
        for done, future in enumerate(asyncio.as_completed(running.values()), 1):
            await future
            progress("simulating", done / len(running))
        return {name: future.result() for name, future in running.items()}
    finally:
        for future in running.values():
            future.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
        pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _figures(options: SimOptions) -> dict[str, Any]:
    """In a process of the pool: one run's figures, small enough to send back."""
    report, _ = run_sim(options)
    figures: dict[str, Any] = {name: float(take(report)) for name, take in _FIGURES.items()}
    return figures | {"exits": [row["share"] for row in report["exits"]], "broken": broken(report)}

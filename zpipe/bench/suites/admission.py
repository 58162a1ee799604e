"""Admission over time: how still the admitted rate stands, and what the constants of MDI-Exit do to it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from zpipe.bench.suites import settings
from zpipe.bench.suites.settings import Scale, Setting
from zpipe.bench.suites.statistics import interval
from zpipe.bench.suites.work import Progress, broken, run_all
from zpipe.sim import SimOptions, run_sim
from zpipe.topology import AdmissionSpec, Topology

TOPOLOGY = "mesh3"
STRATEGIES = ("mdi-rate", "aimd", "mdi-threshold")
#: Thresholds are looked at under arrivals of so much of what the mesh carries at its default point. Below 1: every sample has to
#: pass the source's stage 0, so above that rate its queue only grows, wherever the thresholds stand.
THRESHOLD_LOAD = 0.9
#: The first part of a run, in which rates find their level, is no steady state.
SETTLED = 1 / 3
#: The admitted rate is counted over windows of so many seconds.
STEP_SECONDS = 1.0
#: Values tried for each constant, its default among them; all others at their defaults.
SWEEP: dict[str, tuple[float, ...]] = {
    "T_O": (5, 25, 50, 90),
    "t_q1": (5, 10, 20),
    "t_q2": (20, 30, 50),
    "alpha": (0.15, 0.2, 0.4),
    "beta": (0.05, 0.1, 0.15),
    "zeta": (0.1, 0.2, 0.4),
}
DEFAULTS = {"T_O": 50, "t_q1": 10, "t_q2": 30, "alpha": 0.2, "beta": 0.1, "zeta": 0.2}


async def over_time(where: Setting, scale: Scale, *, load_hz: float, progress: Progress) -> list[dict[str, Any]]:
    """Per strategy the course of one run, and the mean over seeds of how far its admitted rate strays.

    Args:
        where: the setting.
        scale: seeds and seconds.
        load_hz: what the mesh carries at its default point.
        progress: is told.
    """
    topology = settings.topology_in(where, TOPOLOGY)
    wanted = {
        (name, seed): _options(_admitted(topology, name, {}), scale, seed=seed, load_hz=load_hz)
        for name in STRATEGIES
        for seed in scale.seeds
    }
    found = await run_all(wanted, course, progress=progress)
    rows = []
    for name in STRATEGIES:
        runs = [found[name, seed] for seed in scale.seeds]
        rows.append({"admission": name, **_means(runs), "series": runs[0]["series"]})
    return rows


async def sweep(where: Setting, scale: Scale, *, progress: Progress) -> list[dict[str, Any]]:
    """One constant at a time around the defaults, under `mdi-rate` with as many samples as it lets in."""
    topology = settings.topology_in(where, TOPOLOGY)
    wanted = {
        (name, value, seed): _options(_with(topology, name, value), scale, seed=seed)
        for name, values in SWEEP.items()
        for value in values
        for seed in scale.seeds
    }
    found = await run_all(wanted, course, progress=progress)
    return [
        {
            "constant": name,
            "value": value,
            "default": value == DEFAULTS[name],
            **_means([found[name, value, seed] for seed in scale.seeds]),
        }
        for name, values in SWEEP.items()
        for value in values
    ]


def _means(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures = ("rate_hz", "accuracy", "latency_ms", "latency_p95_ms", "admitted_hz", "admitted_std_hz", "queue_p95")
    return {name: interval([run[name] for run in runs]) for name in figures} | {"broken": sum(run["broken"] for run in runs)}


def _options(topology: Topology, scale: Scale, *, seed: int, load_hz: float = 0.0) -> SimOptions:
    """As many samples as admission lets in; `mdi-threshold`, which lets all in, gets them at a given rate."""
    given = topology.source.admission.name == "mdi-threshold"
    return SimOptions(
        topology,
        duration=scale.series_seconds,
        rate_hz=round(THRESHOLD_LOAD * load_hz, 1) if given else float("inf"),
        when_full="deadline" if given else None,
        deadline=settings.DEADLINE_SECONDS if given else None,
        seed=seed,
        device=settings.DEVICE,
    )


def _admitted(topology: Topology, name: str, options: dict[str, float]) -> Topology:
    sources = tuple(replace(source, admission=AdmissionSpec(name, options)) for source in topology.sources)
    return replace(topology, sources=sources)


def _with(topology: Topology, constant: str, value: float) -> Topology:
    if constant == "T_O":
        topology = replace(topology, policy=replace(topology.policy, output_threshold=int(value)))
        return _admitted(topology, "mdi-rate", {})
    return _admitted(topology, "mdi-rate", {constant: int(value) if constant.startswith("t_q") else value})


def course(options: SimOptions) -> dict[str, Any]:
    """In a process of the pool: a run's figures, and its series a row a second."""
    report, _ = run_sim(options)
    rows = per_second(report["series"])
    settled = [row["admitted_hz"] for row in rows if SETTLED * options.duration <= row["t"] <= options.duration]  # type: ignore[operator]
    return {
        "rate_hz": report["throughput_hz"],
        "accuracy": report["accuracy"] or 0.0,
        "latency_ms": report["latency_ms"]["mean"] or 0.0,
        "latency_p95_ms": report["latency_ms"]["p95"] or 0.0,
        "admitted_hz": statistics.fmean(settled),
        "admitted_std_hz": statistics.pstdev(settled),
        "queue_p95": float(report["nodes"][0]["queue_p95"]),
        "broken": broken(report),
        "series": rows,
    }


def per_second(series: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """A report's series as means over STEP_SECONDS, rates weighted by the time they stand for."""
    rows: list[dict[str, float]] = []
    group: list[tuple[float, dict[str, Any]]] = []
    start = 0.0
    for before, row in pairwise(series):
        group.append((row["t"] - before["t"], row))
        if row["t"] - start >= STEP_SECONDS:
            seconds = sum(weight for weight, _ in group)
            means = {
                key: sum(weight * each[key] for weight, each in group) / seconds
                for key in ("admitted_hz", "result_hz", "queue", "point")
            }
            rows.append({"t": round(row["t"], 2), **{key: round(value, 3) for key, value in means.items()}})
            group, start = [], row["t"]
    return rows

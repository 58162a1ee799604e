"""The simulations: accuracy and latency while boards fail or stall, and with more and more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zpipe.bench.suites.rocoin import plans
from zpipe.bench.suites.rocoin.plans import Plan
from zpipe.bench.suites.rocoin.settings import (
    DEAD,
    ROCOIN,
    STALLINGS,
    SYSTEMS,
    Bundles,
    Scale,
    System,
    system_named,
    topology_in,
)
from zpipe.bench.suites.statistics import Interval, interval
from zpipe.bench.suites.work import Progress, broken, key_of, run_all
from zpipe.report import KINDS, RunLog
from zpipe.sim import SimOptions, run_sim

Row = dict[str, Any]

#: Samples before the measured ones: rates are measured.
WARM_UP = 20
#: Of the sweep of sizes: enough boards fail for it to matter.
SIZES_PROBABILITY = 0.2
#: Students and the chain in the stalls and the sweep of sizes: the rest has no other replica to go to, or no pieces.
COMPARED = (*ROCOIN, "chain-replicas")

_RESULT = KINDS.index("result")


def _quantile(share: float) -> Callable[[Any], float]:
    return lambda values: float(np.quantile(values, share))


P99 = _quantile(0.99)
#: What is told of latencies: {name: (milliseconds) -> value}.
_LATENCIES: dict[str, Callable[[Any], float]] = {
    "latency_ms": lambda values: float(np.mean(values)),
    "latency_p50_ms": _quantile(0.5),
    "latency_p99_ms": P99,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A row before it is run: its labels, and for each seed the runs that are pooled."""

    labels: Row
    runs: Sequence[Sequence[SimOptions]]


def options(system: System, bundles: Bundles, *, boards: int, plan: Callable[[float], Plan], seed: int, samples: int) -> SimOptions:
    """Of a run.

    Args:
        system, bundles: what the boards do.
        boards: how many there are, used or not.
        plan: from the seconds that the run takes to what happens in it.
        seed: of arrivals and of the order of samples: the same for every system.
        samples: to offer.
    """
    topology = topology_in(system, bundles, boards=boards)
    faults = plans.within(plan(samples / bundles.rate_hz), topology)
    return SimOptions(topology, count=samples, rate_hz=bundles.rate_hz, warm_up=WARM_UP, seed=seed, faults=faults)


def outcomes(given: SimOptions) -> Row:
    """In a process of the pool: what became of the samples of one run."""
    return outcomes_of(*run_sim(given))


def outcomes_of(report: Mapping[str, Any], log: RunLog) -> Row:
    """The same of any run, simulated or live."""
    columns, counts = log.columns(), report["counts"]
    answered = columns["kind"] == _RESULT
    return {
        "submitted": counts["submitted"],
        "answered": int(answered.sum()),
        "right": int((answered & (columns["label"] == columns["truth"])).sum()),
        "latencies_ms": np.sort(1e3 * columns["latency"][answered]).round(4).tolist(),
        "tasks": sum(node["tasks"] for node in report["nodes"]),
        "busy_seconds": sum(node["busy"] for node in report["nodes"]) * report["seconds"],
        "sent_bytes": sum(node["sent_bytes"] for node in report["nodes"]),
        "resubmitted": counts["resubmitted"],
        "second_results": counts["second_results"],
        "broken": broken(dict(report)),
    }


# ---- what is run -------------------------------------------------------------------------------------


def failure_cases(bundles: Bundles, scale: Scale) -> list[Case]:
    """Every system at every probability, under each model."""
    boards = bundles.parts * scale.replicas

    def run(system: System, model: str, probability: float, seed: int, draw: int) -> SimOptions:
        def plan(seconds: float) -> Plan:
            drawn = {"probability": probability, "seed": seed, "draw": draw, "seconds": seconds}
            return plans.failures(model, boards=boards, **drawn)  # type: ignore[arg-type]

        return options(system, bundles, boards=boards, plan=plan, seed=seed, samples=scale.samples)

    return [
        Case(
            {"system": system.name, "model": model, "probability": probability, "boards": boards},
            [[run(system, model, probability, seed, draw) for draw in range(scale.draws)] for seed in scale.seeds],
        )
        for model in scale.models
        for system in SYSTEMS
        for probability in scale.probabilities
    ]


def stall_cases(bundles: Bundles, scale: Scale) -> list[Case]:
    """Students under each redundancy, and the chain with replicas, while a share of the boards stalls."""
    boards = bundles.parts * scale.stalling_replicas

    def run(name: str, kind: Any, seed: int) -> SimOptions:
        def plan(seconds: float) -> Plan:
            return plans.stalls(kind, boards=boards, seed=seed, seconds=seconds) if kind is not None else ()

        return options(system_named(name), bundles, boards=boards, plan=plan, seed=seed, samples=scale.stalling_samples)

    return [
        Case(
            {"system": name, "stalling": "none" if kind is None else kind.name, "boards": boards},
            [[run(name, kind, seed)] for seed in scale.seeds],
        )
        for kind in (None, *STALLINGS)
        for name in COMPARED
    ]


def size_cases(bundles: Bundles, scale: Scale) -> list[Case]:
    """More and more replicas of everything, some of them dead."""

    def run(name: str, boards: int, seed: int) -> SimOptions:
        def plan(seconds: float) -> Plan:
            return plans.failures(DEAD, boards=boards, probability=SIZES_PROBABILITY, seed=seed, draw=0, seconds=seconds)

        return options(system_named(name), bundles, boards=boards, plan=plan, seed=seed, samples=scale.size_samples)

    return [
        Case(
            {"system": name, "boards": boards, "probability": SIZES_PROBABILITY},
            [[run(name, boards, seed)] for seed in scale.seeds],
        )
        for boards in (bundles.parts * replicas for replicas in scale.sizes)
        for name in COMPARED
    ]


async def run_rows(cases: Sequence[Case], *, progress: Progress) -> list[Row]:
    """A row for each case: means over seeds. A run that several cases have is run once."""
    keyed = [[[(key_of(run), run) for run in runs] for runs in case.runs] for case in cases]
    wanted = {key: run for case in keyed for runs in case for key, run in runs}
    found = await run_all(wanted, outcomes, progress=progress)
    return [
        {**case.labels, **figures([pooled([found[key] for key, _ in runs]) for runs in keys])}
        for case, keys in zip(cases, keyed, strict=True)
    ]


# ---- what is made of it ------------------------------------------------------------------------------


def pooled(runs: Sequence[Row]) -> Row:
    """Several runs as if they were one."""
    whole: Row = {name: sum(run[name] for run in runs) for name in runs[0] if name != "latencies_ms"}
    return whole | {"latencies_ms": np.sort(np.concatenate([run["latencies_ms"] for run in runs]))}


def figures(of_seeds: Sequence[Row]) -> Row:
    """Means over seeds; None where no seed has an answer."""
    return {
        "right": interval([run["right"] / run["submitted"] for run in of_seeds]),
        "answered": interval([run["answered"] / run["submitted"] for run in of_seeds]),
        "right_of_answered": _mean(run["right"] / run["answered"] for run in of_seeds if run["answered"]),
        **{name: _mean(take(run["latencies_ms"]) for run in of_seeds if run["answered"]) for name, take in _LATENCIES.items()},
        "p99_ms_of_seeds": [P99(run["latencies_ms"]) if run["answered"] else None for run in of_seeds],
        "tasks": interval([run["tasks"] / run["submitted"] for run in of_seeds]),
        "busy_ms": interval([1e3 * run["busy_seconds"] / run["submitted"] for run in of_seeds]),
        "sent_kb": interval([1e-3 * run["sent_bytes"] / run["submitted"] for run in of_seeds]),
        "resubmitted": sum(run["resubmitted"] for run in of_seeds),
        "second_results": sum(run["second_results"] for run in of_seeds),
        "broken": sum(run["broken"] for run in of_seeds),
    }


def _mean(values: Iterable[float]) -> Interval | None:
    known = list(values)
    return interval(known) if known else None

"""Mean inference time of each source over load, under each policy: the simulations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpipe.bench.suites.pa_mdi.settings import CLOSED, COMPARED, OPEN, PA_MDI, Scale, Setting, topology_in
from zpipe.bench.suites.statistics import Interval, interval
from zpipe.bench.suites.work import Progress, broken, run_all
from zpipe.sim import SimOptions, run_sim
from zpipe.topology import Topology

Row = dict[str, Any]

#: Data points before the measured ones, for each source: rates are measured and queues find their level.
WARM_UP = 40


@dataclass(frozen=True, slots=True)
class Case:
    """One row before it is run.

    Attributes:
        where: the setting.
        sources: how many.
        kind: of load.
        load: share of the capacity, or data points of each source under way.
        policy: who decides.
    """

    where: Setting
    sources: int
    kind: str
    load: float
    policy: str

    @property
    def load_key(self) -> tuple[str, int, str, float]:
        """The same for cases that differ in nothing but the policy."""
        return (self.where.name, self.sources, self.kind, self.load)


def cases(where: Sequence[Setting], scale: Scale) -> list[Case]:
    """All of them, the policies of one load one after the other."""
    kinds = [*((OPEN, load) for load in scale.loads), *((CLOSED, float(window)) for window in scale.windows)]
    return [
        Case(setting, sources, kind, load, policy)
        for setting in where
        for sources in scale.sources
        for kind, load in kinds
        for policy in scale.policies
    ]


def options(case: Case, *, bundle: Path, seed: int, samples: int) -> SimOptions:
    """Of the run; the arrivals of one seed are the same for every policy."""
    topology = topology_in(case.where, case.policy, bundle=str(bundle), sources=case.sources)
    return SimOptions(
        topology,
        count=samples * case.sources,
        rate_hz=case.load * case.where.capacity_hz if case.kind == OPEN else None,
        window=int(case.load) if case.kind == CLOSED else 1,
        warm_up=WARM_UP * case.sources,
        seed=seed,
    )


async def swept(where: Sequence[Setting], scale: Scale, bundles: Mapping[str, Path], *, progress: Progress) -> list[Row]:
    """A row for each case: means over seeds, and what `pa-mdi` takes off each baseline at the same load."""
    listed = cases(where, scale)
    wanted = {
        (case, seed): options(case, bundle=bundles[case.where.name], seed=seed, samples=_samples(case.where, scale))
        for case in listed
        for seed in scale.seeds
    }
    found = await run_all(wanted, figures, progress=progress)
    runs = {case: [found[case, seed] for seed in scale.seeds] for case in listed}
    rows = [_row(case, runs[case]) for case in listed]
    urgent = {(case.load_key, case.policy): [run["latency_ms"][0] for run in runs[case]] for case in listed}
    for case, row in zip(listed, rows, strict=True):
        if case.policy == PA_MDI:
            row["reduction"] = {
                name: reduction(urgent[case.load_key, PA_MDI], urgent[case.load_key, name])
                for name in COMPARED
                if (case.load_key, name) in urgent
            }
    return rows


def _samples(where: Setting, scale: Scale) -> int:
    return round(where.samples * scale.lengthened)


def reduction(mine: Sequence[float], theirs: Sequence[float]) -> Interval:
    """By which fraction of theirs mine is less, over pairs of one seed."""
    return interval([1.0 - own / other for own, other in zip(mine, theirs, strict=True)])


def figures(options: SimOptions) -> Row:
    """In a process of the pool: one run's figures, the sources in the setting's order."""
    report, _ = run_sim(options)
    assert isinstance(options.topology, Topology)
    return figures_of(report, options.topology)


def figures_of(report: Mapping[str, Any], topology: Topology) -> Row:
    """What a report, simulated or live, says of each source; the time-sensitive one, which weighs most, first."""
    ranks = [spec.rank for spec in sorted(topology.sources, key=lambda spec: -spec.weight)]
    by_rank = {row["rank"]: row for row in report["sources"]}
    rows = [by_rank[rank] for rank in ranks]
    return {
        "ranks": ranks,
        "latency_ms": [row["latency_ms"]["mean"] for row in rows],
        "latency_p95_ms": [row["latency_ms"]["p95"] for row in rows],
        "rate_hz": report["throughput_hz"],
        "answered": [row["result"] / row["submitted"] for row in rows],
        "busy": [node["busy"] for node in report["nodes"]],
        "served": [[(node["busy_by_source"] or {}).get(str(rank), 0.0) for rank in ranks] for node in report["nodes"]],
        "bytes_per_sample": report["bytes_per_sample"] or 0.0,
        "resubmitted": report["counts"]["resubmitted"],
        "broken": broken(dict(report)),
    }


def _row(case: Case, runs: Sequence[Row]) -> Row:
    """Labels, and means over seeds."""
    nodes = len(case.where.devices)
    return {
        "setting": case.where.name,
        "sources": case.sources,
        "kind": case.kind,
        "load": case.load,
        "policy": case.policy,
        "ranks": runs[0]["ranks"],
        **{name: _means(runs, name) for name in ("latency_ms", "latency_p95_ms", "answered", "busy")},
        **{name: interval([run[name] for run in runs]) for name in ("rate_hz", "bytes_per_sample")},
        # Per node and source: the share of its time that the node computed for it.
        "served": [[_mean(run["served"][node][at] for run in runs) for at in range(case.sources)] for node in range(nodes)],
        "resubmitted": sum(run["resubmitted"] for run in runs),
        "broken": sum(run["broken"] for run in runs),
    }


def _means(runs: Sequence[Row], name: str) -> list[Interval]:
    """Of each place in lists of equal length."""
    return [interval(values) for values in zip(*(run[name] for run in runs), strict=True)]


def _mean(values: Iterable[float]) -> float:
    return interval(list(values))[0]

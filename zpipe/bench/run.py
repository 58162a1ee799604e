"""One measured run: start, warm up, drive, ask every node, report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from zpipe.bench.chaos import ChaosPlan
from zpipe.bench.lab.edge import EdgeLab
from zpipe.bench.measure import Run
from zpipe.bench.options import BenchOptions, Progress
from zpipe.bench.sources import FurtherSources
from zpipe.configure import compared
from zpipe.errors import ConfigError
from zpipe.load import SourceLoad, source_loads
from zpipe.report import RunLog
from zpipe.runtime.pipeline import Pipeline
from zpipe.topology import SourceSpec, Topology, load_topology, override

__all__ = ["BenchOptions", "compare_bench", "run_bench"]


async def run_bench(
    options: BenchOptions, *, progress: Progress, beside: Callable[[Pipeline], AbstractAsyncContextManager[object]] = nullcontext
) -> tuple[dict[str, Any], RunLog]:
    """Runs it.

    Args:
        options: what to run.
        progress: told how far it is.
        beside: gives what is to be there for as long as this process's source is, such as who tells Prometheus of it.

    Returns:
        The report (design section 7) and the log behind it.

    Raises:
        ConfigError: topology, bundle or an option is wrong, or a node runs with other files.
        ZpipeError: a node ended by itself.
    """
    topology = _topology(options)
    loads = source_loads(
        replace(topology, sources=_offering(topology, options)),
        arrivals=options.arrivals,
        rate_hz=options.rate_hz,
        rates=options.rates,
        seed=options.seed,
    )
    chaos = _chaos(options, topology)
    lab = None
    if options.lab:
        lab = EdgeLab(topology, cpu_shares=options.cpu_shares, faults=chaos is not None and chaos.needs_relays, seed=options.seed)
    choices: list[str] = []
    own = next(iter(loads))
    further = _further(options, {rank: load for rank, load in loads.items() if rank != own})
    pipeline = _pipeline(options, topology, lab, chaos, further, source=own, note=choices.append)
    run = Run(pipeline, options, chaos, loads, further, progress, beside)
    progress("starting", 0.0)
    try:
        with _inside(lab, pipeline.rank, progress):
            report, log = await run.run()
    finally:
        if chaos is not None:
            await chaos.aclose()
    # What ran the stages stands with each node; this is why, where the source was free to choose.
    return {**report, "executor_choice": choices[0] if choices else None}, log


async def compare_bench(options: BenchOptions, names: Sequence[str], *, progress: Progress) -> list[dict[str, Any]]:
    """The reports of the options' topology and of what it is compared with, run one after the other under the same load.

    Args:
        options: of all runs.
        names: of baselines or offload strategies.
        progress: told how far it is.

    Raises:
        ConfigError, ZpipeError: as `run_bench`; one of the names is none of a baseline or strategy, or the nodes are not started
            here.
    """
    for option, found in (("--attach", options.attach), ("--trace", options.trace)):
        if found:
            raise ConfigError(
                f"{option}: found it beside --compare, which starts every node several times; expected one of the two"
            )
    variants = compared(_topology(options), names, exit_point=options.exit_point, admission=options.admission)
    plain = replace(options, exit_point=None, admission=None, offload=None, redundancy=None)
    reports = []
    for topology in variants:
        report, _ = await run_bench(replace(plain, topology=topology), progress=partial(_told, progress, topology.name))
        reports.append(report)
    return reports


def _told(progress: Progress, name: str, line: str, done: float) -> None:
    progress(line if line == "starting" else f"{name}: {line}", done)


@contextmanager
def _inside(lab: EdgeLab | None, rank: int, progress: Progress) -> Iterator[None]:
    """In the lab this process is the source's board."""
    if lab is None:
        yield
        return
    with lab:
        if lab.removed:
            progress(f"removed what a lab that died had left over: {', '.join(lab.removed)}", 0.0)
        with lab.entered(rank):
            yield


def _topology(options: BenchOptions) -> Topology:
    topology = options.topology if isinstance(options.topology, Topology) else load_topology(options.topology)
    of_every_node = (
        options.max_batch,
        options.bundle,
        options.executor,
        options.device,
        options.accuracy,
        options.offload,
        options.redundancy,
    )
    if options.attach and any(value is not None for value in of_every_node):
        raise ConfigError(
            "--max-batch, --bundle, --executor, --device, --accuracy, --offload and --redundancy concern every node: with "
            "--attach, change all topology files instead"
        )
    if options.source is not None and not options.attach:
        raise ConfigError(f"--source: found {options.source!r} without --attach, expected none: a bench drives every source itself")
    if options.attach and options.lab:
        raise ConfigError("--lab starts every rank itself: found --attach, expected one of the two; drop the other")
    if options.cpu_shares and not options.lab:
        raise ConfigError("--cpu-share concerns the boards of the edge lab: found no --lab, expected it; add it")
    return override(
        topology,
        max_batch=options.max_batch,
        bundle=options.bundle,
        executor=options.executor,
        device=options.device,
        accuracy=options.accuracy,
        offload=options.offload,
        redundancy=options.redundancy,
    )


def _chaos(options: BenchOptions, topology: Topology) -> ChaosPlan | None:
    if options.chaos is None:
        return None
    if options.attach:
        raise ConfigError("--chaos kills and stops nodes it has started: found --attach, expected one of the two; drop the other")
    return ChaosPlan(options.chaos, topology, seed=options.seed, deadline=options.deadline)


def _offering(topology: Topology, options: BenchOptions) -> tuple[SourceSpec, ...]:
    """The sources that this bench drives, its own process's first."""
    if not options.attach:
        return topology.sources
    own = topology.source if options.source is None else topology.source_named(options.source, said="--source")
    for name in options.rates:
        other = topology.source_named(name, said="--source-rate")
        if other.rank != own.rank:
            raise ConfigError(
                f"--source-rate: found {other.label}, expected {own.label}: with --attach this program is that one alone; say it "
                f"where {other.label} runs"
            )
    return (own,)


def _further(options: BenchOptions, loads: Mapping[int, SourceLoad]) -> FurtherSources:
    shared = ("exit_point", "admission", "when_full", "deadline", "seed")
    of_every = {name: getattr(options, name) for name in shared}
    return FurtherSources(loads, of_every, severity=options.severity, window=options.window)


def _pipeline(
    options: BenchOptions,
    topology: Topology,
    lab: EdgeLab | None,
    chaos: ChaosPlan | None,
    further: FurtherSources,
    *,
    source: int,
    note: Callable[[str], None],
) -> Pipeline:
    make: Callable[..., Pipeline] = Pipeline.connect
    if not options.attach:
        sites, detours = chaos.where(lab) if chaos is not None else ((lab.sites if lab else None), None)
        make = partial(Pipeline.local, sites=sites, detours=detours, programs=further.programs)
    return make(
        topology,
        source=source,
        insecure=options.insecure,
        exit_point=options.exit_point,
        admission=options.admission,
        when_full=options.when_full,
        deadline=options.deadline,
        seed=options.seed,
        trace=options.trace,
        note=note,
    )

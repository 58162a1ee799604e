"""One measured run: start, warm up, drive, ask every node, report."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from zpipe.bench.chaos import ChaosPlan
from zpipe.bench.drive import Watch, closed_loop, open_loop
from zpipe.bench.lab.edge import EdgeLab
from zpipe.bundle import Evaluation
from zpipe.calibrate.drift import drift_rows
from zpipe.configure import compared, fixed_thresholds, promises
from zpipe.errors import ConfigError
from zpipe.load import POISSON, Order, Span, arrival_times, run_span, samples_of
from zpipe.model import Outcome
from zpipe.report import RunLog, build_report, grown, link_rows, node_rows
from zpipe.runtime.attending import all_attached, unless_crashed
from zpipe.runtime.pipeline import Pipeline
from zpipe.series import MOST_ROWS, AdmissionSeries
from zpipe.topology import Topology, load_topology, override

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]

#: How long past its deadline an outcome is waited for; what has none by then is lost.
PATIENCE_SECONDS = 1.0
#: How often every node is asked for its memory.
MEMORY_SECONDS = 1.0
#: Nodes get so long to say what they did; one that is silent by then is left out of the report.
STATS_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What one run does; `None` leaves the topology's value.

    Attributes:
        topology: file or name.
        attach: the other ranks run already.
        insecure: this process may listen at an address open to a network without keys.
        lab: start them in the edge lab: links as the topology says, slow boards.
        cpu_shares: {rank: share of one core} in the lab.
        count, duration: samples or seconds to offer, whichever ends first; the evaluation set once if neither is given.
        window: samples under way in the closed loop.
        rate_hz: None = closed loop; `inf` = as fast as admission lets in; else arrivals per second.
        arrivals: `poisson`, `constant`, or a file of arrival times.
        rates: {name or rank of a source: its arrivals per second}, instead of what the topology says; the others have that.
        exit_point: an operating point or `no-exit`.
        executor: of every node.
        device: profile of every node that names none, for the emulated executor.
        warm_up: samples before the measured ones.
        accuracy: that every source wants; the bundle's accuracy table has thresholds for it.
        severity: only evaluation samples of these severities.
        trace: a folder where every rank started here records its policy's rounds.
        chaos: faults while it runs (`zpipe.bench.chaos`).
    """

    topology: str | Topology
    attach: bool = False
    insecure: bool = False
    lab: bool = False
    cpu_shares: Mapping[int, float] = field(default_factory=dict)
    count: int | None = None
    duration: float | None = None
    window: int = 32
    rate_hz: float | None = None
    arrivals: str = POISSON
    rates: Mapping[str | int, float] = field(default_factory=dict)
    exit_point: str | None = None
    admission: str | None = None
    when_full: str | None = None
    max_batch: int | None = None
    bundle: str | None = None
    executor: str | None = None
    device: str | None = None
    deadline: float | None = None
    seed: int = 0
    warm_up: int = 200
    accuracy: float | None = None
    severity: tuple[int, ...] | None = None
    trace: Path | None = None
    chaos: str | None = None


async def run_bench(options: BenchOptions, *, progress: Progress) -> tuple[dict[str, Any], RunLog]:
    """Runs it.

    Returns:
        The report (design section 7) and the log behind it.

    Raises:
        ConfigError: topology, bundle or an option is wrong, or a node runs with other files.
        ZpipeError: a node ended by itself.
    """
    arrival_times(options.arrivals, options.rate_hz, seed=options.seed)  # refused before anything starts
    topology = _topology(options)
    chaos = _chaos(options, topology)
    lab = None
    if options.lab:
        lab = EdgeLab(topology, cpu_shares=options.cpu_shares, faults=chaos is not None and chaos.needs_relays, seed=options.seed)
    choices: list[str] = []
    pipeline = _pipeline(options, topology, lab, chaos, note=choices.append)
    progress("starting", 0.0)
    try:
        with _inside(lab, pipeline.rank, progress):
            report, log = await _run(pipeline, options, chaos, progress)
    finally:
        if chaos is not None:
            await chaos.aclose()
    # What ran the stages stands with each node; this is why, where the source was free to choose.
    return {**report, "executor_choice": choices[0] if choices else None}, log


async def compare_bench(options: BenchOptions, names: Sequence[str], *, progress: Progress) -> list[dict[str, Any]]:
    """The reports of the options' topology and of its baselines by name, run one after the other under the same load.

    Raises:
        ConfigError, ZpipeError: as `run_bench`; no baseline has one of the names, or the nodes are not started here.
    """
    for option, found in (("--attach", options.attach), ("--trace", options.trace)):
        if found:
            raise ConfigError(
                f"{option}: found it beside --compare, which starts every node several times; expected one of the two"
            )
    variants = compared(_topology(options), names, exit_point=options.exit_point, admission=options.admission)
    plain = replace(options, exit_point=None, admission=None)
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


async def _run(
    pipeline: Pipeline, options: BenchOptions, chaos: ChaosPlan | None, progress: Progress
) -> tuple[dict[str, Any], RunLog]:
    async with pipeline:
        if options.attach:
            await all_attached(pipeline, progress)
        evaluation = pipeline.bundle.evaluation()
        return await unless_crashed(pipeline, _measure(pipeline, evaluation, options, chaos, progress))


def _topology(options: BenchOptions) -> Topology:
    topology = options.topology if isinstance(options.topology, Topology) else load_topology(options.topology)
    of_every_node = (options.max_batch, options.bundle, options.executor, options.device, options.accuracy)
    if options.attach and any(value is not None for value in of_every_node):
        raise ConfigError(
            "--max-batch, --bundle, --executor, --device and --accuracy concern every node: with --attach, change all topology "
            "files instead"
        )
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
    )


def _chaos(options: BenchOptions, topology: Topology) -> ChaosPlan | None:
    if options.chaos is None:
        return None
    if options.attach:
        raise ConfigError("--chaos kills and stops nodes it has started: found --attach, expected one of the two; drop the other")
    return ChaosPlan(options.chaos, topology, seed=options.seed)


def _pipeline(
    options: BenchOptions, topology: Topology, lab: EdgeLab | None, chaos: ChaosPlan | None, *, note: Callable[[str], None]
) -> Pipeline:
    make: Callable[..., Pipeline] = Pipeline.connect
    if not options.attach:
        sites, detours = chaos.where(lab) if chaos is not None else ((lab.sites if lab else None), None)
        make = partial(Pipeline.local, sites=sites, detours=detours)
    return make(
        topology,
        insecure=options.insecure,
        exit_point=options.exit_point,
        admission=options.admission,
        when_full=options.when_full,
        deadline=options.deadline,
        seed=options.seed,
        trace=options.trace,
        note=note,
    )


async def _measure(
    pipeline: Pipeline, evaluation: Evaluation, options: BenchOptions, chaos: ChaosPlan | None, progress: Progress
) -> tuple[dict[str, Any], RunLog]:
    samples = samples_of(evaluation.severity.tolist(), options.severity)
    order = Order(samples, seed=options.seed)
    if options.warm_up:
        progress("warming up", 0.0)
        nothing = Watch(lambda index: None, lambda outcome, index: None)
        span = Span(samples=options.warm_up)
        patience = pipeline.deadline_seconds + PATIENCE_SECONDS
        await closed_loop(pipeline, evaluation.images, order, nothing, window=16, span=span, patience_seconds=patience)
        order = Order(samples, seed=options.seed)  # from the start again: the measured samples are whole rounds
    span = run_span(count=options.count, duration=options.duration, arrivals=options.arrivals, evaluation_samples=len(samples))
    log = RunLog(first=pipeline.next_sample, source=pipeline.rank)
    before = await pipeline.stats()
    started_at = time.monotonic()
    watch = _watch(pipeline, evaluation, log, span, progress, started_at)
    recorders = Recorders(pipeline, started_at)
    recording = [asyncio.ensure_future(recorders.record_series()), asyncio.ensure_future(recorders.record_memory())]
    director = None if chaos is None else chaos.start(pipeline, started_at)
    try:
        loading = asyncio.ensure_future(_load(pipeline, evaluation, order, watch, options, span))
        try:
            await asyncio.wait([loading, *([director.failed] if director else [])], return_when=asyncio.FIRST_COMPLETED)
            if director is not None and director.failed.done():
                director.failed.result()
            await loading
            seconds = time.monotonic() - started_at
            log.ended(now=time.monotonic())
            if director is not None:
                await director.finish()  # every node is to say what it did
        finally:
            loading.cancel()
            await asyncio.wait((loading,))
    finally:
        for recorder in recording:
            recorder.cancel()
        if director is not None:
            await director.abort()
    after = await _last_stats(pipeline)
    report = _report(pipeline, evaluation, options, log, before, after, recorders, seconds)
    if chaos is not None and director is not None:
        report["chaos"] = await chaos.report(
            pipeline, director, log, started_at=started_at, seconds=seconds, bad_frames=grown(before, after, "bad_frames")
        )
    return report, log


async def _last_stats(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Every node's counters. One that has just come back may not have heard the first question."""
    until = time.monotonic() + STATS_SECONDS
    while True:
        stats = await pipeline.stats(timeout=1.0)
        if len(stats) == len(pipeline.topology.nodes) or time.monotonic() > until:
            return stats


async def _load(pipeline: Pipeline, evaluation: Evaluation, order: Order, watch: Watch, options: BenchOptions, span: Span) -> None:
    patience = pipeline.deadline_seconds + PATIENCE_SECONDS
    times = arrival_times(options.arrivals, options.rate_hz, seed=options.seed)
    if times is not None:
        await open_loop(pipeline, evaluation.images, order, watch, times=span.of(times), patience_seconds=patience)
        return
    window = options.window if options.rate_hz is None else math.inf
    await closed_loop(pipeline, evaluation.images, order, watch, window=window, span=span, patience_seconds=patience)


def _watch(pipeline: Pipeline, evaluation: Evaluation, log: RunLog, span: Span, progress: Progress, started_at: float) -> Watch:
    """Feeds the log; shows progress a few times a second at most."""
    labels = evaluation.labels
    deadline = pipeline.deadline_seconds
    ended = 0
    shown_at = 0.0

    def on_offered(index: int) -> None:
        now = time.monotonic()
        log.submitted(pipeline.next_sample, index, int(labels[index]), deadline=now + deadline)

    def on_ended(outcome: Outcome, index: int) -> None:
        nonlocal ended, shown_at
        now = time.monotonic()
        log.outcome(outcome, now=now)
        ended += 1
        if now - shown_at > 0.25:
            shown_at = now
            progress("classifying", max(ended / span.samples, min(1.0, (now - started_at) / span.seconds)))

    return Watch(on_offered, on_ended)


class Recorders:
    """What is looked at again and again while a run goes on.

    Attributes:
        series: the source's admission state over time.
        memory: #: every node's resident set, by rank, None where one did not answer; about once a second, at most MOST_ROWS.
    """

    def __init__(self, pipeline: Pipeline, started_at: float) -> None:
        self.series = AdmissionSeries([pipeline.driver.policy])
        self.memory: list[dict[str, Any]] = []
        self._pipeline = pipeline
        self._started_at = started_at

    async def record_series(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self.series.record(time.monotonic() - self._started_at)
            await asyncio.sleep(self.series.step_seconds)

    async def record_memory(self) -> None:
        """Runs until it is cancelled."""
        first = self._pipeline.source.counts.results
        ranks = range(len(self._pipeline.topology.nodes))
        while True:
            nodes = await self._pipeline.stats()
            results = self._pipeline.source.counts.results - first
            known = {stats["rank"]: round(stats["rss_bytes"] / 1e6, 2) for stats in nodes}
            self.memory.append({"results": results, "rss_mb": [known.get(rank) for rank in ranks]})
            self.memory = self.memory if len(self.memory) < MOST_ROWS else self.memory[::2]
            await asyncio.sleep(MEMORY_SECONDS)


def _report(
    pipeline: Pipeline,
    evaluation: Evaluation,
    options: BenchOptions,
    log: RunLog,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    recorders: Recorders,
    seconds: float,
) -> dict[str, Any]:
    bundle, source = pipeline.bundle, pipeline.source
    # Local nodes talk over loopback, whatever the topology says of their links.
    limits = pipeline.topology.limits if options.lab or options.attach else None
    first = next(stats for stats in before if stats["rank"] == pipeline.rank)["delivery"]
    report = build_report(
        log,
        topology=pipeline.topology.name,
        bundle=bundle.name,
        policy=f"{options.exit_point or pipeline.topology.policy.exit_point}, {source.config.admission}",
        seed=options.seed,
        seconds=seconds,
        stage_macs=[spec.macs for spec in bundle.stages],
        nodes=node_rows(before, after, seconds),
        links=link_rows(before, after, seconds, limits=limits),
        series=recorders.series.rows,
        memory=recorders.memory,
        second_results=source.counts.second_results - first["second_results"],
        resubmitted=source.counts.resubmitted - first["resubmitted"],
        shared_machine=not options.attach and bundle.emulates is None,  # emulated boards hardly compute
        generated_inputs=bundle.evaluation_generated,
        severity=evaluation.severity.tolist(),
        operating_points=bundle.operating_points,
        linked=list(pipeline.topology.limits),
        promises=promises(pipeline.topology, bundle, exit_point=options.exit_point),
        drift=drift_rows(log, bundle, {pipeline.rank: fixed_thresholds(source.config)}),
    )
    # Else nobody could tell from a report that its links were slow on purpose.
    return {**report, "lab": options.lab, "cpu_shares": {str(rank): share for rank, share in sorted(options.cpu_shares.items())}}

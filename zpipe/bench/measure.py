"""The measured part of a run: warm up, drive every source, ask every node, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from zpipe.bench.chaos import ChaosPlan
from zpipe.bench.offering import Offering
from zpipe.bench.options import BenchOptions, Progress
from zpipe.bench.sources import LEAD_SECONDS, FurtherSources
from zpipe.calibrate.drift import drift_rows
from zpipe.configure import fixed_thresholds, promises, source_config
from zpipe.load import SourceLoad, run_span, shares
from zpipe.policy.delivery import SourceConfig
from zpipe.report import RunLog, build_report, copies_grown, grown, link_rows, merged, node_rows, policy_words, sources_grown
from zpipe.runtime.attending import all_attached, unless_crashed
from zpipe.runtime.pipeline import Pipeline
from zpipe.series import MOST_ROWS, merged_series

#: How often every node is asked for its memory.
MEMORY_SECONDS = 1.0
#: Nodes get so long to say what they did; one that is silent by then is left out of the report.
STATS_SECONDS = 6.0


class Run:
    """One run: its own source in this process, the further ones in theirs."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: BenchOptions,
        chaos: ChaosPlan | None,
        loads: Mapping[int, SourceLoad],
        further: FurtherSources,
        progress: Progress,
        beside: Callable[[Pipeline], AbstractAsyncContextManager[object]],
    ) -> None:
        self.pipeline = pipeline
        self.options = options
        self.chaos = chaos
        self.loads = loads
        self.further = further
        self.progress = progress
        self.beside = beside

    async def run(self) -> tuple[dict[str, Any], RunLog]:
        """Starts every rank, measures, ends them."""
        async with self.beside(self.pipeline), self.pipeline:  # around it: an address that is taken is told before nodes start
            if self.options.attach:
                await all_attached(self.pipeline, self.progress)
            return await unless_crashed(self.pipeline, self._measure())

    async def _measure(self) -> tuple[dict[str, Any], RunLog]:
        pipeline, options, chaos, further = self.pipeline, self.options, self.chaos, self.further
        own = pipeline.rank
        offering = Offering(pipeline, self.loads[own], severity=options.severity, window=options.window)
        if options.warm_up:
            self.progress("warming up", 0.0)
        parts = self._parts(options.warm_up, [SourceLoad()] * len(self.loads))
        await asyncio.gather(offering.warm_up(parts[own]), further.warm_up(pipeline.launcher, parts))
        span = run_span(
            count=options.count,
            duration=options.duration,
            arrivals=options.arrivals,
            evaluation_samples=len(offering.samples),
            loads=list(self.loads.values()),
        )
        parts = self._parts(span.samples, list(self.loads.values()))
        log = offering.begin()
        before = await pipeline.stats()
        started_at = time.monotonic() + (LEAD_SECONDS if further else 0.0)
        further.start(pipeline.launcher, started_at, parts, span.seconds)
        await asyncio.sleep(started_at - time.monotonic())
        memory = Memory(pipeline, before)
        recording = [asyncio.ensure_future(offering.record_series(started_at)), asyncio.ensure_future(memory.record())]
        director = None if chaos is None else chaos.start(pipeline, started_at)
        mine = offering.run(log, replace(span, samples=parts[own]), started_at=started_at, shown=self._shown)
        try:
            loading = asyncio.ensure_future(_both(mine, further.ended()))
            try:
                await asyncio.wait([loading, *([director.failed] if director else [])], return_when=asyncio.FIRST_COMPLETED)
                if director is not None and director.failed.done():
                    director.failed.result()
                await loading
                seconds = time.monotonic() - started_at
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
        logs, series = await further.reports(pipeline.launcher)
        log = merged([log, *logs])
        rows = merged_series([offering.series.rows, *series])
        report = self._report(log, offering.severity, before, after, rows, memory.rows, seconds)
        if chaos is not None and director is not None:
            report["chaos"] = await chaos.report(
                pipeline,
                director,
                log,
                configs=self._configs(),
                started_at=started_at,
                seconds=seconds,
                bad_frames=grown(before, after, "bad_frames"),
            )
        return report, log

    def _parts(self, samples: float, loads: Sequence[SourceLoad]) -> dict[int, float]:
        """{rank: how many of the samples fall to its source}."""
        return dict(zip(self.loads, shares(samples, loads), strict=True))

    def _shown(self, done: float) -> None:
        self.progress("classifying", min([done, *self.further.done.values()]))

    def _configs(self) -> dict[int, SourceConfig]:
        """How each source that offers samples here lets them in."""
        options, topology = self.options, self.pipeline.topology
        exit_point = options.exit_point or topology.policy.exit_point
        return {
            source.rank: source_config(
                source,
                self.pipeline.bundle,
                exit_point=exit_point,
                admission=options.admission,
                when_full=options.when_full,
                redundancy=topology.policy.redundancy,
            )
            for source in topology.sources
            if source.rank in self.loads
        }

    def _report(
        self,
        log: RunLog,
        severity: Sequence[int],
        before: list[dict[str, Any]],
        after: list[dict[str, Any]],
        series: list[dict[str, Any]],
        memory: list[dict[str, Any]],
        seconds: float,
    ) -> dict[str, Any]:
        options, topology, bundle = self.options, self.pipeline.topology, self.pipeline.bundle
        exit_point = options.exit_point or topology.policy.exit_point
        sources = [source for source in topology.sources if source.rank in self.loads]
        configs = self._configs()
        # Local nodes talk over loopback, whatever the topology says of their links.
        limits = topology.limits if options.lab or options.attach else None
        report = build_report(
            log,
            topology=topology.name,
            bundle=bundle.name,
            policy=policy_words(
                exit_point,
                dict.fromkeys(config.admission for config in configs.values()),
                topology.policy.redundancy if bundle.students else "",
            ),
            seed=options.seed,
            seconds=seconds,
            stage_macs=[spec.macs for spec in bundle.stages],
            nodes=node_rows(before, after, seconds),
            links=link_rows(before, after, seconds, limits=limits),
            series=series,
            memory=memory,
            second_results=sources_grown(before, after, "second_results", self.loads),
            resubmitted=sources_grown(before, after, "resubmitted", self.loads),
            copies=copies_grown(before, after, self.loads) if bundle.students else None,
            shared_machine=not options.attach and bundle.emulates is None,  # emulated boards hardly compute
            generated_inputs=bundle.evaluation_generated,
            severity=severity,
            operating_points=bundle.operating_points,
            linked=list(topology.limits),
            sources=sources,
            promises=promises(topology, bundle, exit_point=options.exit_point),
            drift=drift_rows(log, bundle, {rank: fixed_thresholds(config) for rank, config in configs.items()}),
            parts=() if bundle.join is None else bundle.join.test,
        )
        # Else nobody could tell from a report that its links were slow on purpose.
        shares_of_cores = {str(rank): share for rank, share in sorted(options.cpu_shares.items())}
        return {**report, "lab": options.lab, "cpu_shares": shares_of_cores}


async def _both(mine: Coroutine[Any, Any, None], theirs: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(mine, theirs)


async def _last_stats(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Every node's counters. One that has just come back may not have heard the first question."""
    until = time.monotonic() + STATS_SECONDS
    while True:
        stats = await pipeline.stats(timeout=1.0)
        if len(stats) == len(pipeline.topology.nodes) or time.monotonic() > until:
            return stats


class Memory:
    """Every node's resident set, looked at again and again while a run goes on.

    Attributes:
        rows: #: by rank, None where one did not answer; about once a second, at most MOST_ROWS.
    """

    def __init__(self, pipeline: Pipeline, before: list[dict[str, Any]]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._pipeline = pipeline
        self._results = _results(before)
        self._first = sum(self._results.values())

    async def record(self) -> None:
        """Runs until it is cancelled."""
        ranks = range(len(self._pipeline.topology.nodes))
        while True:
            nodes = await self._pipeline.stats()
            self._results |= _results(nodes)
            known = {stats["rank"]: round(stats["rss_bytes"] / 1e6, 2) for stats in nodes}
            results = sum(self._results.values()) - self._first
            self.rows.append({"results": results, "rss_mb": [known.get(rank) for rank in ranks]})
            self.rows = self.rows if len(self.rows) < MOST_ROWS else self.rows[::2]
            await asyncio.sleep(MEMORY_SECONDS)


def _results(nodes: list[dict[str, Any]]) -> dict[int, int]:
    """{rank of a source: its results since its start}."""
    return {stats["rank"]: stats["delivery"]["results"] for stats in nodes if "delivery" in stats}

"""What one source's program does in a bench, in the process of the bench or in one of its own: warm up, offer its load, log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from zpipe.bench.drive import Watch, closed_loop, open_loop
from zpipe.load import Order, SourceLoad, Span, samples_of
from zpipe.model import Outcome
from zpipe.report import RunLog
from zpipe.runtime.pipeline import Pipeline
from zpipe.series import AdmissionSeries

#: How long past its deadline an outcome is waited for; what has none by then is lost.
PATIENCE_SECONDS = 1.0
#: Samples under way while warming up.
WARM_UP_WINDOW = 16
#: Progress is told so often at most.
SHOWN_SECONDS = 0.25

#: Takes the fraction done, 0..1.
Shown = Callable[[float], None]


class Offering:
    """A source and the evaluation samples that it offers.

    Args:
        pipeline: started.
        load: when samples come.
        severity: only evaluation samples of these severities.
        window: samples under way in a closed loop.

    Attributes:
        severity: of each evaluation sample.
        samples: indices of those that are offered.
        series: its admission state over time.
    """

    def __init__(self, pipeline: Pipeline, load: SourceLoad, *, severity: Sequence[int] | None, window: int) -> None:
        evaluation = pipeline.bundle.evaluation()
        self.pipeline = pipeline
        self.load = load
        self.severity = evaluation.severity.tolist()
        self.samples = samples_of(self.severity, severity)
        self.series = AdmissionSeries([pipeline.driver.policy])
        self._images, self._labels = evaluation.images, evaluation.labels
        self._window = window
        self._patience = pipeline.deadline_seconds + PATIENCE_SECONDS

    async def warm_up(self, samples: float) -> None:
        """A closed loop; the measured samples then begin with whole rounds of the evaluation set again."""
        if samples:
            nothing = Watch(lambda index: None, lambda outcome, index: None)
            order = Order(self.samples, seed=self.load.seed)
            span, patience = Span(samples=samples), self._patience
            await closed_loop(
                self.pipeline, self._images, order, nothing, window=WARM_UP_WINDOW, span=span, patience_seconds=patience
            )

    def begin(self) -> RunLog:
        """The log of the samples that come next."""
        return RunLog(first=self.pipeline.next_sample, source=self.pipeline.rank)

    async def run(self, log: RunLog, span: Span, *, started_at: float, shown: Shown) -> None:
        """Offers the load; returns when every sample has its outcome, or none was to be expected any more.

        Args:
            log: as `begin` gave it.
            span: how long, and how many of this source.
            started_at: of the run, on this machine's monotonic clock.
            shown: told of progress.
        """
        watch, order, times = self._watch(log, span, shown, started_at), Order(self.samples, seed=self.load.seed), self.load.times()
        patience = self._patience
        if times is not None:
            await open_loop(self.pipeline, self._images, order, watch, times=span.of(times), patience_seconds=patience)
        else:
            window = self.load.window(self._window)
            await closed_loop(self.pipeline, self._images, order, watch, window=window, span=span, patience_seconds=patience)
        log.ended(now=time.monotonic())

    async def record_series(self, started_at: float) -> None:
        """Runs until it is cancelled."""
        while True:
            self.series.record(time.monotonic() - started_at)
            await asyncio.sleep(self.series.step_seconds)

    def _watch(self, log: RunLog, span: Span, shown: Shown, started_at: float) -> Watch:
        """Feeds the log; shows progress a few times a second at most."""
        pipeline, labels, deadline = self.pipeline, self._labels, self.pipeline.deadline_seconds
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
            if now - shown_at > SHOWN_SECONDS:
                shown_at = now
                shown(max(ended / span.samples if span.samples else 1.0, min(1.0, (now - started_at) / span.seconds)))

        return Watch(on_offered, on_ended)

"""What offers samples to a source: an open or a closed loop on the virtual clock, in the steps of `zpipe.bench.drive`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from zpipe.bundle import Bundle, parts_of
from zpipe.load import Order, Span
from zpipe.model import Outcome, Result
from zpipe.policy.delivery import Source
from zpipe.policy.messages import Resolve, SampleSubmitted
from zpipe.report import RunLog
from zpipe.sim.world import World
from zpipe.topology import SourceSpec

#: How long past its deadline an outcome is waited for; what has none by then is lost (as in `zpipe.bench.offering`).
PATIENCE_SECONDS = 1.0


class Load(Protocol):
    """Decides when a source's program offers the next sample."""

    def progress(self) -> None:
        """The source has decided, so outcomes may have come or places in the waiting room be free."""


class Offering:
    """One source's program: it numbers samples, submits them, and takes their outcomes.

    Args:
        world: where the source is.
        spec: the source.
        bundle: names of its classes.
        deadline_seconds: of each sample.
        labels: what is true of each evaluation sample.

    Attributes:
        log: what became of the present load's samples; None while warming up.
        load: what offers; set it, then `begin`.
        next_sample: the number the next sample gets.
        under_way: #: {sample: when it was offered}, those without an outcome that are still waited for.
    """

    def __init__(self, world: World, spec: SourceSpec, bundle: Bundle, *, deadline_seconds: float, labels: list[int]) -> None:
        source = world.nodes[spec.rank].source
        assert source is not None
        self.world = world
        self.spec = spec
        self.source: Source = source
        self.deadline_seconds = deadline_seconds
        self.log: RunLog | None = None
        self.load: Load | None = None
        self.next_sample = 0
        self.under_way: dict[int, float] = {}
        self._labels = labels
        self._classes = bundle.classes
        self._indices = world.indices[spec.rank]
        self._told = 0  #: submitted, and not yet known to the policy
        world.pumped[spec.rank] = self._pumped

    def begin(self, load: Load) -> None:
        """Lets a load offer, from now on."""
        self.load = load
        self._look_for_overdue(load)

    @property
    def room_left(self) -> int:
        """Samples offered now would find so many places in the waiting room."""
        return self.source.room_left - self._told

    def offer(self, index: int) -> None:
        """Submits a sample of the evaluation set."""
        world, spec, sample = self.world, self.spec, self.next_sample
        now = world.now
        deadline = now + self.deadline_seconds
        if self.log is not None:
            self.log.submitted(sample, index, self._labels[index], deadline=deadline)
        self.next_sample = sample + 1
        self._told += 1
        self.under_way[sample] = now
        self._indices.append(index)
        world.tell(spec.rank, SampleSubmitted(sample, deadline, now, spec.priority, spec.weight))

    def resolved(self, resolve: Resolve) -> None:
        """A sample ended."""
        self.under_way.pop(resolve.sample, None)
        if self.log is not None:
            self.log.outcome(self._outcome(resolve), now=self.world.now)

    def _pumped(self) -> None:
        self._told = 0
        if self.load is not None:
            self.load.progress()

    def _look_for_overdue(self, load: Load) -> None:
        """A sample without an outcome long past its deadline is not waited for: the log has it as lost."""
        if load is not self.load:
            return
        patience = self.deadline_seconds + PATIENCE_SECONDS
        for sample, since in list(self.under_way.items()):
            if since + patience > self.world.now:
                break
            del self.under_way[sample]
        load.progress()
        self.world.call_at(self.world.now + patience, lambda: self._look_for_overdue(load))

    def _outcome(self, resolve: Resolve) -> Outcome:
        row, result = resolve.row, None
        if row is not None:
            result = Result(
                resolve.sample,
                row.label,
                self._classes[row.label],
                row.confidence,
                row.exit_stage,
                resolve.latency_seconds,
                row.queued_seconds,
                row.service_seconds,
                resolve.attempts,
                parts_of(resolve.missing),
            )
        return Outcome(resolve.sample, resolve.kind, resolve.latency_seconds, resolve.attempts, result, resolve.cause)


@dataclass(slots=True)
class OpenLoop:
    """Offers a sample at each of the times, whatever becomes of them; calls `done` once all have ended.

    Attributes:
        times: seconds since this was made, rising.
    """

    offering: Offering
    order: Order
    times: Iterator[float]
    done: Callable[[], None]
    _started_at: float = field(init=False)
    _exhausted: bool = False

    def __post_init__(self) -> None:
        self._started_at = self.offering.world.now
        self._next()

    def _next(self) -> None:
        due = next(self.times, None)
        if due is None:
            self._exhausted = True
        else:
            self.offering.world.call_at(self._started_at + due, self._arrive)

    def _arrive(self) -> None:
        self.offering.offer(self.order.next())
        self._next()

    def progress(self) -> None:
        """Waits for the last outcome."""
        if self._exhausted and not self.offering.under_way:
            self.offering.load = None
            self.done()


@dataclass(slots=True)
class ClosedLoop:
    """Keeps `window` samples under way, each outcome letting in the next; calls `done` once all have ended.

    With an infinite window every place in the waiting room is used, so admission is the only limit.
    """

    offering: Offering
    order: Order
    span: Span
    window: float
    done: Callable[[], None]
    _started_at: float = field(init=False)
    _offered: int = 0

    def __post_init__(self) -> None:
        self._started_at = self.offering.world.now
        if self.span.seconds < math.inf:  # an idle source must notice that the time is over, too
            self.offering.world.call_at(self._started_at + self.span.seconds, self.progress)

    def progress(self) -> None:
        """Fills the window."""
        offering = self.offering
        if offering.load is not self or len(offering.under_way) >= self.window:
            return
        room_left = offering.room_left
        while not self.span.over(offered=self._offered, elapsed=offering.world.now - self._started_at):
            if len(offering.under_way) >= self.window or room_left <= 0:
                return
            self._offered += 1
            room_left -= 1
            offering.offer(self.order.next())
        if not offering.under_way:
            offering.load = None
            self.done()

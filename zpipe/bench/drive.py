"""Loads: how samples are offered to a pipeline; `zpipe.load` says which, and when."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy.typing as npt

from zpipe.load import Order, Span
from zpipe.model import Outcome

#: Arrivals that became due while the loop was busy are offered together; this bounds how many before others get a turn.
BURST = 64
#: Event loops sleep in milliseconds; asking for less is spinning. Arrivals are late by this at most.
TICK_SECONDS = 0.001
#: How often a load looks for samples that are overdue.
NUDGE_SECONDS = 0.25


class Target(Protocol):
    """What a load needs of a pipeline."""

    @property
    def has_room(self) -> bool:
        """Whether an offer would find a place to wait."""

    def offer(self, x: npt.NDArray[Any], done: Callable[[Outcome], None]) -> int:
        """Submits without waiting."""


@dataclass(slots=True)
class Watch:
    """Told of every sample as it is offered and as it ends.

    Attributes:
        offered: (index into the evaluation set) -> nothing; called before the pipeline sees the sample.
        ended: takes the outcome and the index.
    """

    offered: Callable[[int], None]
    ended: Callable[[Outcome, int], None]


class _Open:
    """The samples of a load that have no outcome yet, by the order they were offered in."""

    def __init__(self, watch: Watch, *, patience_seconds: float) -> None:
        self._watch = watch
        self._patience_seconds = patience_seconds
        self._since: dict[int, float] = {}
        self.offered = 0

    def __len__(self) -> int:
        return len(self._since)

    def offer(self, pipeline: Target, images: npt.NDArray[Any], index: int, then: Callable[[], None]) -> None:
        number = self.offered
        self.offered += 1
        self._since[number] = time.monotonic()
        self._watch.offered(index)
        pipeline.offer(images[index], partial(self._ended, number, index, then))

    def _ended(self, number: int, index: int, then: Callable[[], None], outcome: Outcome) -> None:
        self._since.pop(number, None)
        self._watch.ended(outcome, index)
        then()

    def give_up_overdue(self) -> None:
        """Waits no longer for samples that should have ended long ago: the log has them as lost, the load goes on."""
        overdue = time.monotonic() - self._patience_seconds
        for number, since in list(self._since.items()):
            if since > overdue:
                return
            del self._since[number]


async def closed_loop(
    pipeline: Target,
    images: npt.NDArray[Any],
    order: Order,
    watch: Watch,
    *,
    window: float,
    span: Span,
    patience_seconds: float,
) -> None:
    """Keeps `window` samples under way, each outcome letting in the next; returns when all have ended.

    With an infinite window every place in the waiting room is used: then the pipeline's own admission is the only limit.
    A sample without an outcome after `patience_seconds` (longer than its deadline) is not waited for.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    started_at = time.monotonic()
    samples = _Open(watch, patience_seconds=patience_seconds)
    filling = stopped = False

    def fill() -> None:
        nonlocal filling
        filling = False
        for _ in range(BURST):
            if stopped or len(samples) >= window:
                return
            if span.over(offered=samples.offered, elapsed=time.monotonic() - started_at):
                if not len(samples):
                    finished.set()
                return
            if not pipeline.has_room:
                return
            samples.offer(pipeline, images, order.next(), refill)
        refill()

    def refill() -> None:
        nonlocal filling
        if not filling:
            filling = True
            loop.call_soon(fill)

    async def nudge() -> None:
        """Room comes free by admission as well as by outcomes, and an overdue sample says nothing at all."""
        while True:
            await asyncio.sleep(NUDGE_SECONDS if window < math.inf else 2 * TICK_SECONDS)
            samples.give_up_overdue()
            refill()

    refill()
    nudger = loop.create_task(nudge())
    try:
        await finished.wait()
    finally:
        stopped = True
        nudger.cancel()


async def open_loop(
    pipeline: Target,
    images: npt.NDArray[Any],
    order: Order,
    watch: Watch,
    *,
    times: Iterable[float],
    patience_seconds: float,
) -> None:
    """Offers a sample at each of the times (seconds from now, rising), whatever becomes of them; returns when all have ended.

    A sample without an outcome after `patience_seconds` (longer than its deadline) is not waited for.
    """
    progress = asyncio.Event()
    samples = _Open(watch, patience_seconds=patience_seconds)
    started_at = time.monotonic()
    arrivals = iter(times)
    due = next(arrivals, None)
    while due is not None:
        elapsed = time.monotonic() - started_at
        for _ in range(BURST):
            if due is None or due > elapsed:
                break
            samples.offer(pipeline, images, order.next(), progress.set)
            due = next(arrivals, None)
        if due is not None:
            await asyncio.sleep(max(TICK_SECONDS, started_at + due - time.monotonic()))
    while len(samples):
        progress.clear()
        try:
            await asyncio.wait_for(progress.wait(), NUDGE_SECONDS)
        except asyncio.TimeoutError:
            samples.give_up_overdue()

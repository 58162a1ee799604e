"""Loads: how samples are offered to a pipeline, and for how long."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy.typing as npt

from zpipe.model import Outcome

#: Arrivals that became due while the loop was busy are offered together; this bounds how many before others get a turn.
BURST = 64
#: Event loops sleep in milliseconds; asking for less is spinning. Arrivals are late by this at most.
TICK_SECONDS = 0.001


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


@dataclass(frozen=True, slots=True)
class Span:
    """How long a load lasts: so many samples, or so many seconds, whichever ends first."""

    samples: float = math.inf
    seconds: float = math.inf

    def over(self, *, offered: int, started_at: float) -> bool:
        """Whether nothing more is to be offered."""
        return offered >= self.samples or time.monotonic() - started_at >= self.seconds


class Order:
    """The evaluation set again and again, each time in another seeded order."""

    def __init__(self, count: int, *, seed: int) -> None:
        self._rng = random.Random(seed)
        self._indices = list(range(count))
        self._left: list[int] = []

    def next(self) -> int:
        """The next index."""
        if not self._left:
            self._rng.shuffle(self._indices)
            self._left = self._indices[:]
        return self._left.pop()


async def closed_loop(pipeline: Target, images: npt.NDArray[Any], order: Order, watch: Watch, *, window: float, span: Span) -> None:
    """Keeps `window` samples under way, each outcome letting in the next; returns when all have ended.

    With an infinite window every place in the waiting room is used: then the pipeline's own admission is the only limit.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    started_at = time.monotonic()
    offered = ended = 0
    filling = stopped = False

    def fill() -> None:
        nonlocal offered, filling
        filling = False
        if stopped:
            return
        for _ in range(BURST):
            if offered - ended >= window or not pipeline.has_room:
                return
            if span.over(offered=offered, started_at=started_at):
                if offered == ended:
                    finished.set()
                return
            index = order.next()
            offered += 1
            watch.offered(index)
            pipeline.offer(images[index], partial(done, index))
        refill()

    def refill() -> None:
        nonlocal filling
        if not filling:
            filling = True
            loop.call_soon(fill)

    def done(index: int, outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        watch.ended(outcome, index)
        refill()

    async def nudge() -> None:
        """Room comes free by admission as well as by outcomes: with an infinite window nobody else would notice."""
        while not finished.is_set():
            await asyncio.sleep(0.002)
            refill()

    refill()
    nudger = loop.create_task(nudge()) if window == math.inf else None
    try:
        await finished.wait()
    finally:
        stopped = True
        if nudger is not None:
            nudger.cancel()


async def open_loop(
    pipeline: Target, images: npt.NDArray[Any], order: Order, watch: Watch, *, rate_hz: float, span: Span, seed: int
) -> None:
    """Offers samples as a Poisson process of `rate_hz`, whatever becomes of them; returns when all have ended."""
    rng = random.Random(seed)
    finished = asyncio.Event()
    offered = ended = 0
    over = False

    def done(index: int, outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        watch.ended(outcome, index)
        if over and ended == offered:
            finished.set()

    started_at = time.monotonic()
    due = started_at + rng.expovariate(rate_hz)
    while not span.over(offered=offered, started_at=started_at):
        now = time.monotonic()
        for _ in range(BURST):
            if due > now or offered >= span.samples:
                break
            index = order.next()
            offered += 1
            watch.offered(index)
            pipeline.offer(images[index], partial(done, index))
            due += rng.expovariate(rate_hz)
        await asyncio.sleep(max(TICK_SECONDS, due - time.monotonic()))
    over = True
    if ended < offered:
        await finished.wait()

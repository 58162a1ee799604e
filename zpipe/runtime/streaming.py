"""Many inputs in, their outcomes out as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import numpy.typing as npt

from zpipe.errors import ConfigError
from zpipe.model import Outcome

#: Submits an input and returns its number, or None where the outcome was told already.
Offer: TypeAlias = "Callable[[npt.NDArray[Any], Callable[[Outcome], None]], Awaitable[int | None]]"


async def outcomes_of(
    inputs: AsyncIterable[npt.NDArray[Any]] | Iterable[npt.NDArray[Any]],
    offer: Offer,
    give_up: Callable[[set[int]], None],
    *,
    ahead: int,
) -> AsyncGenerator[Outcome, None]:
    """Yields the outcome of every input; what `Pipeline.stream` promises.

    Args:
        inputs: an iterable, asynchronous or not.
        offer: called for each input in turn.
        give_up: given the numbers of the samples still open when the consumer stops, none where all came to their end.
        ahead: inputs taken at most beyond the outcomes yielded.

    Raises:
        ConfigError: `ahead` is below 1.
    """
    if ahead < 1:
        raise ConfigError(f"ahead: found {ahead}, expected at least 1")
    open_samples: set[int] = set()
    outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
    places = asyncio.Semaphore(ahead)
    taken = 0

    def ended(outcome: Outcome) -> None:
        open_samples.discard(outcome.sample)
        outcomes.put_nowait(outcome)

    async def feed() -> None:
        nonlocal taken
        try:
            async for x in _as_async(inputs):
                await places.acquire()
                taken += 1
                sample = await offer(x, ended)
                if sample is not None:
                    open_samples.add(sample)
        finally:
            outcomes.put_nowait(None)

    feeder = asyncio.get_running_loop().create_task(feed())
    given, fed = 0, False
    try:
        while not fed or given < taken:
            outcome = await outcomes.get()
            if outcome is None:
                fed = True
                if feeder.done() and not feeder.cancelled() and feeder.exception() is not None:
                    break
                continue
            given += 1
            places.release()
            yield outcome
        await feeder
    finally:
        feeder.cancel()
        give_up(open_samples)


async def _as_async(inputs: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    if isinstance(inputs, AsyncIterable):
        async for x in inputs:
            yield x
    else:
        for x in inputs:
            yield x

"""What stands between the caller's inputs and the policy: their shape, their deadline, and a queue for the waiting room."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import PipelineClosed, SampleRejected
from zpipe.model import TensorSpec

#: A longer deadline is none: what a float cannot hold adds to no clock.
_LONGEST_SECONDS = 1e300


class Intake:
    """Checks inputs and deadlines before anything is known of them.

    Args:
        spec: of one input.
        deadline_seconds: what a sample has when its call names none.
    """

    def __init__(self, spec: TensorSpec, deadline_seconds: float) -> None:
        self._expected = (spec.shape, np.dtype(spec.dtype))
        self._deadline_seconds = deadline_seconds

    def batch_of_one(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The input as `[1, *shape]`, copied: a camera may write its next frame into the caller's array.

        Raises:
            SampleRejected: it has the wrong shape or dtype.
        """
        if not isinstance(x, np.ndarray) or (x.shape, x.dtype) != self._expected:
            shape, dtype = self._expected
            found = f"{x.dtype.name} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
            raise SampleRejected(
                f"input: found {found}, expected {dtype.name} {list(shape)}; resize or convert it before submitting"
            )
        return np.array(x[None], order="C")

    def seconds(self, deadline: float | None) -> float:
        """What a sample has from now on.

        Raises:
            SampleRejected: `deadline` is no number.
        """
        if deadline is None:
            return self._deadline_seconds
        if not isinstance(deadline, (int, float)) or deadline != deadline:  # math.isnan breaks on the largest ints
            raise SampleRejected(f"deadline: found {deadline!r}, expected seconds from now")
        return math.inf if deadline > _LONGEST_SECONDS else max(deadline, -_LONGEST_SECONDS)


class Places:
    """Callers who wait, first come first served, until the source's waiting room has a place.

    Args:
        left: how many places there are in the waiting room, as the policy knows.
    """

    def __init__(self, left: Callable[[], int]) -> None:
        self._left = left
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._posted = 0  #: samples submitted, and not yet known to the policy
        self._closed = False

    @property
    def free(self) -> bool:
        """Whether a sample offered now would find a place."""
        return self._left() > self._posted

    def take(self) -> None:
        """A sample was submitted."""
        self._posted += 1

    async def wait(self, until: float) -> None:
        """Waits for a place, or until the monotonic time `until`: then the policy says expired.

        Raises:
            PipelineClosed: `close` was called.
        """
        while not self._closed and (not self.free or self._waiters):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await asyncio.wait_for(waiter, None if until == math.inf else max(0.0, until - time.monotonic()))
            except asyncio.TimeoutError:
                return
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            if self.free:
                return
        if self._closed:
            raise PipelineClosed("the pipeline is closed")

    def wake(self) -> None:
        """The policy knows of all samples now: as many of those who wait go on as there are places."""
        self._posted = 0
        places = self._left()
        while places > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                places -= 1

    def close(self) -> None:
        """Nobody waits any longer."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

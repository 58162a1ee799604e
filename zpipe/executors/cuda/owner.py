"""The one thread that makes every CUDA call, and the batches it has under way.

Messages are calls, made at once in the order they came, and jobs. A job is launched when it comes, before any earlier one is
waited for; so while the device computes one batch, the next one's input is copied to it and its work is queued behind.

How it waits, with jobs under way:

1. With as many as there are callers (`parallel`), no further job can come: it sleeps in the driver until the oldest goes on. Other
   callers, and whoever fetches rows, wait for that long; so it does not where rows lie on the device that somebody might fetch.
2. Otherwise a job may come at any moment, and nothing wakes a thread for a message and an event of the device alike. So it waits
   for messages, an eighth of the time the newest job has taken so far, and asks the events in between: a job is seen to be done
   at most that much late, and a long one costs some thousand looks of about 5 µs a second. A second thread that waits for events
   would make CUDA calls of its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from zpipe.errors import ExecutorLost, one_line
from zpipe.executors.cuda.driver import Event

log = logging.getLogger("zpipe.executor")

T = TypeVar("T")

#: Shortest and longest wait for a message with a job under way: below it a wait is not shorter, above it a look costs nothing.
_LEAST_SECONDS, _MOST_SECONDS = 2e-5, 5e-4

_SHARE_OF_TIME_TAKEN = 0.125


class Job(Protocol):
    """A batch, as its owner sees it; all but `answer` is called on the owner's thread.

    Attributes:
        awaits: what must be done before `go_on`; set by `launch` and `go_on`.
        launched_at: `time.perf_counter` of it.
    """

    awaits: Event | None
    launched_at: float

    def launch(self) -> bool:
        """Queues it; whether it is done already."""

    def go_on(self) -> bool:
        """After `awaits`: the next step; whether it was the last."""

    def abandon(self) -> None:
        """It failed: waits until the device does not touch its memory any more.

        Raises:
            ExecutorError: so it did not end well.
        """

    def answer(self, error: BaseException | None, finished_at: float, free_since: float) -> None:
        """It ended; `free_since`: when the job before it did."""


class Owner:
    """A thread for CUDA calls. It starts at the first `call` and ends by `stop`.

    Args:
        parallel: how many callers there are.
        may_sleep: whether nobody but them has anything to ask; called on the thread.

    Attributes:
        lost: why nothing works any more, None as long as it does.
    """

    def __init__(self, *, parallel: int, may_sleep: Callable[[], bool]) -> None:
        self.lost: str | None = None
        self._parallel = parallel
        self._may_sleep = may_sleep
        self._queue: queue.SimpleQueue[Job | Callable[[], object]] = queue.SimpleQueue()
        self._under_way: list[Job] = []  #: oldest first
        self._free_since = 0.0
        self._thread: threading.Thread | None = None
        self._ends: Callable[[], bool] | None = None

    @property
    def started(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def start(self) -> None:
        """Before the first message. Idempotent, but not thread-safe."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="zpipe-cuda", daemon=True)
            self._thread.start()

    def run(self, job: Job) -> None:
        """Starts a job; its `answer` is called in any case."""
        self._queue.put(job)

    def post(self, call: Callable[[], object]) -> None:
        """Makes a call that cannot fail and that nobody waits for. Safe in a destructor."""
        self._queue.put(call)

    def call(self, function: Callable[[], T]) -> T:
        """Makes a call and waits for it.

        Raises:
            ExecutorLost: nothing works any more.
            Exception: what it raised.
        """
        future: Future[T] = Future()
        self._queue.put(partial(self._make, function, future))
        try:
            return future.result()
        finally:
            del future  # see _make

    def stop(self, ends: Callable[[], bool]) -> None:
        """The thread ends when `ends` says so, asked at once and after every message."""
        self._queue.put(lambda: setattr(self, "_ends", ends))

    def join(self, seconds: float | None = None) -> None:
        """Waits for the thread's end, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    # ---- on the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while self._ends is None or not self._ends():
            try:
                self._turn()
            except BaseException as exc:  # noqa: PERF203 - a batch takes far longer
                # Of what was posted, which cannot fail: what is the device's and what is not is no longer known. Were the thread to
                # end, every caller would wait for ever.
                log.exception("the CUDA thread's own fault")
                said = one_line(" ".join(str(exc).split()))
                self._lose(ExecutorLost(f"CUDA thread: found {type(exc).__name__} ({said}), expected none; make a new executor"))

    def _turn(self) -> None:
        item = self._next()
        if callable(item):
            item()
        elif item is not None:
            self._launch(item)
        del item  # it may hold the last reference to rows that are given back by it, and an error's traceback this frame

    def _next(self) -> Job | Callable[[], object] | None:
        """The next message; None where there is none and a job went on, or may have."""
        if not self._under_way:
            return self._queue.get()
        with suppress(queue.Empty):
            return self._queue.get_nowait()
        if self._look():
            return None
        if len(self._under_way) >= self._parallel and self._may_sleep():
            self._sleep(self._under_way[0])
            return None
        taken = time.perf_counter() - self._under_way[-1].launched_at
        with suppress(queue.Empty):
            return self._queue.get(timeout=min(max(taken * _SHARE_OF_TIME_TAKEN, _LEAST_SECONDS), _MOST_SECONDS))
        return None

    def _make(self, function: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            if isinstance(exc, ExecutorLost):
                self._lose(exc)
            future.set_exception(exc)
        finally:
            # An exception knows the frames it came through: with the future in one of them neither would go before a collection,
            # nor what the function speaks of, rows on the device for one.
            del function, future

    def _launch(self, job: Job) -> None:
        if self.lost is not None:
            job.answer(ExecutorLost(self.lost), time.perf_counter(), self._free_since)
            return
        job.launched_at = time.perf_counter()
        try:
            done = job.launch()
        except BaseException as exc:
            self._fail(job, exc)
            return
        if done:
            self._answer(job)
        else:
            self._under_way.append(job)

    def _look(self) -> bool:
        """Lets every job go on that can; whether one could."""
        moved = False
        for job in tuple(self._under_way):
            if job in self._under_way:  # a lost device ends them all
                moved |= self._step(job)
        return moved

    def _step(self, job: Job) -> bool:
        try:
            if job.awaits is not None and not job.awaits.done():
                return False
            done = job.go_on()
        except BaseException as exc:
            self._under_way.remove(job)
            self._fail(job, exc)
            return True
        if done:
            self._under_way.remove(job)
            self._answer(job)
        return True

    def _sleep(self, job: Job) -> None:
        """Until the oldest can go on: it is the first to be done but where stages of very different lengths share the device."""
        try:
            if job.awaits is not None:
                job.awaits.synchronize()
        except BaseException as exc:
            self._under_way.remove(job)
            self._fail(job, exc)

    def _answer(self, job: Job) -> None:
        finished_at = time.perf_counter()
        job.answer(None, finished_at, self._free_since)
        self._free_since = finished_at

    def _fail(self, job: Job, error: BaseException) -> None:
        """Ends a job whose launch or step raised."""
        try:
            job.abandon()
        except BaseException as exc:
            # What it had queued did not end well either; where that means that the device is lost, it matters more.
            error = exc if isinstance(exc, ExecutorLost) else error
        if isinstance(error, ExecutorLost):
            self._lose(error)
        job.answer(error, time.perf_counter(), self._free_since)
        del error  # as in _make

    def _lose(self, error: ExecutorLost) -> None:
        """Ends all jobs under way: their device is gone, and so is what they wait for."""
        if self.lost is None:
            self.lost = str(error)
            log.debug("the device is lost: %s", error)
        ended, self._under_way = self._under_way, []
        for job in ended:
            job.answer(ExecutorLost(self.lost), time.perf_counter(), self._free_since)

"""The pipeline for programs without asyncio: the same calls, blocking, with the event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from zpipe.errors import PipelineClosed
from zpipe.model import Outcome, Result
from zpipe.runtime.pipeline import Done, Pipeline
from zpipe.topology import Topology

T = TypeVar("T")

#: What calls of other threads get to see that the pipeline is closed, before they are cancelled. They need a turn of the loop.
LAST_TURNS_SECONDS = 1.0


class SyncPipeline:
    """A Pipeline for synchronous code; may be used from several threads at once. Use as `with`.

        with zpipe.SyncPipeline.local("line4.yaml") as pipeline:
            result = pipeline.submit(image)

    Attributes:
        pipeline: the asynchronous one; only its loop's thread may touch it.
        bundle: as `Pipeline.bundle`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.bundle = pipeline.bundle
        self._entered = self._open = False
        self._handing = threading.Lock()  #: held while something is handed to the loop, which must not end meanwhile

    @classmethod
    def local(cls, topology: Topology | str | Path, **options: Any) -> SyncPipeline:
        """As `Pipeline.local`."""
        return cls(Pipeline.local(topology, **options))

    @classmethod
    def connect(cls, topology: Topology | str | Path, **options: Any) -> SyncPipeline:
        """As `Pipeline.connect`."""
        return cls(Pipeline.connect(topology, **options))

    def __enter__(self) -> SyncPipeline:  # noqa: PYI034 - Self is Python 3.11
        if self._entered:
            raise PipelineClosed("a pipeline is opened once; make another one")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="zpipe-loop", daemon=True)
        self._thread.start()
        self._entered = self._open = True
        entering: list[asyncio.Task[None]] = []
        try:
            self.call(self._enter(entering))
        except BaseException:
            # Ctrl-C interrupts the waiting alone: what is being started has to be given up, and to close what it opened.
            self._close(entering)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(self, x: npt.NDArray[Any], *, deadline: float | None = None) -> Result:
        """As `Pipeline.submit`, blocking this thread only."""
        return self.call(self.pipeline.submit(x, deadline=deadline))

    def submit_later(self, x: npt.NDArray[Any], *, deadline: float | None = None) -> Future[Result]:
        """As `submit`, but returns at once with a future to ask later. `x` is copied before."""
        return self._start(self.pipeline.submit(_copied(x), deadline=deadline))

    def offer(self, x: npt.NDArray[Any], done: Done, *, deadline: float | None = None) -> None:
        """As `Pipeline.offer`: submits without waiting, for a loop that must never block (`zpipe.examples.control_loop_sync`).

        `x` is copied, and its deadline counts, before this returns. `done` is called on the loop's thread: it must not block.

        Raises:
            SampleRejected: `x` has the wrong shape or dtype, or `deadline` is no number.
            PipelineClosed: the pipeline is not open.
        """
        hand_over = self.pipeline.prepared(x, done, deadline=deadline)
        with self._handing:
            self._check_open()
            self._loop.call_soon_threadsafe(hand_over)

    def stream(self, inputs: Iterable[npt.NDArray[Any]], *, deadline: float | None = None, ahead: int = 256) -> Iterator[Outcome]:
        """As `Pipeline.stream`. The iterable is read on the loop's thread, so it must not block for long."""
        outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()

        async def pull() -> None:
            try:
                async for outcome in self.pipeline.stream(inputs, deadline=deadline, ahead=ahead):
                    outcomes.put(outcome)
            finally:
                outcomes.put(None)

        pulling = self._start(pull())
        try:
            while (outcome := outcomes.get()) is not None:
                yield outcome
            pulling.result()
        finally:
            pulling.cancel()

    def ready(self) -> None:
        """As `Pipeline.ready`."""
        self.call(self.pipeline.ready())

    def stats(self) -> list[dict[str, Any]]:
        """As `Pipeline.stats`."""
        return self.call(self.pipeline.stats())

    def close(self) -> None:
        """As `Pipeline.aclose`; ends the thread too. May be called twice."""
        self._close([])

    def _close(self, entering: list[asyncio.Task[None]]) -> None:
        with self._handing:
            if not self._open:
                return
            self._open = False  # from here on nothing is handed to the loop, but this
            closing = asyncio.run_coroutine_threadsafe(self._end(entering), self._loop)
        try:
            closing.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _enter(self, entering: list[asyncio.Task[None]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        entering.append(task)
        await self.pipeline.__aenter__()

    async def _end(self, entering: list[asyncio.Task[None]]) -> None:
        for task in entering:
            task.cancel()
            await asyncio.wait((task,))
        await self.pipeline.aclose()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            _, late = await asyncio.wait(rest, timeout=LAST_TURNS_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _check_open(self) -> None:
        if not self._open:
            raise PipelineClosed("the pipeline is not open: use `with`")

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            with self._handing:
                self._check_open()
                return asyncio.run_coroutine_threadsafe(call, self._loop)
        except PipelineClosed:
            call.close()
            raise

    def call(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs something on the loop's thread, and waits for it: what belongs to the pipeline and is asynchronous.

        Raises:
            PipelineClosed: the pipeline is not open.
        """
        return self._start(call).result()


def _copied(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that the caller's next frame cannot change; what is no array is refused later, as it is."""
    return x.copy() if isinstance(x, np.ndarray) else x

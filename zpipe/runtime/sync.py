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

import numpy.typing as npt

from zpipe.errors import PipelineClosed
from zpipe.model import Outcome, Result
from zpipe.runtime.pipeline import Pipeline
from zpipe.topology import Topology

T = TypeVar("T")


class SyncPipeline:
    """A Pipeline for synchronous code; may be used from several threads at once. Use as `with`.

        with zpipe.SyncPipeline.local("line4.yaml") as pipeline:
            result = pipeline.submit(image)

    Attributes:
        pipeline: the asynchronous one; only its loop's thread may touch it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._entered = self._open = False

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
        try:
            self._call(self.pipeline.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(self, x: npt.NDArray[Any], *, deadline: float | None = None) -> Result:
        """As `Pipeline.submit`, blocking this thread only."""
        return self._call(self.pipeline.submit(x, deadline=deadline))

    def submit_later(self, x: npt.NDArray[Any], *, deadline: float | None = None) -> Future[Result]:
        """As `submit`, but returns at once with a future to ask later."""
        return self._start(self.pipeline.submit(x, deadline=deadline))

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

    def stats(self) -> list[dict[str, Any]]:
        """As `Pipeline.stats`."""
        return self._call(self.pipeline.stats())

    def close(self) -> None:
        """As `Pipeline.aclose`; ends the thread too. May be called twice."""
        if not self._open:
            return
        self._call(self.pipeline.aclose())
        self._open = False
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._open:
            call.close()
            raise PipelineClosed("the pipeline is not open: use `with`")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def _call(self, call: Coroutine[Any, Any, T]) -> T:
        return self._start(call).result()

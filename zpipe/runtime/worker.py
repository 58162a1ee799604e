"""The threads that run long stages, so that the event loop goes on reading and sending meanwhile."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from zpipe.errors import ExecutorLost, one_line
from zpipe.executors.base import StageExecutor, StageOutput, Waited, check_output, parallel
from zpipe.model import StageSpec
from zpipe.policy.messages import RunStage

log = logging.getLogger("zpipe.node")

#: Takes a finished batch: its command, and either the output or what it raised.
Ran = Callable[[RunStage, StageOutput | None, "Failure | None"], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """What a batch raised, in one line, and whether the executor is lost with it."""

    error: str
    executor_lost: bool


class Worker:
    """As many threads around an executor as it takes batches at once; each starts when a batch finds no free one.

    Args:
        executor: called from the threads, and from the loop by `run`.
        specs: of every stage of the bundle; what the executor gives is checked against them.
        loop: where `ran` is called.
        ran: takes each batch that `put` was given.

    Attributes:
        inline: whether `run` may be called on the loop.

    A batch that `ran` puts was there when the one before it ended; an executor that wants to know is told (`Waited`).
    """

    def __init__(self, executor: StageExecutor, specs: Sequence[StageSpec], loop: asyncio.AbstractEventLoop, ran: Ran) -> None:
        self.inline = executor.inline
        self._executor = executor
        self._waited = executor.waited if isinstance(executor, Waited) else None
        self._specs = specs
        self._loop = loop
        self._ran = ran
        self._queue: queue.SimpleQueue[tuple[RunStage, npt.NDArray[Any], bool] | None] = queue.SimpleQueue()
        self._parallel = parallel(executor)
        self._threads: list[threading.Thread] = []
        self._under_way = 0  #: batches put and not yet told of; counted on the loop
        self._telling = False  #: within `ran`, on the loop

    def run(self, command: RunStage, inputs: npt.NDArray[Any]) -> tuple[StageOutput | None, Failure | None]:
        """Runs a batch here and now. Whatever goes wrong becomes a Failure: one bad sample must not stop a node.

        That holds for SystemExit and its like, too: a Rust panic, for one, comes as a BaseException. KeyboardInterrupt passes
        where it may be a person's Ctrl-C: in the main thread.
        """
        try:
            output = self._executor.run(command.stage, inputs, command.gate)
            check_output(self._specs[command.stage], len(command.tasks), output, scores=command.gate.scores)
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            log.debug("stage %d: what happened:", command.stage, exc_info=True)  # for whoever writes an executor
            # Out of memory for one row alone, there is not enough for any other; a larger batch is tried row by row first.
            lost = isinstance(exc, ExecutorLost) or (isinstance(exc, MemoryError) and len(command.tasks) == 1)
            return None, Failure(_said(exc), lost)
        return output, None

    def put(self, command: RunStage, inputs: npt.NDArray[Any]) -> None:
        """Runs a batch on a thread."""
        self._under_way += 1
        if len(self._threads) < min(self._under_way, self._parallel):
            thread = threading.Thread(target=self._work, name="zpipe-stages", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put((command, inputs, self._telling))

    def close(self) -> None:
        """Waits for the batches under way, if any, and ends the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            command, inputs, waited = item
            if waited and self._waited is not None:
                self._waited()
            output, failure = self.run(command, inputs)
            try:
                self._loop.call_soon_threadsafe(self._tell, command, output, failure)
            except RuntimeError:  # the loop closed while the batch ran: nobody waits for it
                return

    def _tell(self, command: RunStage, output: StageOutput | None, failure: Failure | None) -> None:
        self._under_way -= 1
        self._telling = True
        try:
            self._ran(command, output, failure)
        finally:
            self._telling = False


def _said(exc: BaseException) -> str:
    """What was raised, in one line: it goes to logs, terminals and peers, and may be the work of a sample."""
    try:
        return one_line(" ".join(f"{type(exc).__name__}: {exc}".split()).rstrip(": "))
    except Exception:
        return f"{type(exc).__name__}, whose message cannot be read"

"""A node's executor at work: short batches on the event loop, longer ones on a worker thread."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeAlias, cast

import numpy.typing as npt

from zpipe.executors.base import Batch, StageExecutor, StageOutput
from zpipe.model import StageSpec
from zpipe.policy.messages import RunStage, StageCompleted, StageFailed
from zpipe.runtime.payloads import Payloads
from zpipe.runtime.worker import Failure, Worker

log = logging.getLogger("zpipe.node")

#: A batch predicted to be shorter runs on the event loop: handing it to a thread and back costs 50-100 microseconds of CPU.
INLINE_SECONDS = 0.001

#: Takes how a batch ended, and the CPU seconds it took.
Done: TypeAlias = Callable[[StageCompleted | StageFailed, float], None]


class Stages:
    """Runs the batches of one node and keeps their activations.

    Args:
        executor: closed with this.
        specs: of every stage of the bundle.
        payloads: gets the activations of rows that go on, and loses those of rows that leave.
        rank: of the node, for the log.
        done: called on the loop, once per batch until `close`.
    """

    def __init__(self, executor: StageExecutor, specs: Sequence[StageSpec], payloads: Payloads, *, rank: int, done: Done) -> None:
        self._executor = executor
        self._specs = specs
        self._payloads = payloads
        self._rank = rank
        self._done = done
        self._worker: Worker | None = None
        self._short: deque[tuple[RunStage, npt.NDArray[Any]]] = deque()  #: at most as many as run at once
        self._closed = False

    @property
    def spilled(self) -> int:
        """Batches whose rows found no room on the executor's device and were copied once more; 0 from one that has none."""
        return int(getattr(self._executor, "spilled", 0))

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Before the first `run`."""
        self._loop = loop
        self._worker = Worker(self._executor, self._specs, loop, self._ran)

    def run(self, command: RunStage, inputs: Batch, *, predicted_seconds: float) -> None:
        """Starts a batch, whose inputs are `[tasks, *shape]`, or keeps a short one for `run_short`."""
        assert self._worker is not None, "start() first"
        given = cast("npt.NDArray[Any]", inputs)  # resident rows are this executor's own: it takes them
        if predicted_seconds < INLINE_SECONDS and self._worker.inline:
            self._short.append((command, given))
        else:
            self._worker.put(command, given)

    def close(self) -> None:
        """Waits for the batch under way, if any; nothing is told any more."""
        self._closed = True
        if self._worker is not None:
            self._worker.close()
        self._executor.close()

    @property
    def has_short(self) -> bool:
        """Whether `run_short` has something to run."""
        return bool(self._short)

    def run_short(self) -> None:
        """Runs a short batch here and now, if there is one."""
        if self._short and not self._closed:
            assert self._worker is not None, "start() first"
            command, inputs = self._short.popleft()
            self._ran(command, *self._worker.run(command, inputs))

    def _ran(self, command: RunStage, output: StageOutput | None, failure: Failure | None) -> None:
        """A batch is done: keep what goes on, tell the policy."""
        if self._closed:
            return
        if output is None:
            assert failure is not None
            if failure.executor_lost:
                log.error("node %d lost its executor (%s) and runs no stage any more; start it again", self._rank, failure.error)
            else:
                samples = len(command.tasks)
                log.warning("node %d: stage %d failed on %d samples: %s", self._rank, command.stage, samples, failure.error)
            self._done(StageFailed(command.run, failure.error, failure.executor_lost), 0.0)
            return
        tokens = [
            self._keep(task.token, output.activation, index, exited=exited)
            for task, exited, index in zip(command.tasks, output.exited, _places(output), strict=True)
        ]
        event = StageCompleted(command.run, output.exited, output.labels, output.confidences, output.wall_seconds, tokens)
        if output.scores is not None and command.gate.scores:
            event.scores = [row.tobytes() for row in output.scores.astype("<f4", copy=False)]
        self._done(event, output.cpu_seconds)

    def _keep(self, token: int, activation: Batch | None, index: int, *, exited: bool) -> int:
        """Under which token the row's activation now waits; one that leaves needs none."""
        if exited or activation is None:
            self._payloads.drop(token)
        elif token:
            self._payloads.replace(token, activation, index)
        else:
            token = self._payloads.add(activation, index)
        return token


def _places(output: StageOutput) -> list[int]:
    """Per row of the batch, where its activation is: the executor gave all rows, or only those that stay."""
    if output.activation is None or len(output.activation) == len(output.exited):
        return list(range(len(output.exited)))
    staying = count()
    return [-1 if exited else next(staying) for exited in output.exited]

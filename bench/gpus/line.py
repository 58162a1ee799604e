"""Stages of a line under load in one process: every batch goes from stage to stage, and what is left of several is joined.

It is what a node that hosts all stages does with its executor, without the node: no policy, no queues of several sources, no wire.
As there, so many batches are given to the executor at once as it wants (`parallel`), later stages come first, rows that go on
wait as what the executor gave (`ResidentRows` stay on the device), and a batch is filled with the rows that wait for its stage.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpus.thresholds import gate_of
from zpipe.bundle import Bundle
from zpipe.executors.base import Batch, StageExecutor, StageOutput, parallel
from zpipe.model import GateSpec
from zpipe.runtime.payloads import join


@dataclass(frozen=True, slots=True)
class Flow:
    """What one run through all stages was.

    Attributes:
        seconds: from the first batch to the last answer.
        exits: samples that left at each stage.
        batches: of each stage.
    """

    seconds: float
    exits: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def rate_hz(self) -> float:
        """Samples per second."""
        return sum(self.exits) / self.seconds


def flow(
    executor: StageExecutor, bundle: Bundle, inputs: npt.NDArray[np.uint8], thresholds: Sequence[float], *, batch: int, batches: int
) -> Flow:
    """Runs so many batches of fresh inputs to their ends.

    Args:
        executor: hosts every stage, warm.
        bundle: whose.
        inputs: `[samples, *shape]`, taken in turn.
        thresholds: one per stage; the last is not looked at.
        batch: most rows at once.
        batches: fresh ones, all full.

    Raises:
        ExecutorError: it failed.
    """
    line = _Line(executor, bundle, inputs, tuple(thresholds), batch, batches)
    threads = [threading.Thread(target=line.work) for _ in range(parallel(executor))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if line.error is not None:
        raise line.error
    assert sum(line.exits) == batch * batches, line
    return Flow(seconds, tuple(line.exits), tuple(line.ran))


@dataclass(eq=False)
class _Line:
    """What the threads share; all but the runs themselves under `_changed`."""

    executor: StageExecutor
    bundle: Bundle
    inputs: npt.NDArray[np.uint8]
    thresholds: tuple[float, ...]
    batch: int
    fresh: int  #: batches that stage 0 has not begun
    error: BaseException | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _under_way: int = 0
    _next: int = 0  #: the input that comes next

    def __post_init__(self) -> None:
        stages = len(self.bundle.stages)
        self.waiting: list[deque[tuple[Batch, int]]] = [deque() for _ in range(stages)]
        self.exits, self.ran = [0] * stages, [0] * stages

    def work(self) -> None:
        """One of the executor's callers."""
        try:
            while (task := self._take()) is not None:
                stage, rows = task
                inputs: Any = join(rows)
                output = self.executor.run(stage, inputs, gate_of(self.bundle, stage, self.thresholds, len(rows)))
                self._give(stage, output.exited, output.activation)
        except BaseException as exc:
            with self._changed:
                self.error = exc
                self._changed.notify_all()

    def _take(self) -> tuple[int, list[tuple[Batch, int]]] | None:
        """The next batch: a full one of the latest stage that has one, else a fresh one, at the end what is left; None: over."""
        with self._changed:
            while self.error is None:
                stage = self._choice()
                if stage is not None:
                    self._under_way += 1
                    self.ran[stage] += 1
                    return stage, self._rows(stage)
                if not self._under_way:
                    return None
                self._changed.wait()
            return None

    def _choice(self) -> int | None:
        for stage in range(len(self.waiting) - 1, 0, -1):
            if len(self.waiting[stage]) >= self.batch:
                return stage
        if self.fresh:
            return 0
        # What is left is not full: the earliest first, whose rows may yet fill up a later one, and not while more may join them.
        earliest = next((stage for stage, rows in enumerate(self.waiting) if rows), None)
        return earliest if not self._under_way else None

    def _rows(self, stage: int) -> list[tuple[Batch, int]]:
        if stage == 0:
            self.fresh -= 1
            start = self._next
            self._next = (start + self.batch) % len(self.inputs)
            return [(self.inputs, (start + offset) % len(self.inputs)) for offset in range(self.batch)]
        waiting = self.waiting[stage]
        return [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]

    def _give(self, stage: int, exited: Sequence[bool], activation: Batch | None) -> None:
        """Counts what left and keeps what goes on; an activation may hold all rows or the survivors alone."""
        going = [row for row, left in enumerate(exited) if not left]
        with self._changed:
            self._under_way -= 1
            self.exits[stage] += len(exited) - len(going)
            if activation is not None:
                whole = len(activation) == len(exited)
                self.waiting[stage + 1].extend((activation, row if whole else place) for place, row in enumerate(going))
            self._changed.notify_all()


class Apart:
    """Every stage in an executor of its own, as at nodes that know nothing of each other: each activation crosses host memory."""

    inline = False

    def __init__(self, executors: Sequence[StageExecutor]) -> None:
        self._executors = {stage: executor for executor in executors for stage in executor.stages}
        self.stages = tuple(sorted(self._executors))
        self.parallel = sum(map(parallel, executors))

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return {stage: self._executors[stage].warm_up(max_batch)[stage] for stage in self.stages}

    def run(self, stage: int, inputs: Batch, gate: GateSpec) -> StageOutput:
        return self._executors[stage].run(stage, np.asarray(inputs), gate)

    def close(self) -> None:
        for executor in self._executors.values():
            executor.close()

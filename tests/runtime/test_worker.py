"""The worker: whatever an executor raises, the batch has an answer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy.typing as npt
import pytest

from tests.executors.tiny import STAGES, gate, images
from zpipe.errors import ExecutorLost
from zpipe.executors.base import StageOutput
from zpipe.model import GateSpec, SampleKey, Task
from zpipe.policy.messages import RunStage
from zpipe.runtime.worker import Failure, Worker


class Panic(BaseException):
    """As pyo3's PanicException is."""


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ValueError


class Raising:
    """An executor with one thing to say."""

    stages: tuple[int, ...] = (0,)
    inline = True

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return {}

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        raise self.raised

    def close(self) -> None:
        pass


def command(rows: int) -> RunStage:
    tasks = tuple(Task(SampleKey(0, 1, row), 1, 0, ()) for row in range(rows))
    return RunStage(run=1, stage=0, tasks=tasks, gate=gate(rows))


CASES = [
    (ValueError("poison \x1b[31m\n row"), "ValueError: poison \\x1b[31m row"),
    (SystemExit(3), "SystemExit: 3"),
    (asyncio.CancelledError(), "CancelledError"),
    (Panic("called unwrap() on None"), "Panic: called unwrap() on None"),
    (Unreadable(), "Unreadable, whose message cannot be read"),
    (ValueError("x" * 1000), ("ValueError: " + "x" * 1000)[:237] + "..."),
]


async def on_thread(raised: BaseException) -> Failure | None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Failure | None] = loop.create_future()
    worker = Worker(Raising(raised), STAGES, loop, lambda command, output, failure: ended.set_result(failure))
    worker.put(command(2), images(2))
    try:
        return await asyncio.wait_for(ended, 20)
    finally:
        worker.close()


def inline(raised: BaseException, rows: int = 2) -> Failure | None:
    loop = asyncio.new_event_loop()
    try:
        output, failure = Worker(Raising(raised), STAGES, loop, lambda *ran: None).run(command(rows), images(rows))
    finally:
        loop.close()
    assert output is None
    return failure


@pytest.mark.parametrize(("raised", "said"), CASES, ids=[type(raised).__name__ for raised, _ in CASES])
def test_whatever_is_raised_becomes_a_failure_of_one_line(raised: BaseException, said: str) -> None:
    assert inline(raised) == Failure(said, executor_lost=False)
    assert asyncio.run(on_thread(raised)) == Failure(said, executor_lost=False)


def test_ctrl_c_passes_in_the_main_thread_alone() -> None:
    with pytest.raises(KeyboardInterrupt):
        inline(KeyboardInterrupt())
    assert asyncio.run(on_thread(KeyboardInterrupt())) == Failure("KeyboardInterrupt", executor_lost=False)


@pytest.mark.parametrize(
    ("raised", "rows", "lost"), [(ExecutorLost("gone"), 2, True), (MemoryError(), 2, False), (MemoryError(), 1, True)]
)
def test_executor_is_lost_when_it_says_so_or_has_no_memory_for_one_row(raised: Exception, rows: int, lost: bool) -> None:
    failure = inline(raised, rows)
    assert failure is not None
    assert failure.executor_lost == lost


class Meeting:
    """An executor whose batches end only when two of them are there."""

    stages: tuple[int, ...] = (0,)
    inline = False
    parallel = 2

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=20)

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return {}

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        self.both.wait()
        raise ValueError("met")

    def close(self) -> None:
        pass


async def _four_batches() -> list[Failure | None]:
    loop = asyncio.get_running_loop()
    failures: list[Failure | None] = []
    ended = asyncio.Event()

    def ran(command: RunStage, output: StageOutput | None, failure: Failure | None) -> None:
        failures.append(failure)
        if len(failures) == 4:
            ended.set()

    worker = Worker(Meeting(), STAGES, loop, ran)
    try:
        for _ in range(4):
            worker.put(command(1), images(1))
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        worker.close()
    return failures


def test_an_executor_that_wants_two_batches_at_once_has_two_threads() -> None:
    assert asyncio.run(_four_batches()) == [Failure("ValueError: met", executor_lost=False)] * 4

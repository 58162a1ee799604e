"""What must hold of a whole executor over the real pycuda: cases as in pycuda_cases.py, run by test_pycuda.py.

python -m tests.executors.cuda.stages_cases NAME...
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from tests.executors.cuda.pycuda_cases import NOTHING, report, run_named
from tests.executors.cuda.pycuda_stages import PycudaStages
from tests.executors.tiny import gate, host_rows, images, stay, tiny_bundle
from zpipe.errors import ExecutorLost
from zpipe.executors import StageExecutor, make_executor

THRESHOLD = 0.45  #: about half of the images leave at stage 0

Answers = list[tuple[int, float]]


@contextmanager
def opened(stages: Sequence[int] = (0, 1, 2)) -> Iterator[PycudaStages]:
    with closing(PycudaStages(tiny_bundle(), stages)) as executor:
        yield executor


def answers(first: StageExecutor, second: StageExecutor, batch: Any) -> Answers:
    """(label, confidence) per row: stage 0 on one executor, those that stay through 1 and 2 on the other."""
    one = first.run(0, batch, gate(len(batch), THRESHOLD))
    found = list(zip(one.labels, one.confidences, strict=True))
    staying = [row for row, exited in enumerate(one.exited) if not exited]
    if staying:
        rows: Any = one.activation
        rows = rows if len(rows) == len(staying) else stay(host_rows(one), one.exited)
        two: Any = second.run(1, rows, gate(len(staying), stage=1)).activation
        last = second.run(2, two, gate(len(staying), stage=2, last=True))
        for row, label, confidence in zip(staying, last.labels, last.confidences, strict=True):
            found[row] = (label, confidence)
    return found


def expected(batch: Any) -> Answers:
    with closing(make_executor("onnx", tiny_bundle(), [0, 1, 2])) as onnx:
        return answers(onnx, onnx, batch)


def same(found: Answers, wanted: Answers) -> bool:
    return [label for label, _ in found] == [label for label, _ in wanted] and np.allclose(
        [confidence for _, confidence in found], [confidence for _, confidence in wanted], atol=1e-5
    )


def two_executors_share_one_device() -> None:
    """As two nodes in one process: each has its thread and its driver, and what one gives the other takes."""
    batches = [images(16)[place : place + 1 + place % 7] for place in range(9)]
    wanted = [expected(batch) for batch in batches]
    with opened([0]) as first, opened([1, 2]) as second, ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda at: answers(first, second, batches[at % 9]), range(200)))
        assert "mistakes 0, retained 2" in report()
    assert all(same(each, wanted[at % 9]) for at, each in enumerate(found))
    assert report() == NOTHING


def hundreds_of_batches_leave_nothing_behind() -> None:
    rng = random.Random(7)
    rows = images(16)
    wanted = expected(rows)
    with opened() as executor:
        executor.warm_up(16)
        alive = report()
        for _ in range(300):
            begin = rng.randrange(16)
            end = rng.randint(begin + 1, 16)
            assert same(answers(executor, executor, rows[begin:end]), wanted[begin:end])
        assert report() == alive
    assert report() == NOTHING


def device_that_is_lost_fails_every_batch_and_ends_quietly() -> None:
    """Run with STANDIN_FAIL: after some batches a kernel reads where nothing is."""
    rows = images(16)
    with opened() as executor, ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(answers, executor, executor, rows) for _ in range(100)]
        failed = [future.exception() for future in futures if future.exception() is not None]
        assert 0 < len(failed) < 100
        assert all(isinstance(exc, ExecutorLost) for exc in failed)
        with pytest.raises(ExecutorLost, match=r"GPU 0: found an illegal memory access .* restart the node"):
            executor.run(0, rows, gate(16))
    assert "retained 0" in report()


def stage_that_finds_no_room_leaves_none_taken() -> None:
    """Run with STANDIN_FAIL: the device is full in the midst of loading stage 1."""
    with opened() as executor:
        one: Any = executor.run(0, images(4), gate(4, 1.0))
        with pytest.raises(ExecutorLost, match=r"GPU 0: found out of memory .* host fewer stages"):
            executor.run(1, one.activation, gate(4, stage=1))
        del one
    assert report() == NOTHING


def interpreter_ends_without_a_close() -> None:
    globals()["kept"] = executor = PycudaStages(tiny_bundle(), [0, 1, 2])
    answers(executor, executor, images(4))


#: Case -> its settings of the stand-in.
CASES: dict[Callable[[], None], dict[str, str]] = {
    two_executors_share_one_device: {},
    hundreds_of_batches_leave_nothing_behind: {},
    device_that_is_lost_fails_every_batch_and_ends_quietly: {"STANDIN_FAIL": "execute:500:700"},
    stage_that_finds_no_room_leaves_none_taken: {"STANDIN_FAIL": "cuMemAlloc_v2:14:2,cuMemAlloc_v2:15:2"},
    interpreter_ends_without_a_close: {},
}

#: Which need the interpreter's end.
ALONE = (interpreter_ends_without_a_close,)

if __name__ == "__main__":
    run_named(CASES)

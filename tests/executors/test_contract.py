"""What every executor keeps, whichever library runs its stages: the registry's names, on three tiny stages.

A new executor joins by its line in `EXECUTORS`; one that needs a GPU gets the `gpu` mark here.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import gate, images, tiny_bundle
from zpipe.errors import ExecutorError
from zpipe.executors import EXECUTORS, StageExecutor, make_executor
from zpipe.model import NEVER_EXIT


@pytest.fixture(params=sorted(EXECUTORS))
def name(request: pytest.FixtureRequest) -> str:
    """The executor's name in a topology."""
    return str(request.param)


@pytest.fixture
def executor(name: str) -> Iterator[StageExecutor]:
    made = make_executor(name, tiny_bundle(), [2, 0, 1])
    yield made
    made.close()


def test_stages_are_sorted(executor: StageExecutor) -> None:
    assert executor.stages == (0, 1, 2)


def test_chain_gives_activations_until_the_last_stage_answers(executor: StageExecutor) -> None:
    first = executor.run(0, images(4), gate(4))
    assert first.activation is not None
    assert first.activation.shape == (4, 4, 4, 4)
    assert first.activation.dtype.name == "float32"
    second = executor.run(1, first.activation, gate(4))
    assert second.activation is not None
    last = executor.run(2, second.activation, gate(4, last=True))
    assert last.activation is None
    assert last.exited == [True] * 4


def test_rows_of_a_batch_equal_the_same_rows_alone(executor: StageExecutor) -> None:
    batch = images(16)
    together = executor.run(0, batch, gate(16))
    assert together.activation is not None
    assert len(set(together.labels)) > 1
    assert len(set(together.exited)) == 2
    for i in range(16):
        alone = executor.run(0, batch[i : i + 1], gate(1))
        assert alone.activation is not None
        np.testing.assert_allclose(together.activation[i], alone.activation[0], atol=1e-5)
        assert (together.exited[i], together.labels[i]) == (alone.exited[0], alone.labels[0])
        assert together.confidences[i] == pytest.approx(alone.confidences[0], abs=1e-5)


def test_activation_holds_all_rows_in_order_though_some_exit(executor: StageExecutor) -> None:
    batch = images(16)
    some, none = executor.run(0, batch, gate(16)), executor.run(0, batch, gate(16, NEVER_EXIT))
    assert any(some.exited)
    assert not any(none.exited)
    np.testing.assert_array_equal(some.activation, none.activation)


def test_stage_without_an_exit_head_lets_nobody_leave(executor: StageExecutor) -> None:
    output = executor.run(1, np.ones((3, 4, 4, 4), np.float32), gate(3, 0.0))
    assert (output.exited, output.labels, output.confidences) == ([False] * 3, [-1] * 3, [0.0] * 3)
    with pytest.raises(ExecutorError, match="found no exit head"):
        executor.run(1, np.ones((3, 4, 4, 4), np.float32), gate(3, last=True))


def test_earlier_output_survives_the_next_run(executor: StageExecutor) -> None:
    output = executor.run(0, images(2), gate(2))
    assert output.activation is not None
    kept = output.activation.copy()
    executor.run(0, 255 - images(2), gate(2))
    np.testing.assert_array_equal(output.activation, kept)


def test_read_only_and_strided_inputs_are_taken(executor: StageExecutor) -> None:
    batch = images(2)
    expected = executor.run(0, batch, gate(2))
    frame = np.frombuffer(batch.tobytes(), np.uint8).reshape(batch.shape)
    channels_last = np.ascontiguousarray(batch.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for same in (frame, channels_last):
        np.testing.assert_array_equal(executor.run(0, same, gate(2)).activation, expected.activation)


def test_times_cover_engine_and_gate(executor: StageExecutor) -> None:
    output = executor.run(0, images(64), gate(64))
    assert output.wall_seconds > 0.0
    assert output.cpu_seconds > 0.0


def test_two_threads_get_their_own_answers(name: str, executor: StageExecutor) -> None:
    batches = [images(8), 255 - images(8)]
    expected = [executor.run(0, batch, gate(8)) for batch in batches]
    fresh = make_executor(name, tiny_bundle(), [0])  # so that the threads also race for loading
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda i: fresh.run(0, batches[i % 2], gate(8)), range(200)))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.activation, expected[i % 2].activation)
        assert answer.labels == expected[i % 2].labels


def test_warm_up_times_every_stage(executor: StageExecutor) -> None:
    seconds = executor.warm_up(8)
    assert list(seconds) == [0, 1, 2]
    assert all(0.0 < value < 1.0 for value in seconds.values())


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), "float32 [2, 3, 8, 8]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "uint8 [2, 8, 8, 3]"),
        (np.zeros((3, 8, 8), np.uint8), "uint8 [3, 8, 8]"),
        (np.zeros((0, 3, 8, 8), np.uint8), "uint8 [0, 3, 8, 8]"),
        (np.zeros((), np.uint8), "uint8 []"),
    ],
)
def test_input_that_does_not_fit_is_refused_with_both_shapes(executor: StageExecutor, inputs: npt.NDArray[Any], found: str) -> None:
    with pytest.raises(ExecutorError) as info:
        executor.run(0, inputs, gate(len(inputs) if inputs.ndim else 1))
    assert f"stage 0: found input {found}, expected uint8 [batch, 3, 8, 8]" in str(info.value)
    assert executor.run(0, images(1), gate(1)).labels


def test_stage_not_hosted_is_refused(name: str) -> None:
    executor = make_executor(name, tiny_bundle(), [0])
    with pytest.raises(ExecutorError, match=r"stage 2: found \[0\] hosted here"):
        executor.run(2, np.zeros((1, 8, 2, 2), np.float32), gate(1, last=True))


def test_closed_executor_refuses_to_run(executor: StageExecutor) -> None:
    executor.run(0, images(1), gate(1))
    executor.close()
    executor.close()
    with pytest.raises(ExecutorError, match="closed executor"):
        executor.run(0, images(1), gate(1))

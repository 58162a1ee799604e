"""What every executor keeps, whichever library runs its stages: the registry's names, on three tiny stages.

A new executor joins by its line in `EXECUTORS` and one in `SUBJECTS`; one that needs a GPU gets the `gpu` mark here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import FakeClock, gate, images, tiny_bundle, tiny_emulation
from zpipe.bundle import Bundle
from zpipe.errors import ExecutorError
from zpipe.executors import EXECUTORS, StageExecutor, make_executor
from zpipe.model import NEVER_EXIT


@dataclass(frozen=True)
class Subject:
    """An executor under test.

    Attributes:
        images: `(batch) -> ` inputs of stage 0, the same at every call, longer batches beginning with the shorter ones.
        others: as many that differ from them.
        options: a function, so that no two executors share anything.
    """

    name: str
    bundle: Bundle
    images: Callable[[int], npt.NDArray[Any]]
    others: Callable[[int], npt.NDArray[Any]]
    options: Callable[[], dict[str, Any]] = field(default=dict)

    def make(self, stages: Sequence[int]) -> StageExecutor:
        return make_executor(self.name, self.bundle, stages, **self.options())


def onnx(factory: pytest.TempPathFactory) -> Subject:
    return Subject("onnx", tiny_bundle(), images, lambda batch: 255 - images(batch))


def emulated(factory: pytest.TempPathFactory) -> Subject:
    bundle = tiny_emulation(factory.mktemp("emulation"))
    rows = bundle.evaluation().images
    options = lambda: {"device": "jetson-nano/8", "clock": FakeClock()}  # noqa: E731 - one line that is read once
    return Subject("emulated", bundle, lambda batch: rows[:batch], lambda batch: rows[::-1][:batch], options)


SUBJECTS = {"onnx": onnx, "emulated": emulated}


@pytest.fixture(params=sorted(EXECUTORS), scope="module")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return SUBJECTS[request.param](tmp_path_factory)


@pytest.fixture
def executor(subject: Subject) -> Iterator[StageExecutor]:
    made = subject.make([2, 0, 1])
    yield made
    made.close()


def test_stages_are_sorted(executor: StageExecutor) -> None:
    assert executor.stages == (0, 1, 2)


def test_chain_gives_activations_until_the_last_stage_answers(subject: Subject, executor: StageExecutor) -> None:
    first = executor.run(0, subject.images(4), gate(4))
    expected = subject.bundle.stages[1].input
    assert first.activation is not None
    assert first.activation.shape == (4, *expected.shape)
    assert first.activation.dtype.name == expected.dtype
    second = executor.run(1, first.activation, gate(4, stage=1))
    assert second.activation is not None
    last = executor.run(2, second.activation, gate(4, stage=2, last=True))
    assert last.activation is None
    assert last.exited == [True] * 4


def test_rows_of_a_batch_equal_the_same_rows_alone(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(16)
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


def test_activation_holds_all_rows_in_order_though_some_exit(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(16)
    some, none = executor.run(0, batch, gate(16)), executor.run(0, batch, gate(16, NEVER_EXIT))
    assert any(some.exited)
    assert not any(none.exited)
    np.testing.assert_array_equal(some.activation, none.activation)


def test_stage_without_an_exit_head_lets_nobody_leave(subject: Subject, executor: StageExecutor) -> None:
    arriving = executor.run(0, subject.images(3), gate(3)).activation
    assert arriving is not None
    output = executor.run(1, arriving, gate(3, 0.0, stage=1))
    assert (output.exited, output.labels, output.confidences) == ([False] * 3, [-1] * 3, [0.0] * 3)
    with pytest.raises(ExecutorError, match="found no exit head"):
        executor.run(1, arriving, gate(3, stage=1, last=True))


def test_earlier_output_survives_the_next_run(subject: Subject, executor: StageExecutor) -> None:
    output = executor.run(0, subject.images(2), gate(2))
    assert output.activation is not None
    kept = output.activation.copy()
    executor.run(0, subject.others(2), gate(2))
    np.testing.assert_array_equal(output.activation, kept)


def test_read_only_and_strided_inputs_are_taken(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(2)
    expected = executor.run(0, batch, gate(2))
    frame = np.frombuffer(batch.tobytes(), np.uint8).reshape(batch.shape)
    for same in (frame, np.asfortranarray(batch)):
        np.testing.assert_array_equal(executor.run(0, same, gate(2)).activation, expected.activation)


def test_times_cover_engine_and_gate(subject: Subject, executor: StageExecutor) -> None:
    output = executor.run(0, subject.images(64), gate(64))
    assert output.wall_seconds > 0.0
    assert output.cpu_seconds > 0.0


def test_two_threads_get_their_own_answers(subject: Subject, executor: StageExecutor) -> None:
    batches = [subject.images(8), subject.others(8)]
    expected = [executor.run(0, batch, gate(8)) for batch in batches]
    fresh = subject.make([0])  # so that the threads also race for loading
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
    "change",
    [
        lambda good: good.astype(np.float32),
        lambda good: good[..., None],
        lambda good: good[..., 1:],
        lambda good: good[0],
        lambda good: good[:0],
        lambda good: np.zeros((), np.uint8),
    ],
)
def test_input_that_does_not_fit_is_refused_with_both_shapes(
    subject: Subject, executor: StageExecutor, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> None:
    inputs = change(subject.images(2))
    with pytest.raises(ExecutorError) as info:
        executor.run(0, inputs, gate(len(inputs) if inputs.ndim else 1))
    expected = ", ".join(map(str, subject.bundle.stages[0].input.shape))
    assert f"stage 0: found input {inputs.dtype.name} {list(inputs.shape)}, " in str(info.value)
    assert f", expected uint8 [batch, {expected}]" in str(info.value)
    assert executor.run(0, subject.images(1), gate(1)).labels


def test_stage_not_hosted_is_refused(subject: Subject) -> None:
    executor, expected = subject.make([0]), subject.bundle.stages[2].input
    with pytest.raises(ExecutorError, match=r"stage 2: found \[0\] hosted here"):
        executor.run(2, np.zeros((1, *expected.shape), expected.dtype), gate(1, stage=2, last=True))


def test_closed_executor_refuses_to_run(subject: Subject, executor: StageExecutor) -> None:
    executor.run(0, subject.images(1), gate(1))
    executor.close()
    executor.close()
    with pytest.raises(ExecutorError, match="closed executor"):
        executor.run(0, subject.images(1), gate(1))

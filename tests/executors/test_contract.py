"""What every executor keeps, whichever library runs its stages: the registry's names, on three tiny stages.

A new executor joins by its line in `EXECUTORS` and one in `SUBJECTS`; one that needs a GPU gets the `gpu` mark here. What all
executors on a GPU share is here as `cuda-fake`, on a stand-in for the device; `trt-fake` has stand-ins for device and TensorRT.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import DATA, STAGES, FakeClock, gate, host_rows, images, stay, tiny_bundle, tiny_emulation
from zpipe.bundle import Bundle
from zpipe.errors import BackendUnavailable, ExecutorError
from zpipe.executors import EXECUTORS, StageExecutor, make_executor
from zpipe.executors.base import Batch
from zpipe.model import NEVER_EXIT
from zpipe.runtime.payloads import join


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
        try:
            return make_executor(self.name, self.bundle, stages, **self.options())
        except BackendUnavailable as exc:
            if self.name not in ON_A_GPU:
                raise
            pytest.skip(str(exc))  # a GPU, but not the library


def onnx(factory: pytest.TempPathFactory) -> Subject:
    return Subject("onnx", tiny_bundle(), images, lambda batch: 255 - images(batch))


def emulated(factory: pytest.TempPathFactory) -> Subject:
    bundle = tiny_emulation(factory.mktemp("emulation"))
    rows = bundle.evaluation().images
    options = lambda: {"device": "jetson-nano/8", "clock": FakeClock()}  # noqa: E731 - one line that is read once
    return Subject("emulated", bundle, lambda batch: rows[:batch], lambda batch: rows[::-1][:batch], options)


def cuda_fake(factory: pytest.TempPathFactory) -> Subject:
    return Subject("tests.executors.cuda.engines:FakeCuda", tiny_bundle(), images, lambda batch: 255 - images(batch))


def torch_cuda(factory: pytest.TempPathFactory) -> Subject:
    for name in ("torch", "onnx"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'zpipe[train]'")
    return Subject("torch-cuda", tiny_bundle(), images, lambda batch: 255 - images(batch))


def trt(factory: pytest.TempPathFactory) -> Subject:
    folder = factory.mktemp("engines")  # they are built into the bundle's folder
    for spec in STAGES:
        shutil.copy(DATA / spec.file, folder)
    return Subject("trt", tiny_bundle(path=folder), images, lambda batch: 255 - images(batch))


def trt_fake(factory: pytest.TempPathFactory) -> Subject:
    return replace(trt(factory), name="tests.executors.tensorrt.device:FakeTrtExecutor")


SUBJECTS = {
    "onnx": onnx,
    "emulated": emulated,
    "cuda-fake": cuda_fake,
    "torch-cuda": torch_cuda,
    "trt": trt,
    "trt-fake": trt_fake,
}
ON_A_GPU = ("torch-cuda", "trt")


def params() -> list[Any]:
    names = sorted({*EXECUTORS, *SUBJECTS} - {"auto"})  # auto is one of the others
    return [pytest.param(name, marks=pytest.mark.gpu) if name in ON_A_GPU else name for name in names]


@pytest.fixture(params=params(), scope="module")
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
    first: Any = executor.run(0, subject.images(4), gate(4, NEVER_EXIT)).activation
    expected = subject.bundle.stages[1].input
    assert first.shape == (4, *expected.shape)
    assert first.dtype.name == expected.dtype
    second: Any = executor.run(1, first, gate(4, stage=1)).activation
    last = executor.run(2, second, gate(4, stage=2, last=True))
    assert last.activation is None
    assert last.exited == [True] * 4


def test_rows_of_a_batch_equal_the_same_rows_alone(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(16)
    together = executor.run(0, batch, gate(16))
    staying = iter(stay(host_rows(together), together.exited))
    assert len(set(together.labels)) > 1
    assert len(set(together.exited)) == 2
    for i in range(16):
        alone = executor.run(0, batch[i : i + 1], gate(1))
        if not alone.exited[0]:
            np.testing.assert_allclose(next(staying), host_rows(alone)[0], atol=1e-5)
        assert (together.exited[i], together.labels[i]) == (alone.exited[0], alone.labels[0])
        assert together.confidences[i] == pytest.approx(alone.confidences[0], abs=1e-5)


def test_activation_holds_all_rows_or_those_that_stay_in_order(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(16)
    some, none, all_leave = (executor.run(0, batch, gate(16, threshold)) for threshold in (0.6, NEVER_EXIT, 0.0))
    assert any(some.exited)
    assert not all(some.exited)
    assert not any(none.exited)
    assert all(all_leave.exited)
    whole = host_rows(none)
    assert len(whole) == 16
    for output in (some, all_leave):
        rows = host_rows(output)
        assert len(rows) in (16, output.exited.count(False))
        assert rows.shape[1:] == whole.shape[1:]
        assert rows.dtype == whole.dtype
        np.testing.assert_array_equal(stay(rows, output.exited), stay(whole, output.exited))


def test_a_stage_takes_what_the_stage_before_it_gave(subject: Subject, executor: StageExecutor) -> None:
    """As it lies, and as others see it; also rows of several outputs, picked and mixed with the host's."""
    one, two = executor.run(0, subject.images(4), gate(4, NEVER_EXIT)), executor.run(0, subject.others(4), gate(4, NEVER_EXIT))
    assert one.activation is not None
    assert two.activation is not None
    picks: list[list[tuple[Batch, int]]] = [
        [(one.activation, 0), (one.activation, 1), (one.activation, 2), (one.activation, 3)],
        [(two.activation, 1), (one.activation, 2), (one.activation, 0)],
        [(host_rows(two)[1:], 1), (one.activation, 3), (one.activation, 0), (host_rows(one), 0)],
        [(host_rows(one), 1), (host_rows(two), 0)],
    ]
    for rows in picks:
        given: Any = join(rows)
        expected = np.stack([np.asarray(batch)[index] for batch, index in rows])
        assert len(given) == len(rows)
        assert given.shape == expected.shape
        assert given.nbytes == expected.nbytes
        np.testing.assert_array_equal(np.asarray(given), expected)
        wanted = gate(len(rows), stage=1)
        found, reference = executor.run(1, given, wanted), executor.run(1, expected, wanted)
        np.testing.assert_array_equal(host_rows(found), host_rows(reference))


def test_stage_without_an_exit_head_lets_nobody_leave(subject: Subject, executor: StageExecutor) -> None:
    arriving: Any = executor.run(0, subject.images(3), gate(3, NEVER_EXIT)).activation
    output = executor.run(1, arriving, gate(3, 0.0, stage=1))
    assert (output.exited, output.labels, output.confidences) == ([False] * 3, [-1] * 3, [0.0] * 3)
    with pytest.raises(ExecutorError, match="found no exit head"):
        executor.run(1, arriving, gate(3, stage=1, last=True))


def test_earlier_output_survives_the_next_run(subject: Subject, executor: StageExecutor) -> None:
    output = executor.run(0, subject.images(2), gate(2, NEVER_EXIT))
    given = host_rows(output)
    kept = given.copy()
    for _ in range(10):
        executor.run(0, subject.others(2), gate(2, NEVER_EXIT))
    np.testing.assert_array_equal(given, kept)


def test_read_only_and_strided_inputs_are_taken(subject: Subject, executor: StageExecutor) -> None:
    batch = subject.images(2)
    expected = executor.run(0, batch, gate(2))
    frame = np.frombuffer(batch.tobytes(), np.uint8).reshape(batch.shape)
    for same in (frame, np.asfortranarray(batch)):
        np.testing.assert_array_equal(host_rows(executor.run(0, same, gate(2))), host_rows(expected))


def test_times_cover_engine_and_gate(subject: Subject, executor: StageExecutor) -> None:
    output = executor.run(0, subject.images(64), gate(64))
    assert output.wall_seconds > 0.0
    assert output.cpu_seconds > 0.0


def test_two_threads_get_their_own_answers(subject: Subject, executor: StageExecutor) -> None:
    batches = [subject.images(8), subject.others(8)]
    expected = [executor.run(0, batch, gate(8)) for batch in batches]
    with closing(subject.make([0])) as fresh, ThreadPoolExecutor(2) as pool:  # a fresh one: the threads also race for loading
        answers = list(pool.map(lambda i: fresh.run(0, batches[i % 2], gate(8)), range(200)))
    for i, answer in enumerate(answers):
        assert answer.exited == expected[i % 2].exited
        rows, wanted = (stay(host_rows(each), each.exited) for each in (answer, expected[i % 2]))
        np.testing.assert_array_equal(rows, wanted)
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

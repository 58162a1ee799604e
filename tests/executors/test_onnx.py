"""The ONNX Runtime executor on three tiny stages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import DATA, STAGES, tiny_bundle
from zpipe.errors import BackendUnavailable, BundleError, ConfigError, ExecutorError
from zpipe.executors import StageExecutor, make_executor
from zpipe.executors.onnx import available_providers
from zpipe.model import NEVER_EXIT, ExitHead, GateSpec, StageSpec, TensorSpec


@pytest.fixture
def executor() -> Iterator[StageExecutor]:
    made = make_executor("onnx", tiny_bundle(), [2, 0, 1])
    yield made
    made.close()


def images(batch: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, size=(batch, 3, 8, 8)).astype(np.uint8)


def gate(batch: int, threshold: float = 0.6, *, last: bool = False) -> GateSpec:
    return GateSpec("max-probability", 0.7, (threshold,) * batch, last=last)


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


def test_two_threads_get_their_own_answers(executor: StageExecutor) -> None:
    batches = [images(8), 255 - images(8)]
    expected = [executor.run(0, batch, gate(8)) for batch in batches]
    fresh = make_executor("onnx", tiny_bundle(), [0])  # so that the threads also race for loading
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


def test_stage_not_hosted_is_refused() -> None:
    executor = make_executor("onnx", tiny_bundle(), [0])
    with pytest.raises(ExecutorError, match=r"stage 2: found \[0\] hosted here"):
        executor.run(2, np.zeros((1, 8, 2, 2), np.float32), gate(1, last=True))


def test_closed_executor_refuses_to_run(executor: StageExecutor) -> None:
    executor.run(0, images(1), gate(1))
    executor.close()
    executor.close()
    with pytest.raises(ExecutorError, match="closed executor"):
        executor.run(0, images(1), gate(1))


def one_stage(file: str, **changes: Any) -> StageSpec:
    spec = StageSpec(0, file, TensorSpec("uint8", (3, 8, 8)), None, ExitHead(3, 1.0), 10)
    return replace(spec, **changes)


def test_engine_failure_is_one_line_and_the_session_lives_on(capfd: pytest.CaptureFixture[str]) -> None:
    executor = make_executor("onnx", tiny_bundle(stages=(one_stage("fails_on_bright.onnx"),)), [0])
    black = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(ExecutorError, match="stage 0: batch 2 failed in ONNX Runtime") as info:
        executor.run(0, black + np.uint8(9), gate(2, last=True))
    assert "\n" not in str(info.value)
    assert executor.run(0, black, gate(2, last=True)).exited == [True, True]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", (DATA / "stage0.onnx").read_bytes()[:400]])
def test_broken_file_is_a_bundle_error_of_one_line(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stage0.onnx").write_bytes(content)
    executor = make_executor("onnx", tiny_bundle(path=tmp_path), [0])
    with pytest.raises(BundleError) as info:
        executor.warm_up(1)
    assert str(tmp_path / "stage0.onnx") in str(info.value)
    assert "\n" not in str(info.value)
    assert capfd.readouterr() == ("", "")


def test_absent_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found no such file"):
        make_executor("onnx", tiny_bundle(path=tmp_path), [0]).warm_up(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": TensorSpec("float32", (3, 8, 8))}, r"input: found tensor\(uint8\).*expected float32 \[batch, 3, 8, 8\]"),
        ({"input": TensorSpec("uint8", (3, 9, 8))}, r"input: found .*expected uint8 \[batch, 3, 9, 8\]"),
        ({"output": TensorSpec("float32", (4, 4))}, r"activation: found .*expected float32 \[batch, 4, 4\]"),
        ({"exit_head": ExitHead(10, 1.0)}, r"logits: found .*expected float32 \[batch, 10\]"),
    ],
)
def test_file_that_is_not_what_the_manifest_says_is_refused_when_loaded(changes: dict[str, Any], message: str) -> None:
    stages = (replace(STAGES[0], **changes), *STAGES[1:])
    with pytest.raises(BundleError, match=message):
        make_executor("onnx", tiny_bundle(stages=stages), [0]).warm_up(1)


def test_missing_output_is_named_with_those_there() -> None:
    stages = (one_stage("stage1.onnx", input=TensorSpec("float32", (4, 4, 4))),)
    with pytest.raises(BundleError, match="logits: found input, activation, expected"):
        make_executor("onnx", tiny_bundle(stages=stages), [0]).warm_up(1)


def test_missing_onnxruntime_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match="run: pip install onnxruntime"):
        make_executor("onnx", tiny_bundle(), [0])


def test_unknown_executor_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"found 'onyx', expected one of .*onnx"):
        make_executor("onyx", tiny_bundle(), [0])


def test_unknown_option_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"executor onnx: found options \['spin'\], expected some of: threads"):
        make_executor("onnx", tiny_bundle(), [0], spin=True)


def test_stage_beyond_the_bundle_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"found stages \[3\], expected some of 0..2"):
        make_executor("onnx", tiny_bundle(), [0, 3])


def test_making_an_executor_loads_no_engine(tmp_path: Path) -> None:
    make_executor("onnx", tiny_bundle(path=tmp_path), [0, 1, 2])


def test_cpu_provider_is_there() -> None:
    assert "CPUExecutionProvider" in available_providers()

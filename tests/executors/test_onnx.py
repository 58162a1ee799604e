"""What is ONNX Runtime's own: files, their interface, its failures. test_contract.py holds what every executor keeps."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.executors.tiny import DATA, STAGES, gate, images, tiny_bundle
from zpipe.errors import BackendUnavailable, BundleError, ConfigError, ExecutorError, ExecutorLost
from zpipe.executors import make_executor
from zpipe.executors.onnx import OnnxExecutor, available_providers
from zpipe.model import ExitHead, StageSpec, TensorSpec


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


@pytest.mark.parametrize(("rows", "error"), [(1, ExecutorLost), (2, ExecutorError)])
def test_no_memory_for_one_row_loses_the_executor(rows: int, error: type[ExecutorError], monkeypatch: pytest.MonkeyPatch) -> None:
    executor = OnnxExecutor(tiny_bundle(), [0])
    executor.warm_up(1)

    def run(names: object, feed: object) -> Any:  # what 1.31 said under a limit of its address space
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Cast node. Name:'' Status Message: "
            "bfc_arena.cc:360 AllocateRawInternal(size_t, bool, Stream*) Failed to allocate memory for requested buffer of size 768"
        )

    monkeypatch.setattr(executor._sessions[0], "_session", SimpleNamespace(run=run))
    with pytest.raises(ExecutorError, match=f"stage 0: batch {rows} failed .* Failed to allocate memory") as info:
        executor.run(0, images(rows), gate(rows))
    assert type(info.value) is error


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

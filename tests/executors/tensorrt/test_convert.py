"""The ONNX of another precision: what it answers, and that its boundaries stay as they were. Needs `onnx` (extra `rtx`)."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from tests.executors.tiny import DATA, images
from zpipe.bundle import load_bundle
from zpipe.errors import BackendUnavailable, BundleError
from zpipe.executors.tensorrt.convert import convert

DIGITS = load_bundle("digits-mobilenetv2", verify=False)
NO_ROWS = np.empty(0)


def outputs(graph: bytes, inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": inputs}), strict=True))


@pytest.fixture(scope="module")
def onnx() -> Any:
    return pytest.importorskip("onnx", reason="needs onnx: pip install 'zpipe[rtx]'", exc_type=ImportError)


@pytest.fixture(scope="module")
def arriving() -> list[npt.NDArray[Any]]:
    """What arrives at each stage of the digits bundle, for a few real samples."""
    values: list[Any] = [DIGITS.evaluation().images[::200]]
    for spec in DIGITS.stages[:-1]:
        values.append(outputs(DIGITS.stage_path(spec.index).read_bytes(), values[-1])["activation"])
    return values


def test_fp32_is_the_file_itself() -> None:
    graph = (DATA / "stage0.onnx").read_bytes()
    assert convert(DATA / "stage0.onnx", "fp32", NO_ROWS) == (graph, graph)


@pytest.mark.parametrize("stage", range(5))
def test_fp16_agrees_to_three_digits(onnx: Any, stage: int, arriving: list[npt.NDArray[Any]]) -> None:
    path = DIGITS.stage_path(stage)
    converted = convert(path, "fp16", NO_ROWS)
    assert converted.engine == converted.check
    onnx.checker.check_model(onnx.load_from_string(converted.engine), full_check=True)
    before, after = outputs(path.read_bytes(), arriving[stage]), outputs(converted.check, arriving[stage])
    assert list(before) == list(after)
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert 0 < np.abs(after[name] - expected).max() < 0.01


@pytest.mark.parametrize("stage", [0, 4])
def test_bf16_is_checked_with_every_value_rounded(onnx: Any, stage: int, arriving: list[npt.NDArray[Any]]) -> None:
    path = DIGITS.stage_path(stage)
    converted = convert(path, "bf16", NO_ROWS)
    before, after = outputs(path.read_bytes(), arriving[stage]), outputs(converted.check, arriving[stage])
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert not (after[name].view(np.uint32) & 0xFFFF).any()  # a bfloat16 is the upper half of a float32
        assert np.abs(after[name] - expected).max() < 0.15
    graph = onnx.load_from_string(converted.engine).graph
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}
    kinds = Counter(each.data_type for each in graph.initializer)
    assert kinds[onnx.TensorProto.BFLOAT16] > 10
    assert kinds[onnx.TensorProto.FLOAT16] == 0
    weights = {each.name: each for each in onnx.load(str(path)).graph.initializer}
    for each in graph.initializer:
        if each.data_type == onnx.TensorProto.BFLOAT16:
            exact = onnx.numpy_helper.to_array(weights[each.name])
            rounded = onnx.numpy_helper.to_array(each).astype(np.float32)
            np.testing.assert_allclose(rounded, exact, rtol=2**-8, atol=1e-37)


@pytest.mark.parametrize("stage", [0, 3])
def test_int8_rounds_around_every_convolution_and_still_agrees(
    onnx: Any, stage: int, arriving: list[npt.NDArray[Any]], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = DIGITS.stage_path(stage)
    with caplog.at_level(logging.WARNING):
        converted = convert(path, "int8", arriving[stage])
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    graph = onnx.load_from_string(converted.engine).graph
    given = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert products
    assert all(given[name].op_type == "DequantizeLinear" for node in products for name in node.input[:2])
    zero_points = [each for each in graph.initializer if each.name.endswith("zero_point")]
    assert all(each.data_type == onnx.TensorProto.INT8 for each in zero_points)
    assert not any(onnx.numpy_helper.to_array(each).any() for each in zero_points)  # TensorRT takes symmetric ranges alone
    before, after = outputs(path.read_bytes(), arriving[stage]), outputs(converted.check, arriving[stage])
    for name, expected in before.items():
        assert after[name].dtype == expected.dtype
        assert 0 < np.abs(after[name] - expected).mean() < 0.05 * np.abs(expected).max()


def test_constants_are_converted_wherever_they_stand(onnx: Any, tmp_path: Path) -> None:
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Constant", [], ["half"], value=helper.make_tensor("", float32, [1], [0.5])),
        helper.make_node("Mul", ["input", "half"], ["logits"]),
    ]
    value = [helper.make_tensor_value_info(name, float32, ["batch", 3]) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "constants", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "stage.onnx"))
    inputs = np.array([[1.0, 2.0, 4.0]], np.float32)
    for precision in ("fp16", "bf16", "int8"):
        check = convert(tmp_path / "stage.onnx", precision, inputs).check
        np.testing.assert_array_equal(outputs(check, inputs)["logits"], [[0.5, 1.0, 2.0]])


def test_file_that_cannot_be_converted_is_one_line(onnx: Any, tmp_path: Path) -> None:
    (tmp_path / "stage.onnx").write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"stage.onnx: found an ONNX that cannot be made fp16 .*; take --precision fp32") as info:
        convert(tmp_path / "stage.onnx", "fp16", images(1))
    assert "\n" not in str(info.value)


def test_missing_onnx_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(BackendUnavailable, match=r"found no onnx, expected it for any precision but fp32; run: pip install"):
        convert(DATA / "stage0.onnx", "fp16", NO_ROWS)

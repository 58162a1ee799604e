"""Each operator alone against ONNX Runtime on the CPU, and on a device that has no values: nothing on the way reads one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.errors import BundleError, ExecutorError

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from zpipe.executors.torch_onnx import OnnxModule
from zpipe.executors.torch_onnx.operators import OPERATORS

Array = npt.NDArray[Any]

#: ONNX Runtime 1.17, the oldest we take, runs operator sets up to 20.
OPSET = 18


def floats(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


@dataclass(frozen=True)
class Case:
    """One node: its input, then what else it takes, as initializers; None for one left out."""

    kind: str
    x: Array
    others: Sequence[Array | None] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = OPSET

    def __str__(self) -> str:
        said = ",".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.kind}({said})-{self.opset}-{'x'.join(map(str, self.x.shape))}".replace(" ", "")


PLACES = "coordinate_transformation_mode"
IMAGE, ROWS, VOLUME = floats(2, 6, 9, 7), floats(3, 4, 5), floats(2, 4, 5, 6, 4)
WEIGHT, DEPTHWISE = floats(8, 6, 3, 3, seed=1), floats(6, 1, 3, 3, seed=1)
POSITIVE = floats(3, 4, low=0.1)
WHOLE = np.arange(12, dtype=np.int64).reshape(3, 4) - 5
TRUTH = WHOLE > 0

PLAIN = [Case(kind, ROWS) for kind in (
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu",
    "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Dropout",
)]  # fmt: skip
BINARY = [Case(kind, ROWS, [floats(4, 1, seed=2)]) for kind in (
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "PRelu",
)]  # fmt: skip
REDUCED = [
    Case(kind, ROWS, [ints(1, -1)], {"keepdims": keep})
    for kind in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
    for keep in (0, 1)
]
LAYERS = [
    Case("Conv", IMAGE, [WEIGHT]),
    Case("Conv", IMAGE, [WEIGHT, floats(8, seed=3)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("Conv", IMAGE, [WEIGHT], {"pads": [0, 1, 2, 1], "dilations": [2, 1]}),
    Case("Conv", IMAGE, [DEPTHWISE], {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", IMAGE, [DEPTHWISE], {"group": 6, "auto_pad": "SAME_LOWER", "strides": [1, 3]}),
    Case("Conv", IMAGE, [DEPTHWISE], {"group": 6, "auto_pad": "VALID"}),
    Case("Conv", ROWS, [floats(2, 4, 3)], {"pads": [1, 1]}),
    Case("Conv", VOLUME, [floats(3, 4, 3, 3, 3)], {"pads": [1] * 6}),
    Case("ConvTranspose", IMAGE, [floats(6, 4, 3, 3), floats(4)], {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    Case("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case("BatchNormalization", IMAGE, [floats(6), floats(6, seed=2), floats(6, seed=3), floats(6, low=0.1)], {"epsilon": 1e-3}),
    Case("InstanceNormalization", IMAGE, [floats(6), floats(6, seed=2)]),
    Case("LayerNormalization", ROWS, [floats(5), floats(5, seed=2)], {"epsilon": 1e-3}),
    Case("LayerNormalization", ROWS, [floats(4, 5)], {"axis": 1}),
    Case("GroupNormalization", IMAGE, [floats(3), floats(3, seed=2)], {"num_groups": 3}, opset=20),
    Case("GroupNormalization", IMAGE, [floats(6), floats(6, seed=2)], {"num_groups": 3}, opset=21),
    Case("RMSNormalization", ROWS, [floats(5)], opset=23),
    Case("Gemm", floats(3, 4), [floats(5, 4), floats(5)], {"transB": 1}),
    Case("Gemm", floats(4, 3), [floats(4, 5), floats(1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", floats(3, 4), [floats(4, 5)], {"alpha": 0.5}),
    Case("MatMul", ROWS, [floats(3, 5, 2)]),
    Case("Einsum", ROWS, [floats(3, 5, 2)], {"equation": "bij,bjk->bik"}),
    Case("Softmax", ROWS),
    Case("Softmax", ROWS, [], {"axis": 1}),
    Case("Softmax", ROWS, [], {"axis": 1}, opset=12),
    Case("LogSoftmax", ROWS),
    Case("Attention", floats(2, 4, 5, 8), [floats(2, 2, 6, 8), floats(2, 2, 6, 8)], {"scale": 0.5}, opset=23),
    Case("Attention", floats(2, 2, 5, 8), [floats(2, 2, 5, 8), floats(2, 2, 5, 8)], {"is_causal": 1}, opset=23),
    Case("Resize", IMAGE, [None, None, ints(2, 6, 18, 14)], {PLACES: "asymmetric", "nearest_mode": "floor"}),
    Case("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    Case("Resize", IMAGE, [None, None, ints(2, 6, 5, 4)], {"mode": "linear", PLACES: "align_corners"}),
]  # fmt: skip
VALUES = [
    Case("Sqrt", POSITIVE),
    Case("Log", POSITIVE),
    Case("Reciprocal", POSITIVE),
    Case("Pow", POSITIVE, [scalar(2.5)]),
    Case("Pow", WHOLE, [ints(2)]),
    Case("Clip", ROWS, [scalar(-1), scalar(0.5)]),
    Case("Clip", ROWS, [None, scalar(0.5)]),
    Case("Clip", ROWS),
    Case("Gelu", ROWS, opset=20),
    Case("Gelu", ROWS, [], {"approximate": "tanh"}, opset=20),
    Case("Div", WHOLE, [ints(3)]),
    Case("Mod", WHOLE, [ints(3)]),
    Case("Mod", ROWS, [scalar(0.7)], {"fmod": 1}),
    Case("And", TRUTH, [~TRUTH]),
    Case("Or", TRUTH, [~TRUTH]),
    Case("Xor", TRUTH, [TRUTH[:1]]),
    Case("Not", TRUTH),
    Case("IsNaN", np.array([0, np.nan, np.inf], np.float32)),
    Case("IsInf", np.array([0, np.nan, np.inf], np.float32)),
    Case("Where", TRUTH, [scalar(1.0), scalar(-np.inf)]),
    Case("Cast", ROWS, [], {"to": TensorProto.INT32}),
    Case("Cast", WHOLE, [], {"to": TensorProto.FLOAT}),
    Case("CastLike", WHOLE, [scalar(1)]),
    Case("ReduceSumSquare", ROWS, [ints(0)]),
    Case("ReduceMean", ROWS, [], {"axes": [1]}, opset=13),
    Case("ReduceSum", ROWS),
    Case("ReduceMean", ROWS, [], {"noop_with_empty_axes": 1}),
    Case("ArgMax", ROWS, [], {"axis": 1, "keepdims": 0}),
    Case("ArgMin", ROWS, [], {"axis": -1}),
    Case("CumSum", ROWS, [np.array(1, np.int64)]),
    Case("TopK", ROWS, [ints(2)], {"axis": 1}, outputs=2),
]
SHAPES = [
    Case("Concat", ROWS, [floats(3, 1, 5)], {"axis": 1}),
    Case("DepthToSpace", floats(2, 8, 3, 2), [], {"blocksize": 2}),
    Case("DepthToSpace", floats(2, 8, 3, 2), [], {"blocksize": 2, "mode": "CRD"}),
    Case("Expand", floats(3, 1, 5), [ints(2, 1, 4, 1)]),
    Case("Flatten", IMAGE),
    Case("Flatten", IMAGE, [], {"axis": -1}),
    Case("Flatten", IMAGE, [], {"axis": 0}),
    Case("Gather", ROWS, [ints(1, -1, 0)], {"axis": 1}),
    Case("Gather", ROWS, [np.array(-1)], {"axis": 1}),
    Case("Gather", ROWS, [np.array([[0, 1], [2, -3]])]),
    Case("GatherElements", floats(2, 3), [np.array([[0, -1], [1, 1]])], {"axis": 1}),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 0, 3), scalar(0.5)]),
    Case("Pad", IMAGE, [ints(1, 0, 1, 0), None, ints(0, -1)]),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    Case("Reshape", ROWS, [ints(0, -1)]),
    Case("Reshape", np.zeros((0, 4), np.float32), [ints(2, 0)], {"allowzero": 1}),
    Case("Shape", IMAGE),
    Case("Shape", IMAGE, [], {"start": 1, "end": -1}),
    Case("Size", IMAGE),
    Case("Slice", IMAGE, [ints(1, -3), ints(100, -1), ints(1, 2)]),
    Case("Slice", IMAGE, [ints(0), ints(9), ints(2), ints(4)]),
    Case("Slice", IMAGE, [ints(-1), ints(-100), ints(3), ints(-2)]),
    Case("Slice", IMAGE, [ints(2), ints(1), ints(3), ints(1)]),
    Case("Split", IMAGE, [], {"axis": 3, "num_outputs": 4}, outputs=4),
    Case("Split", IMAGE, [ints(1, 5)], {"axis": 1}, outputs=2),
    Case("Split", IMAGE, [], {"axis": 1, "split": [2, 4]}, outputs=2, opset=12),
    Case("Squeeze", floats(3, 1, 2, 1), [ints(-1)]),
    Case("Squeeze", floats(3, 1, 2, 1)),
    Case("Squeeze", floats(3, 1, 2, 1), [], {"axes": [1]}, opset=12),
    Case("Unsqueeze", floats(3, 2), [ints(0, -1)]),
    Case("Tile", ROWS, [ints(1, 2, 3)]),
    Case("Transpose", ROWS, [], {"perm": [2, 0, 1]}),
    Case("Transpose", ROWS),
    Case("Trilu", ROWS, [np.array(1, np.int64)]),
    Case("Trilu", ROWS, [], {"upper": 0}),
]
CASES = [*PLAIN, *BINARY, *REDUCED, *LAYERS, *VALUES, *SHAPES]


def write(path: Path, nodes: Sequence[Any], x: Array, weights: dict[str, Array], outputs: Sequence[str], opset: int) -> Path:
    """A file with one input `input` and these outputs, their types left to inference."""
    entry = helper.make_tensor_value_info("input", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    exits = [onnx.ValueInfoProto(name=name) for name in outputs]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "case", [entry], exits, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:  # what inference cannot know is left open
        if not output.type.HasField("tensor_type"):
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, path)
    return path


def write_case(path: Path, case: Case) -> Path:
    weights = {f"w{place}": array for place, array in enumerate(case.others) if array is not None}
    names = [f"w{place}" if array is not None else "" for place, array in enumerate(case.others)]
    outputs = [f"y{place}" for place in range(case.outputs)]
    node = helper.make_node(case.kind, ["input", *names], outputs, **case.attributes)
    return write(path, [node], case.x, weights, outputs, case.opset)


def reference(path: Path, x: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"input": x}))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_onnx_runtime(case: Case, tmp_path: Path) -> None:
    path = write_case(tmp_path / "case.onnx", case)
    outputs = OnnxModule(path, device="cpu")(torch.from_numpy(case.x)).values()
    for found, expected in zip(outputs, reference(path, case.x), strict=True):
        assert found.numpy().dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_reads_nothing_of_the_device(case: Case, tmp_path: Path) -> None:
    """A meta tensor has no values, and does not mix with those of the host: as in a graph that is captured."""
    module = OnnxModule(write_case(tmp_path / "case.onnx", case), device="meta")
    outputs = module(torch.from_numpy(case.x).to("meta")).values()
    for found, expected in zip(outputs, reference(module.path, case.x), strict=True):
        assert found.shape == expected.shape


def test_every_operator_is_compared() -> None:
    # The last two take no tensor of the device: the chain of shapes below has them.
    assert {case.kind for case in CASES} | {"ConstantOfShape", "Range"} == set(OPERATORS)


# ---- graphs ------------------------------------------------------------------------------------


def chain_of_shapes(path: Path) -> Path:
    """What exporters write about a batch that is not known: shapes computed, masks built, constants in every form."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Constant", [], ["step"], value=numpy_helper.from_array(np.array(1, np.int64))),
        helper.make_node("Constant", [], ["big"], value_float=1e4),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "step"], ["length"]),
        helper.make_node("Range", ["zero", "length", "step"], ["positions"]),
        helper.make_node("Cast", ["positions"], ["places"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["input", "places"], ["moved"]),
        helper.make_node("Unsqueeze", ["positions", "one"], ["column"]),
        helper.make_node("Less", ["positions", "column"], ["mask"]),
        helper.make_node("Unsqueeze", ["moved", "one"], ["row"]),
        helper.make_node("Where", ["mask", "row", "big"], ["masked"]),
        helper.make_node("ReduceMin", ["masked", "one"], ["least"], keepdims=0),
        helper.make_node("Unsqueeze", ["batch", "zero_list"], ["batch_list"]),
        helper.make_node("Concat", ["batch_list", "one", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["least", "target"], ["y"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Sub", ["zeros", "input"], ["z"]),
    ]
    weights = {"zero_list": ints(0), "minus": ints(-1)}
    return write(path, nodes, floats(3, 4), weights, ["y", "z"], OPSET)


def free_batch(path: Path) -> Path:
    model = onnx.load(path)
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def test_shapes_follow_the_batch(tmp_path: Path) -> None:
    path = free_batch(chain_of_shapes(tmp_path / "chain.onnx"))
    on_cpu, nowhere = OnnxModule(path, device="cpu"), OnnxModule(path, device="meta")
    for batch in (1, 5, 2):
        x = floats(batch, 4)
        found = on_cpu(torch.from_numpy(x))
        for one, expected in zip(found.values(), reference(path, x), strict=True):
            np.testing.assert_allclose(one.numpy(), expected)
        assert [one.shape for one in nowhere(torch.from_numpy(x).to("meta")).values()] == [one.shape for one in found.values()]


def test_second_pass_of_a_batch_takes_nothing_from_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = OnnxModule(free_batch(chain_of_shapes(tmp_path / "chain.onnx")), device="meta")
    module(torch.zeros(3, 4, device="meta"))
    monkeypatch.setattr(module, "_on_device", lambda tensor: pytest.fail("a copy to the device"))
    module(torch.zeros(3, 4, device="meta"))


def test_what_weights_alone_give_is_computed_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["input", "t"], ["y"])]
    path = write(tmp_path / "fold.onnx", nodes, floats(3, 4), {"w": floats(5, 4)}, ["y"], OPSET)
    module = OnnxModule(path, device="cpu")
    assert [step.node.kind for step in module._steps] == ["MatMul"]
    np.testing.assert_allclose(module(torch.from_numpy(floats(3, 4)))["y"].numpy(), reference(path, floats(3, 4))[0], rtol=1e-4)


def test_local_functions_are_followed(tmp_path: Path) -> None:
    add, base = helper.make_node("Add", ["a", "a"], ["b"]), helper.make_opsetid("", OPSET)
    body = helper.make_function("own", "Twice", ["a"], ["b"], [add], [base])
    path = write(tmp_path / "f.onnx", [helper.make_node("Relu", ["input"], ["y"])], floats(3), {}, ["y"], OPSET)
    model = onnx.load(path)
    model.graph.node[0].output[0] = "r"
    model.graph.node.append(helper.make_node("Twice", ["r"], ["y"], domain="own"))
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert OnnxModule(path, device="cpu")(torch.tensor([-1.0, 2.0, 3.0]))["y"].tolist() == [0.0, 4.0, 6.0]


def test_half_computes_in_half_but_keeps_shapes_whole(tmp_path: Path) -> None:
    path = free_batch(chain_of_shapes(tmp_path / "chain.onnx"))
    found = OnnxModule(path, device="cpu", half=True)(torch.from_numpy(floats(2, 4)))
    assert {each.dtype for each in found.values()} == {torch.float16}
    for one, expected in zip(found.values(), reference(path, floats(2, 4)), strict=True):
        np.testing.assert_allclose(one.float().numpy(), expected, rtol=2e-3, atol=2e-3)


# ---- refusals ----------------------------------------------------------------------------------


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    node = helper.make_node("DFT", ["input"], ["y"], name="wave")
    path = write(tmp_path / "case.onnx", [node], floats(1, 8, 1), {}, ["y"], OPSET)
    with pytest.raises(ExecutorError, match=r"case.onnx: found operator DFT \('wave'\), expected one of the \d+ .* executor onnx"):
        OnnxModule(path, device="cpu")


def test_operator_of_another_domain_is_named(tmp_path: Path) -> None:
    path = write_case(tmp_path / "case.onnx", Case("Relu", ROWS))
    model = onnx.load(path)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(ExecutorError, match=r"found operator com\.microsoft\.Relu"):
        OnnxModule(path, device="cpu")


def test_shape_that_depends_on_the_data_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["input", "count"], ["y"], name="late"),
    ]
    path = write(tmp_path / "case.onnx", nodes, floats(4), {}, ["y"], OPSET)
    with pytest.raises(ExecutorError, match="Reshape 'late': found input 'count' that depends on the data"):
        OnnxModule(path, device="cpu")


@pytest.mark.parametrize(
    ("case", "found"),
    [
        (Case("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}), "unequal pads"),
        (Case("MaxPool", IMAGE, [], {"kernel_shape": [2, 2]}, outputs=2), "a second output"),
        (Case("Dropout", ROWS, outputs=2), "output 'y1' wanted"),
        (Case("CumSum", ROWS, [np.array(0, np.int64)], {"reverse": 1}), "exclusive or reverse"),
        (Case("Resize", IMAGE, [None, None, ints(2, 6, 5, 5)], {"mode": "cubic"}), "mode cubic"),
        (Case("Cast", ROWS, [], {"to": TensorProto.STRING}), "data type 8"),
    ],
    ids=str,
)
def test_form_of_an_operator_that_is_not_known_is_named(case: Case, found: str, tmp_path: Path) -> None:
    with pytest.raises(ExecutorError, match=f"{case.kind} 'y0': found .*{found}.*take executor onnx or trt"):
        OnnxModule(write_case(tmp_path / "case.onnx", case), device="cpu")(torch.from_numpy(case.x))


def test_what_torch_says_of_an_operator_is_one_line(tmp_path: Path) -> None:
    module = OnnxModule(write_case(tmp_path / "case.onnx", Case("MatMul", ROWS, [floats(5, 2)])), device="cpu")
    with pytest.raises(ExecutorError, match=r"MatMul 'y0': found mat1 and mat2 shapes .*RuntimeError") as info:
        module(torch.zeros(3, 4, 6))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("content", [b"", b"not an ONNX file"])
def test_broken_file_is_a_bundle_error_of_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "stage.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"stage.onnx: found no ONNX that loads") as info:
        OnnxModule(tmp_path / "stage.onnx", device="cpu")
    assert "\n" not in str(info.value)


def test_absent_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found no such file"):
        OnnxModule(tmp_path / "stage.onnx", device="cpu")


def test_old_operator_set_is_refused(tmp_path: Path) -> None:
    path = write_case(tmp_path / "case.onnx", Case("Relu", ROWS, opset=9))
    with pytest.raises(ExecutorError, match="found opset 9, expected 11 or later"):
        OnnxModule(path, device="cpu")


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    path = write_case(tmp_path / "case.onnx", Case("Add", ROWS, [ROWS]))
    model = onnx.load(path)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, ROWS.shape))
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"found inputs \['input', 'w0'\], expected one"):
        OnnxModule(path, device="cpu")

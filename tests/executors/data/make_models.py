"""Writes the tiny ONNX stages beside this file (README.md says what they are). Needs the `onnx` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
rng = np.random.default_rng(7)


def normal(*shape: int, scale: float) -> np.ndarray[Any, Any]:
    return (rng.normal(size=shape) * scale).astype(np.float32)


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


def tensor(name: str, dtype: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, dtype, ["batch", *shape])


def conv(source: str) -> list[Any]:
    node = helper.make_node(
        "Conv", [source, "weight", "bias"], ["convolved"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    return [node, helper.make_node("Relu", ["convolved"], ["activation"])]


def head(source: str) -> list[Any]:
    return [helper.make_node("Flatten", [source], ["flat"]), helper.make_node("Gemm", ["flat", "head", "head_bias"], ["logits"])]


def save(name: str, nodes: list[Any], source: Any, outputs: list[Any], **weights: Any) -> None:
    initializers = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, [source], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="zpipe-tests")
    model.ir_version = 8  # what onnxruntime 1.17 reads
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(HERE / f"{name}.onnx"))


uint8, float32 = TensorProto.UINT8, TensorProto.FLOAT
image, logits = tensor("input", uint8, 3, 8, 8), tensor("logits", float32, 3)
as_float = helper.make_node("Cast", ["input"], ["image"], to=float32)

save(
    "stage0",
    [
        helper.make_node("Cast", ["input"], ["image"], to=float32),
        helper.make_node("Mul", ["image", "scale"], ["scaled"]),
        *conv("scaled"),
        *head("activation"),
    ],
    image,
    [tensor("activation", float32, 4, 4, 4), logits],
    scale=np.array(1 / 255, np.float32),
    weight=normal(4, 3, 3, 3, scale=0.5),
    bias=normal(4, scale=0.1),
    head=normal(64, 3, scale=0.5),
    head_bias=zeros(3),
)
save(
    "stage1",
    conv("input"),
    tensor("input", float32, 4, 4, 4),
    [tensor("activation", float32, 8, 2, 2)],
    weight=normal(8, 4, 3, 3, scale=0.4),
    bias=zeros(8),
)
save("stage2", head("input"), tensor("input", float32, 8, 2, 2), [logits], head=normal(32, 3, scale=1.0), head_bias=zeros(3))
save(
    "fails_on_bright",
    [  # the brightest value is the row of a table that has one row
        as_float,
        helper.make_node("ReduceMax", ["image", "axes"], ["brightest"], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["logits"]),
    ],
    image,
    [logits],
    axes=np.array([1, 2, 3], np.int64),
    table=zeros(1, 3),
)

"""Exit heads in a stage's ONNX file: taken off, put on. What leads to the activation stays byte for byte.

A head, in the order of its nodes:

0. A half-precision activation becomes float32 (Cast): a head costs little beside its stage, and statistics of many pixels need it.
1. Each channel is centred and scaled by its mean and deviation over the training images (BatchNormalization, or Sub and Mul).
2. What lies above the mean and what lies below it become two channels (Relu, Neg, Relu, Concat): an average over pixels alone would
   lose how much a channel varies within its window.
3. Pooling (`zpipe.models.heads.shape`), then Flatten.
4. A hidden layer (Gemm, Relu) and a linear one (Gemm): raw `logits`. The backbone does not learn to suit an exit, so the head has
   to do more by itself; at the first cut of the half-width digits the hidden layer was worth 1.1 points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from zpipe.errors import BundleError
from zpipe.models.graphs import reads
from zpipe.models.heads.shape import HeadShape

Floats = npt.NDArray[np.float32]

#: Names of what a head brings along; no exporter we know writes a slash at the end of `zpipe`.
PREFIX = "zpipe/head/"
ACTIVATION, LOGITS = "activation", "logits"

LINEAR = ("Conv", "Gemm", "MatMul")

#: Beneath the opset of `zpipe.models.export`, which every ONNX Runtime that zpipe takes reads.
FRONT_OPSET, FRONT_IR = 18, 8


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """The part of a head that is not trained.

    Attributes:
        shape: the pooling.
        mean, deviation: `[channels] float32` of the activation over the training images.
    """

    shape: HeadShape
    mean: Floats
    deviation: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A whole head: `hidden [hidden, features]`, `hidden_bias [hidden]`, `weight [classes, hidden]`, `bias [classes]`, float32."""

    front: Front
    hidden: Floats
    hidden_bias: Floats
    weight: Floats
    bias: Floats


def without_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that gives the activation alone; nodes and weights that only the head needed are gone.

    Raises:
        BundleError: the stage gives no activation, as the last one does.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    kept = [output for output in graph.output if output.name == ACTIVATION]
    if not kept:
        found = ", ".join(output.name for output in graph.output)
        raise BundleError(f"stage: found outputs {found}, expected one named {ACTIVATION}; the last stage keeps its head")
    outputs = list(kept)
    del graph.output[:]
    graph.output.extend(outputs)
    needed = {ACTIVATION}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(reads(node))
    nodes.reverse()
    weights = [item for item in graph.initializer if item.name in needed]
    values = [item for item in graph.value_info if item.name in needed]
    for field, items in ((graph.node, nodes), (graph.initializer, weights), (graph.value_info, values)):
        copies = [_copied(item) for item in items]
        del field[:]
        field.extend(copies)
    return stripped


def with_head(model: onnx.ModelProto, head: Head) -> onnx.ModelProto:
    """A copy with this head instead of the one it had, if it had one."""
    extended = without_head(model)
    graph = extended.graph
    start, nodes = ACTIVATION, []
    if graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16:
        start = f"{PREFIX}single"
        nodes.append(helper.make_node("Cast", [ACTIVATION], [start], name=f"{PREFIX}cast", to=TensorProto.FLOAT))
    front, weights = front_nodes(head.front, start, f"{PREFIX}features", rank=_rank(graph.output[0]))
    nodes += [
        *front,
        _linear(f"{PREFIX}features", "hidden", f"{PREFIX}hidden_sum"),
        helper.make_node("Relu", [f"{PREFIX}hidden_sum"], [f"{PREFIX}hidden_out"], name=f"{PREFIX}relu"),
        _linear(f"{PREFIX}hidden_out", "", LOGITS),
    ]
    weights |= {"hidden": head.hidden, "hidden_bias": head.hidden_bias, "weight": head.weight, "bias": head.bias}
    graph.node.extend(nodes)
    graph.initializer.extend(_constants(weights))
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, len(head.bias)]))
    return extended


def head_cost(model: onnx.ModelProto) -> tuple[int, int]:
    """Multiply-adds for one sample and parameters of the head that `without_head` takes off.

    As `zpipe.models.network.stage_costs` counts: multiply-adds of convolutions and linear layers; normalisations add parameters.
    """
    backbone = {node.output[0] for node in without_head(model).graph.node}
    head = [node for node in model.graph.node if node.output[0] not in backbone]
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim] for item in inferred.value_info}
    sizes = {item.name: math.prod(item.dims) for item in model.graph.initializer}
    macs = parameters = 0
    for node in head:
        if node.op_type in LINEAR:
            macs += sizes.get(node.input[1], 0) * math.prod(shapes.get(node.output[0], [])[2:])
        if node.op_type in (*LINEAR, "BatchNormalization"):
            parameters += sum(sizes.get(name, 0) for name in node.input[1:3])
    return macs, parameters


def front_model(front: Front, activation: tuple[int, ...]) -> onnx.ModelProto:
    """The front by itself: `input [batch, *activation]` to `activation [batch, features]`, both float32.

    Heads are trained on what this gives, so that training and running cannot differ in how they pool.
    """
    nodes, weights = front_nodes(front, "input", ACTIVATION, rank=len(activation) + 1)
    graph = helper.make_graph(
        nodes,
        "front",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *activation])],
        [helper.make_tensor_value_info(ACTIVATION, TensorProto.FLOAT, ["batch", front.shape.features])],
        _constants(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", FRONT_OPSET)], ir_version=FRONT_IR)


def front_nodes(front: Front, start: str, end: str, *, rank: int) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[Any]]]:
    """Steps 1 to 3, from the value `start` of so many axes to the value `end`, and their weights by name without the prefix."""
    weights: dict[str, npt.NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=f"{PREFIX}{operator.lower()}{len(nodes)}", **attributes))
        return output

    def weight(name: str, value: npt.NDArray[Any]) -> str:
        weights[name] = value
        return f"{PREFIX}{name}"

    shape, value = front.shape, start
    if shape.pooling == "last":
        # A negative index counts from the end, so that the number of tokens need not be known.
        value = add("Gather", [value, weight("last", np.array(-1, np.int64))], f"{PREFIX}token", axis=1)
        rank = 2
    # Channels are the second axis to BatchNormalization; tokens are averaged after step 2, over the axis they then are.
    if shape.pooling == "mean":
        value = add("Transpose", [value], f"{PREFIX}channels_first", perm=[0, 2, 1])
    if rank == 2:
        value = add("Sub", [value, weight("mean", front.mean)], f"{PREFIX}centred")
        value = add("Mul", [value, weight("factor", 1 / front.deviation)], f"{PREFIX}normal")
    else:
        ones, zeros = np.ones(shape.channels, np.float32), np.zeros(shape.channels, np.float32)
        statistics = {"scale": ones, "shift": zeros, "mean": front.mean, "variance": front.deviation**2}
        inputs = [value, *(weight(name, array) for name, array in statistics.items())]
        value = add("BatchNormalization", inputs, f"{PREFIX}normal", epsilon=0.0)
    above = add("Relu", [value], f"{PREFIX}above")
    below = add("Relu", [add("Neg", [value], f"{PREFIX}negative")], f"{PREFIX}below")
    value = add("Concat", [above, below], f"{PREFIX}both", axis=1)
    if shape.pooling == "grid":
        value = add("AveragePool", [value], f"{PREFIX}pooled", kernel_shape=list(shape.kernel), strides=list(shape.stride))
    elif shape.pooling == "mean":
        value = add("GlobalAveragePool", [value], f"{PREFIX}pooled")
    add("Flatten", [value], end, axis=1)
    return nodes, weights


def _linear(start: str, layer: str, end: str) -> onnx.NodeProto:
    """`layer`: "hidden", or "" for the last one."""
    weight, bias = (layer, f"{layer}_bias") if layer else ("weight", "bias")
    return helper.make_node("Gemm", [start, f"{PREFIX}{weight}", f"{PREFIX}{bias}"], [end], name=f"{PREFIX}gemm_{weight}", transB=1)


def _constants(weights: Mapping[str, npt.NDArray[Any]]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.ascontiguousarray(value), f"{PREFIX}{name}") for name, value in weights.items()]


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _copied(item: Any) -> Any:
    copy = type(item)()
    copy.CopyFrom(item)
    return copy

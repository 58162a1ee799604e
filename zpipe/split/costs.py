"""Multiply-adds of ONNX nodes, from the shapes that really occurred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from zpipe.split.graph import attribute

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Count = Callable[[onnx.NodeProto, Shapes], int]


def node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-adds of one node; 0 for what only moves, adds or compares.

    Known: convolutions, matrix products, Einsum, recurrent layers, and their quantised and fused kin. What a subgraph (If, Loop)
    computes is not counted.

    Args:
        node: of the graph.
        shapes: of every tensor, at some batch, to which the answer refers.
    """
    count = _COUNTS.get(node.op_type)
    try:
        return 0 if count is None else count(node, shapes)
    except (KeyError, IndexError):  # a tensor without a shape: an optional one, or one inside a sequence
        return 0


def _out(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]])


def _convolution(weight: int) -> Count:
    # A weight is [out, in / groups, *kernel].
    return lambda node, shapes: _out(node, shapes) * math.prod(shapes[node.input[weight]][1:])


def _transposed(node: onnx.NodeProto, shapes: Shapes) -> int:
    # A weight is [in, out / groups, *kernel].
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    return _out(node, shapes) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    return _out(node, shapes) * shapes[node.input[0]][0 if attribute(node, "transA", 0) else 1]


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Product of all sizes that the equation names; without an ellipsis."""
    terms = attribute(node, "equation", b"").decode().replace(" ", "").partition("->")[0].split(",")
    sizes = {letter: size for term, name in zip(terms, node.input, strict=True) for letter, size in zip(term, shapes[name])}  # noqa: B905
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    # x is [time, batch, in]; weights are [directions, gates * hidden, ...].
    time, batch, _ = shapes[node.input[0]]
    return time * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


_COUNTS: dict[str, Count] = {
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _product,
    "FusedMatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}

"""What a network says in the end, as raw logits: confidence is softmax of them divided by a temperature, computed by the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from zpipe.errors import ConfigError
from zpipe.model import TensorSpec
from zpipe.split.graph import Array, add_constant, attribute
from zpipe.split.reading import Original

if TYPE_CHECKING:
    from zpipe.split.network import Seen

#: Probabilities are kept above this before their logarithm is taken, in float32; half floats that are smaller have but a few bits.
LEAST_PROBABILITY = 1e-10
LEAST_HALF_PROBABILITY = float(np.finfo(np.float16).smallest_normal)

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16})

#: Rows that add up to 1 within this are probabilities.
SUM_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Answer:
    """A network's raw logits.

    Attributes:
        tensor: `[batch, classes]`.
        classes: how many.
        dtype: `float32` or `float16`.
        original: the tensor of the original that holds them, in some shape, or `logarithm` of them.
        least: what they are the logarithm of is kept above it; None = they are not.
        note: what was changed, for people; "" where nothing was.
    """

    tensor: str
    classes: int
    dtype: str
    original: str
    least: float | None
    note: str

    def describe(self, tensors: dict[str, TensorSpec]) -> None:
        """Adds what it is; nodes put behind the network were not observed."""
        tensors[self.tensor] = TensorSpec(self.dtype, (self.classes,))

    def logits(self, found: Array) -> Array:
        """Logits `[rows, classes] float32` from values of `original`."""
        rows: Array = found.reshape(len(found), -1).astype(np.float32)
        return rows if self.least is None else np.log(np.maximum(rows, np.float32(self.least)))


def find_answer(original: Original, graph: onnx.GraphProto, observed: Mapping[str, Seen]) -> Answer:
    """Finds the logits: before a Softmax at the end, or as the logarithm of probabilities; puts nodes behind the graph if need be.

    Args:
        original: for messages.
        graph: changed here.
        observed: its tensors; the output with values, and absent where that is no tensor that a node makes.

    Raises:
        ConfigError: it is no score for each class.
    """
    seen = observed.get(original.output)
    if seen is None or seen.values is None:
        raise ConfigError(
            f"{original.name}: output {original.output}: found no tensor that is computed, expected scores [batch, classes]; "
            "choose another with --output, or export it without what packs them (ZipMap: options={'zipmap': False})"
        )
    values = seen.values[0]
    if not values.ndim:
        values = values.reshape(1)
    classes = values.size // max(1, len(values))
    per_sample = values.ndim > 1 and len(seen.values[1]) > len(values) and seen.first[1:] == seen.second[1:]
    scores = per_sample and max(values.shape[1:]) == classes and values.dtype.kind == "f"
    if not scores or classes < 2:
        shape = ", ".join(["batch", *map(str, seen.first[1:])])
        raise ConfigError(
            f"{original.name}: output {original.output}: found {seen.dtype} [{shape}], expected scores [batch, classes] "
            "of two classes or more; choose another with --output, or end the network with such"
        )
    tensor, note, least, dtype = original.output, "", None, seen.dtype
    ending = _ending(graph, tensor)
    before = observed.get(ending.input[0]) if ending.op_type == "Softmax" and ending.input[0] != original.input else None
    axis = int(np.argmax(values.shape[1:])) + 1
    flat = values.reshape(len(values), -1).astype(np.float32)
    probabilities = bool((flat >= 0).all() and np.allclose(flat.sum(1), 1, atol=SUM_SLACK))
    if before is not None and attribute(ending, "axis", -1) % values.ndim == axis:
        tensor, dtype, note = ending.input[0], before.dtype, "the Softmax at its end is left to the exit gate"
    elif ending.op_type == "Sigmoid":
        note = "its Sigmoid scores each class by itself; the exit gate compares them as logits, and names one class"
    source = tensor
    if tensor == original.output and probabilities:
        least = LEAST_HALF_PROBABILITY if dtype == "float16" else LEAST_PROBABILITY
        note = "its probabilities became logits, their logarithm"
        tensor, dtype = _append(graph, "Cast", [tensor], "zpipe.float", to=onnx.TensorProto.FLOAT), "float32"
        bound = add_constant(graph, "zpipe.least", np.array(least, np.float32))
        tensor = _append(graph, "Max", [tensor, bound], "zpipe.kept")
        tensor = _append(graph, "Log", [tensor], "zpipe.log")
    if values.ndim > 2:
        tensor = _append(graph, "Flatten", [tensor], "zpipe.flat")
    if dtype not in ("float32", "float16"):
        tensor, dtype = _append(graph, "Cast", [tensor], "zpipe.float", to=onnx.TensorProto.FLOAT), "float32"
    return Answer(tensor, classes, dtype, source, least, note)


def _ending(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    """The last node that does more than hand values on."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers[tensor]
    while node.input and node.input[0] in makers and _hands_on(node):
        node = makers[node.input[0]]
    return node


def _hands_on(node: onnx.NodeProto) -> bool:
    return node.op_type == "Identity" or (node.op_type == "Cast" and attribute(node, "to") in _FLOATS)


def _append(graph: onnx.GraphProto, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
    graph.node.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
    return output

"""What a network says in the end, as raw logits: confidence is softmax of them divided by a temperature, computed by the gate."""

from __future__ import annotations

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

#: Probabilities are kept above this before their logarithm is taken.
LEAST_PROBABILITY = 1e-10

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
        logarithm: whether they are the logarithm of that.
        note: what was changed, for people; "" where nothing was.
    """

    tensor: str
    classes: int
    dtype: str
    original: str
    logarithm: bool
    note: str

    def describe(self, tensors: dict[str, TensorSpec]) -> None:
        """Adds what it is; nodes put behind the network were not observed."""
        tensors[self.tensor] = TensorSpec(self.dtype, (self.classes,))

    def logits(self, found: Array) -> Array:
        """Logits `[rows, classes] float32` from values of `original`."""
        rows = found.reshape(len(found), -1)
        return (np.log(np.maximum(rows, LEAST_PROBABILITY)) if self.logarithm else rows).astype(np.float32)


def find_answer(original: Original, graph: onnx.GraphProto, seen: Seen | None) -> Answer:
    """Finds the logits: before a Softmax at the end, or as the logarithm of probabilities; puts nodes behind the graph if need be.

    Args:
        original: for messages.
        graph: changed here.
        seen: its output, with values; None where that is no tensor that a node makes.

    Raises:
        ConfigError: it is no score for each class.
    """
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
    tensor, note, logarithm = original.output, "", False
    maker = next(node for node in graph.node if tensor in node.output)
    axis = int(np.argmax(values.shape[1:])) + 1
    flat = values.reshape(len(values), -1)
    probabilities = bool((flat >= 0).all() and np.allclose(flat.sum(1), 1, atol=SUM_SLACK))
    if maker.op_type == "Softmax" and attribute(maker, "axis", -1) % values.ndim == axis:
        tensor, note = maker.input[0], "the Softmax at its end is left to the exit gate"
    source = tensor
    if tensor == original.output and probabilities:
        note, logarithm = "its probabilities became logits, their logarithm", True
        least = add_constant(graph, "zpipe.least", np.array(LEAST_PROBABILITY, values.dtype))
        tensor = _append(graph, "Max", [tensor, least], "zpipe.kept")
        tensor = _append(graph, "Log", [tensor], "zpipe.log")
    if values.ndim > 2:
        tensor = _append(graph, "Flatten", [tensor], "zpipe.flat")
    dtype = seen.dtype
    if dtype not in ("float32", "float16"):
        tensor, dtype = _append(graph, "Cast", [tensor], "zpipe.float", to=onnx.TensorProto.FLOAT), "float32"
    return Answer(tensor, classes, dtype, source, logarithm, note)


def _append(graph: onnx.GraphProto, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
    graph.node.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
    return output

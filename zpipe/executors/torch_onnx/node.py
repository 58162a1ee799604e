"""One operator of a graph as the functions of this package see it.

An operator is a function `(node, inputs) -> tensor`, or a tuple of tensors where it has several outputs. Inputs left out are None.
Those that `operators.ON_HOST` names - shapes, axes, bounds - come as CPU tensors whatever the device, so reading them
waits for nothing and may stand in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zpipe.errors import ExecutorError

#: torch's dtype of each of ONNX's TensorProto.DataType.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph, without its inputs.

    Attributes:
        kind: the operator's name.
        name: the node's own, or its first output's.
        attributes: numbers, strings and lists as Python has them, tensors as torch has them.
        opset: the version of the operator set.
        outputs: how many it has.
        half: whether a cast to float32 stops at float16.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    half: bool = False

    def get(self, attribute: str, default: Any) -> Any:
        return self.attributes.get(attribute, default)

    def refuse(self, found: str, expected: str) -> ExecutorError:
        """The error for what is ONNX but not known here."""
        return ExecutorError(
            f"executor torch-cuda: {self.kind} {self.name!r}: found {found}, expected {expected}; take executor onnx or trt"
        )

    def dtype(self, onnx: int) -> torch.dtype:
        dtype = DTYPES.get(onnx)
        if dtype is None:
            raise self.refuse(f"ONNX data type {onnx}", "a plain number or bool")
        return torch.float16 if self.half and dtype == torch.float32 else dtype


Operator = Callable[[Node, list[Any]], Any]


def ints(tensor: Any) -> list[int]:
    """Shapes, axes and the like as Python has them; none where the input is left out."""
    return [] if tensor is None else [int(value) for value in tensor.reshape(-1).tolist()]


def optional(inputs: Sequence[Any], index: int) -> Any:
    """An input that may be left out, by an empty name or by the end of the list."""
    return inputs[index] if index < len(inputs) else None

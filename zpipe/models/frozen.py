"""A bundle's stage files as torch functions: gradients flow through them, their weights stay as they are.

What is fitted to a finished bundle (the bottleneck) is so fitted to the very files that run on the nodes, and a bundle needs no
torch checkpoint. Knows the operators that `zpipe.models.export` and `zpipe.models.heads` write, in the form they write
them, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from zpipe.errors import ConfigError

Attributes = dict[str, Any]
Operator = Callable[[Sequence[Tensor], Attributes], Tensor]


def _convolve(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    return functional.conv2d(
        *values, stride=attributes["strides"], padding=attributes["pads"][:2], groups=attributes.get("group", 1)
    )


def _normalise(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = values
    return functional.batch_norm(x, mean, variance, scale, shift, training=False, eps=attributes["epsilon"])


def _average(values: Sequence[Tensor], attributes: Attributes) -> Tensor:
    return functional.avg_pool2d(values[0], attributes["kernel_shape"], attributes["strides"])


OPERATORS: dict[str, Operator] = {
    "Add": lambda values, _: values[0] + values[1],
    "AveragePool": _average,
    "BatchNormalization": _normalise,
    "Cast": lambda values, _: values[0].to(torch.float32),
    "Clip": lambda values, _: values[0].clamp(values[1], values[2]),
    "Concat": lambda values, attributes: torch.cat(list(values), attributes["axis"]),
    "Conv": _convolve,
    "Flatten": lambda values, _: values[0].flatten(1),
    "Gemm": lambda values, _: functional.linear(*values),
    "Mul": lambda values, _: values[0] * values[1],
    "Neg": lambda values, _: -values[0],
    "Relu": lambda values, _: values[0].relu(),
    "Reshape": lambda values, _: values[0].reshape(values[1].tolist()),
    "Sub": lambda values, _: values[0] - values[1],
}


class FrozenStage:
    """One stage: `[batch, ...]` in; activation (None after the last stage) and raw logits `[batch, classes]` out.

    Raises:
        ConfigError: the file holds an operator that our export never writes.
    """

    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        unknown = sorted({node.op_type for node in graph.node} - set(OPERATORS))
        if unknown:
            raise ConfigError(
                f"{path}: found operators {', '.join(unknown)}, expected a stage that `zpipe train` wrote; "
                f"only such a bundle can get a bottleneck"
            )
        self._nodes = [
            (OPERATORS[node.op_type], list(node.input), node.output[0], _attributes(node.attribute)) for node in graph.node
        ]
        self._weights = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
        for name, weight in self._weights.items():
            if weight.dim() == 4:
                # As in training: convolutions are about twice as fast in this order.
                self._weights[name] = weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        values = {**self._weights, "input": x.contiguous(memory_format=torch.channels_last)}
        for operator, inputs, output, attributes in self._nodes:
            values[output] = operator([values[name] for name in inputs], attributes)
        return values.get("activation"), values["logits"]


def _attributes(attributes: Sequence[onnx.AttributeProto]) -> Attributes:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in attributes}

"""Normalisation put in front of a network, so that images travel as bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from zpipe.errors import ConfigError
from zpipe.model import TensorSpec
from zpipe.split.graph import Array, add_constant
from zpipe.split.reading import Original

#: The tensor of bytes that comes in.
PIXELS = "zpipe.pixels"


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """(image / 255 - mean) / std, per channel, then channels last if the network wants that.

    Attributes:
        mean, std: `[channels]`, in units of 0..1 as torchvision has them.
        last: whether the network takes `[height, width, channels]`; images always come channels first.
        dtype: of what the network takes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    last: bool
    dtype: str

    def normalise(self, rows: Array) -> Array:
        """`[rows, channels, height, width] uint8` -> what the network takes."""
        mean, std = (np.array(each, np.float32).reshape(1, -1, 1, 1) for each in (self.mean, self.std))
        floats = (rows.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(floats.transpose(0, 2, 3, 1) if self.last else floats).astype(self.dtype)

    def put_before(self, graph: onnx.GraphProto, source: str) -> TensorSpec:
        """The same as nodes before the graph's own, which then has the input PIXELS; returns one sample of it."""
        item = graph.input[0]
        sizes = [dim.dim_value for dim in item.type.tensor_type.shape.dim[1:]]
        takes = TensorSpec("uint8", (sizes[-1], *sizes[:-1]) if self.last else tuple(sizes))
        std = np.array(self.std, np.float64).reshape(1, -1, 1, 1)
        scale = add_constant(graph, "zpipe.scale", (1 / (255 * std)).astype(np.float32))
        shift = add_constant(graph, "zpipe.shift", (-np.array(self.mean).reshape(1, -1, 1, 1) / std).astype(np.float32))
        steps: list[tuple[str, list[str], dict[str, object]]] = [
            ("Cast", [], {"to": onnx.TensorProto.FLOAT}),
            ("Mul", [scale], {}),
            ("Add", [shift], {}),
        ]
        steps += [("Transpose", [], {"perm": [0, 2, 3, 1]})] if self.last else []
        steps += [("Cast", [], {"to": onnx.TensorProto.FLOAT16})] if self.dtype == "float16" else []
        nodes, name = [], PIXELS
        for index, (operator, more, attributes) in enumerate(steps):
            after = source if index == len(steps) - 1 else f"zpipe.pixels{index}"
            nodes.append(onnx.helper.make_node(operator, [name, *more], [after], **attributes))
            name = after
        own = list(graph.node)
        del graph.node[:], graph.input[:]
        graph.node.extend([*nodes, *own])
        graph.input.append(onnx.helper.make_tensor_value_info(PIXELS, onnx.TensorProto.UINT8, ["batch", *takes.shape]))
        return takes


def find_pixels(original: Original, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Pixels | None:
    """What `--mean` and `--std` ask for; None where they ask for nothing.

    Raises:
        ConfigError: the network takes no such images, or there are not as many values as channels.
    """
    if mean is None and std is None:
        return None
    takes = original.takes
    if len(takes.shape) != 3 or takes.dtype not in ("float32", "float16"):
        raise ConfigError(
            f"--mean, --std: found a network that takes {takes.dtype} {list(takes.shape)}, expected float images [channels, "
            "height, width]; leave them out"
        )
    last = takes.shape[-1] in (1, 3, 4) and takes.shape[0] not in (1, 3, 4)
    channels = takes.shape[-1 if last else 0]
    mean, std = mean or (0.0,), std or (1.0,)
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"{option}: found {len(values)} values, expected 1 or {channels}, one for each channel")
        if not all(map(math.isfinite, values)) or max(values) > 1:
            wrong = next(value for value in values if not value <= 1 or math.isinf(value))
            remedy = f"; divide them by 255: {wrong / 255:.3g}" if 1 < wrong <= 255 else "; correct it"
            raise ConfigError(
                f"{option}: found {wrong:g}, expected units in which images are 0..1, as torchvision has them{remedy}"
            )
    if min(std) <= 0:
        raise ConfigError(f"--std: found {min(std):g}, expected values above 0; it is what differences are divided by")
    whole = tuple(values * channels if len(values) == 1 else values for values in (mean, std))
    return Pixels(whole[0], whole[1], last, takes.dtype)

"""What an exit head looks at: which pooling suits an activation, and what the head then costs. No torch, no ONNX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zpipe.errors import ConfigError
from zpipe.model import TensorSpec

#: Sides of the grid an activation of channels and pixels is averaged to, finest first. A grid of one is a global average: with that
#: alone an early exit of a network trained on digits reached 23-29 % (a trial), as where something lies is what it has to go by.
GRIDS = (4, 2, 1)

#: A head costs at most this part of the stages before its exit, if a coarser grid can make it so: every sample that passes pays.
COST_SHARE = 0.1

#: Units of the hidden layer, for up to so many classes and for more.
FEW_CLASSES, HIDDEN_FEW, HIDDEN_MANY = 100, 64, 256

#: Most features of a head: 16 times ResNet-50's first cut.
MOST_FEATURES = 65_536

Pooling = Literal["grid", "mean", "last", "none"]


@dataclass(frozen=True, slots=True)
class HeadShape:
    """How an activation becomes features.

    Attributes:
        pooling: `grid` for `[channels, height, width]`, averaged to a grid; `mean` over, or `last` of, the tokens of
            `[tokens, channels]`; `none` for `[channels]`.
        channels: of the activation.
        kernel, stride: of the averaging, (down, across); () without a grid.
        positions: of the grid; 1 otherwise.
    """

    pooling: Pooling
    channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    positions: int = 1

    @property
    def features(self) -> int:
        """Each channel counts twice: how far above its mean it is, and how far below."""
        return 2 * self.channels * self.positions

    def macs(self, classes: int) -> int:
        """Multiply-adds for one sample: those of the linear layers, as everywhere in zpipe."""
        return hidden_units(classes) * (self.features + classes)


def hidden_units(classes: int) -> int:
    """Of the hidden layer."""
    return HIDDEN_FEW if classes <= FEW_CLASSES else HIDDEN_MANY


def choose_shape(
    activation: TensorSpec, *, classes: int, macs_before: int, tokens: Literal["mean", "last"], stage: int
) -> HeadShape:
    """The head for an activation: the finest grid that is cheap beside what lies before it.

    Args:
        activation: what the stage gives.
        classes: of the head.
        macs_before: multiply-adds of the stages up to here.
        tokens: what to do with `[tokens, channels]`.
        stage: for people.

    Raises:
        ConfigError: no head of ours fits such an activation.
    """
    match activation.shape:
        case (channels, height, width):
            shapes = [grid_shape(channels, height, width, grid) for grid in GRIDS]
            cheap = [shape for shape in shapes if shape.macs(classes) <= COST_SHARE * macs_before]
            shape = cheap[0] if cheap else shapes[-1]
        case (_, channels):
            shape = HeadShape(tokens, channels)
        case (channels,):
            shape = HeadShape("none", channels)
        case _:
            raise ConfigError(
                f"--at {stage}: found an activation of shape {list(activation.shape)}, expected [channels, height, width], "
                "[tokens, channels] or [channels]; put the head at another stage"
            )
    if shape.features > MOST_FEATURES or activation.dtype not in ("float32", "float16"):
        raise ConfigError(
            f"--at {stage}: found an activation {activation.dtype} {list(activation.shape)}, expected floats, at most "
            f"{MOST_FEATURES // 2} of them after averaging; put the head at another stage"
        )
    return shape


def grid_shape(channels: int, height: int, width: int, grid: int) -> HeadShape:
    """Windows that cover the whole plane, as evenly as whole pixels allow; they overlap where a side is no multiple of the grid."""
    grids = (min(grid, height), min(grid, width))
    stride = tuple(side // count for side, count in zip((height, width), grids, strict=True))
    kernel = tuple(side - (count - 1) * step for side, count, step in zip((height, width), grids, stride, strict=True))
    return HeadShape("grid", channels, kernel, stride, math.prod(grids))

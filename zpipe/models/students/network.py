"""A student: a narrow MobileNetV2 whose head gives its part of the teacher's filters and, from these, its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from zpipe.errors import ConfigError
from zpipe.models.mobilenetv2 import InvertedResidual, scaled
from zpipe.models.network import MultiExitNet, Normalise, Stage, conv_norm, early_head, stage_costs
from zpipe.models.recipes import STUDENT_BLOCKS_32, STUDENT_BLOCKS_96, STUDENT_SPLIT, STUDENT_WIDTHS

#: Pictures with sides from here on are halved as MobileNetV2 does it.
LARGE_PIXELS = 64

#: Side of the grid that an early head averages to.
HEAD_GRID = 4

#: Bytes of a parameter in a file, and at most of the graph around them, for each stage and for each of its convolutions.
PARAMETER_BYTES, STAGE_BYTES, CONVOLUTION_BYTES = 4, 4096, 512


@dataclass(frozen=True, slots=True)
class Outline:
    """What a student must fit.

    Attributes:
        size: side of a picture in pixels.
        filters: it stands for so many.
        classes: it gives a score for each.
        exits: whether it has an early exit, hence two stages.
        rectified: whether its filters are never below 0, as its teacher's.
    """

    size: int
    filters: int
    classes: int
    exits: bool
    rectified: bool


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a student: parameters, multiply-adds for one sample, and at most so many bytes of files."""

    parameters: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the student of a part may cost at most; None = anything."""

    part: int
    parameters: int | None = None
    bytes: int | None = None
    macs: int | None = None

    def exceeded(self, cost: Cost) -> tuple[str, int, int] | None:
        """Which bound is exceeded, by what and what it is; None if none is."""
        for name in ("bytes", "macs", "parameters"):
            value, limit = getattr(cost, name), getattr(self, name)
            if limit is not None and value > limit:
                return name, value, limit
        return None


class StudentHead(nn.Module):
    """A 1x1 convolution to the part's filters, averaged over the picture, then the part's columns of the joining classifier.

    That classifier's bias is the join's: it counts once, however many parts are in.
    """

    def __init__(self, channels: int, side: int, outline: Outline) -> None:
        super().__init__()
        rectifier = [nn.ReLU(inplace=True)] if outline.rectified else []
        self.project = nn.Sequential(*conv_norm(channels, outline.filters), *rectifier, nn.AvgPool2d(side), nn.Flatten())
        self.scores = nn.Linear(outline.filters, outline.classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.project(x))
        return scores


class Student(MultiExitNet):
    """One or two stages, the last with a StudentHead."""

    @property
    def head(self) -> StudentHead:
        """Its last."""
        head = self.stages[-1].head
        assert isinstance(head, StudentHead)
        return head

    def learn(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every exit's scores `[batch, classes]`, in order, and its filters `[batch, filters]`."""
        *early, last = self.stages
        exits = []
        for stage in early:
            x, scores = stage(x)
            exits.append(scores)
        filters = self.head.project(last.body(x))
        return [*exits, self.head.scores(filters)], filters


def make_student(width: float, outline: Outline) -> Student:
    """Fresh weights from torch's global generator."""
    groups = STUDENT_BLOCKS_32 if outline.size < LARGE_PIXELS else STUDENT_BLOCKS_96
    channels, side = scaled(32, width), -(-outline.size // 2)
    layers: list[nn.Module] = [Normalise(), *conv_norm(3, channels, 3, 2), nn.ReLU6(inplace=True)]
    stages = []
    for index, group in enumerate(groups):
        if outline.exits and index == STUDENT_SPLIT:
            head = early_head(channels, side, HEAD_GRID, outline.classes)
            stages.append(Stage(nn.Sequential(*layers), head, last=False))
            layers = []
        outputs = scaled(group.channels, width)
        for repeat in range(group.repeats):
            stride = group.stride if repeat == 0 else 1
            layers.append(InvertedResidual(channels, outputs, group.expansion, stride))
            channels, side = outputs, -(-side // stride)
    stages.append(Stage(nn.Sequential(*layers), StudentHead(channels, side, outline), last=True))
    return Student(stages)


def student_cost(network: Student, outline: Outline) -> Cost:
    """Of this network."""
    costs = stage_costs(network, np.zeros((1, 3, outline.size, outline.size), np.uint8))
    parameters = sum(count for _, count in costs)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
    graph = STAGE_BYTES * len(costs) + CONVOLUTION_BYTES * convolutions
    return Cost(parameters, sum(macs for macs, _ in costs), PARAMETER_BYTES * parameters + graph)


def widest(outline: Outline, bounds: Bounds) -> float:
    """The widest student of the family within these bounds.

    Raises:
        ConfigError: not even the narrowest fits.
    """
    chosen = check_narrowest(outline, bounds)
    for width in STUDENT_WIDTHS:
        if bounds.exceeded(student_cost(make_student(width, outline), outline)):
            break
        chosen = width
    return chosen


def check_narrowest(outline: Outline, bounds: Bounds) -> float:
    """The narrowest student's width, if that is within these bounds.

    Raises:
        ConfigError: it is not.
    """
    width = STUDENT_WIDTHS[0]
    with torch.random.fork_rng(devices=[]):  # who asks for bounds gets the same weights as who does not
        cost = student_cost(make_student(width, outline), outline)
    exceeded = bounds.exceeded(cost)
    if exceeded is None:
        return width
    found, value, limit = exceeded
    if found == "parameters":
        raise ConfigError(
            f"--students: found part {bounds.part} with {outline.filters} filters, for which the smallest student has {value} "
            f"parameters, expected at most {limit}; take fewer students, or say how large they may be with --student-bytes"
        )
    raise ConfigError(
        f"--student-{found}: found {limit} for part {bounds.part}, expected at least {value}, the smallest student's; give more"
    )

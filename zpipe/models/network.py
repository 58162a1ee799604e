"""Multi-exit MobileNetV2 in torch: five stages, each ending in an exit head.

Source: MobileNetV2 (arXiv:1801.04381), strides as the recipe says; exits as in BranchyNet (arXiv:1709.01686). Differs:
an early head averages over a 4x4 or 2x2 grid instead of the whole plane, since exit 1 reached only 23-29 % with global pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zpipe.models.recipes import Recipe

#: Raw pixels are mapped to about -2..2 inside stage 0: callers send uint8 and cannot normalise twice.
PIXEL_CENTRE, PIXEL_SCALE = 127.5, 63.75

#: Width of the head's own 1x1 convolution, before the width multiplier.
LAST_CHANNELS = 1280

#: Side of the grid each early head averages to.
HEAD_GRIDS = (4, 4, 2, 2)


def scaled(channels: int, width: float) -> int:
    """Channels times width, to a multiple of 8 and never below 90 % of it (MobileNetV2's own rule)."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, then batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; add the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [*conv_norm(inputs, hidden), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [*conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True), *conv_norm(hidden, outputs)]
        self.layers = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds_input else y


class Normalise(nn.Module):
    """Pixels 0..255 of any dtype to float32 of about -2..2."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.to(torch.float32) - PIXEL_CENTRE) * (1.0 / PIXEL_SCALE)


class Stage(nn.Module):
    """Body and exit head: `[batch, ...]` in; activation and raw logits `[batch, classes]` out (last stage: logits only)."""

    def __init__(self, body: nn.Module, head: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.body, self.head, self.last = body, head, last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        activation = self.body(x)
        logits: Tensor = self.head(activation)
        return logits if self.last else (activation, logits)


class MultiExitNet(nn.Module):
    """The stages in a row."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Every exit's raw logits for images `[batch, 3, size, size]`, values 0..255."""
        exits = []
        for stage in self.stages:
            answer = stage(x)
            if isinstance(answer, tuple):
                x, logits = answer
            else:
                logits = answer
            exits.append(logits)
        return exits


def build_network(recipe: Recipe, *, classes: int) -> MultiExitNet:
    """A network with fresh weights from torch's global generator."""
    width = recipe.width
    channels, side = scaled(32, width), recipe.image_size // recipe.stem_stride
    stem: list[nn.Module] = [Normalise(), *conv_norm(3, channels, 3, recipe.stem_stride), nn.ReLU6(inplace=True)]
    stages = []
    for index, blocks in enumerate(recipe.blocks):
        layers = stem if index == 0 else []
        for block in blocks:
            for repeat in range(block.repeats):
                stride, outputs = block.stride if repeat == 0 else 1, scaled(block.channels, width)
                layers.append(InvertedResidual(channels, outputs, block.expansion, stride))
                channels, side = outputs, side // stride
        last = index == len(recipe.blocks) - 1
        head = last_head(channels, side, width, classes) if last else early_head(channels, side, HEAD_GRIDS[index], classes)
        stages.append(Stage(nn.Sequential(*layers), head, last=last))
    return MultiExitNet(stages)


def early_head(channels: int, side: int, grid: int, classes: int) -> nn.Module:
    """Average to a small grid, then linear. Few multiply-adds: every sample that passes pays for it."""
    kernel = max(1, side // grid)
    features = channels * (side // kernel) ** 2
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AvgPool2d(kernel), nn.Flatten(), nn.Linear(features, classes)
    )


def last_head(channels: int, side: int, width: float, classes: int) -> nn.Module:
    """MobileNetV2's own head: a wide 1x1 convolution, global average, linear."""
    wide = scaled(LAST_CHANNELS, max(width, 0.5))
    return nn.Sequential(
        *conv_norm(channels, wide),
        nn.ReLU6(inplace=True),
        nn.AvgPool2d(side),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(wide, classes),
    )


def stage_costs(network: MultiExitNet, example: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Per stage: multiply-adds for one sample (convolutions and linear layers, head included) and parameters.

    Args:
        network: any batch goes through it in eval mode.
        example: at least one image `[batch, 3, size, size]`.
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        counted.append(weight.numel() * positions)

    costs = []
    x = torch.from_numpy(example[:1])
    network.eval()
    with torch.no_grad():
        for stage in network.stages:
            counted.clear()
            hooks = [m.register_forward_hook(count) for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            answer = stage(x)
            for hook in hooks:
                hook.remove()
            x = answer[0] if isinstance(answer, tuple) else x
            costs.append((sum(counted), sum(p.numel() for p in stage.parameters())))
    return costs

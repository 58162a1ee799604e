"""MobileNetV2 (arXiv:1801.04381) with exits; strides as the recipe says."""

from __future__ import annotations

from torch import Tensor, nn

from zpipe.models.network import MultiExitNet, Normalise, Stage, conv_norm, early_head
from zpipe.models.recipes import MobileNetV2

#: Width of the head's own 1x1 convolution, before the width multiplier.
LAST_CHANNELS = 1280

#: Side of the grid each early head averages to.
HEAD_GRIDS = (4, 4, 2, 2)


def scaled(channels: int, width: float) -> int:
    """Channels times width, to a multiple of 8 and never below 90 % of it (MobileNetV2's own rule)."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


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


def mobilenetv2(network: MobileNetV2, split: tuple[int, ...], *, size: int, classes: int) -> MultiExitNet:
    """Fresh weights from torch's global generator.

    Args:
        network: width, stem and blocks.
        split: groups of blocks of each stage.
        size: side of an image in pixels.
        classes: of every exit.
    """
    width = network.width
    channels, side = scaled(32, width), size // network.stem_stride
    layers: list[nn.Module] = [Normalise(), *conv_norm(3, channels, 3, network.stem_stride), nn.ReLU6(inplace=True)]
    stages, blocks = [], iter(network.blocks)
    for index, count in enumerate(split):
        for _ in range(count):
            block = next(blocks)
            for repeat in range(block.repeats):
                stride, outputs = block.stride if repeat == 0 else 1, scaled(block.channels, width)
                layers.append(InvertedResidual(channels, outputs, block.expansion, stride))
                channels, side = outputs, side // stride
        last = index == len(split) - 1
        head = last_head(channels, side, width, classes) if last else early_head(channels, side, HEAD_GRIDS[index], classes)
        stages.append(Stage(nn.Sequential(*layers), head, last=last))
        layers = []
    return MultiExitNet(stages)


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

"""ResNet (arXiv:1512.03385) with exits: ResNet-56 and its kind for small images, ResNet-50 with either stem."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zpipe.models.network import MultiExitNet, Normalise, Stage, conv_norm, early_head, global_head
from zpipe.models.recipes import ResNet


class Residual(nn.Module):
    """Two 3x3 convolutions (expansion 1), or 1x1 down, 3x3, 1x1 up (expansion 4); and the input added.

    Differs: where the shape changes the input passes a 1x1 convolution (the paper's option B) in every kind of network.
    """

    def __init__(self, inputs: int, middle: int, expansion: int, stride: int) -> None:
        super().__init__()
        outputs = expansion * middle
        if expansion == 1:
            layers = [*conv_norm(inputs, middle, 3, stride), nn.ReLU(inplace=True), *conv_norm(middle, middle, 3)]
        else:
            layers = [
                *conv_norm(inputs, middle),
                nn.ReLU(inplace=True),
                *conv_norm(middle, middle, 3, stride),
                nn.ReLU(inplace=True),
                *conv_norm(middle, outputs),
            ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if inputs != outputs or stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet(network: ResNet, split: tuple[int, ...], *, size: int, classes: int) -> MultiExitNet:
    """Fresh weights from torch's global generator.

    Args:
        network: groups, width and stem.
        split: residual blocks of each stage.
        size: side of an image in pixels.
        classes: of every exit.
    """
    width, channels = network.width, network.width
    if network.stem == "cifar":
        layers: list[nn.Module] = [Normalise(), *conv_norm(3, width, 3), nn.ReLU(inplace=True)]
        side = size
    else:
        layers = [Normalise(), *conv_norm(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        side = size // 4
    # Every block's (channels of its middle, stride).
    blocks = iter(
        [
            (width << group, 2 if group and not repeat else 1)
            for group, count in enumerate(network.groups)
            for repeat in range(count)
        ]
    )
    stages = []
    for index, count in enumerate(split):
        for _ in range(count):
            middle, stride = next(blocks)
            layers.append(Residual(channels, middle, network.expansion, stride))
            channels, side = network.expansion * middle, side // stride
        last, grid = index == len(split) - 1, network.grids[min(index, len(network.grids) - 1)]
        head = global_head(channels, classes) if last or grid == 1 else early_head(channels, side, grid, classes)
        stages.append(Stage(nn.Sequential(*layers), head, last=last))
        layers = []
    return MultiExitNet(stages)

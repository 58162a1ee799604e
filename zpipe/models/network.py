"""Multi-exit networks in torch: stages in a row, each ending in an exit head; what all architectures have in common.

Source: exits as in BranchyNet (arXiv:1709.01686). Differs: an early head averages over a 4x4 or 2x2 grid instead of the whole
plane, since exit 1 reached only 23-29 % with global pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

#: Raw pixels are mapped to about -2..2 inside stage 0: callers send uint8 and cannot normalise twice.
PIXEL_CENTRE, PIXEL_SCALE = 127.5, 63.75


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, then batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


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
        """Every exit's raw logits for images `[batch, 3, size, size]`, values 0..255, or tokens `[batch, tokens]`."""
        exits = []
        for stage in self.stages:
            answer = stage(x)
            if isinstance(answer, tuple):
                x, logits = answer
            else:
                logits = answer
            exits.append(logits)
        return exits


def early_head(channels: int, side: int, grid: int, classes: int) -> nn.Module:
    """Average to a small grid, then linear. Few multiply-adds: every sample that passes pays for it."""
    kernel = max(1, side // grid)
    features = channels * (side // kernel) ** 2
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AvgPool2d(kernel), nn.Flatten(), nn.Linear(features, classes)
    )


def global_head(channels: int, classes: int) -> nn.Module:
    """ResNet's own head: average over the whole plane, linear."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Multiplies(nn.Module):
    """A layer that multiplies without weights, such as attention: `macs(output)` says how often for one sample."""

    def macs(self, output: Tensor) -> int:
        """Multiply-adds for one sample."""
        raise NotImplementedError


def stage_costs(network: MultiExitNet, example: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Per stage: multiply-adds for one sample (convolutions, linear layers and attention, head included) and parameters.

    Args:
        network: any batch goes through it in eval mode.
        example: at least one sample `[batch, ...]`.
    """
    counted: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(layer, Multiplies):
            counted.append(layer.macs(output))
        else:
            channels = output.shape[1] if output.dim() == 4 else output.shape[-1]
            counted.append(layer.weight.numel() * (output[0].numel() // channels))

    costs = []
    x = torch.from_numpy(example[:1])
    network.eval()
    with torch.no_grad():
        for stage in network.stages:
            counted.clear()
            layers = [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d | nn.Linear | Multiplies)]
            hooks = [layer.register_forward_hook(count) for layer in layers]
            answer = stage(x)
            for hook in hooks:
                hook.remove()
            x = answer[0] if isinstance(answer, tuple) else x
            costs.append((sum(counted), sum(p.numel() for p in stage.parameters())))
    return costs

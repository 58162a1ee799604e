"""ResNet-50 in four stages, an exit head behind each, with random weights: what `zpipe train --recipe resnet50-imagenet --random
--stages 4` makes, and smaller ones of the same kind for tests. Needs the extra `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from zpipe.bundle import Bundle
from zpipe.models.building import random_network
from zpipe.models.recipes import RECIPES, Recipe, ResNet
from zpipe.models.training import torch_settings
from zpipe.models.untrained import write_untrained

#: Blocks of each stage.
BLOCKS = (3, 4, 6, 3)


def recipe(*, size: int, width: int, blocks: Sequence[int], classes: int) -> Recipe:
    """The recipe's network in these sizes; `width` 64 is the paper's."""
    plan = RECIPES["resnet50-imagenet"].cut_into(4)
    network = ResNet(tuple(blocks), width, 4, "imagenet", (tuple(blocks),), grids=(1,))
    return replace(plan, name="resnet50", network=network, image_size=size, classes=classes)


def write_resnet50(
    folder: Path,
    *,
    size: int = 224,
    width: int = 64,
    blocks: Sequence[int] = BLOCKS,
    classes: int = 1000,
    seed: int = 0,
) -> Bundle:
    """Makes the network and writes its bundle; its default operating point, `half`, lets half leave at each exit.

    Args:
        folder: exists.
        size: side of an image.
        width, blocks, classes: smaller ones make a network of the same kind for a test.
        seed: of the weights and of the images they are scaled to.
    """
    with torch_settings(threads=torch.get_num_threads(), seed=seed):
        made = random_network(recipe(size=size, width=width, blocks=blocks, classes=classes), seed=seed)
        return write_untrained(made, folder, tell=lambda step, done, line: None)

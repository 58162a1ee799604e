"""Recipes: everything that decides what network comes out, by name. Standard library only, so that the CLI can list them.

Source: one trial on this task, which found learning rate, weight decay and exit weights. Self-distillation between exits changed
nothing beyond the noise between seeds, so there is none. The trial trained 80 epochs; here 50 at full width took 727 s on one
thread while three other programs shared the two cores (0.74 s a step when they were quiet: about 550 s), 60 at half width 117 s.

The 96x96 recipe is for lines where an activation must be smaller than the picture: 27,648 bytes of uint8 pixels come in, and no
cut is larger than 18,432 bytes of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from zpipe.errors import ConfigError


class Block(NamedTuple):
    """A group of inverted residuals: expansion, channels out, repeats, stride of the first."""

    expansion: int
    channels: int
    repeats: int
    stride: int


#: The groups of each stage.
StageBlocks = tuple[tuple[Block, ...], ...]

#: Cut where little data crosses: 24x32x32, 32x16x16, 64x8x8, 96x8x8 values at full width.
BLOCKS_32: StageBlocks = (
    (Block(1, 16, 1, 1), Block(6, 24, 2, 1)),
    (Block(6, 32, 3, 2),),
    (Block(6, 64, 4, 2),),
    (Block(6, 96, 3, 1),),
    (Block(6, 160, 3, 2), Block(6, 320, 1, 1)),
)

#: MobileNetV2's own strides. Stage 0 goes down to 12x12 before its exit: 32x12x12, 32x12x12, 64x6x6, 96x6x6 values cross. Without
#: the last group of 320 channels, which 3x3 positions do not need: it would be a third of all weights.
BLOCKS_96: StageBlocks = (
    (Block(1, 16, 1, 1), Block(6, 24, 2, 2), Block(6, 32, 1, 2)),
    (Block(6, 32, 3, 1),),
    (Block(6, 64, 4, 2),),
    (Block(6, 96, 3, 1),),
    (Block(6, 160, 3, 2),),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build and train one network.

    Attributes:
        name: also the bundle's name.
        width: multiplies MobileNetV2's channels.
        stem_stride: of the first convolution: 1 keeps 32x32 as CIFAR networks do, 2 quarters all compute.
        blocks: what each stage is made of.
        image_size: height and width of the images in pixels.
        epochs: passes over the training set, unless the task or the caller says otherwise.
        batch: images per step.
        learning_rate: peak of the one-cycle schedule (SGD, Nesterov momentum).
        weight_decay: on all parameters.
        exit_weights: of each exit's cross-entropy in the sum; the later ones matter more, as they must not pay for the early.
        default_threshold_least: the default operating point never lies below it.
    """

    name: str
    width: float
    stem_stride: int
    epochs: int
    blocks: StageBlocks = BLOCKS_32
    image_size: int = 32
    batch: int = 64
    learning_rate: float = 0.2
    weight_decay: float = 1e-3
    exit_weights: tuple[float, ...] = (0.5, 0.7, 1.0, 1.0, 1.3)
    default_threshold_least: float = 0.9


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("digits-mobilenetv2", width=1.0, stem_stride=1, epochs=50),
        Recipe("digits-mobilenetv2-half", width=0.5, stem_stride=2, epochs=60),
        Recipe("digits96-mobilenetv2", width=1.0, stem_stride=2, epochs=40, blocks=BLOCKS_96, image_size=96),
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe: found {name!r}, expected one of {', '.join(RECIPES)}; choose one of these")
    return RECIPES[name]

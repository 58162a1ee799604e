"""Recipes: everything that decides what network comes out, by name. Standard library only, so that the CLI can list them.

Source: one trial on this task, which found learning rate, weight decay and exit weights. Self-distillation between exits changed
nothing beyond the noise between seeds, so there is none. The trial trained 80 epochs; here 50 at full width took 727 s on one
thread while three other programs shared the two cores (0.74 s a step when they were quiet: about 550 s), 60 at half width 117 s.

The 96x96 recipe is for lines where an activation must be smaller than the picture: 27,648 bytes of uint8 pixels come in, and no
cut is larger than 18,432 bytes of float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from zpipe.errors import ConfigError


class Block(NamedTuple):
    """A group of inverted residuals: expansion, channels out, repeats, stride of the first."""

    expansion: int
    channels: int
    repeats: int
    stride: int


#: 24x32x32, 32x16x16, 64x8x8, 96x8x8 values cross at full width where it is cut in five.
BLOCKS_32 = (
    Block(1, 16, 1, 1),
    Block(6, 24, 2, 1),
    Block(6, 32, 3, 2),
    Block(6, 64, 4, 2),
    Block(6, 96, 3, 1),
    Block(6, 160, 3, 2),
    Block(6, 320, 1, 1),
)

#: MobileNetV2's own strides. Stage 0 goes down to 12x12 before its exit: 32x12x12, 32x12x12, 64x6x6, 96x6x6 values cross. Without
#: the last group of 320 channels, which 3x3 positions do not need: it would be a third of all weights.
BLOCKS_96 = (
    Block(1, 16, 1, 1),
    Block(6, 24, 2, 2),
    Block(6, 32, 1, 2),
    Block(6, 32, 3, 1),
    Block(6, 64, 4, 2),
    Block(6, 96, 3, 1),
    Block(6, 160, 3, 2),
)

#: Units (blocks or groups of them) of each stage, one line for each number of stages it can be cut into.
Splits = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class MobileNetV2:
    """Source: arXiv:1801.04381.

    Attributes:
        width: multiplies the channels.
        stem_stride: of the first convolution: 1 keeps 32x32 as CIFAR networks do, 2 quarters all compute.
        blocks: the units.
        splits: see `Splits`; cut where little data crosses.
    """

    width: float
    stem_stride: int
    blocks: tuple[Block, ...]
    splits: Splits


@dataclass(frozen=True, slots=True)
class ResNet:
    """Source: arXiv:1512.03385, with the stride in the 3x3 convolution of a bottleneck, as everybody has it since.

    Attributes:
        groups: residual blocks at each resolution; each halves it but the first.
        width: channels of the first group.
        expansion: 1: blocks of two 3x3 convolutions; 4: bottlenecks whose output has four times the channels of their middle.
        stem: `cifar`, one 3x3 convolution; `imagenet`, 7x7 with stride 2 and a pooling with stride 2.
        splits: see `Splits`; the units are residual blocks.
        grids: side of the grid that each early head averages to; the last is for all that follow.
    """

    groups: tuple[int, ...]
    width: int
    expansion: Literal[1, 4]
    stem: Literal["cifar", "imagenet"]
    splits: Splits
    grids: tuple[int, ...] = (4, 4, 2)


@dataclass(frozen=True, slots=True)
class Gpt2:
    """A decoder in GPT-2's shape. Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    Attributes:
        layers, width, heads: of the transformer.
        vocabulary: tokens, which are the classes: exits predict the next one.
        positions: learned ones; no sample is longer.
        tokens: of a sample.
        splits: see `Splits`; the units are layers.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    positions: int
    tokens: int
    splits: Splits


Architecture = MobileNetV2 | ResNet | Gpt2

#: What each exit's cross-entropy counts in the sum; the later ones matter more, as they must not pay for the early.
EXIT_WEIGHTS = {4: (0.5, 0.7, 1.0, 1.3), 5: (0.5, 0.7, 1.0, 1.0, 1.3)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build and train one network.

    Attributes:
        name: also the bundle's name.
        network: what is trained.
        epochs: passes over the training set, unless the task or the caller says otherwise.
        stages: what it is cut into.
        image_size: height and width of the images in pixels.
        classes: of the network where it is not trained on data of a given number; None = as the data says.
        batch: images per step.
        learning_rate: peak of the one-cycle schedule (SGD, Nesterov momentum).
        weight_decay: on all parameters.
        exit_weights: one per stage, see `EXIT_WEIGHTS`.
        default_threshold_least: the default operating point never lies below it.
    """

    name: str
    network: Architecture
    epochs: int = 30
    stages: int = 5
    image_size: int = 32
    classes: int | None = None
    batch: int = 64
    learning_rate: float = 0.2
    weight_decay: float = 1e-3
    exit_weights: tuple[float, ...] = EXIT_WEIGHTS[5]
    default_threshold_least: float = 0.9

    @property
    def split(self) -> tuple[int, ...]:
        """Units of each stage."""
        return next(split for split in self.network.splits if len(split) == self.stages)

    def cut_into(self, stages: int) -> Recipe:
        """The same in so many stages.

        Raises:
            ConfigError: nobody has said where to cut it then.
        """
        known = [len(split) for split in self.network.splits]
        if stages not in known:
            raise ConfigError(
                f"--stages: found {stages}, expected one of {', '.join(map(str, known))} for {self.name}; choose one, or cut the "
                "network yourself with `zpipe split`"
            )
        return replace(self, stages=stages, exit_weights=EXIT_WEIGHTS[stages])


#: 45,000 images on CPU cores are a matter of days for ResNet-50 and hours for ResNet-56; not tuned: our machines hold no CIFAR-10.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("digits-mobilenetv2", MobileNetV2(1.0, 1, BLOCKS_32, ((2, 1, 2, 2), (2, 1, 1, 1, 2))), epochs=50),
        Recipe("digits-mobilenetv2-half", MobileNetV2(0.5, 2, BLOCKS_32, ((2, 1, 2, 2), (2, 1, 1, 1, 2))), epochs=60),
        Recipe("digits96-mobilenetv2", MobileNetV2(1.0, 2, BLOCKS_96, ((3, 1, 2, 1), (3, 1, 1, 1, 1))), epochs=40, image_size=96),
        # Every block costs the same: 4.7 M multiply-adds.
        Recipe("resnet56", ResNet((9, 9, 9), 16, 1, "cifar", ((6, 7, 7, 7), (5, 5, 6, 6, 5)))),
        Recipe("resnet50", ResNet((3, 4, 6, 3), 64, 4, "cifar", ((3, 4, 6, 3), (3, 4, 3, 3, 3)))),
        # Heads of one linear layer behind a global average, as the last one has: with a grid each would be larger than its stage.
        Recipe(
            "resnet50-imagenet",
            ResNet((3, 4, 6, 3), 64, 4, "imagenet", ((3, 4, 6, 3), (3, 4, 3, 3, 3)), grids=(1,)),
            image_size=224,
            classes=1000,
        ),
        Recipe("gpt2-small", Gpt2(12, 768, 12, 50_257, 1024, 64, ((3, 3, 3, 3), (2, 2, 3, 3, 2)))),
    )
}


#: Groups of a student for small pictures: soon down to 8x8, as on a CPU depthwise convolutions at 16x16 took three quarters of the
#: time. Without the last group of 320 channels, as above.
STUDENT_BLOCKS_32 = (
    Block(1, 16, 1, 1),
    Block(6, 24, 2, 2),
    Block(6, 32, 2, 1),
    Block(6, 64, 2, 2),
    Block(6, 96, 2, 1),
    Block(6, 160, 1, 1),
)

#: For pictures from 64 pixels on: MobileNetV2's own strides.
STUDENT_BLOCKS_96 = (
    Block(1, 16, 1, 1),
    Block(6, 24, 2, 2),
    Block(6, 32, 2, 2),
    Block(6, 64, 2, 2),
    Block(6, 96, 2, 1),
    Block(6, 160, 1, 2),
)

#: Groups before a student's early exit, if it has one.
STUDENT_SPLIT = 3

#: The family: what multiplies the channels of a student, narrow to wide.
STUDENT_WIDTHS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.75, 1.0, 1.25)


@dataclass(frozen=True, slots=True)
class StudentsRecipe:
    """How to distil a network into students.

    Attributes:
        name: also the bundle's name, where a teacher is given.
        teacher: the bundle that is distilled; None = the caller says which.
        students: how many, unless the caller says otherwise.
        share: of the teacher's parameters that all students together may have, where the caller sets no other bounds.
        epochs: passes over the training set.
        draws: epochs are drawn anew so often, then the same come again: the teacher has to look at each only once.
        batch: images per step.
        learning_rate: peak of the one-cycle schedule (SGD, Nesterov momentum).
        weight_decay: on all parameters.
        present: probability of each part in what the joining classifier trains on.
        early: probability that a student with an exit answers there in it.
        taught: share of the teacher's answer in each loss; the rest is the label's.
        temperature: of the teacher's answers while it teaches.
        weights: what counts how much: all parts together, random parts together, each alone, its filters.
        rounds: of the test split that go into the bundle; None = all.
    """

    name: str
    teacher: str | None = None
    students: int = 3
    share: float = 0.4
    epochs: int = 40
    draws: int = 30
    batch: int = 64
    learning_rate: float = 0.08
    weight_decay: float = 1e-3
    present: float = 0.6
    early: float = 0.3
    taught: float = 0.3
    temperature: float = 2.0
    weights: tuple[float, float, float, float] = (0.5, 0.5, 0.25, 0.5)
    rounds: int | None = None


#: Of the digits' test images one round goes into the bundle, every digit once: a fifth of those that were measured. 90 passes took
#: 13 minutes on a third of a core, and brought 95.8 % of all parts and at least 95.1 % without one; 28 passes 93.3 and 90.9.
STUDENT_RECIPES = {
    recipe.name: recipe
    for recipe in (
        StudentsRecipe("digits-rocoin", "digits-mobilenetv2", share=0.2, epochs=90, rounds=1),
        StudentsRecipe("rocoin"),
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


def find_students_recipe(name: str) -> StudentsRecipe:
    """The same among those that make students.

    Raises:
        ConfigError: there is none.
    """
    if name not in STUDENT_RECIPES:
        raise ConfigError(f"--recipe: found {name!r}, expected one of {', '.join(STUDENT_RECIPES)}; choose one of these")
    return STUDENT_RECIPES[name]

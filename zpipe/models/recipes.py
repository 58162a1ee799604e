"""Recipes: everything that decides what network comes out, by name. Standard library only, so that the CLI can list them.

Source: one trial on this task, which found learning rate, weight decay and exit weights. Self-distillation between exits changed
nothing beyond the noise between seeds, so there is none. The trial trained 80 epochs; here 50 at full width took 727 s on one
thread while three other programs shared the two cores (0.74 s a step when they were quiet: about 550 s), 60 at half width 117 s.
"""

from __future__ import annotations

from dataclasses import dataclass

from zpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build and train one network.

    Attributes:
        name: also the bundle's name.
        width: multiplies MobileNetV2's channels.
        stem_stride: of the first convolution: 1 keeps 32x32 as CIFAR networks do, 2 quarters all compute.
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

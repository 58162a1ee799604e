"""What a recipe trains on: a source of training images and two held-out splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation

#: One epoch, augmented: images `[samples, 3, size, size] uint8` in random order, labels `[samples] int64`.
DrawEpoch = Callable[[np.random.Generator], tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class Task:
    """A classification task over square RGB images.

    Attributes:
        name: as `--data` says it.
        classes: names of the labels.
        note: how it was split, for the manifest.
        draw_epoch: makes one epoch of training images.
        calibration: temperatures and operating points are fitted on this, and nothing else.
        test: becomes the bundle's evaluation set; nothing is chosen on it.
        epochs: how long to train on this task; None = as the recipe says.
        draws_anew: two epochs show other images; if not, only their order differs.
    """

    name: str
    classes: tuple[str, ...]
    note: str
    draw_epoch: DrawEpoch
    calibration: Evaluation
    test: Evaluation
    epochs: int | None
    draws_anew: bool = True

    @property
    def image_size(self) -> int:
        """Height and width of every image in pixels."""
        return int(self.test.images.shape[-1])

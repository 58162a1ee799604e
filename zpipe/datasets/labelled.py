"""Images with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images with their labels, and where they come from.

    Attributes:
        name: for people.
        classes: names of the labels.
        data: images `[samples, 3, size, size] uint8` (or what else the network takes), the rest `[samples] int64`.
    """

    name: str
    classes: tuple[str, ...]
    data: Evaluation

    def __len__(self) -> int:
        return len(self.data)

    @property
    def images(self) -> npt.NDArray[Any]:
        """`[samples, 3, size, size]`, or what else the network takes."""
        return self.data.images

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """`[samples]`, indices into `classes`."""
        return self.data.labels

    @property
    def digit(self) -> npt.NDArray[np.int64]:
        """Which original each image shows, `[samples]`."""
        return self.data.digit

    def subset(self, rows: npt.NDArray[np.bool_]) -> Labelled:
        """Those that a mask `[samples]` selects."""
        data = self.data
        return Labelled(
            self.name, self.classes, Evaluation(data.images[rows], data.labels[rows], data.severity[rows], data.digit[rows])
        )

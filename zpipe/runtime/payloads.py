"""Where activations wait while the policy decides: rows of batches, joined again with as few copies as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Payloads:
    """Rows by token. A row is (batch, index), so that neighbours in a batch can leave as one slice of it."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Array, int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Array, index: int) -> int:
        """Keeps row `index` of `batch` `[rows, ...]`; returns its token, never 0."""
        self._next += 1
        self._rows[self._next] = (batch, index)
        return self._next

    def replace(self, token: int, batch: Array, index: int) -> None:
        """The row under `token` is now this one."""
        self._rows[token] = (batch, index)

    def row(self, token: int) -> tuple[Array, int]:
        """The batch and index under `token`."""
        return self._rows[token]

    def drop(self, token: int) -> None:
        """Forgets a row; an unknown token is fine."""
        self._rows.pop(token, None)


def join(rows: Sequence[tuple[Array, int]]) -> Array:
    """`[len(rows), ...]`, C-contiguous: a view where the rows follow each other in one batch, else a copy."""
    batch, first = rows[0]
    if all(other is batch and index == first + offset for offset, (other, index) in enumerate(rows)):
        return batch[first : first + len(rows)]
    return np.stack([batch[index] for batch, index in rows])

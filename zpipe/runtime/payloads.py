"""Where activations wait while the policy decides: rows of batches, joined again with as few copies as can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zpipe.executors.base import Batch


class Payloads:
    """Batch by token. A row is (batch, index), so that neighbours in a batch can leave as one slice of it."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Batch, int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Batch, index: int) -> int:
        """Keeps row `index` of `batch` `[rows, ...]`; returns its token, never 0."""
        self._next += 1
        self._rows[self._next] = (batch, index)
        return self._next

    def replace(self, token: int, batch: Batch, index: int) -> None:
        """The row under `token` is now this one."""
        self._rows[token] = (batch, index)

    def row(self, token: int) -> tuple[Batch, int]:
        """The batch and index under `token`."""
        return self._rows[token]

    def drop(self, token: int) -> None:
        """Forgets a row; an unknown token is fine."""
        self._rows.pop(token, None)


def join(rows: Sequence[tuple[Batch, int]]) -> Batch:
    """`[len(rows), ...]`, C-contiguous: a view where the rows follow each other in one batch, else a copy.

    Where a row lies with the executor, all are left where they are and only named: fetching it would wait for the device, and
    the executor brings host rows to it faster than the other way round. So this neither waits nor fails.
    """
    batch, first = rows[0]
    if isinstance(batch, np.ndarray) and _follow(rows, batch, first):
        return batch[first : first + len(rows)]
    resident = next((batch for batch, _ in rows if not isinstance(batch, np.ndarray)), None)
    if resident is not None:
        return resident.join(rows)
    return np.stack([np.asarray(batch)[index] for batch, index in rows])


def _follow(rows: Sequence[tuple[Batch, int]], batch: Batch, first: int) -> bool:
    for other, index in rows:  # no generator: one row is the rule on a line that is not busy
        if other is not batch or index != first:
            return False
        first += 1
    return True

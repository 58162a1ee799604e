"""Where nodes stand in a drawing: in layers, by how many links they are from the source."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

Pair = tuple[int, int]


def layers(ranks: Sequence[int], links: Collection[Pair], first: int) -> list[list[int]]:
    """The nodes by their distance from `first`, those that no link leads to last; within a layer near what they are linked to.

    A link then joins two nodes of one layer, or of two that follow each other.
    """
    near = neighbours(ranks, links)
    found, seen, ring = [], {first}, [first]
    while ring:
        found.append(ring)
        place = {rank: index for index, rank in enumerate(ring)}
        beyond = sorted({other for rank in ring for other in near[rank]} - seen)
        seen |= set(beyond)
        ring = sorted(beyond, key=lambda rank: (_mean([place[other] for other in near[rank] if other in place]), rank))
    rest = [rank for rank in ranks if rank not in seen]
    return [*found, rest] if rest else found


def neighbours(ranks: Sequence[int], links: Collection[Pair]) -> Mapping[int, set[int]]:
    """{rank: those it has a link with}."""
    near: dict[int, set[int]] = {rank: set() for rank in ranks}
    for a, b in links:
        near[a].add(b)
        near[b].add(a)
    return near


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def packed(found: Sequence[Sequence[int]]) -> tuple[dict[int, Pair], int, int]:
    """Places for many nodes: (column, row) of each, and how many columns and rows there are.

    A layer takes as many columns as it needs to be no taller than a square of all would be; where layers are thin and many (a long
    line), nodes go to and fro in rows instead.
    """
    count = sum(map(len, found))
    tallest = max(8, math.ceil(math.sqrt(count)))
    columns = sum(math.ceil(len(layer) / tallest) for layer in found)
    if columns > 4 * tallest:
        return _to_and_fro([rank for layer in found for rank in layer], 2 * tallest)
    places, column = {}, 0
    for layer in found:
        parts = [layer[start : start + tallest] for start in range(0, len(layer), tallest)]
        for part in parts:
            for row, rank in enumerate(part):
                places[rank] = (column, row + (tallest - len(part)) // 2)
            column += 1
    return places, columns, tallest


def _to_and_fro(ranks: Sequence[int], columns: int) -> tuple[dict[int, Pair], int, int]:
    places = {}
    for index, rank in enumerate(ranks):
        row, column = divmod(index, columns)
        places[rank] = (columns - 1 - column if row % 2 else column, row)
    return places, columns, math.ceil(len(ranks) / columns)

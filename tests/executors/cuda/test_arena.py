"""Regions of a block: never two on the same bytes, and whole again when all are back."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from zpipe.executors.cuda.arena import ALIGNMENT, Arena


def test_regions_are_aligned_and_first_fit() -> None:
    arena = Arena(4 * ALIGNMENT)
    assert [arena.take(1), arena.take(ALIGNMENT + 1), arena.take(2 * ALIGNMENT)] == [0, ALIGNMENT, None]
    arena.give(0)
    assert arena.take(ALIGNMENT) == 0


def test_the_end_of_a_region_that_shrinks_is_free_and_its_begin_is_not() -> None:
    arena = Arena(4 * ALIGNMENT)
    begin = arena.take(4 * ALIGNMENT)
    assert begin == 0
    arena.shrink(begin, ALIGNMENT + 1)
    assert arena.take(2 * ALIGNMENT) == 2 * ALIGNMENT
    assert arena.take(1) is None


def test_an_arena_of_nothing_has_no_room() -> None:
    assert Arena(0).take(1) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_byte_is_in_two_regions_and_all_come_back_as_one(seed: int) -> None:
    rng = random.Random(seed)
    arena = Arena(64 * ALIGNMENT)
    taken: dict[int, int] = {}
    refused = 0
    for _ in range(2000):
        choice = rng.random()
        if taken and choice < 0.4:
            begin = rng.choice(list(taken))
            arena.give(begin)
            del taken[begin]
        elif taken and choice < 0.5:
            begin = rng.choice(list(taken))
            taken[begin] = rng.randint(1, taken[begin])
            arena.shrink(begin, taken[begin])
        else:
            nbytes = rng.randint(1, 12 * ALIGNMENT)
            place = arena.take(nbytes)
            if place is None:
                refused += 1
                continue
            taken[place] = nbytes
        regions = sorted((begin, begin + nbytes) for begin, nbytes in taken.items())
        assert all(end <= begin for (_, end), (begin, _) in pairwise(regions))
        assert not regions or regions[-1][1] <= arena.nbytes
        assert len(arena) == len(taken)
    assert refused > 0
    for begin in taken:
        arena.give(begin)
    assert arena.take(arena.nbytes) == 0

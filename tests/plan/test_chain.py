"""The dynamic program against every line there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from zpipe.errors import ConfigError
from zpipe.plan import chain as chain_module
from zpipe.plan.chain import Chain, Combine, Costs, Slice, best_chain, classes_of, leanest_chain, shared_chain


def every_line(devices: int, pieces: int, source: int) -> Iterator[tuple[Slice, ...]]:
    others = [device for device in range(devices) if device != source]
    for count in range(min(len(others), pieces) + 1):
        for chosen in permutations(others, count):
            for cuts in combinations(range(pieces), count):
                ends = [*cuts, pieces]
                yield tuple(Slice(device, [0, *ends][at], ends[at]) for at, device in enumerate([source, *chosen]))


def costs_of(line: tuple[Slice, ...], slices: Costs, links: Costs) -> list[float]:
    runs = [float(slices[device, first, end]) for device, first, end in line]
    sends = [float(links[a.device, b.device, b.first]) for a, b in pairwise(line)]
    return runs + sends


def random_case(seed: int, devices: int, pieces: int, kinds: int) -> tuple[Costs, Costs]:
    """Devices of a few kinds, some of which cannot hold everything; a link missing here and there."""
    rng = np.random.default_rng(seed)
    seconds = rng.uniform(1.0, 5.0, pieces)
    speed, most = rng.choice([1.0, 2.0, 0.5, 0.3], kinds), rng.integers(1, pieces + 1, kinds)
    kind = rng.integers(0, kinds, devices)
    slices = np.full((devices, pieces + 1, pieces + 1), np.inf)
    for device in range(devices):
        for first in range(pieces + 1):
            for end in range(first, min(pieces, first + most[kind[device]]) + 1):
                slices[device, first, end] = seconds[first:end].sum() / speed[kind[device]]
    links = np.tile(rng.uniform(0.1, 4.0, pieces + 1), (devices, devices, 1)) * rng.choice([1.0, 2.0], (devices, devices, 1))
    links[rng.random((devices, devices)) < 0.2] = np.inf
    return slices, links


CASES = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))


@examples(60)
@given(CASES, st.sampled_from(["max", "sum"]))
def test_no_line_is_better_than_the_one_found(case: tuple[int, int, int, int], combine: Combine) -> None:
    slices, links = random_case(*case)
    whole = max if combine == "max" else sum
    best = min((whole(costs_of(line, slices, links)) for line in every_line(case[1], case[2], 0)), default=math.inf)
    found = best_chain(slices, links, source=0, combine=combine)
    assert (math.inf if found is None else found.cost) == pytest.approx(best)
    if found is not None:
        assert whole(costs_of(found.slices, slices, links)) == pytest.approx(found.cost)


@examples(40)
@given(CASES)
def test_the_leanest_has_the_least_sum_of_the_best(case: tuple[int, int, int, int]) -> None:
    slices, links = random_case(*case)
    found = leanest_chain(slices, links, source=0)
    every = [costs_of(line, slices, links) for line in every_line(case[1], case[2], 0)]
    best = min((max(costs) for costs in every), default=math.inf)
    if found is None:
        assert best == math.inf
        return
    assert found.cost == pytest.approx(best)
    assert sum(costs_of(found.slices, slices, links)) == pytest.approx(min(sum(c) for c in every if max(c) <= best * (1 + 1e-6)))


@examples(40)
@given(CASES)
def test_links_of_one_medium_add_up(case: tuple[int, int, int, int]) -> None:
    slices, airtime = random_case(*case)
    links = np.where(np.isfinite(airtime), 0.0, np.inf)

    def whole(line: tuple[Slice, ...]) -> float:
        runs, sends = costs_of(line, slices, links), costs_of(line, np.zeros_like(slices), airtime)
        return max(max(runs), sum(sends))

    best = min((whole(line) for line in every_line(case[1], case[2], 0)), default=math.inf)
    found = shared_chain(slices, links, airtime, source=0)
    assert (math.inf if found is None else found.cost) == pytest.approx(best)
    if found is not None:
        assert whole(found.slices) == pytest.approx(best)


def test_equal_devices_are_counted_and_not_named() -> None:
    pieces = 12
    slices = np.full((20, pieces + 1, pieces + 1), np.inf)
    for first in range(pieces + 1):
        slices[:, first, first:] = np.arange(pieces + 1 - first)
    links = np.zeros((20, 20, pieces + 1))
    assert classes_of(slices, links, 3) == [1, 1, 1, 0, *[1] * 16]
    found = best_chain(slices, links, source=3, combine="max")
    assert found is not None
    assert found.cost == 1.0
    assert sorted(each.device for each in found.slices)[:4] == [0, 1, 2, 3]


def test_too_many_different_devices_are_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "MOST_STATES", 5)
    slices, links = random_case(1, 4, 5, 3)
    slices *= np.arange(1.0, 5.0)[:, None, None]
    slices[:, 0, 0] = 0.0
    with pytest.raises(ConfigError, match=r"devices: found 4 that may follow each other .* `links: line`"):
        best_chain(slices, np.zeros_like(links), source=0, combine="sum")


def test_a_source_may_run_nothing() -> None:
    slices = np.full((2, 2, 2), np.inf)
    slices[0, 0, 0], slices[1, 0, 1] = 0.0, 3.0
    found = best_chain(slices, np.full((2, 2, 2), 1.0), source=0, combine="sum")
    assert found == Chain(4.0, (Slice(0, 0, 0), Slice(1, 0, 1)))

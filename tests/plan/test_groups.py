"""Groups of boards for students: no grouping is better, and what cannot be had is said with what can."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import product

import pytest

from bench.groups import every_grouping, random_groups
from zpipe.errors import BackendUnavailable
from zpipe.plan.grouping import TooFew, assigned, find_groups, first_groups, holds, improved, linear_assignment, with_spares
from zpipe.plan.groups import Case, percent

MS = 0.001


def case(*seconds: tuple[float, ...], failures: float | tuple[float, ...] = 0.1, missing: float = 0.01) -> Case:
    """Seconds of each student on each board."""
    every = failures if isinstance(failures, tuple) else (failures,) * len(seconds[0])
    return Case(seconds, every, missing)


# ---- what a group is worth ---------------------------------------------------------------------


def test_a_group_takes_as_long_as_its_fastest_board_that_lives() -> None:
    two = case((3 * MS, 1 * MS))
    assert two.part_missing((0, 1)) == pytest.approx(0.01)
    assert two.part_seconds(0, (0, 1)) == pytest.approx((0.9 * 1 + 0.1 * 0.9 * 3) / 0.99 * MS)
    assert two.part_seconds(0, ()) == math.inf
    assert two.part_seconds(0, (0,)) == pytest.approx(3 * MS)


def test_a_sample_waits_for_the_latest_of_its_parts() -> None:
    """Against all states of all boards, one by one."""
    three = case((1 * MS, 4 * MS, 9.0), (9.0, 9.0, 2 * MS), failures=(0.3, 0.2, 0.0))
    groups = ((0, 1), (2,))
    total = alive = 0.0
    for lives in product((False, True), repeat=2):
        chance = math.prod(1 - f if up else f for f, up in zip((0.3, 0.2), lives, strict=True))
        if any(lives):
            alive += chance
            total += chance * max(2 * MS, 1 * MS if lives[0] else 4 * MS)
    assert three.sample_seconds(groups) == pytest.approx(total / alive)
    assert three.slowest_seconds(groups) < three.sample_seconds(groups)
    assert three.all_in(groups) == pytest.approx(1 - 0.06)


def test_expected_accuracy_weighs_every_set_of_parts() -> None:
    two = case((1.0, 9.0), (9.0, 1.0), failures=(0.1, 0.5))
    by_parts = (0.25, 0.6, 0.7, 0.9)  # none, part 0, part 1, both
    assert two.accuracy(((0,), (1,)), by_parts) == pytest.approx(0.05 * 0.25 + 0.45 * 0.6 + 0.05 * 0.7 + 0.45 * 0.9)


def test_percentages_tell_small_differences_from_never_and_always() -> None:
    assert [percent(each) for each in (0.0, 1.0, 0.01, 0.0003, 0.99873)] == ["0 %", "100 %", "1.0 %", "0.030 %", "99.87 %"]
    assert [percent(each) for each in (2.5e-25, 1.0 - 1e-15)] == ["2e-23 %", "100 %"]


# ---- no grouping is better ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(14))
def test_no_grouping_is_better_or_misses_less_than_is_said(seed: int) -> None:
    small = random_groups(seed, boards=5, parts=2)
    best, least = every_grouping(small)
    if best == math.inf:
        with pytest.raises(TooFew) as few:
            find_groups(small)
        assert few.value.least == pytest.approx(least)
        assert few.value.proven
        return
    found = find_groups(small)
    assert found.proven
    assert small.slowest_seconds(found.needed) == pytest.approx(best)
    assert found.bound == pytest.approx(best)
    assert holds(small, found.needed)
    assert holds(small, found.groups)


def test_both_kinds_are_among_the_random_cases() -> None:
    ways = [every_grouping(random_groups(seed, boards=5, parts=2))[0] < math.inf for seed in range(14)]
    assert 4 <= sum(ways) <= 10


def test_a_search_cut_short_says_what_it_does_not_know() -> None:
    some = replace(random_groups(2, boards=16, parts=4), missing=0.05)
    cut = find_groups(some, most_steps=10)
    assert not cut.proven
    assert holds(some, cut.groups)
    assert cut.bound <= some.slowest_seconds(cut.needed)
    assert find_groups(some, most_steps=10) == cut


# ---- how it goes about it ----------------------------------------------------------------------


def test_students_are_assigned_so_that_the_slowest_is_fastest_and_then_the_sum_least() -> None:
    """By the sum alone the first student would be on board 0 (1 + 8 ms), and the slowest at 8."""
    three = case((1 * MS, 5 * MS, 9 * MS), (4 * MS, 8 * MS, 9 * MS), (9 * MS, 9 * MS, 2 * MS), failures=0.0)
    assert assigned(three, ((0,), (1,), (2,)), linear_assignment()) == ((1,), (0,), (2,))


def test_what_fits_nowhere_is_left_as_it_is() -> None:
    two = case((1.0, 1.0), (math.inf, math.inf))
    assert assigned(two, ((0,), (1,)), linear_assignment()) == ((0,), (1,))


def test_boards_change_places_until_the_slowest_group_gets_no_faster() -> None:
    """Both fast boards in one group: each group may have one."""
    speeds = (1 * MS, 1 * MS, 9 * MS, 9 * MS)
    four = case(speeds, speeds)
    better = improved(four, ((0, 1), (2, 3)), linear_assignment())
    assert sorted(sum(speeds[board] == MS for board in group) for group in better) == [1, 1]
    assert holds(four, better)


def test_first_groups_have_boards_alike_in_speed_or_dealt_out() -> None:
    speeds = (4 * MS, 1 * MS, 3 * MS, 2 * MS)
    found = list(first_groups(case(speeds, speeds), linear_assignment()))
    assert [{frozenset(group) for group in groups} for groups in found] == [
        {frozenset({1, 3}), frozenset({2, 0})},
        {frozenset({1, 2}), frozenset({3, 0})},
    ]


def test_spare_boards_go_where_a_part_is_missing_most_and_where_they_fit() -> None:
    four = case((1.0, 1.0, 5.0, 5.0), (1.0, 1.0, math.inf, 5.0), failures=(0.1, 0.05, 0.1, 0.1), missing=0.1)
    assert with_spares(four, ((0,), (1,))) == ((0, 2), (1, 3))


def test_one_board_each_at_most_and_boards_that_never_fail_need_no_other() -> None:
    alone = case((1 * MS, 2 * MS, 3 * MS), (1 * MS, 2 * MS, 3 * MS), failures=0.0, missing=0.0)
    found = find_groups(alone)
    assert found.proven
    assert found.needed in (((0,), (1,)), ((1,), (0,)))
    assert alone.part_missing(found.groups[0]) == 0.0


def test_fewer_boards_than_students_are_too_few() -> None:
    with pytest.raises(TooFew) as few:
        find_groups(case((1.0,), (1.0,)))
    assert few.value.groups == ()
    assert few.value.least == 1.0


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'zpipe\[suite\]'"):
        find_groups(case((1.0, 1.0), (1.0, 1.0)))

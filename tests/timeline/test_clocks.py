"""Two clocks are brought together as well as their messages allow, and no better is claimed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.timeline.clocks import Passage, align, how_far_ahead

LEAST_SECONDS = 50e-6


def messages(
    rng: random.Random, *, count: int, seconds: float, ahead: float, drift: float = 0.0, slower_back: float = 0.0
) -> tuple[list[Passage], list[Passage]]:
    """Messages between a clock and one that is `ahead`, both ways, delayed by 50 µs and more."""

    def other(now: float) -> float:
        return now + ahead + drift * now

    def delay() -> float:
        return LEAST_SECONDS + rng.expovariate(1e4)

    there, back = [], []
    for _ in range(count):
        sent = rng.uniform(0.0, seconds)
        there.append((sent, other(sent + delay())))
        sent = rng.uniform(0.0, seconds)
        back.append((other(sent), sent + delay() + slower_back))
    return there, back


@given(seed=st.integers(0, 10_000), count=st.integers(1, 200), ahead=st.floats(-1e6, 1e6), slower_back=st.floats(0.0, 0.1))
def test_a_steady_clock_is_found_within_what_is_claimed(seed: int, count: int, ahead: float, slower_back: float) -> None:
    there, back = messages(random.Random(seed), count=count, seconds=2.0, ahead=ahead, slower_back=slower_back)
    found = how_far_ahead(there, back)
    assert found is not None
    assert found.room_seconds > 0.0
    if found.drift == 0.0:
        assert abs(found.seconds - ahead) <= found.room_seconds / 2.0 + 1e-9


@given(seed=st.integers(0, 10_000), drift=st.floats(-200e-6, 200e-6))
def test_a_drift_is_found_once_it_is_more_than_the_round_trip(seed: int, drift: float) -> None:
    there, back = messages(random.Random(seed), count=400, seconds=600.0, ahead=5.0, drift=drift)
    found = how_far_ahead(there, back)
    assert found is not None
    for now in (0.0, 300.0, 600.0):
        estimated = found.seconds + found.drift * (now - found.at)
        assert abs(estimated - (5.0 + drift * now)) <= found.room_seconds + 1e-9
    assert found.room_seconds < 5e-4


def test_without_a_drift_none_is_made_up() -> None:
    there, back = messages(random.Random(1), count=300, seconds=60.0, ahead=-3.0)
    found = how_far_ahead(there, back)
    assert found is not None
    assert found.drift == 0.0


def test_a_clock_that_stood_still_is_told_by_a_room_below_0() -> None:
    there, back = messages(random.Random(1), count=100, seconds=10.0, ahead=0.0)
    later_there, later_back = messages(random.Random(2), count=100, seconds=10.0, ahead=-4.0)
    later_there = [(sent + 20.0, received + 20.0) for sent, received in later_there]
    later_back = [(sent + 20.0, received + 20.0) for sent, received in later_back]
    found = how_far_ahead([*there, *later_there], [*back, *later_back])
    assert found is not None
    assert found.room_seconds < -1.0


def test_messages_of_one_way_bound_nothing() -> None:
    there, _ = messages(random.Random(1), count=10, seconds=1.0, ahead=0.0)
    assert how_far_ahead(there, []) is None


def test_the_chain_of_links_with_the_least_doubt_is_taken() -> None:
    rng = random.Random(3)
    passages = {}
    for (one, other), ahead, slower in (((0, 1), 10.0, 0.0), ((1, 2), 5.0, 0.0), ((0, 2), 15.0, 0.5)):
        there, back = messages(rng, count=50, seconds=1.0, ahead=ahead, slower_back=slower)
        passages[one, other], passages[other, one] = there, back
    clocks = align(passages, [None] * 3, reference=0)
    for clock, ahead in zip(clocks, (0.0, 10.0, 15.0), strict=True):
        assert clock.uncertainty_seconds is not None
        assert clock.uncertainty_seconds < 0.001
        assert clock.ahead_seconds == pytest.approx(ahead, abs=clock.uncertainty_seconds + 1e-9)
        assert clock.common(ahead + 0.5) == pytest.approx(0.5, abs=clock.uncertainty_seconds + 1e-9)


def test_a_node_that_nobody_heard_is_placed_by_its_wall_clock() -> None:
    by_wall, by_nothing = align({}, [1000.0, 1007.0, None], reference=0)[1:]
    assert (by_wall.source, by_wall.uncertainty_seconds, by_wall.common(3.0)) == ("wall clock", None, 10.0)
    assert (by_nothing.source, by_nothing.uncertainty_seconds, by_nothing.common(3.0)) == ("nothing", None, 3.0)

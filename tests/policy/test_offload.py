"""Where a task goes (A1, A4)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from zpipe.policy.offload import OFFLOADS, Candidate, CheapestOffload, DdiOffload, Here, LocalOffload, MdiOffload, Offload

NEAR, FAR = Candidate(1, 0.001, 0.010), Candidate(2, 0.008, 0.004)  # 11 and 12 ms


class Dice(random.Random):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def choose(
    offload: Offload,
    *candidates: Candidate,
    here: float,
    output_length: int = 9,
    dice: float = 0.0,
    may_throw: Callable[[Candidate], bool] = lambda candidate: True,
) -> Candidate | None:
    return offload.choose(candidates, Here(here, output_length), may_throw=may_throw, rng=Dice(dice))


def test_local_keeps_whatever_it_hosts() -> None:
    assert LocalOffload().keep(stage=1, input_length=99, output_length=0)
    assert choose(LocalOffload(), NEAR, FAR, here=9.0) is None


def test_cheapest_keeps_only_when_idle() -> None:
    assert CheapestOffload().keep(stage=1, input_length=0, output_length=5)
    assert not CheapestOffload().keep(stage=1, input_length=1, output_length=0)


def test_cheapest_counts_the_way_and_the_queue_there() -> None:
    assert choose(CheapestOffload(), NEAR, FAR, here=0.012) is NEAR


def test_cheapest_stays_here_when_nobody_is_cheaper() -> None:
    """A tie stays: sending costs something that is not counted."""
    assert choose(CheapestOffload(), NEAR, FAR, here=0.010) is None
    assert choose(CheapestOffload(), NEAR, here=NEAR.cost_seconds) is None


def test_ddi_lets_only_inputs_go() -> None:
    assert DdiOffload().keep(stage=1, input_length=9, output_length=0)
    assert not DdiOffload().keep(stage=0, input_length=9, output_length=0)
    assert choose(DdiOffload(), NEAR, FAR, here=0.012) is NEAR


def test_mdi_keeps_when_idle_or_above_the_output_threshold() -> None:
    offload = MdiOffload(5)
    assert offload.keep(stage=1, input_length=0, output_length=0)
    assert not offload.keep(stage=1, input_length=1, output_length=5)
    assert offload.keep(stage=1, input_length=1, output_length=6)


def test_mdi_sends_to_the_first_that_is_shorter() -> None:
    assert choose(MdiOffload(50), NEAR, FAR, here=0.0111, dice=1.0) is NEAR
    assert choose(MdiOffload(50), FAR, here=0.0121, dice=1.0) is FAR


def test_mdi_throws_dice_where_it_is_not() -> None:
    """|I_n| Gamma_n / (D + |I_m| Gamma_m) = 0.5 for both."""
    for candidate in (NEAR, FAR):
        here = candidate.cost_seconds / 2
        assert choose(MdiOffload(50), candidate, here=here, dice=0.49) is candidate
        assert choose(MdiOffload(50), candidate, here=here, dice=0.51) is None


def test_mdi_asks_the_next_one_where_the_dice_said_no_or_had_their_throw() -> None:
    assert choose(MdiOffload(50), NEAR, FAR, here=0.010, dice=0.0, may_throw=lambda candidate: candidate is FAR) is FAR
    assert choose(MdiOffload(50), NEAR, FAR, here=0.010, dice=0.0, may_throw=lambda candidate: False) is None


def test_mdi_needs_an_output_longer_than_the_queue_there() -> None:
    busy = Candidate(3, 0.0, 0.001, input_length=4)
    assert choose(MdiOffload(50), busy, here=1.0, output_length=4) is None
    assert choose(MdiOffload(50), busy, here=1.0, output_length=5) is busy


def test_an_idle_node_sends_nothing() -> None:
    """0 seconds of own work: probability 0, and no division by a cost of 0."""
    assert choose(MdiOffload(50), Candidate(1, 0.0, 0.0), here=0.0, dice=0.0) is None


@pytest.mark.parametrize("name", OFFLOADS)
def test_every_name_makes_a_strategy_of_its_own(name: str) -> None:
    assert OFFLOADS[name](7) is not OFFLOADS[name](7)

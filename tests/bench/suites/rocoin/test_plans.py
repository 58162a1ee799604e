"""Which boards fail: drawn once for each board, the same for every system, simulated or live."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from zpipe.bench.chaos.schedule import faults
from zpipe.bench.chaos.spec import parse_chaos
from zpipe.bench.suites.rocoin import plans
from zpipe.bench.suites.rocoin.settings import DEAD, DYING, STALLINGS, Stalling
from zpipe.sim import Death, Stall


def failing(model: str, probability: float, *, seed: int = 0, draw: int = 0, boards: int = 200) -> plans.Plan:
    return plans.failures(model, boards=boards, probability=probability, seed=seed, draw=draw, seconds=20.0)


def test_who_fails_at_one_probability_fails_at_every_higher_one() -> None:
    ranks = [{fault.rank for fault in failing(DEAD, probability)} for probability in (0.0, 0.1, 0.3, 0.5, 1.0)]
    assert ranks == sorted(ranks, key=len)
    assert all(less <= more for less, more in pairwise(ranks))
    assert ranks[0] == set()
    assert ranks[-1] == set(range(1, 201))


def test_about_as_many_fail_as_should_and_others_in_another_draw() -> None:
    share = sum(len(failing(DEAD, 0.3, draw=draw)) for draw in range(10)) / 2000
    assert 0.25 < share < 0.35
    assert failing(DEAD, 0.3, draw=1) != failing(DEAD, 0.3, draw=2) != failing(DEAD, 0.3, seed=1, draw=2)


def test_the_same_boards_die_on_the_way_as_are_dead_from_the_start() -> None:
    dying = failing(DYING, 0.3)
    assert [fault.rank for fault in dying] == [fault.rank for fault in failing(DEAD, 0.3)]
    assert all(isinstance(fault, Death) and 0.0 <= fault.at_seconds < 20.0 for fault in dying)


@pytest.mark.parametrize("kind", STALLINGS, ids=lambda kind: str(kind.name))
def test_a_fifth_of_the_boards_stalls(kind: Stalling) -> None:
    found = plans.stalls(kind, boards=15, seed=3, seconds=600.0)
    assert len({fault.rank for fault in found}) == 3
    of_boards: dict[int, list[Stall]] = {}
    for fault in found:
        assert isinstance(fault, Stall)
        assert fault.seconds == kind.seconds
        of_boards.setdefault(fault.rank, []).append(fault)
    for stalls in of_boards.values():
        starts = [stall.at_seconds for stall in stalls]
        assert all(later - before >= kind.seconds for before, later in pairwise(starts))
        if math.isfinite(kind.seconds):
            assert len(starts) == pytest.approx(600.0 / kind.every_seconds, rel=0.3)


def test_groups_are_every_so_many_boards() -> None:
    assert [plans.group_of(part, boards=7, parts=3) for part in range(3)] == [(1, 4, 7), (2, 5), (3, 6)]


def test_a_live_run_has_the_faults_of_the_simulation_beside_it() -> None:
    plan = (Death(2), Death(5, 3.25), Stall(1, 0.5, 1.5), Stall(3, 7.0))
    text = plans.as_chaos(plan)
    assert text is not None
    live = list(faults(parse_chaos(text), nodes=range(1, 7), links=[], seed=0))
    assert [(fault.action, fault.node, fault.at_seconds) for fault in live] == [
        ("kill", 2, 0.01),
        ("stop", 1, 0.5),
        ("kill", 5, 3.25),
        ("stop", 3, 7.0),
    ]
    beside = sorted(plans.for_live(plan), key=lambda fault: fault.at_seconds)
    assert [(fault.rank, fault.at_seconds) for fault in beside] == [(fault.node, fault.at_seconds) for fault in live]
    assert live[1].seconds == 1.5
    assert live[0].seconds > 1e5  # nobody comes back while it lasts
    assert plans.as_chaos(()) is None

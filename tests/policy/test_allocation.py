"""Which stages a node serves for whom: shares of time, looking ahead, withholding, chains (A6, A8, A9)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.policy.build import task
from zpipe.model import Report
from zpipe.policy.allocation import Chains, Lookahead, Usage, Withholding, chain_of
from zpipe.policy.exits import ExitGates
from zpipe.policy.state import Neighbour, NeighbourConfig, NodeConfig


def config(*neighbours: NeighbourConfig, stages: tuple[int, ...] = (0, 1, 2), **other: Any) -> NodeConfig:
    other.setdefault("reach", (1.0, 1.0, 1.0))
    other.setdefault("macs", (1.0, 1.0, 1.0))
    return NodeConfig(0, stages, ExitGates((1.0,) * 3), neighbours, **other)


def neighbour(rank: int, report: Report | None, *, stages: tuple[int, ...] = (0, 1, 2)) -> Neighbour:
    found = Neighbour(NeighbourConfig(rank, stages=stages), None, None)
    found.sends = True
    found.report = report
    return found


# ---- shares of time ----------------------------------------------------------------------------


def test_usage_comes_to_the_share_of_time_by_class_and_by_source() -> None:
    usage = Usage((0, 1), (0, 3), now=0.0)
    for second in range(30):
        usage.ran([task(0, 1, priority=1), task(1, 1, priority=0, source=3)], 0.5)
        usage.look_around(second + 1.0)
    assert usage.by_class == pytest.approx({0: 0.25, 1: 0.25}, abs=1e-3)
    assert usage.by_source == pytest.approx({0: 0.25, 3: 0.25}, abs=1e-3)
    assert (usage.above(0), usage.above(1), usage.of_others(3)) == pytest.approx((0.25, 0.0, 0.25), abs=1e-3)


def test_usage_counts_no_class_and_no_source_that_the_topology_has_not() -> None:
    usage = Usage((0,), (0,), now=0.0)
    usage.ran([task(0, 1, priority=200, source=9)], 0.5)
    usage.look_around(1.0)
    assert (usage.by_class, usage.by_source) == ({0: 0.0}, {0: 0.0})


# ---- looking ahead -----------------------------------------------------------------------------


def test_what_is_left_is_the_sum_of_stages_by_the_share_of_samples_that_get_there() -> None:
    plan = config(reach=(1.0, 0.5, 0.25))
    ahead = Lookahead(plan, service={0: 0.01, 1: 0.02, 2: 0.04}, neighbours={})
    assert ahead.here() == pytest.approx({2: 0.04, 1: 0.02 + 0.5 * 0.04, 0: 0.01 + 0.5 * (0.02 + 0.5 * 0.04)})


def test_what_a_node_does_not_host_counts_as_where_it_is_fastest() -> None:
    """Two nodes are compared for the same work, whoever does the rest of it."""
    known = {1: neighbour(1, Report(0, 0, {2: 0.001}, {}))}
    plan = config(NeighbourConfig(1, stages=(2,)), stages=(0, 1))
    ahead = Lookahead(plan, service={0: 0.01, 1: 0.01}, neighbours=known)
    assert ahead.here()[1] == pytest.approx(0.011)


def test_a_neighbour_that_never_ran_a_stage_is_judged_by_its_others() -> None:
    known = {1: neighbour(1, Report(0, 0, {0: 0.04}, {}))}
    ahead = Lookahead(config(NeighbourConfig(1, stages=(0, 1, 2))), service={0: 0.01, 1: 0.02, 2: 0.02}, neighbours=known)
    assert ahead.at(1) == pytest.approx({0: 0.04 + 0.16, 1: 0.16, 2: 0.08}), "four times slower"


def test_what_was_known_is_asked_anew_once_somebody_told_more() -> None:
    service = {0: 0.01, 1: 0.01, 2: 0.01}
    ahead = Lookahead(config(), service=service, neighbours={})
    assert ahead.here()[2] == 0.01
    service[2] = 0.02
    ahead.forget()
    assert ahead.here()[2] == 0.02


# ---- withholding -------------------------------------------------------------------------------

FAST = Report(0, 0, {0: 0.01, 1: 0.01, 2: 0.01}, {}, usage={0: 0.1, 1: 0.1})


def withholding(seconds: float, usage: Usage, *known: Neighbour, classes: tuple[int, ...] = (0, 1)) -> Withholding:
    plan = config(*[NeighbourConfig(each.config.rank, stages=each.config.stages) for each in known], classes=classes)
    service = dict.fromkeys((0, 1, 2), seconds)
    return Withholding(plan, service=service, usage=usage, neighbours={each.config.rank: each for each in known})


def settled(found: Withholding) -> dict[int, int]:
    for interval in range(20):
        found.look_around(float(interval))
    return found.withheld


def quiet() -> Usage:
    return Usage((0, 1), (0,), now=0.0)


def test_a_slow_node_withholds_its_stages_a_few_at_a_time_where_a_fast_one_has_time() -> None:
    found = withholding(0.05, quiet(), neighbour(1, FAST))
    found.look_around(0.0)
    assert found.withheld == {0: 0b1, 1: 0b1}, "one of three at once"
    found.look_around(0.1)
    assert found.withheld == {0: 0b1, 1: 0b1}, "not before the interval is over"
    assert settled(found) == {0: 0b111, 1: 0b111}
    assert found.changes == 6


@pytest.mark.parametrize(
    "other",
    [
        neighbour(1, Report(0, 0, FAST.service_seconds, {}, usage={1: 0.9})),
        neighbour(1, None),
        neighbour(1, FAST, stages=(9,)),
        neighbour(1, Report(0, 0, FAST.service_seconds, {}, withheld={0: 0b111, 1: 0b111})),
        neighbour(1, Report(0, 0, FAST.service_seconds, {}, accepting=False)),
    ],
    ids=["full", "unknown", "hosts others", "withholds them itself", "leaves"],
)
def test_nobody_withholds_what_has_no_better_place(other: Neighbour) -> None:
    if other.report is not None:
        other.accepting = other.report.accepting
    assert settled(withholding(0.05, quiet(), other)) == {}


def test_higher_classes_use_drives_the_lower_ones_away_and_no_other() -> None:
    usage = quiet()
    for second in range(30):
        usage.ran([task(0, 1, priority=1)], 0.8)
        usage.look_around(second + 1.0)
    assert settled(withholding(0.01, usage, neighbour(1, FAST))) == {0: 0b111}


def test_a_stage_is_served_again_when_the_better_place_is_gone() -> None:
    fast = neighbour(1, FAST)
    found = withholding(0.05, quiet(), fast)
    settled(found)
    fast.report = None
    for interval in range(20, 40):
        found.look_around(float(interval))
    assert found.withheld == {}


def test_a_little_slower_is_no_reason_and_between_the_two_factors_all_stays_as_it_is() -> None:
    fast = neighbour(1, FAST)
    found = withholding(0.018, quiet(), fast)
    assert settled(found) == {}
    slow = withholding(0.05, quiet(), fast)
    settled(slow)
    slow._service.update(dict.fromkeys((0, 1, 2), 0.0215))  # type: ignore[attr-defined]
    assert settled(slow) == {0: 0b111, 1: 0b111}


# ---- chains ------------------------------------------------------------------------------------


def mesh(ranks: int) -> dict[int, list[int]]:
    return {rank: [other for other in range(ranks) if other != rank] for rank in range(ranks)}


def test_in_a_full_mesh_a_chain_is_the_circle_from_its_source() -> None:
    assert chain_of(2, mesh(5), range(5)) == [2, 3, 4, 0, 1]


def test_a_chain_goes_along_links_and_over_nodes_that_host_stages() -> None:
    line = {0: [1], 1: [0, 2], 2: [1, 3], 3: [2]}
    assert chain_of(0, line, range(4)) == [0, 1, 2, 3]
    assert chain_of(1, line, range(4)) == [1, 2, 3]
    assert chain_of(0, mesh(4), [0, 2, 3]) == [0, 2, 3]
    assert chain_of(0, {0: []}, [0]) == [0]


def told(rates: list[float]) -> list[Chains]:
    """Nodes of a chain 0 - 1 - 2 ..., once each has heard of all; macs 1, 1, ... of ten stages, `rates` of these a second."""
    known: list[dict[int, Neighbour]] = [{} for _ in rates]
    chains = []
    for rank, rate in enumerate(rates):
        before, behind = rank - 1, rank + 1 if rank + 1 < len(rates) else -1
        plan = config(stages=tuple(range(10)), macs=(1.0,) * 10, reach=(1.0,) * 10, chains={0: (before, behind)})
        for other in (before, behind):
            if other >= 0:
                known[rank][other] = neighbour(other, Report(0, 0, {}, {}))
        service = dict.fromkeys(range(10), 1.0 / rate)
        chains.append(Chains(plan, service=service, usage=None, neighbours=known[rank]))
    for _ in rates:
        for rank, each in enumerate(chains):
            each.look_around()
            for other in known[rank]:
                report = known[other][rank].report
                assert report is not None
                report.rates = dict(each.rates)
    return chains


@pytest.mark.parametrize("rates", [[1.0, 1.0], [1.0, 2.0, 2.0], [5.0, 1.0, 1.0, 3.0]])
def test_stages_are_shared_out_in_proportion_to_rates(rates: list[float]) -> None:
    chains = told(rates)
    kept = [sum(each.keeps(task(0, stage)) for stage in range(10)) for each in chains]
    shares = [sum(rates[: rank + 1]) / sum(rates) for rank in range(len(rates))]
    assert kept == [round(10 * share) for share in shares]
    assert all(a <= b for a, b in pairwise(kept))
    assert chains[-1].rates[0][0] == pytest.approx(sum(rates))
    assert [each.next(task(0, 0).key) for each in chains] == [*range(1, len(rates)), -1]


def test_a_stage_counts_as_much_as_samples_get_there() -> None:
    """Half of the samples leave at the first exit: its stage is the first half of what a sample takes."""
    known = {1: neighbour(1, Report(0, 0, {0: 1.0}, {}, rates={0: (2.0, 1.0)}))}
    plan = config(chains={0: (-1, 1)}, reach=(1.0, 0.5, 0.5))
    chains = Chains(plan, service=dict.fromkeys((0, 1, 2), 1.0), usage=None, neighbours=known)
    assert [chains.keeps(task(0, stage)) for stage in range(3)] == [True, False, False]


def test_other_sources_time_is_left_out_of_a_rate_where_that_counts() -> None:
    usage = Usage((0,), (0, 1), now=0.0)
    for second in range(30):
        usage.ran([task(0, 1, source=1)], 0.75)
        usage.look_around(second + 1.0)
    plan = config(chains={0: (-1, -1), 1: (-1, -1)})
    service = dict.fromkeys((0, 1, 2), 1.0)
    chains = Chains(plan, service=service, usage=usage, neighbours={})
    assert chains.rates[0] == pytest.approx((0.25, 0.25), abs=1e-3)
    assert chains.rates[1] == pytest.approx((1.0, 1.0), abs=1e-3)


def test_a_node_off_the_chain_keeps_everything() -> None:
    chains = Chains(config(chains={}), service={}, usage=None, neighbours={})
    assert all(chains.keeps(task(0, stage)) for stage in range(3))
    assert chains.next(task(0, 0).key) == -1


def test_a_node_that_never_ran_counts_as_its_neighbours() -> None:
    known = {1: neighbour(1, Report(0, 0, {0: 0.5, 1: 0.5}, {}, rates={0: (2.0, 2.0)}))}
    chains = Chains(config(chains={0: (-1, 1)}), service={}, usage=None, neighbours=known)
    assert chains.rates[0] == pytest.approx((2.0, 4.0))

"""What is simulated: the same boards, arrivals and failures for every system."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tests import students as made_up
from zpipe.bench.suites import rocoin
from zpipe.bench.suites.rocoin import groups, live, settings, sweep
from zpipe.bench.suites.rocoin.settings import DEAD, PIECE, QUICK, STUDENT, SYSTEMS, Bundles, System, system_named, topology_in
from zpipe.bench.suites.work import key_of
from zpipe.bundle import load_bundle
from zpipe.configure import prepare
from zpipe.sim import Death, NodeFault, SimOptions
from zpipe.topology import Topology


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    students = made_up.students(tmp_path_factory.mktemp("bundles") / "students")
    return Bundles(students, load_bundle(settings.NETWORK_BUNDLE, verify=False))


def simulated(bundles: Bundles, name: str, *plan: NodeFault, samples: int = 30) -> SimOptions:
    return sweep.options(system_named(name), bundles, boards=6, plan=lambda seconds: plan, seed=0, samples=samples)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: str(system.name))
def test_every_system_is_a_topology_that_can_work(system: System, bundles: Bundles) -> None:
    topology, bundle = prepare(topology_in(system, bundles, boards=6))
    boards = topology.nodes[1:]
    assert topology.nodes[0].stages == ()
    assert len(boards) == (6 if system.replicated else 1 if system.holds == settings.WHOLE else 3)
    assert {stage for node in boards for stage in node.stages} == set(range(len(bundle.stages)))
    assert all(topology.link(0, node.rank) is not None for node in boards)
    assert {node.device for node in boards} == {settings.DEVICE}
    if system.holds == STUDENT:
        assert topology.policy.redundancy == system.redundancy
    if system.holds == PIECE:
        assert all(len(topology.hosts(stage)) == (2 if system.replicated else 1) for stage in range(len(bundle.stages)))


def test_pieces_are_cut_where_the_dearest_is_cheapest(bundles: Bundles) -> None:
    assert settings.pieces(bundles.network, 1) == ((0, 1, 2, 3, 4),)
    assert settings.pieces(bundles.network, 5) == ((0,), (1,), (2,), (3,), (4,))
    assert settings.pieces(bundles.network, 3) == ((0,), (1,), (2, 3, 4))


def test_boards_that_a_system_does_not_use_do_not_fail_it(bundles: Bundles) -> None:
    assert simulated(bundles, "chain", Death(2), Death(5)).faults == (Death(2),)
    assert simulated(bundles, "copies", Death(2), Death(5)).faults == (Death(2), Death(5))
    seen = {key_of(simulated(bundles, "one-board", Death(rank))) for rank in (2, 3, 4)}
    assert len(seen) == 1, "the same run, which is run once"


def test_a_chain_needs_a_board_of_every_piece(bundles: Bundles) -> None:
    sound = sweep.outcomes(simulated(bundles, "chain-replicas"))
    one = sweep.outcomes(simulated(bundles, "chain-replicas", Death(1), Death(5)))
    none = sweep.outcomes(simulated(bundles, "chain-replicas", Death(1), Death(4)))
    assert (sound["answered"], one["answered"], none["answered"]) == (30, 30, 0)
    assert sound["right"] == one["right"] > 20
    assert sound["broken"] == one["broken"] == none["broken"] == 0
    assert none["latencies_ms"] == []


def test_figures_are_of_pooled_runs_and_without_an_answer_there_is_no_latency() -> None:
    run = {"submitted": 4, "answered": 4, "right": 3, "latencies_ms": [1.0, 2.0, 3.0, 4.0], "tasks": 8, "busy_seconds": 0.4}
    run |= {"sent_bytes": 4000, "resubmitted": 1, "second_results": 0, "broken": 0}
    silent = {**run, "answered": 0, "right": 0, "latencies_ms": []}
    both = sweep.pooled([run, silent])
    assert (both["submitted"], both["answered"], both["right"], both["resubmitted"]) == (8, 4, 3, 2)
    found = sweep.figures([both, sweep.pooled([silent])])
    assert found["right"][0] == pytest.approx((3 / 8 + 0.0) / 2)
    assert found["right_of_answered"] == [0.75, 0.0]
    assert found["latency_ms"] == [2.5, 0.0]
    assert found["p99_ms_of_seeds"] == [pytest.approx(3.97), None]
    assert found["busy_ms"][0] == pytest.approx(100.0)


def test_a_drop_is_told_over_digits_not_images() -> None:
    digits = np.repeat(np.arange(4), 5)
    before = np.ones(20, bool)
    after = before.copy()
    after[:5] = False  # one digit, in all its severities
    mean, half = groups.drop(before.tolist(), after.tolist(), digits)
    assert mean == pytest.approx(0.25)
    assert half == pytest.approx(3.182 * math.sqrt(0.25 / 4), rel=1e-3)


def test_every_case_of_a_scale_is_listed_once(bundles: Bundles) -> None:
    tiny = replace(QUICK, seeds=(0,), draws=1)
    for cases in (sweep.failure_cases, sweep.stall_cases, sweep.size_cases):
        labels = [tuple(case.labels.items()) for case in cases(bundles, tiny)]
        assert len(set(labels)) == len(labels)
    assert len(sweep.failure_cases(bundles, tiny)) == 2 * len(SYSTEMS) * len(tiny.probabilities)


@cache
def _live(bundles: Bundles, system: str) -> Topology:
    return live.live_topology(system, bundles, boards=6)


def test_live_boards_are_emulated_over_links_without_limits(bundles: Bundles) -> None:
    for system in ("rocoin-hedged", "chain-replicas"):
        topology, found = prepare(_live(bundles, system))
        assert {link.bandwidth_bps for link in topology.links} == {math.inf}
        assert found.emulates is not None
    assert set(settings.FULL.live) | set(QUICK.live) <= set(live.CASES)


def test_live_cases_kill_whom_they_name() -> None:
    assert [fault.rank for fault in live.CASES["one-of-each"].plan(9, 3, 0, 20.0)] == [1, 2, 3]
    assert [fault.rank for fault in live.CASES["group"].plan(9, 3, 0, 20.0)] == [1, 4, 7]
    assert len({fault.rank for fault in live.CASES["stall-hedged"].plan(15, 3, 0, 20.0)}) == 3


def test_students_answer_as_long_as_each_group_has_a_board(bundles: Bundles) -> None:
    name = "rocoin-hedged"
    sound, one, group = (
        groups.answers(simulated(bundles, name, *plan, samples=made_up.SAMPLES))
        for plan in ((), (Death(1), Death(2), Death(6)), (Death(1), Death(4)))
    )
    assert one["labels"] == sound["labels"]
    assert sound["answered"] == one["answered"] == group["answered"] == made_up.SAMPLES
    assert group["labels"] != sound["labels"]
    assert group["broken"] == 0


@pytest.mark.slow
def test_tiny_suite_has_every_table(bundles: Bundles) -> None:
    tiny = replace(QUICK, seeds=(0,), draws=1, models=(DEAD,), probabilities=(0.0, 0.5), samples=20, stalling_samples=20)
    tiny = replace(tiny, sizes=(3,), size_samples=20)
    found = asyncio.run(rocoin.measure(tiny, progress=lambda line, done: None, live=False, bundles=bundles))
    assert found["broken"] == []
    assert {row["system"] for row in found["failures"]} == {system.name for system in SYSTEMS}
    assert found["claims"]
    assert found["students"]["network_parameters"] == 2_252_514

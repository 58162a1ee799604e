"""What is simulated: the same arrivals for every policy, and baselines that know of no weights."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from zpipe.bench.suites import run_scale
from zpipe.bench.suites.pa_mdi import live, settings, sweep
from zpipe.bench.suites.pa_mdi.bundles import write_bundle
from zpipe.bench.suites.pa_mdi.settings import AR_MDI, CLOSED, FIFO, MDI, MS_MDI, OPEN, PA_MDI, QUICK, Setting
from zpipe.configure import prepare
from zpipe.sim import SimOptions
from zpipe.topology import Topology, from_dict

#: The quickest to simulate.
LADDER = settings.setting("resnet56")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(LADDER.profile(), tmp_path_factory.mktemp("bundles") / "resnet56").path


def overloaded(policy: str, bundle: Path) -> SimOptions:
    """Few data points, and hardly any before them."""
    return replace(sweep.options(sweep.Case(LADDER, 2, OPEN, 1.5, policy), bundle=bundle, seed=0, samples=30), warm_up=10)


def weighed(topology: Topology, *weights: float) -> Topology:
    plain = topology.to_dict()
    for source, weight in zip(plain["sources"], weights, strict=True):
        source["weight"] = weight
        del source["priority"]
    return from_dict(plain)


@pytest.mark.parametrize("policy", [AR_MDI, MS_MDI, FIFO, MDI])
def test_baselines_know_of_no_weights(policy: str, bundle: Path) -> None:
    asked = overloaded(policy, bundle)
    assert isinstance(asked.topology, Topology)
    found = [sweep.figures(replace(asked, topology=weighed(asked.topology, *weights))) for weights in ((4.0, 1.0), (1.0, 1.0))]
    assert found[0] == found[1]


def test_pa_mdi_lets_the_time_sensitive_source_go_first(bundle: Path) -> None:
    urgent, other = sweep.figures(overloaded(PA_MDI, bundle))["latency_ms"]
    assert urgent < 0.7 * other


def test_every_case_of_a_scale_is_listed_once() -> None:
    listed = sweep.cases(settings.SETTINGS, QUICK)
    assert len(listed) == len(set(listed)) == 3 * 2 * (len(QUICK.loads) + len(QUICK.windows)) * len(QUICK.policies)


def test_loads_are_shares_of_the_capacity_or_data_points_under_way(bundle: Path) -> None:
    given = sweep.options(sweep.Case(LADDER, 3, OPEN, 0.5, FIFO), bundle=bundle, seed=3, samples=10)
    assert given.rate_hz == pytest.approx(0.5 * (3 * 9.15e9 + 3 * 3.21e9) / 125_485_696)
    assert (given.count, given.seed) == (30, 3)
    kept = sweep.options(sweep.Case(LADDER, 3, CLOSED, 4.0, FIFO), bundle=bundle, seed=0, samples=10)
    assert (kept.rate_hz, kept.window) == (None, 4)


@pytest.mark.parametrize("where", settings.SETTINGS[:2], ids=lambda each: each.name)
def test_setting_is_a_topology_that_can_work(where: Setting, tmp_path: Path) -> None:
    path = str(write_bundle(where.profile(), tmp_path / where.name).path)
    for policy in settings.POLICIES:
        topology, bundle = prepare(settings.topology_in(where, policy, bundle=path, sources=3))
        assert {node.stages for node in topology.nodes} == {tuple(range(len(bundle.stages)))}
        urgent = topology.source_at(where.sources[0])
        assert urgent is not None
        assert urgent.priority > max(source.priority for source in topology.sources if source.rank != urgent.rank)


def test_the_least_time_is_at_a_fast_box_even_from_a_slow_one(bundle: Path) -> None:
    topology = settings.topology_in(LADDER, FIFO, bundle=str(bundle), sources=2)
    computed, carried = 125_485_696 / 9.15e9, 8 * 3072 / 20e6 + 0.006
    assert LADDER.least_seconds(topology) == pytest.approx(computed + carried)


def test_live_boxes_are_emulated_over_links_without_limits(tmp_path: Path) -> None:
    where = live.live_setting()
    topology, found = prepare(live.live_topology(where, PA_MDI, bundle=write_bundle(where.profile(), tmp_path / "gpt2").path))
    assert {link.bandwidth_bps for link in topology.links} == {math.inf}
    assert found.emulates is not None
    assert found.costs_only


@pytest.mark.slow
def test_tiny_suite_has_every_table() -> None:
    tiny = replace(
        QUICK, seeds=(0,), settings=("gpt2",), sources=(2,), policies=(PA_MDI, AR_MDI), loads=(1.2,), windows=(2,), lengthened=0.1
    )
    found = asyncio.run(run_scale("pa-mdi", tiny, progress=lambda line, done: None, quick=True, live=False))
    assert found["broken"] == []
    assert [(row["kind"], row["policy"]) for row in found["sweep"]] == [
        (kind, policy) for kind in (OPEN, CLOSED) for policy in (PA_MDI, AR_MDI)
    ]
    assert set(found["sweep"][0]["reduction"]) == {AR_MDI}
    assert found["settings"][0]["capacity_hz"] == pytest.approx(38.47, rel=1e-3)
    assert found["claims"]

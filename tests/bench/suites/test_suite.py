"""The evaluation at a tiny scale: every table is there, and says what was run."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from zpipe.bench.suites import curves, live, run_scale, run_suite, settings
from zpipe.bench.suites.admission import per_second
from zpipe.bench.suites.page import render_page
from zpipe.bench.suites.settings import QUICK
from zpipe.bench.suites.work import key_of
from zpipe.bundle import load_bundle
from zpipe.errors import ConfigError
from zpipe.sim import SimOptions
from zpipe.topology import Topology

TINY = replace(
    QUICK, seeds=(0, 1), settings=("32px-20",), topologies=("mesh3",), points=1, rates=(0.5,), seconds=1.0, series_seconds=4.0
)


def nothing(line: str, done: float) -> None:
    assert 0.0 <= done <= 1.0


def test_unknown_suite_is_one_line() -> None:
    with pytest.raises(ConfigError, match="--suite: found 'mdi', expected one of mdi-exit"):
        asyncio.run(run_suite("mdi", quick=True, progress=nothing))


def test_variants_leave_out_what_would_be_the_same() -> None:
    found = {
        name: settings.variants(settings.topology_in(settings.setting("32px-20"), name), stage_count=5)
        for name in ("line4", "mesh3")
    }
    assert set(found["line4"]) == {"mdi", "no-exit", "local", "ddi", "mdi-static"}, "no other node hosts stage 0"
    assert set(found["mesh3"]) == {"mdi", "mdi+inputs", "no-exit", "local", "ddi"}, "mdi-static would be local"
    mesh5 = settings.variants(settings.topology_in(settings.setting("32px-20"), "mesh5"), stage_count=5)
    inputs = {policy: mesh5[policy].policy.offload_input for policy in ("mdi", "mdi+inputs", "mdi+auto")}
    assert inputs == {"mdi": "no", "mdi+inputs": "yes", "mdi+auto": "auto"}


def test_runs_that_cannot_differ_are_one() -> None:
    where = settings.setting("32px-20")
    mesh3, mesh5 = (settings.variants(settings.topology_in(where, name), stage_count=5) for name in ("mesh3", "mesh5"))
    assert key_of(SimOptions(mesh3["local"])) == key_of(SimOptions(mesh5["local"]))
    assert key_of(SimOptions(mesh3["mdi"])) != key_of(SimOptions(mesh5["mdi"]))
    assert key_of(SimOptions(mesh3["mdi"])) != key_of(SimOptions(mesh3["mdi"], rate_hz=5.0))


def test_points_are_spread_with_the_default_among_them() -> None:
    bundle = load_bundle("digits-mobilenetv2", verify=False)
    for count in (1, 3, 5):
        points = curves.spread_points(bundle, count)
        assert len(points) == count
        assert bundle.default_point in points
        assert "no-exit" not in [point.name for point in points]


def test_series_by_the_second_are_means_weighted_by_time() -> None:
    rows: list[dict[str, Any]] = [{"t": 0.0}]
    for t, rate in ((0.5, 10.0), (1.0, 20.0), (1.25, 30.0), (2.0, 10.0)):
        rows.append({"t": t, "admitted_hz": rate, "result_hz": rate, "queue": 1, "point": 6})
    assert [row["admitted_hz"] for row in per_second(rows)] == [15.0, 15.0]


def test_slow_node_mesh_has_one_board_four_times_slower() -> None:
    topology = settings.topology_in(settings.setting("32px-20"), settings.SLOW_NODE)
    assert [node.device for node in topology.nodes] == ["raspberry-pi-3", "raspberry-pi-3", "raspberry-pi-3/4"]
    assert {link.medium for link in topology.links} == {"air"}


def test_without_a_lab_live_parts_run_on_loopback_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(topology: Topology) -> None:
        raise ConfigError("lab: found no root, expected it")

    monkeypatch.setattr(live, "EdgeLab", refused)
    where = live.place()
    assert not where.lab
    assert where.why == "on loopback, links without limits: lab: found no root, expected it"


@pytest.mark.slow
def test_tiny_suite_has_every_table() -> None:
    found = asyncio.run(run_scale("mdi-exit", TINY, progress=nothing, quick=True, live=False))
    json.dumps(found, allow_nan=False)
    assert found["schema"] == "zpipe.suite/1"
    by_policy = {row["policy"]: row for row in found["rate_at_accuracy"]}
    assert set(by_policy) == {"mdi", "mdi+inputs", "no-exit", "local", "ddi"}
    for row in by_policy.values():
        assert 0.0 < row["rate_hz"][0] <= 1.02 * row["bound_hz"]
        assert sum(row["exits"]) == pytest.approx(1.0)
    assert {row["policy"] for row in found["accuracy_at_rate"]} == set(by_policy)
    assert [row["admission"] for row in found["over_time"]] == ["mdi-rate", "aimd", "mdi-threshold"]
    assert {row["constant"] for row in found["sweep"] if row["default"]} == {"T_O", "t_q1", "t_q2", "alpha", "beta", "zeta"}
    assert found["claims"]
    assert found["broken"] == []
    for name in ("mdi", "mdi+inputs"):
        assert f"{name} on mesh3" in " ".join(claim["text"] for claim in found["claims"])
    page = render_page(found)
    assert "Live parts: not run." in page

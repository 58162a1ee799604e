"""The bound equals what one works out by hand, and names what limits."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.bundle import Bundle
from zpipe.errors import BackendUnavailable
from zpipe.model import ExitHead, OperatingPoint, PointMetrics, StageSpec, TensorSpec
from zpipe.plan import Bound, exit_reach, rate_bound
from zpipe.topology import LinkSpec, NodeSpec, PolicySpec, SourceSpec, Topology

#: Device `raspberry-pi-3` does so many multiply-adds a second (devices.yaml) and has no fixed part.
PI = 1.89e9
DEVICE = "raspberry-pi-3"
INPUT_BYTES, ACTIVATION_BYTES = 1000, 4000

MACS = (30e6, 20e6, 60e6)
REACH = (1.0, 0.5, 0.25)
MEAN_MACS = sum(share * macs for share, macs in zip(REACH, MACS, strict=True))


def bundle() -> Bundle:
    metrics = PointMetrics(1.0, (0.5, 0.25, 0.25), MEAN_MACS)
    point = OperatingPoint("only", (0.9, 0.9, 0.9), metrics, metrics)
    sizes = (INPUT_BYTES, ACTIVATION_BYTES, ACTIVATION_BYTES)
    tensors = [TensorSpec("uint8", (size,)) for size in sizes]
    stages = tuple(
        StageSpec(index, "", tensors[index], tensors[index + 1] if index < 2 else None, ExitHead(10, 1.0), int(macs))
        for index, macs in enumerate(MACS)
    )
    nothing: dict[str, Any] = {"evaluation_file": None, "evaluation_samples": 0, "replay_file": None}
    return Bundle("hand", Path(), ("a",), None, stages, (point,), point, "", int(sum(MACS)), **nothing)


def topology(*stages: tuple[int, ...], links: list[tuple[int, int]], bandwidth: float = math.inf, **policy: Any) -> Topology:
    return Topology(
        "hand",
        "hand",
        tuple(NodeSpec(rank, hosted, device=DEVICE) for rank, hosted in enumerate(stages)),
        tuple(LinkSpec(pair, bandwidth_bps=bandwidth) for pair in links),
        policy=PolicySpec(**policy),
    )


def bound(given: Topology, reach: tuple[float, ...] = REACH) -> Bound:
    return rate_bound(given, bundle(), reach=reach, device=DEVICE)


ALL = (0, 1, 2)
MESH3 = [(0, 1), (0, 2), (1, 2)]


def test_one_node_does_its_speed_over_the_mean_multiply_adds() -> None:
    found = bound(topology(ALL, links=[]))
    assert found.rate_hz == pytest.approx(PI / MEAN_MACS)
    assert found.limits == ("node 0",)
    assert found.run_hz[0, 2] == pytest.approx(found.rate_hz * REACH[2])
    assert found.sent_hz == {}


def test_a_line_is_as_fast_as_its_slowest_slice() -> None:
    line = topology((0,), (1,), (2,), links=[(0, 1), (1, 2)])
    assert bound(line).rate_hz == pytest.approx(PI / MACS[0])
    assert bound(line, (1.0, 1.0, 1.0)).rate_hz == pytest.approx(PI / MACS[2])
    assert bound(line, (1.0, 1.0, 1.0)).limits == ("node 2",)


def test_a_mesh_is_capped_by_stage_0_at_the_source() -> None:
    found = bound(topology(ALL, ALL, ALL, links=MESH3, offload="mdi"))
    assert found.rate_hz == pytest.approx(PI / MACS[0])
    assert found.limits == ("node 0",)


def test_a_mesh_without_exits_is_as_fast_as_all_nodes_together() -> None:
    found = bound(topology(ALL, ALL, ALL, links=MESH3, offload="mdi"), (1.0, 1.0, 1.0))
    assert found.rate_hz == pytest.approx(3 * PI / sum(MACS))
    assert found.limits == ("node 0", "node 1", "node 2")


def test_a_slow_node_counts_for_what_it_is_worth() -> None:
    given = topology(ALL, ALL, links=[(0, 1)], offload="mdi", offload_input="yes")
    slow = replace(given, nodes=(given.nodes[0], replace(given.nodes[1], device=f"{DEVICE}/4")))
    assert bound(slow).rate_hz == pytest.approx(1.25 * PI / MEAN_MACS)


@pytest.mark.parametrize("offload", ["ddi", "mdi"])
def test_three_replicas_that_take_raw_inputs_are_three_times_one(offload: str) -> None:
    found = bound(topology(ALL, ALL, ALL, links=MESH3, offload=offload, offload_input="yes"))
    assert found.rate_hz == pytest.approx(3 * PI / MEAN_MACS)


def test_ddi_is_limited_by_what_its_links_carry_of_raw_inputs() -> None:
    bits_per_second = 80_000.0
    found = bound(topology(ALL, ALL, links=[(0, 1)], bandwidth=bits_per_second, offload="ddi", offload_input="yes"))
    over_the_link = bits_per_second / 8 / INPUT_BYTES
    assert found.rate_hz == pytest.approx(PI / MEAN_MACS + over_the_link)
    assert found.sent_hz == {(0, 1, 0): pytest.approx(over_the_link)}
    assert found.limits == ("node 0", "link 0-1")


def test_links_of_one_medium_share_its_airtime() -> None:
    given = topology(ALL, ALL, ALL, links=MESH3, bandwidth=80_000.0, offload="ddi", offload_input="yes")
    shared = replace(given, links=tuple(replace(link, medium="air") for link in given.links))
    assert bound(given).rate_hz == pytest.approx(PI / MEAN_MACS + 20.0)
    assert bound(shared).rate_hz == pytest.approx(PI / MEAN_MACS + 10.0)
    assert bound(shared).limits == ("node 0", "medium air")


def test_what_came_over_a_link_runs_before_it_goes_on() -> None:
    """Node 1 hosts stage 1, so what node 0 sends there for it cannot go on to node 2 unrun: node 2's speed is of no use to it."""
    given = topology((0,), (1,), (0, 1, 2), links=[(0, 1), (1, 2)], offload="mdi")
    slow = replace(given, nodes=(given.nodes[0], replace(given.nodes[1], device=f"{DEVICE}/100"), given.nodes[2]))
    assert bound(slow).rate_hz == pytest.approx(PI / 100 / (REACH[1] * MACS[1]))


def test_local_strategy_leaves_what_it_hosts_where_it_is() -> None:
    assert bound(topology(ALL, ALL, links=[(0, 1)], offload="local")).rate_hz == pytest.approx(PI / MEAN_MACS)


def test_raw_inputs_of_two_sources_do_not_come_nearer_to_theirs() -> None:
    """Each source's inputs may go to the other's node; the bound is all speed there is, and every node runs stage 0."""
    given = replace(topology(ALL, ALL, links=[(0, 1)], offload="mdi", offload_input="yes"), sources=(SourceSpec(0), SourceSpec(1)))
    assert bound(given).rate_hz == pytest.approx(2 * PI / MEAN_MACS)


def test_a_source_without_stage_0_sends_what_it_takes_in() -> None:
    found = bound(topology((), ALL, links=[(0, 1)]))
    assert found.rate_hz == pytest.approx(PI / MEAN_MACS)
    assert found.sent_hz == {(0, 1, 0): pytest.approx(found.rate_hz)}


def test_reach_follows_the_gates_rule() -> None:
    confidences = np.array([[0.9, 0.1, 0.1], [0.5, 0.9, 0.1], [0.5, 0.5, 0.1], [1.0, 0.5, 0.9]], np.float32)
    assert exit_reach(confidences, (0.9, 0.9, 0.9)) == (1.0, 0.5, 0.25)
    assert exit_reach(confidences, (1.0, 1.0, 1.0)) == (1.0, 1.0, 1.0), "1.0 means never"


def test_without_scipy_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailable, match=r"found no scipy, .* pip install 'zpipe\[suite\]'"):
        bound(topology(ALL, links=[]))

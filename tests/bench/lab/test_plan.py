"""The commands that make a lab, none of them run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from zpipe.bench.lab.plan import (
    FRAME_BYTES,
    Command,
    bandwidth_commands,
    build_commands,
    burst_bytes,
    burst_seconds,
    cables,
    node_address,
    wire_bps,
)
from zpipe.topology import Topology, from_dict

NAME = "zpipe-lab.1.2.0"


def topology(nodes: int, links: Any) -> Topology:
    return from_dict(
        {"name": "t", "bundle": "b", "nodes": [{"rank": rank, "stages": [rank]} for rank in range(nodes)], "links": links}
    )


def built(nodes: int, links: Any, *, relay_all: bool = False) -> list[Command]:
    whole = topology(nodes, links)
    return build_commands(NAME, whole, cables(NAME, whole, relay_all=relay_all))


def added_namespaces(commands: list[Command]) -> list[str]:
    return [command[3].removeprefix(f"{NAME}.") for command in commands if command[:3] == ("ip", "netns", "add")]


def test_plain_link_is_one_veth_pair_with_a_route_at_each_end() -> None:
    commands = built(2, "line")
    a, b = f"{NAME}.node0", f"{NAME}.node1"
    assert ("ip", "link", "add", "name", "to1", "netns", a, "type", "veth", "peer", "name", "to0", "netns", b) in commands
    assert ("ip", "-n", a, "route", "add", "10.77.0.2/32", "dev", "to1", "src", "10.77.0.1") in commands
    assert ("ip", "-n", b, "route", "add", "10.77.0.1/32", "dev", "to0", "src", "10.77.0.2") in commands
    assert added_namespaces(commands) == ["hub", "node0", "node1"]
    assert not any(command[0] == "tc" for command in commands)


@pytest.mark.parametrize("link", [{"latency": "5 ms"}, {"bandwidth": "5 Mbit/s"}])
def test_link_with_bandwidth_or_latency_leads_through_a_relay(link: dict[str, str]) -> None:
    commands = built(3, [{"between": [0, 1]}, {"between": [1, 2], **link}])
    assert added_namespaces(commands) == ["hub", "node0", "node1", "node2", "relay1-2"]


def test_faults_put_a_relay_into_every_link() -> None:
    assert added_namespaces(built(3, "line", relay_all=True)) == ["hub", "node0", "node1", "node2", "relay0-1", "relay1-2"]


def test_bandwidth_is_limited_where_each_node_sends() -> None:
    limits = [command for command in built(2, {"shape": "line", "bandwidth": "20 Mbit/s"}) if command[0] == "tc"]
    assert [command[2:7] for command in limits] == [
        (f"{NAME}.node0", "qdisc", "replace", "dev", "to1"),
        (f"{NAME}.node1", "qdisc", "replace", "dev", "to0"),
    ]
    assert {command[7:] for command in limits} == {
        ("root", "tbf", "rate", "20911602bit", "burst", "1645", "limit", "1514000"),
    }


def test_no_bandwidth_in_particular_is_a_plain_queue() -> None:
    cable = cables(NAME, topology(2, "line"), relay_all=True)[0]
    assert {command[7:] for command in bandwidth_commands(cable, math.inf)} == {("root", "pfifo", "limit", "1000")}


@pytest.mark.parametrize("bandwidth", [1e5, 5e6, 20e6, 100e6, 1e9])
def test_bucket_holds_a_frame_and_a_late_wake_up(bandwidth: float) -> None:
    late = 50e-6 * wire_bps(bandwidth) / 8
    assert FRAME_BYTES + late <= burst_bytes(bandwidth) <= FRAME_BYTES + late + 1
    assert burst_seconds(bandwidth) * wire_bps(bandwidth) == pytest.approx(8 * burst_bytes(bandwidth))


def test_unlimited_link_saves_no_time() -> None:
    assert burst_seconds(math.inf) == 0.0


def test_every_namespace_and_device_is_named_once_and_short_enough() -> None:
    commands = built(12, {"shape": "mesh", "latency": "1 ms"})
    spaces = added_namespaces(commands)
    assert len(spaces) == len(set(spaces)) == 1 + 12 + 66
    pairs = [command for command in commands if command[1:3] == ("link", "add")]
    devices = [end for command in pairs for end in ((command[6], command[4]), (command[13], command[11]))]
    assert len(set(devices)) == len(devices)
    assert max(len(device) for _, device in devices) <= 15


def test_addresses_differ_past_one_byte() -> None:
    assert len({node_address(rank) for rank in range(600)}) == 600
    assert node_address(255) == "10.77.1.0"


def test_every_namespace_runs_the_same_congestion_control() -> None:
    commands = built(2, {"shape": "line", "latency": "1 ms"})
    chosen = [command[3] for command in commands if command[-1] == "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"]
    assert [space.removeprefix(f"{NAME}.") for space in chosen] == added_namespaces(commands)

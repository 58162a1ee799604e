"""What a lab is made of, as plain values and command lines: nothing here is run.

Every node has one address, the same from everywhere: a host address in its namespace, reached over each of its links. Between nodes
without a link (the source asks every node for its counters) packets go over a hub, so that they use up no link's bandwidth.

    node0 ── to1 ═══════════════════ to0 ── node1                plain link
    node0 ── to1 ═══ low (relay) high ═══ to0 ── node1           link with bandwidth or latency
    node0 ── hub ─── n0 (hub) n1 ─── hub ── node1                everything else

Bandwidth is limited at both nodes' ends, each for what that node sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zpipe.topology import LinkSpec, Topology

Command = tuple[str, ...]

#: Every node listens here, data and control, each in its own namespace.
PORTS = (5800, 5801)

#: A full Ethernet frame, and what TCP carries in it (MTU 1500, time stamps on). A link's bandwidth is what it carries of the
#: latter: the same bytes that topologies, codecs and reports count.
FRAME_BYTES, PAYLOAD_BYTES = 1514, 1448

#: A token bucket must hold a frame, and what flows in while the kernel wakes up late; else tokens run over and the rate falls
#: short. Measured: one frame gives 0.97 of 20 Mbit/s and 0.88 of 100, with 50 µs more 1.00 and 0.98. Larger buckets are no better
#: over a long transfer, and let more of a short one go at once (`delay.Way` puts that back).
LATE_SECONDS = 50e-6

#: What waits at a link's end at most, in bytes: 1000 frames, as many as Linux gives an Ethernet card.
QUEUE_BYTES = 1000 * FRAME_BYTES

#: The same on every machine: BBR, for one, paces by itself and slows down every 10 s to look around. Each kernel has this one
#: and lets any namespace choose it (cubic may be kept for the first); on links that lose nothing the two do the same.
CONGESTION_CONTROL = "reno"

HUB_ADDRESS = "10.79.0.1"


@dataclass(frozen=True, slots=True)
class Cable:
    """A link in the lab.

    Attributes:
        link: as the topology says.
        ends: #: (namespace, device) at the node of the lower rank and of the higher one
        relay: the namespace in the middle, "" where there is none.
    """

    link: LinkSpec
    ends: tuple[tuple[str, str], tuple[str, str]]
    relay: str


def node_address(rank: int) -> str:
    """The one address of a node."""
    return f"10.77.{(rank + 1) >> 8}.{(rank + 1) & 255}"


def namespace(name: str, rank: int) -> str:
    """The namespace of a node in the lab of that name."""
    return f"{name}.node{rank}"


def cables(name: str, topology: Topology, *, relay_all: bool) -> tuple[Cable, ...]:
    """How the links of a topology are laid in the lab of that name."""
    laid = []
    for link in topology.links:
        low, high = link.between
        relayed = relay_all or link.bandwidth_bps < math.inf or link.latency_seconds > 0.0
        ends = ((namespace(name, low), f"to{high}"), (namespace(name, high), f"to{low}"))
        laid.append(Cable(link, ends, f"{name}.relay{low}-{high}" if relayed else ""))
    return tuple(laid)


# ---- the commands ------------------------------------------------------------------------------


def build_commands(name: str, topology: Topology, laid: tuple[Cable, ...]) -> list[Command]:
    """Makes everything but the relays' processes and the CPU quotas."""
    hub = f"{name}.hub"
    commands = [*_namespace(hub, HUB_ADDRESS), _setting(hub, "ip_forward", "1")]
    for node in topology.nodes:
        commands += _node(namespace(name, node.rank), hub, node.rank)
    for number, cable in enumerate(laid):
        commands += _relayed(cable, number) if cable.relay else _plain(cable)
        if cable.link.bandwidth_bps < math.inf:
            commands += bandwidth_commands(cable, cable.link.bandwidth_bps)
    return commands


def bandwidth_commands(cable: Cable, bandwidth_bps: float) -> list[Command]:
    """Gives both ends of a link this bandwidth, `inf` for none in particular; nothing that waits there is lost."""
    if bandwidth_bps == math.inf:
        queue: Command = ("pfifo", "limit", "1000")
    else:
        rate, burst = f"{wire_bps(bandwidth_bps):.0f}bit", str(burst_bytes(bandwidth_bps))
        queue = ("tbf", "rate", rate, "burst", burst, "limit", str(QUEUE_BYTES))
    return [("tc", "-n", space, "qdisc", "replace", "dev", device, "root", *queue) for space, device in cable.ends]


def within(space: str, *command: str) -> Command:
    """The command, run in a namespace."""
    return ("ip", "netns", "exec", space, *command)


def wire_bps(bandwidth_bps: float) -> float:
    """What a link carries, frame headers and all, when it carries so much of TCP's payload."""
    return bandwidth_bps * FRAME_BYTES / PAYLOAD_BYTES


def burst_bytes(bandwidth_bps: float) -> int:
    """The token bucket for a bandwidth."""
    return math.ceil(FRAME_BYTES + LATE_SECONDS * wire_bps(bandwidth_bps) / 8)


def burst_seconds(bandwidth_bps: float) -> float:
    """How much earlier than from a cable a frame comes out of the full bucket."""
    return 0.0 if bandwidth_bps == math.inf else 8 * burst_bytes(bandwidth_bps) / wire_bps(bandwidth_bps)


def _namespace(space: str, address: str) -> list[Command]:
    return [
        ("ip", "netns", "add", space),
        ("ip", "-n", space, "link", "set", "dev", "lo", "up"),
        ("ip", "-n", space, "address", "add", f"{address}/32", "dev", "lo"),
        _setting(space, "tcp_congestion_control", CONGESTION_CONTROL),
    ]


def _setting(space: str, name: str, value: str) -> Command:
    return within(space, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{name}")


def _pair(a: str, device_a: str, b: str, device_b: str) -> list[Command]:
    return [
        ("ip", "link", "add", "name", device_a, "netns", a, "type", "veth", "peer", "name", device_b, "netns", b),
        ("ip", "-n", a, "link", "set", "dev", device_a, "up"),
        ("ip", "-n", b, "link", "set", "dev", device_b, "up"),
    ]


def _node(space: str, hub: str, rank: int) -> list[Command]:
    address = node_address(rank)
    return [
        *_namespace(space, address),
        *_pair(space, "hub", hub, f"n{rank}"),
        ("ip", "-n", space, "route", "add", "default", "via", HUB_ADDRESS, "dev", "hub", "onlink", "src", address),
        ("ip", "-n", hub, "route", "add", f"{address}/32", "dev", f"n{rank}"),
    ]


def _plain(cable: Cable) -> list[Command]:
    (low, to_high), (high, to_low) = cable.ends
    return [*_pair(low, to_high, high, to_low), *_routes(cable)]


def _relayed(cable: Cable, number: int) -> list[Command]:
    (low, to_high), (high, to_low) = cable.ends
    relay = cable.relay
    commands = [
        *_namespace(relay, f"10.78.{number >> 8}.{number & 255}"),
        *_pair(low, to_high, relay, "low"),
        *_pair(high, to_low, relay, "high"),
        *_routes(cable),
        # What arrives is the relay's, whoever it was meant for; what the relay sends goes where it is meant for.
        ("ip", "-n", relay, "route", "add", "local", "default", "dev", "lo", "table", "100"),
    ]
    for side, rank in zip(("low", "high"), cable.link.between, strict=True):
        commands.append(("ip", "-n", relay, "route", "add", f"{node_address(rank)}/32", "dev", side))
        commands.append(("ip", "-n", relay, "rule", "add", "iif", side, "lookup", "100"))
    return commands


def _routes(cable: Cable) -> list[Command]:
    low, high = cable.link.between
    ways = zip(cable.ends, (low, high), (high, low), strict=True)
    return [
        ("ip", "-n", space, "route", "add", f"{node_address(there)}/32", "dev", device, "src", node_address(here))
        for (space, device), here, there in ways
    ]

"""Every node of a topology as this machine reaches it: does it answer, how soon, how fast do bytes get there, does it run the same?

A node is looked at as an observer (`zpipe.runtime.observer`); one that does not let us in, with plain TCP, which tells a closed
port from a silent one. The measurement sends some MB at most, one node after the other.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from zpipe.doctor.finding import Finding
from zpipe.doctor.ports import host_and_port
from zpipe.runtime.observer import Observer
from zpipe.security import is_loopback
from zpipe.top import CONNECT_SECONDS
from zpipe.topology import NodeSpec, Topology, shortest_name

#: Round trips asked for; the shortest counts, others waited behind something.
LOOKS = 5
#: For all answers to one look, and for the measurement of one node.
ANSWER_SECONDS, MEASURE_SECONDS = 3.0, 5.0
#: A connection that is not refused and does not stand by then: nobody is there, or something drops what we send.
TCP_SECONDS = 3.0
#: Below this share of what the topology says of a link it is worth a word.
FAIR_SHARE = 0.5

#: How a plain TCP connection went.
Tcp = Literal["open", "refused", "silent", "unreachable", "unknown host"]


@dataclass(slots=True)
class Look:
    """One node as it was found.

    Attributes:
        up: it let us in.
        trouble: why not, in words.
        round_trip_seconds: the shortest of some.
        bits_per_second: at which bytes get there from here.
        topology_digest, bundle_digest: of what it runs; "" where it is not up.
        data, control: how plain TCP to its two ports went; control is not tried where it is up.
    """

    rank: int
    up: bool = False
    trouble: str = ""
    round_trip_seconds: float | None = None
    bits_per_second: float | None = None
    topology_digest: str = ""
    bundle_digest: str = ""
    data: Tcp = "open"
    control: Tcp = "open"


async def look(topology: Topology) -> dict[int, Look]:
    """Looks at every node.

    Args:
        topology: with every address known.

    Raises:
        ConfigError: its nodes have keys, and none of theirs is here.
    """
    looks = {node.rank: Look(node.rank) for node in topology.nodes}
    async with Observer(topology) as observer:
        await observer.arrived(CONNECT_SECONDS)
        for _ in range(LOOKS):
            for seen in await observer.look(ANSWER_SECONDS):
                found, trip = looks[seen.rank], seen.round_trip_seconds
                if trip is not None:
                    found.round_trip_seconds = min(trip, found.round_trip_seconds or trip)
        for seen in observer.seen:
            found = looks[seen.rank]
            if seen.up:
                await observer.measure(seen.rank, MEASURE_SECONDS)
            found.up, found.trouble, found.bits_per_second = seen.up, seen.trouble, seen.bits_per_second
            found.topology_digest, found.bundle_digest = seen.topology_digest, seen.bundle_digest
    await asyncio.gather(*[_try_ports(topology.node(rank), found) for rank, found in looks.items()])
    return looks


async def _try_ports(node: NodeSpec, found: Look) -> None:
    host, port = host_and_port(node.address)
    found.data = await _tcp(host, port)
    if not found.up:
        found.control = await _tcp(host, port + 1)


async def _tcp(host: str, port: int) -> Tcp:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), TCP_SECONDS)
    except asyncio.TimeoutError:
        return "silent"
    except socket.gaierror:
        return "unknown host"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "unreachable"
    with closing(writer):
        return "open"


def findings(
    topology: Topology,
    looks: Mapping[int, Look],
    *,
    digests: tuple[str, str],
    here: Collection[int],
    own: int | None = None,
) -> list[Finding]:
    """What is to be said of each node.

    Args:
        topology: as it was looked at.
        looks: {rank: how it was found}
        digests: of topology and bundle as they are here; "" of one that cannot be used.
        here: the nodes that this machine is to run.
        own: the one that somebody is about to start here, if so: that it does not run yet is no fault.
    """
    if all(is_loopback(node.address) for node in topology.nodes) and not any(found.up for found in looks.values()):
        start = f"zpipe bench --topology {shortest_name(topology)}"
        return [Finding("nodes", "ok", f"none runs now; on this machine `{start}` starts them")]
    return [_node(topology, found, digests, here, own) for _, found in sorted(looks.items())]


def _node(topology: Topology, found: Look, digests: tuple[str, str], here: Collection[int], own: int | None) -> Finding:
    node = topology.node(found.rank)
    name = f"rank {node.rank} at {node.address}"
    if not found.up:
        return _absent(name, topology, node, found, own)
    file = shortest_name(topology)
    for what, ours, theirs in zip(("topology", "bundle"), digests, (found.topology_digest, found.bundle_digest), strict=True):
        if ours and theirs != ours:
            said = f"it runs another {what}: digest {theirs[:12]} there, {ours[:12]} here"
            remedy = f"copy {file if what == 'topology' else topology.bundle} there and start it anew"
            return Finding(name, "broken", said, remedy, required=True)
    if found.data != "open":
        port = host_and_port(node.address)[1]
        said = f"its control port {port + 1} answers, its data port {port} is {found.data}"
        return Finding(name, "broken", said, f"there: {_open_ports(port)}", required=True)
    rate = "rate not known" if found.bits_per_second is None else f"{_rate(found.bits_per_second)} there from here"
    trip = "no round trip" if found.round_trip_seconds is None else f"round trip {1e3 * found.round_trip_seconds:.2f} ms"
    stated = _stated(topology, node.rank, here)
    if stated is not None and found.bits_per_second is not None and found.bits_per_second < FAIR_SHARE * stated:
        remedy = (
            f"when nothing else runs, ask again; else write what there is into {file}: bandwidth: {_rate(found.bits_per_second)}"
        )
        return Finding(name, "warning", f"{trip}, {rate}, where the topology says {_rate(stated)}", remedy)
    return Finding(name, "ok", f"{trip}, {rate}, runs the same topology and bundle", required=True)


def _absent(name: str, topology: Topology, node: NodeSpec, found: Look, own: int | None) -> Finding:
    """Cases by how far plain TCP gets: nowhere, to a closed port, to somebody who is no node or does not let us in."""
    host, port = host_and_port(node.address)
    start = f"zpipe node --rank {node.rank} --topology {shortest_name(topology)}"
    if node.rank != own:
        start = f"there: {start}"
    if found.control == "unknown host":
        remedy = f"echo 'ADDRESS {host}' | sudo tee -a /etc/hosts"
        return Finding(name, "broken", f"{host} does not resolve here", remedy, required=True)
    if found.control == "unreachable":
        return Finding(name, "broken", f"no way to {host}", f"ip route get {host}; ping {host}", required=True)
    if found.control == "silent":
        said = f"no answer from port {port + 1} within {TCP_SECONDS:g} s: it is off, elsewhere, or a firewall drops what comes"
        return Finding(name, "broken", said, f"ping {host}; there: {_open_ports(port)}", required=True)
    if found.control == "refused" and topology.source_at(node.rank) is not None:
        said = f"not running: the source is run by whoever submits ({host} refuses connections now)"
        return Finding(name, "missing", said, _submitting(topology, node.rank))
    if found.control == "refused":
        return Finding(name, "missing", f"no node runs there: port {port + 1} is closed", start, required=node.rank != own)
    trouble = found.trouble or "it says nothing to our Hello"
    return Finding(name, "broken", f"somebody listens there and does not let us in: {trouble}", start, required=True)


def _submitting(topology: Topology, rank: int) -> str:
    """How to be that source; which of several has to be said."""
    source = topology.source_at(rank)
    assert source is not None
    which = f" --source {source.name}" if len(topology.sources) > 1 else ""
    also = f' with source="{source.name}"' if which else ""
    return f"zpipe bench --attach{which} --topology {shortest_name(topology)}, or Pipeline.connect{also}"


def _open_ports(port: int) -> str:
    return f"sudo ufw allow {port}:{port + 1}/tcp"


def _stated(topology: Topology, rank: int, here: Collection[int]) -> float | None:
    """The least bandwidth that the topology states for a link between that node and one of this machine, bits per second."""
    between = [link for link in topology.links if rank in link.between and set(link.between) - {rank} <= set(here)]
    least = min((link.bandwidth_bps for link in between), default=math.inf)
    return None if least == math.inf else least


def _rate(bits_per_second: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.3g} {unit}"
    return f"{bits_per_second / 1e3:.3g} kbit/s"

"""How long one sample takes to its exit in an empty network: the topology's devices, bandwidths and latencies, no queue."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from zpipe.bundle import Bundle
from zpipe.configure import lane_bytes
from zpipe.devices import load_device, service_seconds
from zpipe.errors import TopologyError
from zpipe.topology import LinkSpec, Topology

#: Waiting for a stage at a node, or having run it there.
State = tuple[int, int]


def exit_seconds(topology: Topology, bundle: Bundle, *, device: str) -> tuple[float, ...]:
    """Per stage the seconds from submit to the answer of a sample that leaves there, by the quickest way through the topology.

    Computing: multiply-adds over the device's rate (`zpipe.devices`). A link: its latency and the bytes over its bandwidth. The
    answer goes back over the links with the least latency. Nothing queues: this is the least a sample can take.

    Args:
        topology: checked against the bundle, `offload_input` decided; its first source counts.
        bundle: says multiply-adds and bytes.
        device: profile of the nodes that name none.

    Raises:
        ConfigError: a device that is not known.
        TopologyError: a stage that no node hosts, or that cannot be reached.
    """
    source = topology.source.rank
    devices = {node.rank: load_device(node.device or device) for node in topology.nodes if node.stages}
    sizes = {codec: lane_bytes(bundle, codec) for codec in {link.codec for link in topology.links}}
    back = _latencies(topology, source)
    may_send_input = 0 not in topology.node(source).stages or topology.may_send_input(source)
    # Dijkstra over (stage that is waited for, node): run it here, or send the task to a neighbour that hosts the stage.
    best: dict[State, float] = {(0, source): 0.0}
    done: list[float] = [math.inf] * len(bundle.stages)
    queue = [(0.0, (0, source))]
    while queue:
        now, (stage, rank) = heapq.heappop(queue)
        if now > best[stage, rank]:
            continue
        steps = []
        if stage in topology.node(rank).stages:
            ready = now + service_seconds(devices[rank], bundle.stages[stage], 1)
            done[stage] = min(done[stage], ready + back[rank])
            if stage + 1 < len(bundle.stages):
                steps.append((ready, (stage + 1, rank)))
        for peer, link in _links(topology, rank):
            if stage not in topology.node(peer).stages or (stage == 0 and not may_send_input):
                continue
            seconds = link.latency_seconds + 8.0 * sizes[link.codec][stage] / link.bandwidth_bps
            steps.append((now + seconds, (stage, peer)))
        for then, state in steps:
            if then < best.get(state, math.inf):
                best[state] = then
                heapq.heappush(queue, (then, state))
    for stage, seconds in enumerate(done):
        if math.isinf(seconds):
            raise TopologyError(
                f"{topology.path or topology.name}: nodes: found no way to a host of stage {stage}, expected one; correct it"
            )
    return tuple(done)


def _links(topology: Topology, rank: int) -> Iterator[tuple[int, LinkSpec]]:
    for peer in topology.neighbours(rank):
        link = topology.link(rank, peer)
        if link is not None:
            yield peer, link


def _latencies(topology: Topology, source: int) -> dict[int, float]:
    """{rank: least seconds of an answer from there to the source}; an answer is so small that bandwidth does not matter."""
    found = {source: 0.0}
    queue = [(0.0, source)]
    while queue:
        now, rank = heapq.heappop(queue)
        if now > found[rank]:
            continue
        for peer, link in _links(topology, rank):
            then = now + link.latency_seconds
            if then < found.get(peer, math.inf):
                found[peer] = then
                heapq.heappush(queue, (then, peer))
    return found

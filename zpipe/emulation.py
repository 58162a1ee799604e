"""Topologies whose nodes are all emulated: which bundle they run, and what such a topology must and must not say."""

from __future__ import annotations

import math
from collections.abc import Iterable

from zpipe.bundle import Bundle, lossy_part
from zpipe.devices import Device, load_device, service_seconds
from zpipe.errors import ConfigError, TopologyError
from zpipe.model import NO_CODEC
from zpipe.topology import NodeSpec, Topology

#: The executor's name in a topology.
EMULATED = "emulated"
#: Shorter stages are refused: the host's own work per task and hop (0.2 ms, bench/results/line.json) would no longer be small.
LEAST_SECONDS = 0.005


def is_emulated(topology: Topology) -> bool:
    """Whether its nodes are emulated; `check_emulation` sees to it that all are, or none."""
    return any(node.executor == EMULATED for node in _hosts(topology))


def bundle_to_run(topology: Topology, bundle: Bundle) -> Bundle:
    """The bundle its nodes work with: the real one, or its emulation."""
    return bundle.emulated() if is_emulated(topology) else bundle


def replay_codec(topology: Topology) -> str:
    """The codec whose replay the emulated nodes give: the lossy one on its links, if there is any.

    The replay has passed every stage boundary through its codec. Where some links say `none`, its answers are those of a topology
    with that codec on all of them.
    """
    lossy = (lossy_part(link.codec) for link in topology.links)
    return next((codec for codec in lossy if codec != NO_CODEC), NO_CODEC)


def check_emulation(topology: Topology, bundle: Bundle) -> None:
    """Checks what only emulated topologies have to keep; others pass.

    Args:
        topology: checked otherwise.
        bundle: the real one.

    Raises:
        TopologyError: emulated and other nodes together, a device that is not known or too fast, or codecs without a replay.
        BundleError: the replay cannot be read.
    """
    if not is_emulated(topology):
        return
    file = topology.path or topology.name
    for node in _hosts(topology):
        if node.executor != EMULATED:
            raise TopologyError(
                f"{file}: nodes[{node.rank}].executor: found {node.executor!r} beside emulated nodes, expected {EMULATED!r}: "
                f"they pass on recorded bytes, which a real stage cannot use; emulate every node or none"
            )
        try:
            check_service(load_device(node.device), bundle, node.stages)
        except ConfigError as exc:
            raise TopologyError(f"{file}: nodes[{node.rank}].{exc}") from exc
    _check_codecs(topology, bundle)


def _check_codecs(topology: Topology, bundle: Bundle) -> None:
    file, codec, tables = topology.path or topology.name, replay_codec(topology), bundle.replay_codecs()
    if NO_CODEC not in tables:
        raise TopologyError(f"{file}: bundle: found no replay in {bundle.name}, expected one to emulate; choose another bundle")
    for index, link in enumerate(topology.links):
        key = f"{file}: links[{index}].codec: found {link.codec!r}"
        if link.codec not in tables:
            raise TopologyError(
                f"{key}, expected one of {', '.join(tables)}, for which bundle {bundle.name} has a replay: emulated nodes give "
                f"answers recorded under a codec; name one of these"
            )
        if lossy_part(link.codec) not in (NO_CODEC, codec):
            raise TopologyError(
                f"{key} beside {codec!r}, expected one lossy codec in an emulated topology: a replay is recorded under one; choose"
            )


def _hosts(topology: Topology) -> list[NodeSpec]:
    return [node for node in topology.nodes if node.stages]


def check_service(device: Device, bundle: Bundle, stages: Iterable[int]) -> None:
    """Refuse a device that does some stage in less time than a host can keep.

    Raises:
        ConfigError: names device, stage and time, and a slower device that would do for the whole bundle.
    """
    for stage in stages:
        seconds = service_seconds(device, bundle.stages[stage], 1)
        if seconds < LEAST_SECONDS:
            raise ConfigError(
                f"device: found {device.name!r}, which does stage {stage} in {1e3 * seconds:.2g} ms, expected at least "
                f"{1e3 * LEAST_SECONDS:g} ms a stage, the shortest time a host can keep; name {_slow_enough(device, bundle)!r}"
            )


def _slow_enough(device: Device, bundle: Bundle) -> str:
    """The same board, slower by the least whole number that will do for every stage."""
    base, _, divisor = device.name.partition("/")
    shortest = min(service_seconds(device, spec, 1) for spec in bundle.stages)
    return f"{base}/{math.ceil(float(divisor or 1) * LEAST_SECONDS / shortest)}"

"""What one topology needs: its file and bundle, and of this machine the ports, keys and executors of the nodes it is to run."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from zpipe.bundle import Bundle
from zpipe.configure import prepare
from zpipe.doctor import gpu, keys, network, ports
from zpipe.doctor.finding import Finding, from_error
from zpipe.errors import ConfigError, ZpipeError
from zpipe.top import find_nodes
from zpipe.topology import Topology, load_topology


def findings(name: str, rank: int | None) -> list[Finding]:
    """All of it, in the order in which one thing needs the other.

    Args:
        name: a topology file or the name of one of ours.
        rank: the node that this machine is to run; those with an address of this machine where None.

    Raises:
        ConfigError: the topology has no such rank.
    """
    found, loaded = _file(name)
    if loaded is None:
        return found
    if rank is not None and not 0 <= rank < len(loaded.nodes):
        raise ConfigError(f"{loaded.path}: --rank: found {rank}, expected one of 0 to {len(loaded.nodes) - 1}")
    of_bundle, bundle = _bundle(loaded)
    found.append(of_bundle)
    placed, digest = find_nodes(loaded)
    here = ports.ranks_here(placed) if rank is None else (rank,)
    of_keys, usable = keys.findings(placed, here)
    seen: dict[int, network.Look] = {}
    of_network: list[Finding] = []
    if usable:
        seen = asyncio.run(network.look(placed))
        digests = (digest, bundle.digest if bundle is not None else "")
        of_network = network.findings(placed, seen, digests=digests, here=here, own=rank)
    running = {looked.rank for looked in seen.values() if looked.up}
    found += [ports.port(placed.node(each), running=each in running) for each in here]
    found += of_keys
    if bundle is not None:
        found += _executors(loaded, here)
    return found + of_network


def _file(name: str) -> tuple[list[Finding], Topology | None]:
    """The file, and the topology without its keys where only they are at fault: `keys.findings` says how."""
    try:
        loaded = load_topology(name, read_keys=False)
    except ZpipeError as exc:
        there = Path(name).exists()
        remedy = f"mend {name}; zpipe/topology/__init__.py lists every key" if there else "name a topology file that is there"
        return [from_error("topology", "broken" if there else "missing", exc, remedy)], None
    try:
        loaded = load_topology(name)
    except ZpipeError:
        pass
    said = f"{loaded.path}: {len(loaded.nodes)} nodes, {len(loaded.links)} links, digest {loaded.digest()[:12]}"
    return [Finding("topology", "ok", said, required=True)], loaded


def _bundle(loaded: Topology) -> tuple[Finding, Bundle | None]:
    """The bundle it names, every file of it hashed, and whether the two fit each other."""
    name = f"bundle {loaded.bundle}"
    try:
        _, bundle = prepare(loaded)
    except ZpipeError as exc:
        return from_error(name, "broken", exc, f"copy it anew from where it was made: {loaded.bundle}"), None
    said = f"{len(bundle.stages)} stages at {bundle.real.path}, every digest right, digest {bundle.digest[:12]}"
    return Finding(name, "ok", said, required=True), bundle


def _executors(loaded: Topology, here: Collection[int]) -> list[Finding]:
    """Each that the topology names for a node of this machine, tried once; `auto` and `onnx` without more were tried above."""
    tried: dict[tuple[str, str], int] = {}
    for node in map(loaded.node, here):
        if node.stages and node.executor not in ("auto", "onnx", "emulated"):
            tried.setdefault((node.executor, node.device), node.rank)
    return [gpu.executor_of(loaded, rank) for rank in tried.values()]

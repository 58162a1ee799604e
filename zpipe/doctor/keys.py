"""Keys: is the list of public ones complete, and can this machine's nodes use their secrets?"""

from __future__ import annotations

from collections.abc import Collection

from zpipe.doctor.finding import Finding, from_error
from zpipe.errors import ZpipeError
from zpipe.security import node_keys, observer_keys
from zpipe.topology import Topology, shortest_name
from zpipe.topology.keys import PUBLIC_FILE, read_public


def findings(topology: Topology, here: Collection[int]) -> tuple[list[Finding], bool]:
    """What there is to say, and whether this machine can show nodes a key, where they want one.

    Args:
        topology: loaded without its keys where they could not be.
        here: the nodes that this machine is to run.
    """
    security = topology.security
    if security.folder is None:
        return [_without(topology, here)], True
    if not security.keys:
        return [_public(topology)], False
    found = [_public(topology), *[_secret(topology, rank) for rank in sorted(here)]]
    try:
        observer_keys(topology)
    except ZpipeError as exc:
        if not here:
            found.append(from_error("secret keys", "missing", exc, required=False))
        return found, False
    return found, True


def _without(topology: Topology, here: Collection[int]) -> Finding:
    """No keys: fine where only this machine reaches its nodes, or somebody said so."""
    if topology.security.insecure:
        remedy = f"zpipe keygen --topology {shortest_name(topology)}"
        return Finding("keys", "warning", "none, as the topology says: whoever reaches a node may use it", remedy)
    try:
        for rank in sorted(here):
            node_keys(topology, rank)
    except ZpipeError as exc:
        return from_error("keys", "missing", exc)
    return Finding("keys", "ok", "none; nodes listen where only their own machine reaches them")


def _public(topology: Topology) -> Finding:
    """The allow-list: there, nobody else's to change, a key of its own for each rank, and for no other."""
    folder, count = topology.security.folder, len(topology.nodes)
    assert folder is not None
    name, file = "public keys", folder / PUBLIC_FILE
    mend = f"zpipe keygen --topology {shortest_name(topology)}, or copy {PUBLIC_FILE} from where that was done"
    try:
        listed = read_public(folder)
    except ZpipeError as exc:
        return from_error(name, "broken", exc, mend)
    if listed is None:
        return Finding(name, "missing", f"no file {file}", mend, required=True)
    lacking = [rank for rank in range(count) if rank not in listed]
    if lacking:
        ranks = " ".join(f"--rank {rank}" for rank in lacking)
        found = f"{file} has no key of rank {', '.join(map(str, lacking))}"
        remedy = f"zpipe keygen --topology {shortest_name(topology)} {ranks}, or copy {PUBLIC_FILE} from where all were made"
        return Finding(name, "broken", found, remedy, required=True)
    if not topology.security.keys:
        return Finding(name, "broken", f"{file} has one key for two ranks", f"make them anew: {mend}", required=True)
    others = sorted(rank for rank in listed if rank >= count)
    if others:
        said = f"{file} has keys of rank {', '.join(map(str, others))}, too, which the topology has not"
        return Finding(name, "warning", said, f"take the lines out of {file}")
    return Finding(name, "ok", f"{count} in {file}, one for each rank", required=True)


def _secret(topology: Topology, rank: int) -> Finding:
    """A node's own: there, readable by nobody else, and the other half of what the list has for its rank."""
    name = f"secret of rank {rank}"
    folder = topology.security.folder
    assert folder is not None
    try:
        node_keys(topology, rank)
    except ZpipeError as exc:
        return from_error(name, "missing" if "found no such file" in str(exc) else "broken", exc)
    return Finding(name, "ok", f"in {folder}, for its owner alone, the pair of rank {rank}'s public key", required=True)

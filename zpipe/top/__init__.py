"""`zpipe top`: what a running topology does, from look to look.

`watch` yields a Snapshot per interval; `render` makes of it what a person reads, `as_json` what a program does.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from zpipe.errors import ZpipeError
from zpipe.runtime import whereabouts
from zpipe.runtime.node import by_hand
from zpipe.runtime.observer import Observer, Seen
from zpipe.top.snapshot import History, Snapshot
from zpipe.top.view import render
from zpipe.topology import Topology, load_topology, shortest_name

__all__ = ["Snapshot", "as_json", "find_nodes", "render", "watch"]

SCHEMA = "zpipe.top/1"
#: What nodes have to let an observer in; one that refuses connections is known not to be there before that.
CONNECT_SECONDS = 4.0


def find_nodes(topology: str | Topology) -> tuple[Topology, str]:
    """A topology with the addresses to look at: of the pipeline of this machine that runs it, else those its nodes have by hand.

    Returns:
        It, and the digest of the topology its nodes should run.

    Raises:
        TopologyError: there is no such file, or it is wrong.
    """
    loaded = load_topology(topology) if isinstance(topology, str) else topology
    found = whereabouts.find(loaded)
    if found is None:
        return by_hand(loaded), loaded.digest()
    return loaded.with_addresses(found.addresses), found.digest


async def watch(topology: str | Topology, *, every: float) -> AsyncGenerator[Snapshot, None]:
    """Looks at every node again and again; the first snapshot has rates already.

    A pipeline of this machine that ended and was started anew is followed to its new addresses.

    Args:
        topology: a topology, its file or its name.
        every: seconds from look to look.

    Raises:
        TopologyError: there is no such topology.
        ConfigError: its nodes have keys, and none of theirs is here.
        ZpipeError: no node of it can be reached.
    """
    place = find_nodes(topology)
    history: History | None = None
    while True:
        loaded, digest = place
        async with Observer(loaded) as observer:
            await observer.arrived(CONNECT_SECONDS)
            if history is None:
                history = await _first_look(observer, every)
            history.digest = digest
            due = time.monotonic() + every
            while True:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                seen = await observer.look(every)
                yield history.take(seen, now=time.monotonic())
                found = place if any(node.up for node in seen) else find_nodes(topology)
                if found != place:
                    place = found
                    break
                due = max(due + every, time.monotonic())


async def _first_look(observer: Observer, every: float) -> History:
    seen = await observer.look(every)
    if not any(node.up for node in seen):
        raise ZpipeError(_nobody(observer.topology, seen))
    history = History(observer.topology, every=every)
    history.take(seen, now=time.monotonic())
    return history


def _nobody(topology: Topology, seen: list[Seen]) -> str:
    named = ", ".join(f"{node.rank} at {node.address} ({node.trouble or 'no answer'})" for node in seen[:3])
    more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
    where = shortest_name(topology)
    found = f"{where}: found no node that answers (rank {named}{more}), expected one; "
    others = whereabouts.running()
    if others:
        return f"{found}look at what does run on this machine: " + ", ".join(
            f"`zpipe top --topology {shlex.quote(other)}`" for other in others[:3]
        )
    return f"{found}run something on it, such as `zpipe bench --topology {where}`, or start its nodes with `zpipe node`"


def as_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as plain values."""
    plain: dict[str, Any] = {"schema": SCHEMA, **asdict(snapshot)}
    for source in plain["sources"]:
        latency = source["latency_seconds"] or {}
        source["latency_seconds"] = {f"p{100 * q:.0f}": latency.get(q) for q in (0.5, 0.95, 0.99)}
        del source["latencies"]  # every line has its own
    return plain

"""Everything a live node keeps, how much of it there is, and its limit; `stats()["tables"]` shows both.

What the policy keeps is listed in `zpipe.policy.bounds`. Of the runtime and the transport:

=====================  ===================================================================================================
inputs                 of the open samples, and of those offered in this turn of the loop: their callers bound these
payloads               one for each task held, and for a replaced attempt that still runs: both hold slots
channels               neighbours, observers, observed nodes; strangers up to the transport's MAX_INCOMING
observers              above MAX_OBSERVERS the one that came first is sent away
observed nodes         one channel for each other node
stats asked for        one for each call of `stats_of` that still waits: it leaves with its call, answered or not
links counted          one for each neighbour
notes                  a period of lines for people: about each neighbour, Hellos refused, and sessions
origins                incoming data connections told apart: above MAX_ORIGINS the oldest makes room
incoming channels      above MAX_INCOMING the oldest stranger makes room: neighbours and observers are fewer, up to 192 neighbours
keys banned            each was on the allow-list
connection rates       of MAX_RATES keys or addresses: the one that came first makes room
calls posted           one for each channel that ended in this turn of the loop
=====================  ===================================================================================================

Bounded elsewhere, and no table here: channels the transport opened (those of `channels` and `observed nodes`) and their sockets,
events and commands of a turn (QUOTA messages of each socket), ZeroMQ's queues (high-water marks), the worker's queue (the policy
runs one batch at a time), a trace (LIMIT_BYTES), codecs chosen (links times stages), `Pipeline.stream` (`ahead`), callers that wait
in `submit()` (they are the caller's own). A `RunLog` takes 79 bytes a sample for as long as it is kept: it belongs to
`zpipe bench`, not to a pipeline. In the report `series` and `memory` keep MOST_ROWS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from zpipe.policy import bounds as policy_bounds
from zpipe.runtime.peers import MAX_OBSERVERS

if TYPE_CHECKING:
    from zpipe.runtime.driver import Driver


class Size(TypedDict):
    """Entries of a table, now and at most."""

    now: int
    most: int


def sizes(driver: Driver) -> dict[str, int]:
    """{table: entries now}, the policy's too."""
    peers = driver.peers
    return {
        **policy_bounds.sizes(driver.policy),
        "inputs": len(driver.inputs),
        "payloads": len(driver._payloads),
        "channels": len(peers._by_channel),
        "observers": len(peers.observers),
        "observed nodes": len(peers._watched),
        "stats asked for": len(driver.inbox.stats_waiters),
        "links counted": len(driver.carried),
        "notes": len(driver.notes),
        **{name: now for name, (now, _) in driver.transport.tables().items()},
    }


def limits(driver: Driver) -> dict[str, int]:
    """{table: entries at most}; "stats asked for" is one question at a time to each node, as `Pipeline.stats` asks."""
    of_policy = policy_bounds.limits(driver.policy)
    config = driver.policy.config
    neighbours, nodes = len(config.neighbours), len(driver.topology.nodes)
    return {
        **of_policy,
        "inputs": of_policy["samples open"],
        "payloads": of_policy["tasks held"],
        "channels": 2 * neighbours,
        "observers": MAX_OBSERVERS,
        "observed nodes": nodes,
        "stats asked for": nodes,
        "links counted": neighbours,
        "notes": neighbours + 2,
        **{name: most for name, (_, most) in driver.transport.tables().items()},
    }


def tables(driver: Driver) -> dict[str, Size]:
    """Both, for `stats()`."""
    most = limits(driver)
    return {name: Size(now=now, most=most[name]) for name, now in sizes(driver).items()}

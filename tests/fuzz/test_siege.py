"""A neighbour gone bad cannot break a driver: no exception, no internal error, the policy's invariants, bounded tables."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from tests.fuzz.siege import Clock, Siege
from tests.runtime.mesh import run, topology
from zpipe.topology import Topology
from zpipe.transport.base import Channel
from zpipe.wire import Hello, Role, encode

STEPS = 250
SEEDS = range(5)

#: {what is besieged: (topology, rank)}
PLACES: dict[str, tuple[Topology, int]] = {
    "source of a line": (topology([[0], [1, 2], [3, 4]]), 0),
    "middle of a line": (topology([[0], [1, 2], [3, 4]]), 1),
    "source of a mesh": (topology([[0, 1, 2, 3, 4]] * 3, "mesh"), 0),
    "node of a mesh": (topology([[0, 1, 2, 3, 4]] * 3, "mesh"), 1),
}


async def besiege(place: tuple[Topology, int], clock: Clock, *, seed: int, steps: int) -> Siege:
    """One siege from its first step to its end."""
    siege = Siege(*place, clock=clock, rng=random.Random(seed))
    await siege.start()
    for _ in range(steps):
        await siege.step()
    await siege.end()
    return siege


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("zpipe.runtime.driver.time", made)
    monkeypatch.setattr("zpipe.runtime.inbox.time", made)
    monkeypatch.setattr("zpipe.runtime.stages.INLINE_SECONDS", float("inf"))  # no threads
    return made


@pytest.mark.parametrize("where", PLACES)
def test_no_neighbour_breaks_a_driver(where: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.inbox.BAD_IN_ROW", 50)  # the twelve mutants of a step would close every channel

    async def main() -> None:
        raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        total: Counter[str] = Counter()
        source, lanes_in = False, False
        for seed in SEEDS:
            siege = await besiege(PLACES[where], clock, seed=seed, steps=STEPS)
            total.update({name: count for name, count in siege.driver.stats().items() if type(count) is int})
            total["outcomes"] += len(siege.outcomes)
            source = siege.driver.policy.source is not None
            lanes_in = any(each.lanes_in for each in siege.driver.policy.config.neighbours)
        assert not raised
        # The enemy came far enough for this to mean something: it was believed, refused, banned, and given work to do.
        steps = STEPS * len(SEEDS)
        assert total["bad_frames"] > steps / 10
        assert total["stray_frames"] > steps / 10
        assert total["relayed"] > steps / 100
        assert total["control_sent"] > 10
        assert total["bans"] > 0
        if source:
            assert total["outcomes"] > 20
        if lanes_in:
            assert total["received"] > 20
            assert total["tasks_run"] > 10

    run(main)


@pytest.mark.parametrize("roles", [("observer", "peer"), ("peer", "observer")])
def test_a_channel_stays_who_it_said_it_was(roles: tuple[Role, Role], clock: Clock) -> None:
    """What a siege found: a channel kept as two was forgotten as one only."""

    async def main() -> None:
        siege = Siege(*PLACES["middle of a line"], clock=clock, rng=random.Random(0))
        await siege.start()
        peers, channel = siege.driver.peers, Channel("10.6.6.6", outgoing=False)
        known = peers._hello(0, "peer", 0)
        for epoch, role in enumerate(roles, start=5):
            hello = Hello(0, role, 1000, epoch, known.bundle_digest, known.topology_digest, {})
            siege.driver.inbox.on_control(channel, [bytes(frame) for frame in encode(hello)])
        assert (channel in peers.observers, 0 in peers.incoming) == (roles[0] == "observer", roles[0] == "peer")
        siege.driver.inbox.on_disconnected(channel, "it went")
        assert not peers.observers
        assert not peers.incoming
        await siege.driver.aclose()

    run(main)

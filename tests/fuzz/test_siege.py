"""A neighbour gone bad cannot break a driver: no exception, no internal error, the policy's invariants, bounded tables."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.fuzz.siege import Clock, Siege
from tests.runtime.mesh import run, topology
from zpipe.model import LostRow
from zpipe.policy.links import Links
from zpipe.policy.messages import Command, ResetLink
from zpipe.topology import Topology
from zpipe.transport.base import Channel
from zpipe.wire import Hello, Role, encode

STEPS = 600

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


def forgives(self: Links, peer: int, reason: str, commands: list[Command]) -> list[LostRow]:
    """Instead of a ban: the connection is made anew, so that the siege goes on."""
    self._counts.bans += 1
    commands.append(ResetLink(peer, reason))
    return self._give_up(self.neighbours[peer], reason)


@pytest.mark.parametrize("where", PLACES)
def test_a_neighbour_that_lies_is_banned_and_the_driver_goes_on(where: str, clock: Clock) -> None:
    async def main() -> None:
        siege = Siege(*PLACES[where], clock=clock, rng=random.Random(7))
        await siege.start()
        for _ in range(STEPS):
            await siege.step()
        counts = siege.driver.stats()
        await siege.driver.aclose()
        assert counts["bans"] == len(siege.driver.peers.banned) > 0
        assert counts["banned_frames"] > 0

    run(main)


@pytest.mark.parametrize("where", PLACES)
def test_no_neighbour_breaks_a_driver(where: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Links, "ban", forgives)
    monkeypatch.setattr("zpipe.runtime.inbox.BAD_IN_ROW", 50)  # the twelve mutants of a step would close every channel

    async def main() -> None:
        raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        siege = await besiege(PLACES[where], clock, seed=7, steps=STEPS)
        assert not raised
        counts = siege.driver.stats()
        # The enemy came far enough for this to mean something: it was believed, refused, and given work to do.
        assert counts["bad_frames"] > STEPS / 10
        assert counts["stray_frames"] > STEPS / 10
        assert counts["control_sent"] > STEPS / 100  # a Bye ends its connection, and the enemy says many
        assert counts["wrong_epoch_credit"] > 0
        assert counts["bans"] > 0
        if siege.driver.policy.source is not None:
            assert len(siege.outcomes) > 10
        if any(each.lanes_in for each in siege.driver.policy.config.neighbours):
            assert counts["received"] > 20
            assert counts["tasks_run"] > 20

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

"""Hellos on live links: lost ones, refused ones, and more observers than a node has room for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.runtime.mesh import LiveMesh, answers, live, run, topology, turns_until
from zpipe.runtime.peers import Peers
from zpipe.transport.base import MAX_INCOMING, Buffer, Channel, Transport
from zpipe.transport.memory import MemoryNetwork
from zpipe.wire import NO_RANK, Bye, Hello, Message, Refused, Stats, encode

KINDS = ["memory", "zeromq"]


def lose_control(monkeypatch: pytest.MonkeyPatch, transport: Transport, count: int) -> list[Channel]:
    """The next `count` control messages vanish like damaged ones; returns the channels they were sent on, as they come."""
    lost: list[Channel] = []
    send = transport.send_control

    def send_or_lose(channel: Channel, frames: Sequence[Buffer]) -> bool:
        if len(lost) < count:
            lost.append(channel)
            return True
        return send(channel, frames)

    monkeypatch.setattr(transport, "send_control", send_or_lose)
    return lost


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loser", [0, 1])
def test_a_hello_or_its_answer_that_is_lost_is_said_again(kind: str, loser: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.peers.HELLO_SECONDS", 0.05)

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]]), kind=kind) as mesh:
            peer = mesh.drivers[0].peers.outgoing[1]
            lost = lose_control(monkeypatch, mesh.drivers[loser].transport, 2)
            mesh.drivers[0].transport.reset(peer.channel)
            await turns_until(lambda: len(lost) == 2 and peer.ready)
            mesh.submit(3)
            assert answers(await mesh.until(1)) == {0: ("result", 3, 3)}

    run(main)


def test_an_observers_hello_that_is_lost_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.peers.HELLO_SECONDS", 0.05)

    async def main() -> None:
        async with live(topology([[0], [1, 2], [3, 4]])) as mesh:
            lost = lose_control(monkeypatch, mesh.drivers[0].transport, 1)
            assert (await mesh.drivers[0].stats_of(2))["rank"] == 2
            assert len(lost) == 1
            channel = await mesh.drivers[0].peers.observe(2)
            lost.clear()
            mesh.drivers[0].transport.reset(channel)
            await turns_until(lambda: bool(lost))
            assert (await mesh.drivers[0].stats_of(2))["rank"] == 2

    run(main)


def liar_at(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The node of this rank refuses everybody."""
    honest = Peers._refusal

    def refusal(peers: Peers, hello: Hello) -> Refused | None:
        return Refused(rank, "bundle digest", "a", "b") if peers.rank == rank else honest(peers, hello)

    monkeypatch.setattr(Peers, "_refusal", refusal)


def test_one_neighbour_that_refuses_does_not_end_a_node_that_another_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.peers.RETRY_SECONDS", 0.05)
    liar_at(monkeypatch, 1)

    async def main() -> None:
        mesh = LiveMesh(topology([[0], [1, 2, 3, 4], [1, 2, 3, 4]], "mesh"))
        addresses = {rank: await mesh.make(rank) for rank in (0, 1, 2)}
        known = mesh.topology.with_addresses(addresses)
        for rank in (0, 1, 2):
            mesh.drivers[rank].connect(known)
        source = mesh.drivers[0].peers
        await turns_until(lambda: mesh.drivers[1].peers.hellos_refused >= 6)
        assert source.outgoing[2].ready
        assert "it refused this node: bundle digest: found b here, expected a as node 1" in source.missing_text()
        monkeypatch.undo()
        await mesh.complete()
        assert source.missing_text() == ""
        assert not mesh.refusals
        await mesh.aclose()

    run(main)


def test_a_node_that_nobody_takes_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.runtime.peers.RETRY_SECONDS", 0.05)

    async def main() -> None:
        mesh = LiveMesh(topology([[0], [1, 2, 3, 4], [1, 2, 3, 4]], "mesh"))
        other = topology([[0], [1, 2, 3, 4], [1, 2, 3, 4]], "mesh", deadline="7 s")
        addresses = {0: await mesh.make(0, other), 1: await mesh.make(1)}  # node 2 was not started yet
        addresses[2] = "127.0.0.1:9"
        mesh.drivers[1].connect(mesh.topology.with_addresses(addresses))
        mesh.drivers[0].connect(other.with_addresses(addresses))
        await mesh.refused.wait()
        assert "sources[0].deadline" in str(mesh.refusals[0])
        await mesh.aclose()

    run(main)


class Silence:
    """A stranger's handler, which looks at nothing."""

    def on_data(self, frames: object, origin: object) -> None: ...
    def on_control(self, channel: object, frames: object) -> None: ...
    def on_connected(self, channel: object) -> None: ...
    def on_disconnected(self, channel: object, reason: str) -> None: ...
    def on_drained(self) -> None: ...


async def observers(network: MemoryNetwork, address: str, *messages: Message) -> None:
    """As many as a node has room for say these, each on a connection of its own."""
    stranger = network.transport(Silence())
    await stranger.start()
    channels = [stranger.open(address, data=False) for _ in range(MAX_INCOMING)]
    await turns_until(lambda: all(channel.connected for channel in channels))
    for channel in channels:
        for message in messages:
            stranger.send_control(channel, encode(message))


@pytest.mark.parametrize("leave", [False, True])
def test_observers_without_number_keep_no_neighbour_and_no_observer_out(leave: bool) -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            source, server = mesh.drivers[0], mesh.drivers[1]
            assert (await source.stats_of(1))["rank"] == 1
            hello = Hello(NO_RANK, "observer", 0, 0, mesh.bundle.digest, mesh.topology.digest(), {})
            mesh.network.cut(mesh.topology.node(0).address, mesh.topology.node(1).address)
            await turns_until(lambda: not source.peers.outgoing[1].connected and not server.peers.incoming)
            heard = server.inbox.counts.control_received
            said: list[Message] = [hello, Bye(NO_RANK, "it goes")] if leave else [hello]
            await observers(mesh.network, mesh.topology.node(1).address, *said)
            await turns_until(lambda: server.inbox.counts.control_received == heard + len(said) * MAX_INCOMING)
            mesh.network.mend(mesh.topology.node(0).address, mesh.topology.node(1).address)
            await turns_until(lambda: source.peers.outgoing[1].ready)
            assert (await source.stats_of(1))["rank"] == 1

    run(main)


def test_counters_are_taken_from_the_node_that_was_asked_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2], [3, 4]])) as mesh:
            source, liar, asked = mesh.drivers[0], mesh.drivers[1], mesh.drivers[2]
            await source.stats_of(1)  # the liar, too, is observed
            held: list[tuple[Channel, Message]] = []
            monkeypatch.setattr(asked.inbox, "answer", lambda channel, message: held.append((channel, message)))
            asking = asyncio.ensure_future(source.stats_of(2))
            await turns_until(lambda: bool(held))
            way, answer = held[0]
            assert isinstance(answer, Stats)
            strays = source.inbox.counts.stray_frames
            observer = next(iter(liar.peers.observers))
            for channel in (liar.peers.incoming[0].channel, observer):
                for sender in (1, 2):
                    assert liar.transport.send_control(channel, encode(Stats(sender, answer.token, {"rank": 2})))
            assert liar.transport.send_control(observer, encode(Stats(1, answer.token, {"rank": 1})))  # taken, and answers nothing
            for body in ({}, {"rank": 1}, {"rank": [2]}):
                assert asked.transport.send_control(way, encode(Stats(2, answer.token, body)))
            await turns_until(lambda: source.inbox.counts.stray_frames == strays + 7)
            assert not asking.done()
            assert asked.transport.send_control(way, encode(answer))
            assert await asking == answer.body

    run(main)

"""Keys on real sockets: who is refused and how, forged identities, bans, limits, and what a refusal costs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq

from tests.transport.harness import MAX_MESSAGE_BYTES, PATIENCE, Recorder, connect, run
from zpipe.errors import ConfigError
from zpipe.transport import Channel, zap, zeromq
from zpipe.transport.curve import CurveKeys, is_supported, new_keypair
from zpipe.transport.zeromq import ZeroMQTransport

PAIRS = [new_keypair() for _ in range(3)]
SERVER, FRIEND, STRANGER = (public for public, _ in PAIRS)


def keys(index: int, *allowed: str) -> CurveKeys:
    return CurveKeys(*PAIRS[index], set(allowed))


@asynccontextmanager
async def nodes(*each: CurveKeys | None) -> AsyncIterator[list[tuple[ZeroMQTransport, Recorder, str]]]:
    """Transports with these keys, what they hear, and their addresses."""
    made: list[tuple[ZeroMQTransport, Recorder, str]] = []
    try:
        for own in each:
            heard = Recorder()
            transport = ZeroMQTransport(heard, max_message_bytes=MAX_MESSAGE_BYTES, keys=own)
            made.append((transport, heard, await transport.start()))
        yield made
    finally:
        for transport, _, _ in made:
            await transport.aclose()


async def turns_until(condition: Callable[[], object]) -> None:
    async def turn() -> None:
        while not condition():  # noqa: ASYNC110 - a turn of the loop is what is waited for
            await asyncio.sleep(0)

    await asyncio.wait_for(turn(), PATIENCE)


async def befriend(friend: ZeroMQTransport, heard: Recorder, address: str) -> Channel:
    before = len(heard.connected)
    channel = friend.open(address, key=SERVER)
    await heard.until(lambda: len(heard.connected) > before)
    return channel


def test_both_sides_learn_whose_key_the_other_has() -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND), keys(1)) as ((_, heard, address), (friend, friend_heard, _)):
            channel = await befriend(friend, friend_heard, address)
            assert channel.key == SERVER
            assert friend.send_data(channel, [b"x"])
            assert friend.send_control(channel, [b"x"])
            await heard.until(lambda: bool(heard.data) and bool(heard.control))
            assert heard.origins[0].key == heard.control[0][0].key == FRIEND

    run(main())


@pytest.mark.parametrize(
    ("own", "server_key", "trouble"),
    [
        (keys(2), SERVER, "it refused this node's key, or too many connections"),
        (None, "", "handshake failed: no node there, or keys on one side only, or other keys than the topology's"),
    ],
    ids=["unknown key", "no key"],
)
def test_stranger_is_told_why_comes_again_and_reaches_nobody(own: CurveKeys | None, server_key: str, trouble: str) -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND), own) as ((server, heard, address), (stranger, stranger_heard, _)):
            channel = stranger.open(address, key=server_key)
            attempts = 0
            for _ in range(3):
                await turns_until(lambda: channel.trouble)
                assert channel.trouble == trouble
                assert not stranger.send_data(channel, [b"x"])
                assert not stranger.send_control(channel, [b"x"])
                channel.trouble = ""
                attempts += 1
            assert attempts == 3
            assert (stranger_heard.connected, heard.data, heard.control) == ([], [], [])
            assert (server.counts.unknown_keys > 0) is (own is not None)
            assert server.turned_away == (f"127.0.0.1, key {own.public[:8]}..." if own else "")

    run(main())


def test_node_that_cannot_prove_the_key_it_should_have_gets_nothing() -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND), keys(1)) as ((_, heard, address), (friend, friend_heard, _)):
            channel = friend.open(address, key=STRANGER)
            await turns_until(lambda: channel.trouble)
            assert not friend.send_data(channel, [b"x"])
            assert (friend_heard.connected, heard.data) == ([], [])
            with pytest.raises(ConfigError, match="found '' as its public key"):
                friend.open(address)

    run(main())


def test_banned_key_is_cut_off_ignored_and_kept_out() -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND, STRANGER), keys(1), keys(2)) as (
            (server, heard, address),
            (friend, friend_heard, _),
            (liar, liar_heard, _),
        ):
            kept, banned = await befriend(friend, friend_heard, address), await befriend(liar, liar_heard, address)
            for transport, channel, name in ((friend, kept, b"friend"), (liar, banned, b"liar")):
                assert transport.send_data(channel, [name])
                assert transport.send_control(channel, [name])
            await heard.until(lambda: len(heard.data) == len(heard.control) == 2)
            incoming = next(channel for channel, message in heard.control if message == [b"liar"])

            server.ban(STRANGER)
            server.ban(STRANGER)

            await heard.until(lambda: heard.disconnected == [(incoming, "banned")])
            assert not server.send_control(incoming, [b"x"])
            for _ in range(5):
                assert liar.send_data(banned, [b"liar"])
                assert liar.send_control(banned, [b"liar"])
            await turns_until(lambda: server.counts.banned_frames == 10)
            liar.reset(banned)
            await turns_until(lambda: banned.trouble)
            assert friend.send_data(kept, [b"friend"])
            await heard.until(lambda: len(heard.data) == 3)
            assert [message for message in heard.data if message == [b"liar"]] == [[b"liar"]]
            assert [message for _, message in heard.control if message == [b"liar"]] == [[b"liar"]]
            assert (server.counts.banned_keys, len(liar_heard.connected)) == (1, 1)
            assert not server._origins.ended

    run(main())


def test_same_routing_id_is_no_way_into_another_ones_channel() -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND, STRANGER)) as ((_, heard, address),):
            context = zmq.Context()
            host, _, port = address.rpartition(":")
            try:
                for index in (1, 2, 1):
                    socket = context.socket(zmq.DEALER)
                    socket.linger = 1000
                    socket.routing_id = b"me"
                    socket.curve_serverkey = SERVER.encode()
                    socket.curve_publickey, socket.curve_secretkey = (key.encode() for key in PAIRS[index])
                    socket.connect(f"tcp://{host}:{int(port) + 1}")
                    socket.send(b"%d" % index)
                    before = len(heard.control)
                    await heard.until(lambda before=before: len(heard.control) > before)  # type: ignore[misc]
                    socket.close()
                    await heard.until(lambda: len(heard.disconnected) == len(heard.control))
            finally:
                context.destroy(linger=0)
            assert [(channel.key, message) for channel, message in heard.control] == [
                (FRIEND, [b"1"]),
                (STRANGER, [b"2"]),
                (FRIEND, [b"1"]),
            ]
            assert len({channel for channel, _ in heard.control}) == 3

    run(main())


def test_more_connections_than_its_rate_wait_and_the_standing_ones_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zap, "CONNECTIONS_BURST", 6.0)
    monkeypatch.setattr(zap, "CONNECTIONS_HZ", 0.0)

    async def main() -> None:
        async with nodes(None, None) as ((server, heard, address), (client, client_heard, _)):
            standing = [await connect(client, client_heard, address) for _ in range(3)]
            waiting = client.open(address)
            await turns_until(lambda: waiting.trouble)
            assert server.counts.limited > 0
            for channel in standing:
                assert client.send_data(channel, [b"x"])
            await heard.until(lambda: len(heard.data) == 3)
            assert client_heard.connected == standing

    run(main())


def test_tables_stay_bounded_while_connections_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeromq, "MAX_ORIGINS", 4)

    async def main() -> None:
        async with nodes(None, None) as ((server, heard, address), (client, client_heard, _)):
            for _ in range(3):
                channels = [await connect(client, client_heard, address) for _ in range(8)]
                expected = len(heard.data) + 16
                for channel in channels * 2:
                    assert client.send_data(channel, [b"x"])
                    assert client.send_control(channel, [b"x"])
                await heard.until(lambda expected=expected: len(heard.data) == len(heard.control) == expected)  # type: ignore[misc]
                assert len(server._origins) <= 4
                for channel in channels:
                    client.close_channel(channel)
                await heard.until(lambda: len(server._incoming) == 0)
                await turns_until(lambda: not server._origins._descriptors)
            await turns_until(lambda: not server._origins.by_user_id)
            assert (server._routes, server._incoming._descriptors) == ({}, {})
            assert (server._incoming.ended, server._origins.ended) == ({}, {})

    run(main())


def test_refused_strangers_leave_no_descriptor() -> None:
    async def main() -> None:
        async with nodes(keys(0, FRIEND), keys(2)) as ((_, _, address), (stranger, _, _)):
            before = descriptors()
            for _ in range(20):
                channel = stranger.open(address, key=SERVER)
                await turns_until(lambda channel=channel: channel.trouble)  # type: ignore[misc]
                stranger.close_channel(channel)
            await turns_until(lambda: descriptors() < before + 20)  # ZeroMQ closes them on a thread of its own, later

    run(main())


def descriptors() -> int:
    """How many files and sockets of this process are open."""
    return len(os.listdir("/proc/self/fd"))


def test_installation_without_curve_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_supported()
    monkeypatch.setattr(zmq, "has", lambda capability: False)
    with pytest.raises(
        ConfigError, match=r"^keys: found libzmq [0-9.]+ without CURVE, expected one with it; install pyzmq"
    ) as caught:
        ZeroMQTransport(Recorder(), max_message_bytes=1000, keys=keys(0))
    assert "\n" not in str(caught.value)

"""The relays of a whole topology on loopback, between real sockets."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from tests.runtime.mesh import run
from zpipe.bench.chaos import relay as module
from zpipe.bench.chaos.links import LoopbackLinks
from zpipe.bench.chaos.relay import address, pair_of_listeners, relay_of_link
from zpipe.errors import ZpipeError

LINK = (0, 1)


async def server() -> tuple[asyncio.Server, str, asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """One that hands over what it accepts."""
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait((reader, writer))

    made = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = made.sockets[0].getsockname()
    return made, f"{host}:{port}", accepted


def test_each_node_is_told_where_its_neighbours_are_over_the_link_and_orders_take_effect() -> None:
    async def main() -> None:
        (low, low_address, _), (high, high_address, accepted) = await server(), await server()
        links = LoopbackLinks([LINK], seed=1)
        try:
            detours = await links.start({0: low_address, 1: high_address})
            assert {viewer: list(seen) for viewer, seen in detours.items()} == {0: [1], 1: [0]}
            reader, writer = await asyncio.open_connection(*address(detours[0][1]))
            far_reader, far_writer = await accepted.get()
            writer.write(b"there")
            far_writer.write(b"back")
            assert await far_reader.readexactly(5) == b"there"
            assert await reader.readexactly(4) == b"back"
            await links.flip(LINK)
            writer.write(bytes(100))
            assert sum(byte.bit_count() for byte in await far_reader.readexactly(100)) == 1
            assert (await links.damage())["0-1"]["flipped"] == 1
            await links.reset(LINK)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await far_reader.readexactly(1)
            writer.transport.abort()
            far_writer.transport.abort()
        finally:
            await links.aclose()
            await links.aclose()
            low.close()
            high.close()

    run(main)


def test_relays_that_ended_are_told_in_one_line() -> None:
    async def main() -> None:
        links = LoopbackLinks([LINK], seed=1)
        await links.start({0: "127.0.0.1:1", 1: "127.0.0.1:1"})
        assert links._process is not None
        links._process.kill()
        with pytest.raises(ZpipeError, match=r"^chaos: the relays failed: they ended without a word$"):
            await links.reset(LINK)
        await links.aclose()

    run(main)


def test_both_planes_of_both_nodes_have_a_port_and_directions_are_shared() -> None:
    async def main() -> None:
        relay, (to_low, to_high) = await relay_of_link(("127.0.0.1", 1), ("127.0.0.1", 2), rng=random.Random(1))
        try:
            ours = {server.sockets[0].getsockname()[1] for server in relay._servers}
            assert ours == {to_low, to_low + 1, to_high, to_high + 1}
        finally:
            await relay.aclose()

    run(main)


def test_ports_side_by_side_are_found_or_their_want_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair_of_listeners()
    with first, second:
        assert second.getsockname()[1] == first.getsockname()[1] + 1
    monkeypatch.setattr(module, "TRIES", 0)
    with pytest.raises(OSError, match="found no two free ports side by side in 0 tries"):
        pair_of_listeners()


def test_address_is_split_at_its_port() -> None:
    assert address("127.1.0.2:4000") == ("127.1.0.2", 4000)
    assert socket.inet_aton(address("127.1.0.2:4000")[0])

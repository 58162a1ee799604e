"""A relay between real sockets on 127.0.0.1: what passes, what waits, how connections end."""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.runtime.mesh import run, turns_until
from zpipe.bench.lab import relay as module
from zpipe.bench.lab.relay import Address, Relay, obey

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Setting:
    """A relay before a server whose connections the test holds."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self._opened: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._opened.append(writer)
            self.accepted.put_nowait((reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.target: Address = self.server.sockets[0].getsockname()
        self.relay = Relay(rng=random.Random(1), dial=lambda wanted, caller: (socket.socket(), self.target))
        listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = listener.getsockname()
        await self.relay.listen(listener)

    async def connect(self) -> tuple[Streams, Streams]:
        """Both ends of a connection through the relay."""
        here = await asyncio.open_connection(*self.address)
        self._opened.append(here[1])
        return here, await self.accepted.get()

    def held_bytes(self) -> int:
        return sum(end.line.held_bytes for end in self.relay.ends)

    async def aclose(self) -> None:
        await self.relay.aclose()
        for writer in self._opened:
            writer.transport.abort()
        self.server.close()
        await self.server.wait_closed()
        await asyncio.sleep(0)  # aborted transports close in the next turn


@asynccontextmanager
async def setting() -> AsyncIterator[Setting]:
    made = Setting()
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()


def test_bytes_pass_both_ways_and_a_half_closed_stream_goes_on() -> None:
    async def main() -> None:
        async with setting() as s:
            (reader, writer), (far_reader, far_writer) = await s.connect()
            data = random.Random(2).randbytes(3_000_000)
            writer.write(data)
            writer.write_eof()
            assert await far_reader.read() == data  # to the end: the half-close came through
            far_writer.write(b"answer")
            far_writer.write_eof()
            assert await reader.read() == b"answer"
            assert s.relay.ends == set()

    run(main)


def test_latency_holds_bytes_that_long() -> None:
    async def main() -> None:
        async with setting() as s:
            s.relay.set(latency_seconds=0.05)
            (reader, writer), (far_reader, far_writer) = await s.connect()
            loop = asyncio.get_running_loop()
            started = loop.time()
            writer.write(b"?")
            assert await far_reader.readexactly(1) == b"?"
            far_writer.write(b"!")
            assert await reader.readexactly(1) == b"!"
            assert loop.time() - started >= 0.1

    run(main)


def test_stalled_relay_takes_bytes_up_to_its_limit_and_hands_them_on_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 10_000)

    async def main() -> None:
        async with setting() as s:
            (_, writer), (far_reader, _) = await s.connect()
            s.relay.stall(1e6)
            data = bytes(8_000_000)
            writer.write(data)
            reading = asyncio.ensure_future(far_reader.readexactly(len(data)))
            await turns_until(lambda: s.held_bytes() > 10_000)
            for _ in range(100):
                await asyncio.sleep(0)
            assert s.held_bytes() <= 10_000 + (256 << 10)  # the limit, and one read of asyncio's
            assert not reading.done()
            s.relay.stall(0.0)
            assert await reading == data

    run(main)


def test_slow_link_holds_bytes_back_and_lets_them_go_once_it_is_fast_again() -> None:
    async def main() -> None:
        async with setting() as s:
            (_, writer), (far_reader, _) = await s.connect()
            s.relay.set(bandwidth_bps=0.01, burst_seconds=math.inf)
            writer.write(b"x" * 1000)
            await turns_until(lambda: s.held_bytes() == 1000)
            s.relay.set(bandwidth_bps=math.inf)
            assert await far_reader.readexactly(1000) == b"x" * 1000

    run(main)


def test_bit_that_is_asked_for_is_flipped_on_its_way() -> None:
    async def main() -> None:
        async with setting() as s:
            (_, writer), (far_reader, _) = await s.connect()
            assert obey(s.relay, {"flip": 1}) == {"done": True}
            writer.write(bytes(1000))
            assert sum(byte.bit_count() for byte in await far_reader.readexactly(1000)) == 1
            assert obey(s.relay, {"counts": True})["flipped"] == 1

    run(main)


def test_reset_breaks_both_ends_and_new_connections_work() -> None:
    async def main() -> None:
        async with setting() as s:
            (reader, _), (far_reader, _) = await s.connect()
            s.relay.reset()
            for end in (reader, far_reader):
                with pytest.raises(ConnectionResetError):
                    await end.read(1)
            (reader, writer), (far_reader, _) = await s.connect()
            writer.write(b"again")
            assert await far_reader.readexactly(5) == b"again"

    run(main)


def test_what_was_sent_before_an_end_broke_off_arrives() -> None:
    async def main() -> None:
        async with setting() as s:
            s.relay.set(latency_seconds=0.02)
            (_, writer), (far_reader, _) = await s.connect()
            writer.write(b"last words")
            await writer.drain()
            await turns_until(lambda: s.held_bytes() > 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            assert await far_reader.readexactly(10) == b"last words"
            with pytest.raises(ConnectionResetError):
                await far_reader.read(1)

    run(main)


def test_connection_to_nobody_breaks_off() -> None:
    async def main() -> None:
        async with setting() as s:
            with socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))  # bound, but not listening
                s.target = nobody.getsockname()
                reader, writer = await asyncio.open_connection(*s.address)
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
                writer.transport.abort()

    run(main)

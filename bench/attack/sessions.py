"""Hostile sessions, one function each: what it does to a node's data port (PULL) or control port (ROUTER, the next one).

None takes longer than HOLD_SECONDS, and none leaves more than 64 KiB unread at the node: libzmq buffers an unfinished multipart
message without bound, which is a known limit and not what is measured here.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import zmq

from bench.attack import zmtp

#: How long a silent session stays: longer than a node waits for a handshake (3 s).
HOLD_SECONDS = 3.5
#: Sessions come from so many addresses of this machine: a limit per address alone must not be what keeps them away.
ADDRESSES = 16

Frames = list[bytes]
Arsenal = dict[str, list[Frames]]


@dataclass
class Target:
    """Who is attacked, and with what.

    Attributes:
        port: of the data plane; control is the next one.
        arsenal: {name: messages}, made by somebody who knows bundle and topology.
    """

    host: str
    port: int
    arsenal: Arsenal
    rng: random.Random
    numbers: itertools.count[int]

    async def connect(self, plane: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        source = f"127.0.0.{2 + next(self.numbers) % ADDRESSES}"
        return await asyncio.open_connection(self.host, self.port + plane, local_addr=(source, 0))

    async def greeted(self, plane: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose handshake is done, as a PUSH or a DEALER."""
        reader, writer = await self.connect(plane)
        writer.write(zmtp.greeting() + zmtp.ready(b"DEALER" if plane else b"PUSH"))
        await asyncio.wait_for(reader.readexactly(64), HOLD_SECONDS)
        await asyncio.wait_for(reader.read(1024), HOLD_SECONDS)
        return reader, writer

    def some(self, name: str, count: int) -> bytes:
        return b"".join(zmtp.message(frames) for frames in self.rng.choices(self.arsenal[name], k=count))


async def _hear(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


async def _say(target: Target, plane: int, data: bytes, *, hold: float = 0.2) -> None:
    """Handshake, words, a look at what comes back, end."""
    reader, writer = await target.greeted(plane)
    try:
        writer.write(data)
        await writer.drain()
        try:
            await asyncio.wait_for(_hear(reader), hold)
        except asyncio.TimeoutError:
            pass
    finally:
        writer.close()


async def noise(target: Target) -> None:
    """No ZMTP at all."""
    _, writer = await target.connect(target.rng.randrange(2))
    writer.write(target.rng.choice((b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"")) + target.rng.randbytes(2000))
    await asyncio.sleep(0.05)
    writer.close()


async def storm(target: Target) -> None:
    """Connected and gone."""
    _, writer = await target.connect(target.rng.randrange(2))
    writer.close()


async def silence(target: Target) -> None:
    """A greeting, then nothing, until the node has had enough."""
    _, writer = await target.connect(target.rng.randrange(2))
    try:
        writer.write(zmtp.greeting())
        await asyncio.sleep(HOLD_SECONDS)
    finally:
        writer.close()


async def half_handshake(target: Target) -> None:
    """A greeting, or a READY, cut somewhere; or a mechanism nobody knows."""
    _, writer = await target.connect(target.rng.randrange(2))
    try:
        whole = zmtp.greeting(target.rng.choice((b"NULL", b"PLAIN", b"CURVE", b"GSSAPI", b"\xff" * 20))) + zmtp.ready(b"DEALER")
        writer.write(whole[: target.rng.randrange(1, len(whole))])
        await asyncio.sleep(0.5)
    finally:
        writer.close()


async def wrong_socket(target: Target) -> None:
    """A READY of a socket type that has no business here."""
    _, writer = await target.connect(target.rng.randrange(2))
    writer.write(zmtp.greeting() + zmtp.ready(target.rng.choice((b"PUB", b"REP", b"PAIR", b"X" * 200))) + zmtp.frame(b"hello"))
    await asyncio.sleep(0.1)
    writer.close()


async def data_garbage(target: Target) -> None:
    """Mutated messages on the data plane."""
    await _say(target, 0, target.some("mutants", 20))


async def control_garbage(target: Target) -> None:
    """Mutated messages on the control plane, before any Hello."""
    await _say(target, 1, target.some("mutants", 20))


async def oversize(target: Target) -> None:
    """A frame that claims more than any may have."""
    size = target.rng.choice((2**63 - 1, 2**40, 2**31, 64 * 2**20))
    await _say(target, target.rng.randrange(2), zmtp.claim(size) + bytes(1000))


async def unfinished(target: Target) -> None:
    """A multipart message without an end; 32 KiB and no more."""
    await _say(target, target.rng.randrange(2), zmtp.frame(bytes(1024), zmtp.MORE) * 32)


async def many_frames(target: Target) -> None:
    """A message of more frames than any has."""
    await _say(target, target.rng.randrange(2), zmtp.message([b"x"] * 2000))


async def wrong_hello(target: Target) -> None:
    """A Hello that must be refused, and words as if it had not been."""
    await _say(target, 1, target.some("wrong hellos", 1) + target.some("forged control", 10))


async def observer_flood(target: Target) -> None:
    """An observer, who may ask, asks all the time."""
    await _say(target, 1, target.some("observer", 1) + target.some("stats requests", 50), hold=0.5)


async def observer_forges(target: Target) -> None:
    """An observer says what only a neighbour may."""
    await _say(target, 1, target.some("observer", 1) + target.some("forged control", 30))


async def forged_tasks(target: Target) -> None:
    """Tasks in a neighbour's name with guessed epochs."""
    await _say(target, 0, target.some("forged tasks", 10))


async def replayed(target: Target) -> None:
    """What a neighbour said in an earlier session, on both planes."""
    await asyncio.gather(
        _say(target, 1, target.some("earlier session", 1) + target.some("forged control", 5)),
        _say(target, 0, target.some("forged tasks", 5)),
    )


async def same_session(target: Target) -> None:
    """The Hello of the neighbour's present connection, replayed."""
    await _say(target, 1, target.some("same session", 1), hold=1.0)


async def stolen_rank(target: Target) -> None:
    """A Hello in a neighbour's name with a later session: without keys nobody can tell it from that neighbour started again."""
    await _say(target, 1, target.some("stolen rank", 1), hold=1.0)


async def library_client(target: Target) -> None:
    """The same garbage by way of libzmq."""
    context = zmq.Context.instance()
    with context.socket(zmq.DEALER if target.rng.random() < 0.5 else zmq.PUSH) as socket:
        socket.linger = 0
        plane = int(socket.type == zmq.DEALER)
        source = f"127.0.0.{2 + next(target.numbers) % ADDRESSES}"
        socket.connect(f"tcp://{source}:0;{target.host}:{target.port + plane}")
        for frames in target.rng.choices(target.arsenal["mutants"], k=10):
            if frames:
                socket.send_multipart(frames, zmq.NOBLOCK)
        await asyncio.sleep(0.2)


Kind = Callable[[Target], Coroutine[Any, Any, None]]

KINDS: tuple[Kind, ...] = (
    noise, storm, silence, half_handshake, wrong_socket, data_garbage, control_garbage, oversize, unfinished, many_frames,
    wrong_hello, observer_flood, observer_forges, forged_tasks, replayed, same_session, library_client,
)  # fmt: skip

#: Only when asked for by name: what CURVE is there to prevent.
WITHOUT_CURVE: tuple[Kind, ...] = (stolen_rank,)

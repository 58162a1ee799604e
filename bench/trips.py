"""Two transports that send each other messages, for benchmarks: no policy, no executor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from zpipe.transport import Buffer, Channel, Origin
from zpipe.transport.curve import CurveKeys
from zpipe.transport.zeromq import ZeroMQTransport

#: What a task's header takes, about.
HEADER = bytes(120)
MOST_BYTES = 2**21


class Peer:
    """One end; `on_message` is called for each data message."""

    def __init__(self, keys: CurveKeys | None = None) -> None:
        self.transport = ZeroMQTransport(self, max_message_bytes=MOST_BYTES, keys=keys)
        self.ready = asyncio.Event()
        self.channel: Channel | None = None
        self.on_message: Callable[[list[Buffer]], None] = self.echo

    def echo(self, frames: list[Buffer]) -> None:
        if self.channel is not None:
            self.transport.send_data(self.channel, frames)

    def on_data(self, frames: list[Buffer], origin: Origin) -> None:
        self.on_message(frames)

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None: ...

    def on_connected(self, channel: Channel) -> None:
        self.channel = channel
        self.ready.set()

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        self.ready.clear()

    def on_drained(self) -> None: ...


class Trips:
    """Sends a message again each time it comes back; no task is woken per message, as in the runtime."""

    def __init__(self, peer: Peer, size: int) -> None:
        self.peer = peer
        self.message: list[Buffer] = [HEADER, bytes(size)]
        self.left = 0
        self.done = asyncio.Event()
        peer.on_message = self.back

    def send(self) -> None:
        assert self.peer.channel is not None
        self.peer.transport.send_data(self.peer.channel, self.message)

    def back(self, _: list[Buffer]) -> None:
        self.left -= 1
        if self.left > 0:
            self.send()
        else:
            self.done.set()

    async def run(self, trips: int) -> float:
        """Seconds for `trips` round trips."""
        self.left = trips
        self.done.clear()
        begin = time.perf_counter()
        self.send()
        await self.done.wait()
        return time.perf_counter() - begin

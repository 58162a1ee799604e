"""Whether ZeroMQ works here at all: two transports in this process, one message there and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from zpipe.transport.base import Buffer, Channel, Origin
from zpipe.transport.zeromq import ZeroMQTransport

#: Far more than loopback needs; what takes longer does not work.
LIMIT_SECONDS = 5.0


class _Echo:
    """Sends every control message back."""

    transport: ZeroMQTransport

    def on_data(self, frames: Sequence[Buffer], origin: Origin) -> None:
        pass

    def on_control(self, channel: Channel, frames: Sequence[Buffer]) -> None:
        self.transport.send_control(channel, list(frames))

    def on_connected(self, channel: Channel) -> None:
        pass

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        pass

    def on_drained(self) -> None:
        pass


class _Caller(_Echo):
    """Connected, then answered."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.answered = asyncio.Event()

    def on_connected(self, channel: Channel) -> None:
        self.connected.set()

    def on_control(self, channel: Channel, frames: Sequence[Buffer]) -> None:
        self.answered.set()


def loopback_check() -> str:
    """Sends one message over 127.0.0.1 and back; returns a line with the time it took. Raises whatever stands in the way."""
    return asyncio.run(asyncio.wait_for(_round_trip(), LIMIT_SECONDS))


async def _round_trip() -> str:
    echo, caller = _Echo(), _Caller()
    echo.transport = ZeroMQTransport(echo, max_message_bytes=1 << 16)
    caller.transport = ZeroMQTransport(caller, max_message_bytes=1 << 16)
    try:
        address = await echo.transport.start()
        await caller.transport.start()
        channel = caller.transport.open(address, data=False)
        await caller.connected.wait()
        started = time.perf_counter()
        caller.transport.send_control(channel, [b"zpipe"])
        await caller.answered.wait()
        return f"round trip over 127.0.0.1 in {1e6 * (time.perf_counter() - started):.0f} µs"
    finally:
        await caller.transport.aclose()
        await echo.transport.aclose()

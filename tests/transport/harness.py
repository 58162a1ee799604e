"""What the transport tests share: a handler that records, waiting without sleeping, and both transports behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from zpipe.transport import Buffer, Channel, MemoryNetwork, Origin, Transport
from zpipe.transport.curve import CurveKeys, new_keypair
from zpipe.transport.zeromq import ZeroMQTransport

T = TypeVar("T")

#: Seconds until a test that waits for something says what it waited for.
PATIENCE = 10.0

#: Frames above this many bytes are refused in these tests.
MAX_MESSAGE_BYTES = 4 * 2**20


class KeyedTransport(ZeroMQTransport):
    """CURVE with one pair of keys for everybody, so that the contract's tests need not know of keys."""

    PUBLIC, SECRET = new_keypair()

    def __init__(self, handler: Recorder, *, bind: str) -> None:
        keys = CurveKeys(self.PUBLIC, self.SECRET, {self.PUBLIC})
        super().__init__(handler, bind=bind, max_message_bytes=MAX_MESSAGE_BYTES, keys=keys)

    def open(self, address: str, *, data: bool = True, key: str = "") -> Channel:
        return super().open(address, data=data, key=key or self.PUBLIC)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs one test on a loop of its own, and checks that it leaves no task behind."""

    async def guarded() -> T:
        result = await main
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []
        return result

    return asyncio.run(guarded())


class Recorder:
    """A handler that keeps what it hears and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.data: list[list[bytes]] = []
        #: of each message in `data`
        self.origins: list[Origin] = []
        self.control: list[tuple[Channel, list[bytes]]] = []
        self.connected: list[Channel] = []
        self.disconnected: list[tuple[Channel, str]] = []
        self.drained = 0
        #: kept as they came, so that a test can look at the memory behind them
        self.last_frames: list[Buffer] = []
        self.on_control_hook: Callable[[Channel, list[bytes]], object] | None = None
        self._changed = asyncio.Event()

    def on_data(self, frames: list[Buffer], origin: Origin) -> None:
        self.last_frames = frames
        self.origins.append(origin)
        self.data.append([bytes(frame) for frame in frames])
        self._changed.set()

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None:
        self.last_frames = frames
        message = [bytes(frame) for frame in frames]
        self.control.append((channel, message))
        if self.on_control_hook is not None:
            self.on_control_hook(channel, message)
        self._changed.set()

    def on_connected(self, channel: Channel) -> None:
        self.connected.append(channel)
        self._changed.set()

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        self.disconnected.append((channel, reason))
        self._changed.set()

    def on_drained(self) -> None:
        self.drained += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something heard makes `condition` true."""

        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), PATIENCE)
        except asyncio.TimeoutError:
            raise AssertionError(
                f"waited in vain; data {len(self.data)}, control {len(self.control)}, connected {self.connected}, "
                f"disconnected {self.disconnected}"
            ) from None


class World:
    """Transports of one kind that can reach each other, closed together."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> World:  # noqa: PYI034 - Self needs Python 3.11
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def make(self, handler: Recorder, bind: str = "127.0.0.1:0") -> Transport:
        """A transport that has not been started."""
        transport: Transport
        if self.kind == "memory":
            transport = self.network.transport(handler, bind=bind, max_message_bytes=MAX_MESSAGE_BYTES)
        elif self.kind == "curve":
            transport = KeyedTransport(handler, bind=bind)
        else:
            transport = ZeroMQTransport(handler, bind=bind, max_message_bytes=MAX_MESSAGE_BYTES)
        self._stack.push_async_callback(transport.aclose)
        return transport

    async def node(self, bind: str = "127.0.0.1:0") -> tuple[Transport, Recorder, str]:
        """A started transport, what it hears, and its address."""
        handler = Recorder()
        transport = self.make(handler, bind)
        return transport, handler, await transport.start()


async def connect(sender: Transport, heard: Recorder, address: str, *, data: bool = True) -> Channel:
    """An outgoing channel with all its planes."""
    before = len(heard.connected)
    channel = sender.open(address, data=data)
    await heard.until(lambda: len(heard.connected) > before)
    assert heard.connected[-1] is channel
    return channel

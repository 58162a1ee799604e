"""What a hop costs without any policy: a round trip between two processes, divided by two.

`python bench/micro_transport.py` compares blocking pyzmq (the floor) with our transport on asyncio and on uvloop, in
interleaved rounds; microseconds per hop, median and best round.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import zmq

from zpipe.transport import Buffer, Channel, Origin
from zpipe.transport.curve import CurveKeys
from zpipe.transport.zeromq import ZeroMQTransport

SIZES = {"4 KiB": 4096, "64 KiB": 65536, "1 MiB": 2**20}
ROUNDS = 5
HEADER = bytes(120)


def blocking_echo(pipe: Connection) -> None:
    """Sends back what comes, with one PULL and one PUSH."""
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pipe.send(pull.bind_to_random_port("tcp://127.0.0.1"))
    push.connect(f"tcp://127.0.0.1:{pipe.recv()}")
    while len(frames := pull.recv_multipart(copy=False)) == 2:
        push.send_multipart(frames, copy=False)
    context.destroy(linger=0)


def blocking(size: int, trips: int) -> float:
    """Seconds for `trips` round trips."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=blocking_echo, args=(there,))
    process.start()
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{here.recv()}")
    here.send(pull.bind_to_random_port("tcp://127.0.0.1"))
    message = [HEADER, bytes(size)]
    seconds = 0.0
    for measured in (trips // 5, trips):
        begin = time.perf_counter()
        for _ in range(measured):
            push.send_multipart(message, copy=False)
            pull.recv_multipart(copy=False)
        seconds = time.perf_counter() - begin
    push.send(b"end")
    process.join()
    context.destroy(linger=0)
    return seconds


class Peer:
    """One end; `on_message` is called for each data message."""

    def __init__(self, keys: CurveKeys | None = None) -> None:
        self.transport = ZeroMQTransport(self, max_message_bytes=2**21, keys=keys)
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


async def transport_echo(pipe: Connection) -> None:
    """Sends back what comes, until told."""
    peer = Peer()
    pipe.send(await peer.transport.start())
    peer.transport.open(pipe.recv())
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pipe.fileno(), done.set)
    await done.wait()
    loop.remove_reader(pipe.fileno())
    await peer.transport.aclose()


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


async def transport_trips(pipe: Connection, size: int, trips: int) -> float:
    """Seconds for `trips` round trips."""
    peer = Peer()
    address = await peer.transport.start()
    peer.transport.open(pipe.recv())
    pipe.send(address)
    await peer.ready.wait()
    course = Trips(peer, size)
    # Until the other end has a channel back to us, what we send goes nowhere.
    while not course.done.is_set():
        course.send()
        await asyncio.wait([asyncio.ensure_future(course.done.wait())], timeout=0.1)
    await asyncio.sleep(0.2)
    await course.run(trips // 5)
    seconds = await course.run(trips)
    pipe.send("end")
    await peer.transport.aclose()
    return seconds


def run(main: Any, uvloop_too: bool) -> Any:
    """asyncio.run, on uvloop if asked."""
    if not uvloop_too:
        return asyncio.run(main)
    import uvloop

    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def other_end(pipe: Connection, uvloop_too: bool) -> None:
    run(transport_echo(pipe), uvloop_too)


def ours(size: int, trips: int, *, uvloop_too: bool) -> float:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=other_end, args=(there, uvloop_too))
    process.start()
    seconds: float = run(transport_trips(here, size, trips), uvloop_too)
    process.join()
    return seconds


def main() -> None:
    """One line per size."""
    multiprocessing.set_start_method("spawn")
    print(f"Python {sys.version.split()[0]}, pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}")
    print(f"microseconds per hop, median (best) of {ROUNDS}")
    for name, size in SIZES.items():
        trips = 5000 if size < 2**19 else 500
        kinds: dict[str, Callable[[], float]] = {
            "blocking pyzmq": lambda size=size, trips=trips: blocking(size, trips),  # type: ignore[misc]
            "asyncio": lambda size=size, trips=trips: ours(size, trips, uvloop_too=False),  # type: ignore[misc]
            "uvloop": lambda size=size, trips=trips: ours(size, trips, uvloop_too=True),  # type: ignore[misc]
        }
        hops: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, measure in kinds.items():
                hops[kind].append(measure() / trips / 2 * 1e6)
        figures = "  ".join(f"{kind} {statistics.median(us):6.1f} ({min(us):.1f})" for kind, us in hops.items())
        print(f"{name:7} {figures}", flush=True)


if __name__ == "__main__":
    main()

"""The relay of one link of the edge lab: `python -m zpipe.bench.lab.relay`, one JSON line at a time on its pipes.

    in   {"ports": [5800, 5801], "seed": 7}                 what to be
    out  {"done": true}                                     it listens
    in   {"set": {"latency_seconds": 0.02, ...}}            any of `delay.Conditions`
    in   {"stall": 2.5}, {"reset": true}                    as `EdgeLab.stall` and `reset`
    in   {"corrupt": 0.01}, {"flip": 1}                     as `EdgeLab.corrupt` and `flip`
    in   {"counts": true}                                   asks for `Damage.counts`
    out  {"done": true}                                     after each: it took effect; or the counts
    out  {"error": "one line"}                              instead; exit code 2

Its namespace delivers whatever arrives on the link to the relay, whoever it was meant for (policy routing, IP_TRANSPARENT): so a
connection's own address says where it was going, both ends keep their addresses, and nobody has to be told of the relay.

It ends when its standard input does, so it cannot outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from zpipe.bench.lab.damage import Damage, Stream
from zpipe.bench.lab.delay import BROKEN, END, Conditions, DelayLine, Piece, Way

log = logging.getLogger("zpipe.lab")

Address = tuple[str, int]
#: Given where a connection was made to and where it came from: the socket to go on with, and where to connect it.
Dial = Callable[[Address, Address], tuple[socket.socket, Address]]
#: Given the same two: names of the directions that lead to the one and to the other.
Directions = Callable[[Address, Address], tuple[str, str]]

#: A stream's reader is stopped from here on: what a kernel's send buffer holds at most by default (tcp_wmem), enough for
#: 100 ms at 335 Mbit/s.
HELD_BYTES = 4 << 20

#: From linux/in.h; in Python's socket module only since 3.12.
_IP_TRANSPARENT = 19
#: SO_LINGER on, 0 s: closing sends RST.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _End(asyncio.Protocol):
    """One of a stream's two connections: what it reads comes out of the other one, later."""

    line: DelayLine

    def __init__(self, relay: Relay, other: _End | None = None) -> None:
        self.relay = relay
        self.other = other
        self.transport: asyncio.Transport | None = None  #: None before it is made and after it is lost
        self.writable = True
        self.ended = False  #: END has come out of our line
        self._stream = Stream(relay.damage)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.relay.ends.add(self)
        if self.other is None:
            transport.pause_reading()  # until there is somebody to pass it on to
            self.line = DelayLine(self.relay.ways(transport)[0])
            self.relay.reach(self)
        else:
            assert self.other.transport is not None
            self.line = DelayLine(self.relay.ways(self.other.transport)[1])

    def data_received(self, data: bytes) -> None:
        self._push(self._stream.feed(bytes(data)))
        if self.line.held_bytes > HELD_BYTES and self.transport is not None:
            self.transport.pause_reading()
        self.pump()

    def _push(self, data: bytes) -> None:
        if data:  # an empty piece would be the END
            self.line.push(data, now=self.relay.now())

    def eof_received(self) -> bool:
        self._push(self._stream.flush())
        self.line.push(END, now=self.relay.now())
        self.pump()
        return True  # the other direction may go on

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if exc is not None:
            self._push(self._stream.flush())
            self.line.push(BROKEN, now=self.relay.now())  # behind what it sent before
            self.pump()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.other is not None:
            self.other.pump()

    def pump(self) -> None:
        """Hands on what is due, and comes back when the next piece is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.other is None or not self.other.writable:
            return
        for piece in self.line.pop_due(now=self.relay.now()):
            self._hand_on(piece, self.other)
        if self.transport is not None and self.line.held_bytes <= HELD_BYTES and not self.transport.is_closing():
            self.transport.resume_reading()
        wakeup = self.line.next_wakeup()
        if wakeup is not None:
            self._timer = self.relay.loop.call_at(wakeup, self.pump)

    def _hand_on(self, piece: Piece, other: _End) -> None:
        if piece is BROKEN or other.transport is None or other.transport.is_closing():
            self.abort()
        elif piece != END:
            other.transport.write(piece)
        else:
            self._hand_on_end(other, other.transport)

    def _hand_on_end(self, other: _End, transport: asyncio.Transport) -> None:
        try:
            transport.write_eof()
        except OSError:  # it broke off, and we are not told before the next read
            self.abort()
            return
        self.ended = True
        if other.ended:
            self.close()

    def close(self) -> None:
        """Ends both connections once what was written is out."""
        for end in (self, self.other):
            if end is not None:
                end.forget()
                if end.transport is not None:
                    end.transport.close()

    def abort(self) -> None:
        """Breaks both connections off, with RST."""
        for end in (self, self.other):
            if end is not None:
                end.forget()
                if end.transport is not None:
                    end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    end.transport.abort()

    def forget(self) -> None:
        """Nothing more goes out of the line."""
        self.line.clear()
        self.relay.ends.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Relay:
    """Passes TCP connections on, both ways, under the conditions of a link.

    Args:
        rng: the dice of jitter and damage.
        dial: how a connection goes on.
        directions: which share bandwidth; by hosts, where every node has one of its own.

    Attributes:
        conditions, damage: of the link now.
    """

    def __init__(self, *, rng: random.Random, dial: Dial, directions: Directions = lambda to, back: (to[0], back[0])) -> None:
        self.conditions = Conditions()
        self.damage = Damage(rng)
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.ends: set[_End] = set()
        self._rng = rng
        self._dial = dial
        self._directions = directions
        self._ways: dict[str, Way] = {}  #: {where they lead: way}
        self._servers: list[asyncio.Server] = []
        self._reaching: set[asyncio.Task[None]] = set()

    async def listen(self, *listeners: socket.socket) -> None:
        """Takes connections from these bound sockets."""
        for listener in listeners:
            self._servers.append(await self.loop.create_server(lambda: _End(self), sock=listener))

    def ways(self, accepted: asyncio.BaseTransport) -> tuple[Way, Way]:
        """The directions of an accepted connection: to where it was made to, and back."""
        there, back = self._directions(accepted.get_extra_info("sockname"), accepted.get_extra_info("peername"))
        return self._way(there), self._way(back)

    def _way(self, name: str) -> Way:
        return self._ways.setdefault(name, Way(self.conditions, rng=self._rng))

    def set(self, **conditions: float) -> None:
        """Changes some of the link's `Conditions`, for what arrives from now on. More bandwidth is for what waits, too."""
        more = conditions.get("bandwidth_bps", 0.0) > self.conditions.bandwidth_bps
        for name, value in conditions.items():
            setattr(self.conditions, name, value)
        if more:
            for way in self._ways.values():
                way.catch_up(now=self.now())
            for end in list(self.ends):
                end.line.retime(now=self.now())
                end.pump()

    def stall(self, seconds: float) -> None:
        """Nothing passes for so long from now; 0 ends a stall."""
        self.conditions.stalled_until = self.now() + seconds
        for end in list(self.ends):
            end.pump()

    def reset(self) -> None:
        """Breaks every connection off; new ones may be made at once."""
        for end in list(self.ends):
            end.abort()

    async def aclose(self) -> None:
        """Breaks everything off and listens no more."""
        for server in self._servers:
            server.close()
        for task in self._reaching:
            task.cancel()
        self.reset()

    def reach(self, end: _End) -> None:
        """Makes the connection on which an accepted one goes on."""
        task = self.loop.create_task(self._reach(end))
        self._reaching.add(task)
        task.add_done_callback(self._reaching.discard)

    async def _reach(self, end: _End) -> None:
        assert end.transport is not None
        peer, target = self._dial(end.transport.get_extra_info("sockname"), end.transport.get_extra_info("peername"))
        try:
            peer.setblocking(False)
            await self.loop.sock_connect(peer, target)
            _, other = await self.loop.create_connection(lambda: _End(self, end), sock=peer)
        except BaseException as exc:
            peer.close()
            end.abort()
            if isinstance(exc, OSError):  # refused, unreachable: the caller sees its connection break
                return
            raise
        end.other = other
        if end.transport is None or end.transport.is_closing():  # it left meanwhile
            end.abort()
        else:
            end.transport.resume_reading()


# ---- the process -------------------------------------------------------------------------------


def transparent_listener(port: int) -> socket.socket:
    """Takes connections to this port at whichever address a packet of the namespace is meant for."""
    listener = _transparent()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    return listener


def transparent_dial(wanted: Address, caller: Address) -> tuple[socket.socket, Address]:
    """On to where the connection was made to, under the caller's address."""
    sock = _transparent()
    sock.bind((caller[0], 0))
    return sock, wanted


def _transparent() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    return sock


def say(message: dict[str, Any]) -> None:
    """Writes one line to the parent, who may be gone."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass  # the parent is gone, and the end of our input will tell


async def _serve() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    first = await lines.readline()
    if not first:
        return
    spec = json.loads(first)
    relay = Relay(rng=random.Random(spec["seed"]), dial=transparent_dial)
    try:
        await relay.listen(*[transparent_listener(port) for port in spec["ports"]])
        say({"done": True})
        while line := await lines.readline():
            say(obey(relay, json.loads(line)))
    finally:
        await relay.aclose()


def obey(relay: Relay, order: dict[str, Any]) -> dict[str, Any]:
    """Carries out one order of the module's docstring; returns the answer."""
    if "counts" in order:
        return relay.damage.counts()
    if "set" in order:
        relay.set(**order["set"])
    elif "stall" in order:
        relay.stall(order["stall"])
    elif "corrupt" in order:
        relay.damage.share = order["corrupt"]
    elif "flip" in order:
        relay.damage.flips += order["flip"]
    else:
        relay.reset()
    return {"done": True}


def _hurry() -> None:
    """A cable does not wait until the boards have computed: ahead of every ordinary process, where the kernel lets us."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:  # a container without SYS_NICE, a control group without real-time share
        log.info("runs at ordinary priority: latency may be longer while all cores are busy")


def main() -> int:
    """Entry point; errors go to the parent in one line."""
    logging.basicConfig(level=os.environ.get("ZPIPE_LOG", "ERROR"), format="%(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    # select() waits in microseconds, epoll in milliseconds: a latency would be up to one too long. A relay has few descriptors.
    _hurry()
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        loop.run_until_complete(_serve())
    except Exception as exc:
        say({"error": " ".join(f"{type(exc).__name__}: {exc}".split())})
        return 2
    finally:
        loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Looking at the nodes of a topology without a place in it: an observer says Hello, Ping and StatsRequest, and nothing else.

It needs the addresses, and where the nodes have keys the secret key of one of them (`zpipe.security.observer_keys`). It does not
need the bundle, or the same topology file: observers are not asked for digests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from zpipe.errors import WireError
from zpipe.security import observer_keys
from zpipe.topology import Topology
from zpipe.transport.base import Buffer, Channel, Origin, Transport, TransportHandler
from zpipe.transport.zeromq import ZeroMQTransport
from zpipe.wire import NO_RANK, Bye, Hello, Ping, Refused, Stats, StatsRequest, WireLimits, decode, encode

#: Nobody sends an observer tensors.
LIMITS = WireLimits(stage_inputs={})
#: A Hello that has no answer by then is said again on a new connection: it, or its answer, was lost.
HELLO_SECONDS = 3.0
#: What nodes have said since there is somebody to look at it.
ANSWERED = frozenset({"session", "clock_seconds", "neighbours", "exits", "input_length"})
#: How often a channel that does not come to stand is looked at, while somebody waits.
LOOK_SECONDS = 0.05

#: Of one padded Ping: what a node takes in any document, so no bundle is too small for it.
PADDING_BYTES = 49152
#: Bytes are sent in runs that double until one takes this long to arrive, or is this long: 6 MB in all at most, and about 100 ms.
RUN_SECONDS = 0.05
LONGEST_RUN = 64

#: Given the handler, the transport; not started.
TransportFactory = Callable[[TransportHandler], Transport]


@dataclass(slots=True)
class Seen:
    """One node as the observer sees it.

    Attributes:
        stats: its last answer (`zpipe.runtime.stats.node_stats`); None before the first.
        answered_at: when that came, by this machine's clock.
        round_trip_seconds: of the last Ping that came back; None before the first.
        up: it answered our Hello and the connection stands.
        trouble: why it is not up, in words; "" where nothing is known, or it is up.
        topology_digest, bundle_digest: of what it runs, as it said in its Hello.
        bits_per_second: at which bytes got there from here while `measure` ran; None where it did not, or lacked an answer.
    """

    rank: int
    address: str
    stats: dict[str, Any] | None = None
    answered_at: float = 0.0
    round_trip_seconds: float | None = None
    up: bool = False
    trouble: str = ""
    topology_digest: str = ""
    bundle_digest: str = ""
    bits_per_second: float | None = None


@dataclass(slots=True)
class _Watched:
    """A node's channel, and what it was asked last."""

    seen: Seen
    channel: Channel
    token: int = 0  #: of the last StatsRequest; an answer to it makes it 0
    pinged_at: dict[int, float] = field(default_factory=dict)  #: {token: when}, the last Ping's alone
    run: set[int] = field(default_factory=set)  #: tokens of padded Pings that are not answered


class Observer:
    """Watches every node of a topology. Use as `async with`.

    Args:
        topology: with every address known.
        transport: made from the topology if not given.

    Raises:
        ConfigError: the nodes have keys, and none of theirs is here.
    """

    def __init__(self, topology: Topology, *, transport: TransportFactory | None = None) -> None:
        self.topology = topology
        self._transport = (transport or _zeromq(topology))(self)
        self._watched: dict[Channel, _Watched] = {}
        self._session = time.time_ns() // 1_000_000
        self._number = 0
        self._news: asyncio.Future[None] | None = None
        self._timers: dict[Channel, asyncio.TimerHandle] = {}

    async def __aenter__(self) -> Observer:  # noqa: PYI034 - Self is Python 3.11
        try:
            await self._transport.start()
            for node in self.topology.nodes:
                key = self.topology.key_of(node.rank)
                channel = self._transport.open(node.address, data=False, key=key)
                self._watched[channel] = _Watched(Seen(node.rank, node.address), channel)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Says Bye and closes."""
        for timer in self._timers.values():
            timer.cancel()
        for watched in self._watched.values():
            if watched.seen.up:
                self._transport.send_control(watched.channel, encode(Bye(NO_RANK, "it has seen enough")))
        await self._transport.aclose()

    @property
    def seen(self) -> list[Seen]:
        """Every node as it was last seen, by rank."""
        return sorted((watched.seen for watched in self._watched.values()), key=lambda seen: seen.rank)

    async def arrived(self, seconds: float) -> None:
        """Returns once each node is up or is known not to be, after `seconds` at most."""
        await self._until(lambda: all(watched.seen.up or watched.channel.trouble for watched in self._watched.values()), seconds)

    async def look(self, seconds: float) -> list[Seen]:
        """Asks every node that is up; returns once all of them have answered, after `seconds` at most.

        A node that did not answer keeps its last counters: `answered_at` tells.
        """
        for watched in self._watched.values():
            if watched.seen.up:
                self._ask(watched)
        await self._until(lambda: not any(watched.token and watched.seen.up for watched in self._watched.values()), seconds)
        return self.seen

    async def measure(self, rank: int, seconds: float) -> Seen:
        """How fast bytes get from here to a node that is up, beside whatever else goes there: by padded Pings.

        Nothing is asked of the node but its short answers; it is the load of a few frames. What limits the rate may be either end's
        network, what others send, or, above some Gbit/s, these programs.

        Args:
            rank: of the node; one that is not up is left as it is.
            seconds: how long at most.
        """
        (watched,) = (each for each in self._watched.values() if each.seen.rank == rank)
        until, length = time.monotonic() + seconds, 2
        while length <= LONGEST_RUN and watched.seen.up:
            took = await self._run(watched, length, until - time.monotonic())
            if took is None:
                break
            watched.seen.bits_per_second = 8 * PADDING_BYTES * length / took
            if took >= RUN_SECONDS:
                break
            length *= 2
        return watched.seen

    async def _run(self, watched: _Watched, length: int, seconds: float) -> float | None:
        """Seconds until the last Ping of a run is answered, its round trip included; None where one is not.

        Not from the first answer to the last: a sender that is held up a moment finds all of them there at once.
        """
        self._number += length
        watched.run = set(range(self._number - length + 1, self._number + 1))
        started = time.monotonic()
        for token in sorted(watched.run):
            ping = Ping(NO_RANK, token, echo=False, padding=bytes(PADDING_BYTES))
            self._transport.send_control(watched.channel, encode(ping))
        await self._until(lambda: not watched.seen.up or not watched.run, seconds)
        return None if watched.run else time.monotonic() - started

    def _ask(self, watched: _Watched) -> None:
        self._number += 1
        watched.token = self._number
        # Two messages, so that the round trip is that of the smallest one; and not of the time it takes to look at counters.
        watched.pinged_at = {self._number: time.monotonic()}
        self._transport.send_control(watched.channel, encode(Ping(NO_RANK, self._number, echo=False)))
        self._transport.send_control(watched.channel, encode(StatsRequest(NO_RANK, self._number)))

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and (left := deadline - time.monotonic()) > 0.0:
            # An attempt to connect that fails is no call of the handler, so channels are looked at now and then. No `wait_for`:
            # before Python 3.12 it loses a cancellation that comes with the news.
            self._news = asyncio.get_running_loop().create_future()
            timer = asyncio.get_running_loop().call_later(min(LOOK_SECONDS, left), self._tell)
            try:
                await self._news
            finally:
                timer.cancel()
        for watched in self._watched.values():
            if not watched.seen.up:
                watched.seen.trouble = watched.channel.trouble or watched.seen.trouble

    def _tell(self) -> None:
        """There is something to look at."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # ---- TransportHandler ----------------------------------------------------------------------

    def on_data(self, frames: Sequence[Buffer], origin: Origin) -> None:
        """Nobody has a reason to send an observer tasks."""

    def on_control(self, channel: Channel, frames: Sequence[Buffer]) -> None:
        """An answer; strangers who found our port get none."""
        watched = self._watched.get(channel)
        if watched is None:
            return
        try:
            message = decode(frames, limits=LIMITS, now=time.monotonic())
        except WireError:
            return
        if message.sender != watched.seen.rank:
            watched.seen.trouble = f"node {message.sender} answers at its address"
        elif isinstance(message, Hello):
            watched.seen.up, watched.seen.trouble = True, ""
            watched.seen.topology_digest = message.topology_digest
            watched.seen.bundle_digest = message.bundle_digest
        elif isinstance(message, Refused):
            watched.seen.trouble = f"it refused us: {message.key} is {message.here} there, {message.there} here"
        elif isinstance(message, Ping) and message.echo and message.token in watched.run:
            watched.run.discard(message.token)
        elif isinstance(message, Ping) and message.echo and message.token in watched.pinged_at:
            watched.seen.round_trip_seconds = time.monotonic() - watched.pinged_at.pop(message.token)
        elif isinstance(message, Stats) and message.token == watched.token and message.body.get("rank") == watched.seen.rank:
            watched.token = 0
            if message.body.keys() >= ANSWERED:
                watched.seen.stats, watched.seen.answered_at = message.body, time.monotonic()
            else:
                watched.seen.trouble = "its answer lacks figures: it runs another version of zpipe"
        elif isinstance(message, Bye):
            self._gone(watched, message.reason)
            self._transport.reset(channel)

    def on_connected(self, channel: Channel) -> None:
        """Says Hello."""
        self._number += 1
        hello = Hello(NO_RANK, "observer", self._session, self._session + self._number, "", "", {})
        self._transport.send_control(channel, encode(hello))
        self._forget_timer(channel)
        self._timers[channel] = asyncio.get_running_loop().call_later(HELLO_SECONDS, self._say_again, channel)

    def _say_again(self, channel: Channel) -> None:
        if not self._watched[channel].seen.up and channel.connected:
            self._transport.reset(channel)

    def _forget_timer(self, channel: Channel) -> None:
        timer = self._timers.pop(channel, None)
        if timer is not None:
            timer.cancel()

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        """It is gone, for now: the transport seeks it."""
        watched = self._watched.get(channel)
        if watched is not None:
            self._gone(watched, reason)

    def _gone(self, watched: _Watched, reason: str) -> None:
        watched.token = 0
        if watched.seen.up:
            watched.seen.up, watched.seen.trouble = False, reason
            self._tell()

    def on_drained(self) -> None:
        """Something came."""
        self._tell()


def _zeromq(topology: Topology) -> TransportFactory:
    return partial(ZeroMQTransport, max_message_bytes=LIMITS.max_message_bytes, keys=observer_keys(topology))

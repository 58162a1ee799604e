"""Connections to other nodes: who is on which channel, in which epoch, after which Hello.

A node opens a channel to each neighbour it sends tasks to; where neither sends, the lower rank opens one for answers. The opener
says Hello with a new epoch; the other side checks versions and digests and answers with its own Hello, or with Refused.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zpipe.errors import ConfigError, one_line
from zpipe.policy.messages import Event, PeerLost, PeerUp
from zpipe.runtime.notes import PERIOD_SECONDS, Notes
from zpipe.topology import Topology, first_difference
from zpipe.transport.base import Channel, Transport
from zpipe.wire import NO_RANK, WIRE_VERSION, Bye, Hello, Refused, Role, encode

log = logging.getLogger("zpipe.node")

#: The key a Hello of an older session is refused by.
SESSION = "session"
#: ... and that of a rank which broke the rules (policy rule R7).
BANNED = "banned"
#: How long after a refusal that may pass Hello is said again.
RETRY_SECONDS = 2.0


@dataclass(slots=True)
class Outgoing:
    """A channel we opened to a neighbour."""

    rank: int
    channel: Channel
    epoch: int = 0
    connected: bool = False
    ready: bool = False
    worked: bool = False


@dataclass(slots=True)
class Incoming:
    """A channel a neighbour opened to us."""

    rank: int
    channel: Channel
    epoch: int
    session: int


@dataclass(slots=True)
class Peers:
    """The channels of one node.

    Args:
        rank: of this node.
        session: of this start of it; later starts have larger ones (policy rule S1).
        topology: with addresses.
        bundle_digest: must be the same at both ends.
        transport: opens and closes channels.
        emit: takes PeerUp and PeerLost.
        refused: told when a neighbour refuses our Hello and this node has never worked with it: the files differ.
        note: takes lines for people: who came, who went, who was refused; those about one neighbour are of one kind.
    """

    rank: int
    session: int
    topology: Topology
    bundle_digest: str
    transport: Transport
    emit: Callable[[Event], None]
    refused: Callable[[ConfigError], None]
    note: Notes
    outgoing: dict[int, Outgoing] = field(default_factory=dict)
    incoming: dict[int, Incoming] = field(default_factory=dict)
    observers: set[Channel] = field(default_factory=set)
    #: ranks that nothing is taken from and nothing said to any more (policy rule R7)
    banned: set[int] = field(default_factory=set)
    #: since the start
    hellos_refused: int = 0
    #: set while every neighbour is connected
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    _by_channel: dict[Channel, Outgoing | Incoming] = field(default_factory=dict)
    _watched: dict[int, tuple[Channel, asyncio.Future[None]]] = field(default_factory=dict)
    _epochs: itertools.count[int] = field(init=False)
    _known: dict[str, Any] = field(init=False)
    _digest: str = field(init=False)
    _door_timer: asyncio.TimerHandle | None = None
    _turned_away: int = 0  #: connections with unknown keys, as of the last line about them

    def __post_init__(self) -> None:
        self._epochs = itertools.count(self.session)  # sessions are milliseconds: no two connections ever share an epoch
        self._known = self.topology.canonical()
        self._digest = self.topology.digest()

    # ---- who is there --------------------------------------------------------------------------

    def opens(self, rank: int) -> bool:
        """Whether this node opens the channel to that neighbour."""
        sends = bool(self.topology.lanes(self.rank, rank))
        return sends or (self.rank < rank and not self.topology.lanes(rank, self.rank))

    def connect(self) -> None:
        """Opens every channel this node has to open."""
        for rank in self.topology.neighbours(self.rank):
            if self.opens(rank):
                channel = self._open(rank, data=bool(self.topology.lanes(self.rank, rank)))
                self.outgoing[rank] = self._by_channel[channel] = Outgoing(rank, channel)
        if not self.missing():
            self.complete.set()
        if self.topology.key_of(self.rank):
            self._look_at_door()

    def close(self) -> None:
        """Looks at nothing any more; the transport closes the channels."""
        if self._door_timer is not None:
            self._door_timer.cancel()

    def _look_at_door(self) -> None:
        """Tells now and then who was not let in: a word about each would cost more than each costs its sender."""
        now = self.transport.counts.unknown_keys
        if now > self._turned_away:
            count, self._turned_away = now - self._turned_away, now
            connections = "a connection" if count == 1 else f"{count} connections"
            self.note(f"node {self.rank} turned away {connections} with unknown keys (last from {self.transport.turned_away})")
        self._door_timer = asyncio.get_running_loop().call_later(PERIOD_SECONDS, self._look_at_door)

    def _open(self, rank: int, *, data: bool) -> Channel:
        return self.transport.open(self.topology.node(rank).address, data=data, key=self.topology.key_of(rank))

    def missing(self) -> list[int]:
        """Neighbours with whom some connection is not there, rising."""
        return [rank for rank in self.topology.neighbours(self.rank) if not self._stands(rank)]

    def missing_text(self) -> str:
        """The same for people: where each is awaited, and why the last attempt to reach it failed."""
        return ", ".join(f"{rank} ({self.topology.node(rank).address}{self._trouble(rank)})" for rank in self.missing())

    def _trouble(self, rank: int) -> str:
        peer = self.outgoing.get(rank)
        return f": {peer.channel.trouble}" if peer is not None and peer.channel.trouble else ""

    def _stands(self, rank: int) -> bool:
        """Every connection that belongs between us and that neighbour is there."""
        opened = self.outgoing.get(rank)
        awaited = bool(self.topology.lanes(rank, self.rank)) or not self.opens(rank)
        return (not self.opens(rank) or (opened is not None and opened.ready)) and (not awaited or rank in self.incoming)

    def _emit(self, event: PeerUp | PeerLost) -> None:
        if self.missing():
            self.complete.clear()
        else:
            self.complete.set()
        self.emit(event)

    def rank_of(self, channel: Channel) -> int | None:
        """The neighbour on a channel whose Hello is done."""
        peer = self._by_channel.get(channel)
        return None if peer is None or (isinstance(peer, Outgoing) and not peer.ready) else peer.rank

    def control(self, rank: int) -> Channel | None:
        """A channel on which that neighbour hears us."""
        peer = self.outgoing.get(rank)
        if peer is not None and peer.ready:
            return peer.channel
        came = self.incoming.get(rank)
        return came.channel if came is not None else None

    async def observe(self, rank: int) -> Channel:
        """A control channel to any node, as an observer: for Stats and Ping. Opened once, kept; waits for its Hello."""
        if rank not in self._watched:
            channel = self._open(rank, data=False)
            self._watched[rank] = (channel, asyncio.get_running_loop().create_future())
        channel, ready = self._watched[rank]
        await asyncio.shield(ready)
        return channel

    # ---- what the transport tells --------------------------------------------------------------

    def on_connected(self, channel: Channel) -> None:
        """Our channel stands: say Hello in a new epoch."""
        peer = self._by_channel.get(channel)
        if any(channel is watched for watched, _ in self._watched.values()):
            self.transport.send_control(channel, encode(self._hello(NO_RANK, "observer", 0)))
        elif isinstance(peer, Outgoing):
            peer.connected = True
            peer.epoch = next(self._epochs)
            self.transport.send_control(channel, encode(self._hello(self.rank, "peer", peer.epoch)))

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        """A channel broke, either end's."""
        self.observers.discard(channel)
        peer = self._by_channel.get(channel)
        if isinstance(peer, Outgoing):
            if peer.ready:
                self.note(f"node {self.rank} lost node {peer.rank} ({reason}); trying again", peer.rank)
                self._emit(PeerLost(peer.rank, outgoing=True, reason=reason))
            peer.connected = peer.ready = False
        elif peer is not None:
            self._drop_incoming(peer, reason)

    def reset(self, rank: int, reason: str) -> None:
        """Makes the connection to a neighbour anew, in both directions; the policy knows."""
        peer = self.outgoing.get(rank)
        if peer is not None:
            peer.connected = peer.ready = False
            self.transport.reset(peer.channel)
        came = self.incoming.pop(rank, None)
        if came is not None:
            del self._by_channel[came.channel]
            self._send_away(came, reason)

    def reset_damaged(self, channel_or_rank: Channel | int, reason: str) -> None:
        """Makes a connection anew on which nothing can be understood: a channel, or that of the rank we get data from."""
        peer = self._by_channel.get(channel_or_rank) if isinstance(channel_or_rank, Channel) else self.incoming.get(channel_or_rank)
        if isinstance(peer, Outgoing):
            self.note(f"node {self.rank} makes its connection to node {peer.rank} anew: {reason}", peer.rank)
            self.transport.reset(peer.channel)
        elif peer is not None:
            self.note(f"node {self.rank} wants node {peer.rank} to connect anew: {reason}", peer.rank)
            self.transport.send_control(peer.channel, encode(Bye(self.rank, reason)))
            self._drop_incoming(peer, reason)
        elif isinstance(channel_or_rank, Channel) and not channel_or_rank.outgoing:
            self.observers.discard(channel_or_rank)
            self.transport.close_channel(channel_or_rank)

    def _send_away(self, came: Incoming, reason: str) -> None:
        """The other end of an incoming channel is told to connect anew: from here it cannot be broken."""
        self.transport.send_control(came.channel, encode(Bye(self.rank, reason)))
        self.transport.close_channel(came.channel)

    def ban(self, rank: int, reason: str) -> None:
        """Rule R7: its channels end and its key is struck from the allow-list; without keys it may connect anew."""
        key = self.topology.key_of(rank)
        if key:
            self.note(f"node {self.rank} bans node {rank}: {reason}")
            self._strike(rank, key)
        else:
            self.note(f"node {self.rank} ends its connection with node {rank}: {reason}", rank)
            self.reset(rank, reason)
        for outgoing in (True, False):  # the policy knows, but a new connection may have been on its way to it
            self._emit(PeerLost(rank, outgoing=outgoing, reason=BANNED))

    def _strike(self, rank: int, key: str) -> None:
        self.banned.add(rank)
        peer = self.outgoing.pop(rank, None)
        if peer is not None:
            del self._by_channel[peer.channel]
            self.transport.close_channel(peer.channel)
        came = self.incoming.pop(rank, None)
        if came is not None:
            del self._by_channel[came.channel]
            self.transport.close_channel(came.channel)
        self.transport.ban(key)

    # ---- what peers say ------------------------------------------------------------------------

    def on_hello(self, channel: Channel, hello: Hello) -> None:
        """A Hello, or the answer to ours."""
        peer = self._by_channel.get(channel)
        if isinstance(peer, Outgoing):
            if peer.connected and hello.epoch == peer.epoch and not peer.ready:
                peer.ready = peer.worked = True
                self.note(f"node {self.rank} connected to node {peer.rank}", peer.rank)
                self._emit(PeerUp(peer.rank, peer.epoch, outgoing=True))
            return
        for watched, ready in self._watched.values():
            if watched is channel:
                if not ready.done():
                    ready.set_result(None)
                return
        refusal = self._refusal(hello) or self._other_than_before(channel, hello)
        if refusal is not None:
            self.hellos_refused += 1
            key, here, there = refusal.key, refusal.here, refusal.there
            self.note(f"node {self.rank} refused node {hello.sender}: {key} is {here} here, {there} there", "refused")
            self.transport.send_control(channel, encode(refusal))
            return
        if hello.role == "observer":
            self.observers.add(channel)
        else:
            self._accept(channel, hello)
        self.transport.confirm(channel)
        self.transport.send_control(channel, encode(self._hello(self.rank, "peer", hello.epoch)))
        if hello.role != "observer":
            self._emit(PeerUp(hello.sender, hello.epoch, outgoing=False))

    def on_refused(self, channel: Channel, refused: Refused) -> None:
        """A neighbour does not take us.

        Where the files differ and the two never worked together, nothing here can mend that and the owner is told. Else the
        other side has changed or still believes in an older connection of ours: we say Hello again in a while.
        """
        peer = self._by_channel.get(channel)
        if not isinstance(peer, Outgoing) or peer.ready:
            return
        where = self.topology.path or self.topology.name
        address = self.topology.node(peer.rank).address
        found = f"{refused.key}: found {refused.there} here, expected {refused.here} as node {peer.rank} ({address}) has"
        if peer.worked or refused.key == SESSION:
            self.note(f"node {self.rank} was refused: {found}; trying again", peer.rank)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry, peer)
        else:
            self.refused(ConfigError(f"{where}: {found}; start every node with the same files"))

    def _retry(self, peer: Outgoing) -> None:
        if not peer.ready and not peer.channel.closed:
            self.transport.reset(peer.channel)

    def on_bye(self, channel: Channel, bye: Bye) -> None:
        """A neighbour leaves on purpose, or wants the connection made anew: either way it is over."""
        self.observers.discard(channel)
        peer = self._by_channel.get(channel)
        if isinstance(peer, Incoming):
            self._drop_incoming(peer, bye.reason)
        elif peer is not None:
            self.on_disconnected(channel, bye.reason)
            self.transport.reset(channel)

    def say_bye(self, reason: str) -> None:
        """Tells everyone connected that this node leaves."""
        frames = encode(Bye(self.rank, reason))
        channels = [peer.channel for peer in self.outgoing.values() if peer.ready] + [
            peer.channel for peer in self.incoming.values()
        ]
        for channel in channels:
            self.transport.send_control(channel, frames)

    # ---- inside --------------------------------------------------------------------------------

    def _hello(self, sender: int, role: Role, epoch: int) -> Hello:
        return Hello(
            sender=sender,
            role=role,
            session=self.session,
            epoch=epoch,
            bundle_digest=self.bundle_digest,
            topology_digest=self._digest,
            topology=self._known,
        )

    def _refusal(self, hello: Hello) -> Refused | None:
        """What is wrong with a Hello, the first thing."""
        if hello.wire_version != WIRE_VERSION:
            return Refused(self.rank, "wire version", str(WIRE_VERSION), str(hello.wire_version))
        if hello.role == "observer":
            return None
        if hello.topology_digest != self._digest:
            key, here, there = first_difference(self._known, hello.topology) or ("digest", self._digest, hello.topology_digest)
            return Refused(self.rank, one_line(key), one_line(str(here)), one_line(str(there)))
        if hello.bundle_digest != self.bundle_digest:
            return Refused(self.rank, "bundle digest", self.bundle_digest[:12], one_line(hello.bundle_digest[:12]))
        if hello.sender in self.banned:
            return Refused(self.rank, BANNED, "no", "yes")
        if hello.sender == NO_RANK or hello.sender not in self.topology.neighbours(self.rank):
            return Refused(self.rank, "rank", f"a neighbour of node {self.rank}", str(hello.sender))
        known = self.incoming.get(hello.sender)
        if known is not None and hello.session < known.session:
            return Refused(self.rank, SESSION, f"{known.session} or later", str(hello.session))
        if known is not None and hello.session == known.session and hello.epoch <= known.epoch:  # a replay: epochs rise
            return Refused(self.rank, SESSION, f"a connection after {known.epoch}", str(hello.epoch))
        return None

    def _other_than_before(self, channel: Channel, hello: Hello) -> Refused | None:
        """A channel speaks for one rank, or as an observer, to its end: else what it leaves behind would never be closed."""
        peer = self._by_channel.get(channel)
        before = peer.rank if peer is not None else NO_RANK if channel in self.observers else None
        now = NO_RANK if hello.role == "observer" else hello.sender
        return None if before in (None, now) else Refused(self.rank, "rank", f"{before} as in this channel's first Hello", str(now))

    def _accept(self, channel: Channel, hello: Hello) -> None:
        old = self.incoming.pop(hello.sender, None)
        if old is not None:
            del self._by_channel[old.channel]
            self._emit(PeerLost(hello.sender, outgoing=False, reason="it connected anew"))
            if old.channel is not channel:
                self.transport.close_channel(old.channel)
        self.incoming[hello.sender] = self._by_channel[channel] = Incoming(hello.sender, channel, hello.epoch, hello.session)
        log.info("node %d: node %d connected (session %d)", self.rank, hello.sender, hello.session)

    def _drop_incoming(self, peer: Incoming, reason: str) -> None:
        if self.incoming.get(peer.rank) is peer:
            del self.incoming[peer.rank]
        self._by_channel.pop(peer.channel, None)
        self.transport.close_channel(peer.channel)
        self._emit(PeerLost(peer.rank, outgoing=False, reason=reason))

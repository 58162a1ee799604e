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
#: How long after a refusal that may pass Hello is said again, and how long others have to take a node that was refused.
RETRY_SECONDS = 2.0
#: A Hello without an answer by then is said again on a new connection: damage takes a Hello without a trace, and a connection
#: that stands gives no other reason to repeat it. Longer than RETRY_SECONDS, so that a refusal is not taken for silence.
HELLO_SECONDS = 3.0
#: Above it the observer that came first is sent away: with the neighbours they must not fill the transport's MAX_INCOMING.
MAX_OBSERVERS = 64


@dataclass(slots=True)
class Outgoing:
    """A channel we opened: to a neighbour as its peer, to any node as an observer.

    Attributes:
        answered: set while our Hello in this epoch has its answer.
        refused: why the last Hello that was answered was refused, in words; "" where it was not.
        refused_in: the epoch of that Hello: to say so again costs a liar a connection.
    """

    rank: int
    channel: Channel
    role: Role = "peer"
    epoch: int = 0
    connected: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    refused: str = ""
    refused_in: int = -1

    @property
    def ready(self) -> bool:
        """Connected, and its Hello is done."""
        return self.answered.is_set()

    def broke(self) -> None:
        """The connection is over."""
        self.connected = False
        self.answered.clear()


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
        refused: told when a neighbour refuses our Hello and no neighbour has ever taken us: the files differ.
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
    #: incoming channels of observers, the one that came first in front; at most MAX_OBSERVERS
    observers: dict[Channel, None] = field(default_factory=dict)
    #: ranks that nothing is taken from and nothing said to any more (policy rule R7)
    banned: set[int] = field(default_factory=set)
    #: since the start
    hellos_refused: int = 0
    #: some neighbour had the same files: another that refuses us for ours is not to be believed
    taken: bool = False
    #: set while every neighbour is connected
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    _by_channel: dict[Channel, Outgoing | Incoming] = field(default_factory=dict)
    _watched: dict[int, Outgoing] = field(default_factory=dict)
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
        trouble = (peer.channel.trouble or peer.refused) if peer is not None else ""
        return f": {trouble}" if trouble else ""

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
            self._watched[rank] = Outgoing(rank, self._open(rank, data=False), role="observer")
        node = self._watched[rank]
        await node.answered.wait()
        return node.channel

    def observed(self, channel: Channel) -> int | None:
        """The node we observe by this channel."""
        opened = self._opened(channel)
        return opened.rank if opened is not None and opened.role == "observer" else None

    def _opened(self, channel: Channel) -> Outgoing | None:
        """Ours, of either role."""
        if not channel.outgoing:
            return None
        peer = self._by_channel.get(channel)
        if isinstance(peer, Outgoing):
            return peer
        return next((each for each in self._watched.values() if each.channel is channel), None)

    # ---- what the transport tells --------------------------------------------------------------

    def on_connected(self, channel: Channel) -> None:
        """Our channel stands: say Hello in a new epoch."""
        peer = self._opened(channel)
        if peer is None:
            return
        peer.connected = True
        peer.epoch = next(self._epochs)
        sender = self.rank if peer.role == "peer" else NO_RANK
        invitation = self.transport.sharing.invite(channel)
        self.transport.send_control(channel, encode(self._hello(sender, peer.role, peer.epoch, memory=invitation)))
        asyncio.get_running_loop().call_later(HELLO_SECONDS, self._say_again, peer, peer.epoch)

    def _say_again(self, peer: Outgoing, epoch: int) -> None:
        """Where the Hello of this epoch has no answer, it or its answer was lost."""
        if peer.ready or not peer.connected or peer.epoch != epoch or peer.channel.closed:
            return
        if peer.role == "peer":
            self.note(f"node {self.rank} had no answer to its Hello from node {peer.rank}; trying again", peer.rank)
        self.transport.reset(peer.channel)

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        """A channel broke, either end's."""
        self.observers.pop(channel, None)
        opened, peer = self._opened(channel), self._by_channel.get(channel)
        if opened is not None:
            was_ready = opened.ready
            opened.broke()
            if was_ready and opened.role == "peer":
                self.note(f"node {self.rank} lost node {opened.rank} ({reason}); trying again", opened.rank)
                self._emit(PeerLost(opened.rank, outgoing=True, reason=reason))
        elif isinstance(peer, Incoming):
            self._drop_incoming(peer, reason)

    def reset(self, rank: int, reason: str) -> None:
        """Makes the connection to a neighbour anew, in both directions; the policy knows."""
        peer = self.outgoing.get(rank)
        if peer is not None:
            peer.broke()
            self.transport.reset(peer.channel)
        came = self.incoming.pop(rank, None)
        if came is not None:
            del self._by_channel[came.channel]
            self._send_away(came.channel, reason)

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
            self.observers.pop(channel_or_rank, None)
            self._send_away(channel_or_rank, reason)

    def _send_away(self, came: Channel, reason: str) -> None:
        """The other end of an incoming channel is told to connect anew: from here it cannot be broken."""
        self.transport.send_control(came, encode(Bye(self.rank, reason)))
        self.transport.close_channel(came)

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
        opened = self._opened(channel)
        if opened is not None:
            if opened.connected and hello.epoch == opened.epoch and not opened.ready:
                self.transport.sharing.join(channel, hello.memory)
                self._on_answer(opened)
            return
        refusal = self._refusal(hello) or self._other_than_before(channel, hello)
        if refusal is not None:
            self.hellos_refused += 1
            key, here, there = refusal.key, refusal.here, refusal.there
            self.note(f"node {self.rank} refused node {hello.sender}: {key} is {here} here, {there} there", "refused")
            self.transport.send_control(channel, encode(refusal))
            return
        if hello.role == "observer":
            if channel not in self.observers and len(self.observers) >= MAX_OBSERVERS:
                oldest = next(iter(self.observers))
                del self.observers[oldest]
                self._send_away(oldest, "too many observers")
            self.observers[channel] = None
        else:
            self._accept(channel, hello)
        self.transport.confirm(channel)
        answer = self.transport.sharing.accept(channel, hello.memory) if hello.role != "observer" else ""
        self.transport.send_control(channel, encode(self._hello(self.rank, "peer", hello.epoch, memory=answer)))
        if hello.role != "observer":
            self._emit(PeerUp(hello.sender, hello.epoch, outgoing=False))

    def _on_answer(self, opened: Outgoing) -> None:
        opened.answered.set()
        if opened.role == "observer":
            return
        opened.refused, self.taken = "", True
        self.note(f"node {self.rank} connected to node {opened.rank}", opened.rank)
        self._emit(PeerUp(opened.rank, opened.epoch, outgoing=True))

    def on_refused(self, channel: Channel, refused: Refused) -> None:
        """A neighbour does not take us.

        Where the files differ and nobody takes us, nothing here can mend that and the owner is told: at once if there is no other
        neighbour, else when the others have had RETRY_SECONDS, since one alone may lie. Where somebody took us, the other side
        has changed, lies, or still believes in an older connection of ours: we say Hello again in a while.
        """
        peer = self._by_channel.get(channel)
        if not isinstance(peer, Outgoing) or peer.ready or peer.refused_in == peer.epoch:
            return
        peer.refused_in = peer.epoch
        where = self.topology.path or self.topology.name
        address = self.topology.node(peer.rank).address
        found = f"{refused.key}: found {refused.there} here, expected {refused.here} as node {peer.rank} ({address}) has"
        peer.refused = f"it refused this node: {found}"
        if self.taken or refused.key == SESSION:
            self.note(f"node {self.rank} was refused: {found}; trying again", peer.rank)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry, peer, peer.epoch)
            return
        error = ConfigError(f"{where}: {found}; start every node with the same files")
        if self.topology.neighbours(self.rank) == (peer.rank,):
            self.refused(error)
        else:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._give_up_or_retry, peer, peer.epoch, error)

    def _retry(self, peer: Outgoing, epoch: int) -> None:
        if not peer.ready and peer.epoch == epoch and not peer.channel.closed:
            self.transport.reset(peer.channel)

    def _give_up_or_retry(self, peer: Outgoing, epoch: int, error: ConfigError) -> None:
        if self.taken:
            self._retry(peer, epoch)
        elif peer.epoch == epoch and not peer.channel.closed:
            self.refused(error)

    def on_bye(self, channel: Channel, bye: Bye) -> None:
        """A neighbour leaves on purpose, or wants the connection made anew: either way it is over."""
        peer = self._by_channel.get(channel)
        if channel.outgoing:
            self.on_disconnected(channel, bye.reason)
            self.transport.reset(channel)
        elif isinstance(peer, Incoming):
            self._drop_incoming(peer, bye.reason)
        else:
            self.observers.pop(channel, None)
            self.transport.close_channel(channel)

    def say_bye(self, reason: str) -> None:
        """Tells everyone connected that this node leaves."""
        frames = encode(Bye(self.rank, reason))
        channels = [peer.channel for peer in self.outgoing.values() if peer.ready] + [
            peer.channel for peer in self.incoming.values()
        ]
        for channel in channels:
            self.transport.send_control(channel, frames)

    # ---- inside --------------------------------------------------------------------------------

    def _hello(self, sender: int, role: Role, epoch: int, *, memory: str = "") -> Hello:
        return Hello(
            sender=sender,
            role=role,
            session=self.session,
            epoch=epoch,
            bundle_digest=self.bundle_digest,
            topology_digest=self._digest,
            topology=self._known,
            memory=memory,
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
        self.taken = True
        self.incoming[hello.sender] = self._by_channel[channel] = Incoming(hello.sender, channel, hello.epoch, hello.session)
        log.info("node %d: node %d connected (session %d)", self.rank, hello.sender, hello.session)

    def _drop_incoming(self, peer: Incoming, reason: str) -> None:
        if self.incoming.get(peer.rank) is peer:
            del self.incoming[peer.rank]
        self._by_channel.pop(peer.channel, None)
        self.transport.close_channel(peer.channel)
        self._emit(PeerLost(peer.rank, outgoing=False, reason=reason))

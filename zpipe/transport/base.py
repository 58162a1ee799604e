"""The contract between the runtime and whatever moves its frames.

A node binds two planes: *data*, which only receives, and *control*, which answers as well. An *outgoing* channel reaches
another node's control plane and, if asked, its data plane; an *incoming* channel stands for whoever spoke first on our
control plane, so a receiver needs no address of its sender.

1. Nothing waits. A send says at once whether the transport took the message; frames it took may still be lost.
2. A message arrives whole or not at all, and messages of one plane of one connection arrive in order. The planes are not
   ordered against each other.
3. Every call of the handler comes from the event loop and never from inside a call of the transport.
4. A connection that ends takes its undelivered frames with it: what was sent before a disconnect never reaches a peer
   that was started again.
5. An outgoing channel seeks its peer, with growing pauses, until it is closed: `on_connected` and `on_disconnected`
   alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from zpipe.transport.shared import Sharing

Buffer = bytes | memoryview

#: Frames of one message at most; longer messages are dropped and counted.
MAX_FRAMES = 4

#: Incoming channels kept at most. Above it the oldest that was never confirmed makes room.
MAX_INCOMING = 256

#: Control messages of an incoming channel that are delivered before it is confirmed. A Hello is one; strangers have no more to say.
MAX_UNCONFIRMED = 64

#: Incoming data connections told apart at most; above it the one seen first is forgotten and counts as a new one.
MAX_ORIGINS = 256


@dataclass(slots=True)
class TransportCounts:
    """Totals since the start: what this transport kept away from its handler, and what went through shared memory.

    Attributes:
        dropped: messages of too many frames, of a stranger while MAX_INCOMING channels are confirmed, or after its first
            MAX_UNCONFIRMED.
        evicted: channels closed to make room for newer ones, none of them confirmed.
        unknown_keys: connections refused because no key, or none of the allow-list, was shown.
        limited: connections refused because their key, or without keys their address, made too many in too short a time.
        banned_keys: keys struck from the allow-list since the start.
        banned_frames: messages dropped because their key was struck from the allow-list after they had connected.
        shared_sent, shared_received: data messages whose last frame went through shared memory.
        shared_missing: data messages dropped since theirs was not there: of connections that have ended, or of a liar.
    """

    dropped: int = 0
    evicted: int = 0
    unknown_keys: int = 0
    limited: int = 0
    banned_keys: int = 0
    banned_frames: int = 0
    shared_sent: int = 0
    shared_received: int = 0
    shared_missing: int = 0


class Origin:
    """One incoming data connection: the same object with every message that came by it, never one of another connection.

    Attributes:
        name: for people: the peer's address.
        key: the peer's public key (Z85), proven by its handshake; "" without CURVE.
        bad_in_row: for the runtime: messages in a row that could not be decoded.
        rank: for the runtime: who speaks there.
    """

    __slots__ = ("bad_in_row", "key", "name", "rank")

    def __init__(self, name: str, key: str = "") -> None:
        self.name = name
        self.key = key
        self.bad_in_row = 0
        self.rank: int | None = None

    def __repr__(self) -> str:
        return f"<Origin {self.name} {self.key or 'without a key'}>"


class Channel:
    """One neighbour as the transport sees it. The runtime compares and keeps channels; only a transport makes them.

    Attributes:
        name: for people: the address of an outgoing channel, the peer's address of an incoming one.
        key: the peer's public key (Z85): the one an outgoing channel's peer must prove, the one an incoming channel's peer has
            proven; "" without CURVE.
        outgoing: made by `Transport.open`.
        data: an outgoing channel that has a data plane.
        connected: sends have somewhere to go now.
        confirmed: the runtime accepted this incoming channel's Hello.
        heard: messages that came by this incoming channel before it was confirmed.
        bad_in_row: for the runtime: messages in a row that could not be decoded.
        closed: for good; nothing is sent or delivered on it any more.
        trouble: why an outgoing channel's last attempt to connect failed, in words; "" while it is connected or none has failed.
    """

    __slots__ = ("bad_in_row", "closed", "confirmed", "connected", "data", "heard", "key", "name", "outgoing", "trouble")

    def __init__(self, name: str, *, outgoing: bool, data: bool = False, key: str = "") -> None:
        self.name = name
        self.key = key
        self.trouble = ""
        self.outgoing = outgoing
        self.data = data
        self.connected = not outgoing
        self.confirmed = False
        self.heard = 0
        self.bad_in_row = 0
        self.closed = False

    def may_speak(self) -> bool:
        """Counts a message of an incoming channel: whether it is to be delivered."""
        if self.confirmed:
            return True
        self.heard += 1
        return self.heard <= MAX_UNCONFIRMED

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else "seeking"
        return f"<Channel {'to' if self.outgoing else 'from'} {self.name} {state}>"


class TransportHandler(Protocol):
    """What the runtime does with what arrives. Called on the event loop; must not raise and must not wait."""

    def on_data(self, frames: list[Buffer], origin: Origin) -> None:
        """A message on the bound data plane. Who sent it is for the frames to say, and for `origin.key` to bear out."""

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None:
        """A message on either end of a control plane. An incoming channel shows itself by its first one."""

    def on_connected(self, channel: Channel) -> None:
        """An outgoing channel has all its planes."""

    def on_disconnected(self, channel: Channel, reason: str) -> None:
        """A connected channel lost its peer. An outgoing one seeks it again; an incoming one is closed."""

    def on_drained(self) -> None:
        """All that was readable in this wake-up has been delivered: the place to decide on batches."""


class Transport(Protocol):
    """One node's way to the others; see the module for what it promises."""

    @property
    def counts(self) -> TransportCounts:
        """What was kept away from the handler."""

    @property
    def turned_away(self) -> str:
        """For people: address and key of the connection that `counts.unknown_keys` was last raised by; "" before the first."""

    @property
    def sharing(self) -> Sharing:
        """What it needs said in the Hellos of a channel's two ends to send large frames through shared memory."""

    def tables(self) -> dict[str, tuple[int, int]]:
        """{what it keeps: (entries now, at most)}."""

    async def start(self) -> str:
        """Binds both planes and returns `host:port` of the data plane; control is at the next port.

        Raises:
            AddressInUse: somebody else listens there.
            ConfigError: the address is none of this machine's.
        """

    def open(self, address: str, *, data: bool = True, key: str = "") -> Channel:
        """A channel to the node at `address` (`host:port` of its data plane). Only after start().

        Args:
            address: where it listens.
            data: whether the channel has a data plane.
            key: the public key (Z85) that node must prove to have; required where this node has keys.

        Raises:
            ConfigError: the address is not of that form.
        """

    def confirm(self, channel: Channel) -> None:
        """Keeps an incoming channel from being evicted for a newer one."""

    def reset(self, channel: Channel) -> None:
        """Breaks an outgoing channel's connection and makes a new one; on_disconnected and on_connected follow."""

    def close_channel(self, channel: Channel) -> None:
        """Ends a channel for good, without a call of the handler. May be repeated."""

    def ban(self, key: str) -> None:
        """Strikes a key from the allow-list, for as long as this transport lives.

        Its incoming channels end (on_disconnected follows), nothing of it is delivered any more, and it cannot connect again.
        Channels we opened to it are the caller's to close. What arrives by its standing connections is dropped and counted.
        """

    def send_data(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Hands a message to an outgoing channel's data plane.

        Big buffers are not copied: they must not change until the channel is disconnected or the peer has answered for
        them.

        Returns:
            False when it was not taken: not connected, or the queue to the peer is full.
        """

    def send_control(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Like send_data, for the control plane of a channel of either direction."""

    async def aclose(self) -> None:
        """Ends everything at once, without a call of the handler; frames not yet on the wire are dropped. May be repeated."""

"""The transport over ZeroMQ: a bound PULL and ROUTER, and per outgoing channel a PUSH and a DEALER (design section 5).

1. **No zmq.asyncio.** Each socket's FD is watched by the event loop. That FD tells of a change, not of a state: any call on
   a socket may swallow its signal. So a socket that has woken, or that we sent on, is *dirty* and stays so until its EVENTS
   say that nothing is left to read. A dirty socket gives QUOTA messages a turn and then lets the loop go round.
2. **Old frames never reach a new peer.** ZeroMQ's own reconnection is off. When the monitor reports that either plane of a
   channel ended, both sockets are closed with linger 0 and made anew after a pause of 0.1 s, doubling to 2 s. (Tried:
   with ZeroMQ's reconnection and IMMEDIATE=0 a killed peer's restart received 51 of 60 old frames.)
3. **Peers that vanish.** A closed connection shows in the monitor at once, on both ends: the ROUTER's monitor names a file
   descriptor, and a message's metadata says which descriptor it came by. Half-open ones end by ZMTP heartbeat.
4. **Limits.** MAXMSGSIZE per frame (libzmq drops the connection of a peer that exceeds it), high-water marks, frames per
   message, number of incoming channels and origins, messages of a channel before it is confirmed, new connections per second
   (`zap`), and a deadline for handshakes. Known limits, none of which libzmq has an option for: it buffers an unfinished
   multipart message without bound; it accepts any number of connections that have not shaken hands yet (a descriptor and 3 kB
   each, until HANDSHAKE_MILLISECONDS), and where no descriptor is left it tries again without a pause (most of a core, measured;
   nobody new comes in): `zpipe.descriptors` puts that off, and an attempt of ours that gets no socket is one that failed; it
   can't close a single connection of a bound socket: a banned peer can go on sending what is thrown away. Against strangers
   CURVE helps with the first, since who has no key gets no message begun.
5. **CURVE.** With keys every socket is encrypted, each side proves its key, and who is let in is asked of `zap` before anything
   of a connection is read. A recorded session is worth nothing: the handshake has fresh keys of both sides.

pyzmq copies buffers below 64 KiB anyway; larger ones are sent in place. A buffer pool that must know when ZeroMQ is done with
one has its seam in `sockets.send`: `track=True` there gives a MessageTracker.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import zmq

from zpipe.errors import ConfigError
from zpipe.model import is_key
from zpipe.transport.base import (
    MAX_FRAMES,
    MAX_INCOMING,
    MAX_ORIGINS,
    Buffer,
    Channel,
    Origin,
    TransportCounts,
    TransportHandler,
)
from zpipe.transport.curve import CurveKeys, check_curve
from zpipe.transport.readers import QUOTA, Connections, Reader, Readers
from zpipe.transport.shared import Sharing
from zpipe.transport.sockets import (
    OUT_OF_SOCKETS,
    Context,
    Socket,
    SocketOptions,
    buffer,
    connection_property,
    event_of,
    readable,
    send,
)
from zpipe.transport.zap import MAX_RATES, MAX_REQUEST_FRAMES, Doorkeeper, key_of

#: Pause before a lost or refused connection is tried again: first, and at most.
BACKOFF_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0

#: A connection attempt that has neither failed nor succeeded by then is made anew. ZeroMQ reports no event when, for
#: instance, a host name does not resolve.
ATTEMPT_SECONDS = 6.0

#: What ends a connection or an attempt, in words. How a handshake fails that one side meant with keys and the other without is a
#: matter of who sees it first.
_NO_HANDSHAKE = "handshake failed: no node there, or keys on one side only, or other keys than the topology's"
_ENDINGS = {
    int(zmq.EVENT_DISCONNECTED): "peer closed the connection",
    int(zmq.EVENT_CLOSED): "connection refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): _NO_HANDSHAKE,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): _NO_HANDSHAKE,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "it refused this node's key, or too many connections",
}
_HANDSHAKE_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_CHANNEL_EVENTS = sum(_ENDINGS) | _HANDSHAKE_SUCCEEDED


class _Link:
    """The sockets behind an outgoing channel, all made and closed together."""

    __slots__ = ("awaited", "backoff", "connected_at", "dealer", "push", "readers", "sockets", "timer")

    def __init__(self) -> None:
        self.dealer: Reader | None = None
        self.push: Socket | None = None
        self.sockets: list[Socket] = []
        self.readers: list[Reader] = []
        #: planes without a handshake yet
        self.awaited = 0
        #: ends an attempt, or starts the next one
        self.timer: asyncio.TimerHandle | None = None
        self.backoff = BACKOFF_SECONDS
        self.connected_at = 0.0


class ZeroMQTransport:
    """One node's sockets (see `Transport`), used from one event loop.

    Args:
        handler: gets all that arrives.
        bind: `host:port` of the data plane, control at the next port; port 0 takes any free pair.
        max_message_bytes: the largest frame this node accepts.
        high_water: messages queued per connection and direction; must exceed the largest credit window.
        keys: CURVE on every socket, both ways; None = anybody may connect, and everything is sent in the clear.
        share: large frames to and from processes of this host and user may go through shared memory (`shared`).

    Raises:
        ConfigError: keys are given and this installation's libzmq has no CURVE.
    """

    def __init__(
        self,
        handler: TransportHandler,
        *,
        bind: str = "127.0.0.1:0",
        max_message_bytes: int,
        high_water: int = 1000,
        keys: CurveKeys | None = None,
        share: bool = True,
    ) -> None:
        if keys is not None:
            check_curve()
        self.counts = TransportCounts()
        self.sharing = Sharing(self.counts, wanted=share)
        self._handler = handler
        self._bind = bind
        self._options = SocketOptions(max_message_bytes, high_water, keys)
        self._doorkeeper = Doorkeeper(None if keys is None else keys.allowed, self.counts)
        self._context: Context = zmq.Context()
        self._readers = Readers(self.counts, settle=self._settle, drained=handler.on_drained)
        #: of the questions, and of the monitors of the bound sockets
        self._bound: list[Reader] = []
        #: the bound sockets
        self._planes: tuple[Socket, ...] = ()
        self._pull: Reader | None = None
        self._router: Reader | None = None
        self._pull_monitor: Reader | None = None
        self._router_monitor: Reader | None = None
        self._links: dict[Channel, _Link] = {}
        self._origins: Connections[Origin] = Connections()
        self._incoming: Connections[Channel] = Connections()
        #: {incoming channel: (User-Id, routing id)}
        self._routes: dict[Channel, tuple[str, bytes]] = {}
        #: keys struck from the allow-list, some of whose connections may stand: libzmq can't close one of a bound socket's
        self._banned: set[str] = set()
        self._most_banned = 0 if keys is None else len(keys.allowed)
        self._closed = False
        self._monitor_numbers = count()

    @property
    def turned_away(self) -> str:
        return self._doorkeeper.turned_away

    def tables(self) -> dict[str, tuple[int, int]]:
        # Calls posted: of each channel one, and of each that a newer one's message pushes out in the same turn.
        in_a_turn = self._options.high_water + 2 * QUOTA
        return {
            "origins": (len(self._origins), MAX_ORIGINS),
            "incoming channels": (max(len(self._incoming), len(self._routes)), MAX_INCOMING),
            "keys banned": (len(self._banned), self._most_banned),
            "connection rates": (self._doorkeeper.rates, MAX_RATES),
            "rings": (len(self.sharing), len(self._links) + MAX_INCOMING),
            "calls posted": (len(self._readers.posted), len(self._links) + MAX_INCOMING + in_a_turn),
        }

    # ---- life --------------------------------------------------------------------------------

    async def start(self) -> str:
        self._loop = asyncio.get_running_loop()
        self._readers.start(self._loop)
        try:
            return self._listen()
        except ConfigError:
            await self.aclose()
            raise
        except zmq.ZMQError as exc:
            await self.aclose()
            if exc.errno not in OUT_OF_SOCKETS:
                raise
            raise ConfigError(
                f"{self._bind}: found no socket left for this process ({exc}), expected more; ulimit -n 4096"
            ) from exc

    def _listen(self) -> str:
        questions = self._options.questions(self._context)
        self._bound.append(self._readers.watch(questions, partial(self._on_question, questions), MAX_REQUEST_FRAMES))
        pull, router, address = self._options.bind_planes(self._context, self._bind)
        self._planes = (pull, router)
        self._pull_monitor = self._monitor(pull, int(zmq.EVENT_DISCONNECTED), self._on_pull_event)
        self._bound.append(self._pull_monitor)
        self._router_monitor = self._monitor(router, int(zmq.EVENT_DISCONNECTED), self._incoming.on_event)
        self._bound.append(self._router_monitor)
        self._pull = self._readers.watch(pull, self._on_pull)
        self._router = self._readers.watch(router, self._on_router, MAX_FRAMES + 1)  # it puts its routing id before the message
        return address

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._readers.close()
        for channel in list(self._links):
            self.close_channel(channel)
        for channel in self._routes:
            channel.closed, channel.connected = True, False
            self.sharing.close(channel)
        for socket in self._planes:
            socket.disable_monitor()
        for reader in (*self._bound, self._pull, self._router):
            if reader is not None:
                self._readers.forget(reader)
        for socket in self._planes:
            socket.close(0)  # of a start that failed before they were watched
        # A wait of about a millisecond for ZeroMQ's thread: every socket is closed with linger 0, and only then are the
        # ports free again.
        self._context.term()

    def open(self, address: str, *, data: bool = True, key: str = "") -> Channel:
        if not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"address {address!r}: expected host:port")
        if self._options.keys is not None and not is_key(key):
            raise ConfigError(f"address {address}: found {key!r} as its public key, expected 40 characters of Z85")
        channel = Channel(address, outgoing=True, data=data, key=key)
        self._links[channel] = _Link()
        self._connect(channel)
        return channel

    def confirm(self, channel: Channel) -> None:
        channel.confirmed = True

    def reset(self, channel: Channel) -> None:
        if channel in self._links:
            self._lost(channel, "reset")

    def close_channel(self, channel: Channel) -> None:
        channel.closed, channel.connected = True, False
        self.sharing.close(channel)
        link = self._links.pop(channel, None)
        if link is not None:
            self._disconnect(link)
        route = self._routes.pop(channel, None)
        if route is not None:
            self._incoming.forget(route[0])

    def ban(self, key: str) -> None:
        if not self._doorkeeper.ban(key):
            return
        self._banned.add(key)
        for user_id in [user_id for user_id, origin in self._origins.by_user_id.items() if origin.key == key]:
            self._origins.forget(user_id)
        for channel in [channel for channel in self._routes if channel.key == key]:
            self._gone(channel, "banned")

    # ---- sending -----------------------------------------------------------------------------

    def send_data(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        link = self._links.get(channel)
        if link is None or not channel.connected or link.push is None:
            return False
        ring = self.sharing.ring_for(channel, frames)
        reference = ring.place(frames[-1]) if ring is not None else None
        if ring is None or reference is None:
            return send(link.push, frames)
        if not send(link.push, [*frames[:-1], reference]):
            ring.take_back()
            return False
        self.counts.shared_sent += 1
        return True

    def send_control(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        route = self._routes.get(channel)
        if route is not None:
            return self._answer(channel, route[1], frames)
        link = self._links.get(channel)
        if link is None or link.dealer is None or not channel.connected:
            return False
        self._readers.mark(link.dealer)
        return send(link.dealer.socket, frames)

    def _answer(self, channel: Channel, routing_id: bytes, frames: Sequence[Buffer]) -> bool:
        assert self._router is not None
        self._readers.mark(self._router)
        try:
            return send(self._router.socket, [routing_id, *frames])
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise
            self._gone(channel, "peer closed the connection")
            return False

    # ---- receiving ---------------------------------------------------------------------------

    def _on_pull(self, frames: list[zmq.Frame]) -> None:
        user_id = connection_property(frames[0], "User-Id")
        origin = self._origins.by_user_id.get(user_id) or self._new_origin(user_id, frames[0])
        if origin is None:
            return
        message = [buffer(frame) for frame in frames]
        if self.sharing.take(message, origin):
            self._handler.on_data(message, origin)

    def _on_dealer(self, channel: Channel, frames: list[zmq.Frame]) -> None:
        self._handler.on_control(channel, [buffer(frame) for frame in frames])

    def _on_router(self, frames: list[zmq.Frame]) -> None:
        user_id = connection_property(frames[0], "User-Id")
        channel = self._incoming.by_user_id.get(user_id) or self._new_incoming(user_id, frames[0])
        if channel is None:
            return
        if channel.may_speak():
            self._handler.on_control(channel, [buffer(frame) for frame in frames[1:]])
        else:
            self.counts.dropped += 1

    def _on_question(self, questions: Socket, frames: list[zmq.Frame]) -> None:
        questions.send_multipart(self._doorkeeper.answer([frame.bytes for frame in frames]))

    def _settle(self) -> bool:
        """Forgets the connections that ended, once what they sent before has been read."""
        if self._origins.ended and not self._readers.is_dirty(self._pull):
            self._origins.take_ended()
        if not self._incoming.ended:
            return False
        self._end_incoming()
        return True

    # ---- incoming connections ----------------------------------------------------------------

    def _banned_frame(self, user_id: str) -> bool:
        """Counts a message of a banned key's connection, which libzmq can't be told to close."""
        if key_of(user_id) not in self._banned:
            return False
        self.counts.banned_frames += 1
        return True

    def _new_origin(self, user_id: str, frame: zmq.Frame) -> Origin | None:
        assert self._pull_monitor is not None
        if self._banned_frame(user_id):
            return None
        self._readers.drain_one(self._pull_monitor)
        if len(self._origins) >= MAX_ORIGINS:
            # Under a load that never pauses something of these may be left to read, and comes from a new origin.
            self._origins.take_ended()
        if len(self._origins) >= MAX_ORIGINS:
            self._origins.forget(next(iter(self._origins.by_user_id)))
        return self._origins.add(user_id, frame, Origin(connection_property(frame, "Peer-Address"), key_of(user_id)))

    def _on_pull_event(self, frames: list[zmq.Frame]) -> None:
        self._origins.on_event(frames)
        assert self._pull is not None  # its monitor is older, but no event comes before the next turn of the loop
        self._readers.mark(self._pull)  # what came by it before is read first

    def _new_incoming(self, user_id: str, frame: zmq.Frame) -> Channel | None:
        assert self._router_monitor is not None
        if self._banned_frame(user_id):
            return None
        self._readers.drain_one(self._router_monitor)
        if len(self._incoming) >= MAX_INCOMING and not self._evict():
            self.counts.dropped += 1
            return None
        channel = Channel(connection_property(frame, "Peer-Address"), outgoing=False, key=key_of(user_id))
        self._routes[channel] = (user_id, frame.bytes)
        return self._incoming.add(user_id, frame, channel)

    def _evict(self) -> bool:
        """Closes the oldest channel that was never confirmed; False when there is none."""
        oldest = next((channel for channel in self._routes if not channel.confirmed), None)
        if oldest is None:
            return False
        self.counts.evicted += 1
        self._gone(oldest, "evicted: too many channels")
        return True

    def _gone(self, channel: Channel, reason: str) -> None:
        """An incoming channel ended."""
        self.close_channel(channel)
        self._readers.post(partial(self._handler.on_disconnected, channel, reason))

    def _end_incoming(self) -> None:
        """Closes the channels whose end the monitor reported, after their last messages: those are in the ROUTER by then."""
        assert self._router is not None
        for _ in range(self._options.high_water // QUOTA + 1):
            if self._closed or not self._readers.drain_one(self._router):
                break
        for channel in self._incoming.take_ended():
            self.close_channel(channel)
            self._handler.on_disconnected(channel, "peer closed the connection")

    # ---- outgoing channels -------------------------------------------------------------------

    def _connect(self, channel: Channel) -> None:
        """One attempt: new sockets, monitors first so that no event is missed."""
        link = self._links[channel]
        host, _, port = channel.name.rpartition(":")
        link.timer = self._loop.call_later(ATTEMPT_SECONDS, self._lost, channel, "no answer")
        try:
            dealer = self._join(channel, link, zmq.DEALER, host, int(port) + 1)
            link.dealer = self._readers.watch(dealer, partial(self._on_dealer, channel))
            link.readers.append(link.dealer)
            if channel.data:
                link.push = self._join(channel, link, zmq.PUSH, host, int(port))
        except zmq.ZMQError as exc:
            if exc.errno not in OUT_OF_SOCKETS:
                raise
            self._lost(channel, f"this node has no socket left ({exc}; see `ulimit -n`)")

    def _join(self, channel: Channel, link: _Link, kind: int, host: str, port: int) -> Socket:
        socket = self._options.connecting(self._context, kind, host, channel.key)
        link.sockets.append(socket)
        link.readers.append(self._monitor(socket, _CHANNEL_EVENTS, partial(self._on_channel_event, channel)))
        link.awaited += 1
        socket.connect(f"tcp://{host}:{port}")
        return socket

    def _disconnect(self, link: _Link) -> None:
        if link.timer is not None:
            link.timer.cancel()
        for socket in link.sockets:
            # Before its monitor's other end goes: ZeroMQ's thread would wait for a reader.
            socket.disable_monitor()
        for reader in link.readers:
            self._readers.forget(reader)
        for socket in link.sockets:
            socket.close(0)
        link.dealer = link.push = link.timer = None
        link.sockets, link.readers, link.awaited = [], [], 0

    def _on_channel_event(self, channel: Channel, frames: list[zmq.Frame]) -> None:
        event, _ = event_of(frames)
        if event != _HANDSHAKE_SUCCEEDED:
            dealer = self._links[channel].dealer
            if channel.connected and dealer is not None:
                self._readers.drain_one(dealer)  # the peer's last words
            if channel in self._links:
                self._lost(channel, _ENDINGS.get(event, "connection ended"))
            return
        link = self._links[channel]
        link.awaited -= 1
        if link.awaited > 0:
            return
        if link.timer is not None:
            link.timer.cancel()
        for socket in link.sockets:
            # The new connection reaches the socket by a command, which a send would look for once in a millisecond only.
            readable(socket)
        link.connected_at = self._loop.time()
        channel.connected = True
        channel.trouble = ""
        self._handler.on_connected(channel)

    def _lost(self, channel: Channel, reason: str) -> None:
        """A connection or an attempt ended: close everything, try again later."""
        link = self._links[channel]
        self._disconnect(link)
        self.sharing.close(channel)
        if not channel.connected:
            channel.trouble = reason
        else:
            channel.connected = False
            self._readers.post(partial(self._tell_disconnected, channel, reason))
            if self._loop.time() - link.connected_at >= BACKOFF_MAX_SECONDS:
                link.backoff = BACKOFF_SECONDS
        link.timer = self._loop.call_later(link.backoff, self._connect, channel)
        link.backoff = min(2 * link.backoff, BACKOFF_MAX_SECONDS)

    def _tell_disconnected(self, channel: Channel, reason: str) -> None:
        if not channel.closed:
            self._handler.on_disconnected(channel, reason)

    # ---- sockets -----------------------------------------------------------------------------

    def _monitor(self, socket: Socket, events: int, deliver: Callable[[list[zmq.Frame]], None]) -> Reader:
        address = f"inproc://monitor-{next(self._monitor_numbers)}"
        socket.monitor(address, events)
        end = self._context.socket(zmq.PAIR)
        end.linger = 0
        # Unbounded: at a high-water mark ZeroMQ's thread would wait for us, and closing would wait for that thread.
        end.rcvhwm = 0
        end.connect(address)
        return self._readers.watch(end, deliver)

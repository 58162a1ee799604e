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
   message, number of incoming channels, and a deadline for handshakes. Known limit: libzmq buffers an unfinished
   multipart message without bound.

pyzmq copies buffers below 64 KiB anyway; larger ones are sent in place. A buffer pool that must know when ZeroMQ is done with
one has its seam in `sockets.send`: `track=True` there gives a MessageTracker.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import zmq

from zpipe.errors import ConfigError
from zpipe.transport.base import MAX_FRAMES, MAX_INCOMING, Buffer, Channel, TransportHandler
from zpipe.transport.sockets import Context, Socket, SocketOptions, buffer, connection_property, event_of, readable, receive, send

#: Messages read from one socket per turn of the event loop.
QUOTA = 64

#: Pause before a lost or refused connection is tried again: first, and at most.
BACKOFF_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 2.0

#: A connection attempt that has neither failed nor succeeded by then is made anew. ZeroMQ reports no event when, for
#: instance, a host name does not resolve.
ATTEMPT_SECONDS = 6.0

#: What ends a connection or an attempt, in words.
_ENDINGS = {
    int(zmq.EVENT_DISCONNECTED): "peer closed the connection",
    int(zmq.EVENT_CLOSED): "connection refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "handshake failed",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "handshake failed: not the ZeroMQ protocol",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "handshake failed: not authorised",
}
_HANDSHAKE_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_CHANNEL_EVENTS = sum(_ENDINGS) | _HANDSHAKE_SUCCEEDED


class _Reader:
    """A watched socket and what is done with its messages."""

    __slots__ = ("closed", "deliver", "fd", "max_frames", "socket")

    def __init__(self, socket: Socket, deliver: Callable[[list[zmq.Frame]], None]) -> None:
        self.socket = socket
        self.fd = int(socket.get(zmq.FD))
        self.deliver = deliver
        #: a ROUTER puts its routing id before the message
        self.max_frames = MAX_FRAMES + 1 if socket.type == zmq.ROUTER else MAX_FRAMES
        self.closed = False


class _Link:
    """The sockets behind an outgoing channel, all made and closed together."""

    __slots__ = ("awaited", "backoff", "connected_at", "dealer", "push", "readers", "sockets", "timer")

    def __init__(self) -> None:
        self.dealer: _Reader | None = None
        self.push: Socket | None = None
        self.sockets: list[Socket] = []
        self.readers: list[_Reader] = []
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
    """

    def __init__(
        self, handler: TransportHandler, *, bind: str = "127.0.0.1:0", max_message_bytes: int, high_water: int = 1000
    ) -> None:
        self.dropped = 0
        self._handler = handler
        self._bind = bind
        self._options = SocketOptions(max_message_bytes, high_water)
        self._context: Context = zmq.Context()
        self._bound: list[_Reader] = []
        self._router: _Reader | None = None
        self._router_monitor: _Reader | None = None
        self._links: dict[Channel, _Link] = {}
        #: {routing id: its channel}, oldest first, and both ways back
        self._incoming: dict[bytes, Channel] = {}
        self._routing_ids: dict[Channel, bytes] = {}
        self._descriptors: dict[int, Channel] = {}
        #: incoming channels whose connection ended, until what they sent before has been read
        self._ending: list[Channel] = []
        #: insertion-ordered set of sockets that may have something to read
        self._dirty: dict[_Reader, None] = {}
        self._notices: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._closed = False
        self._monitor_numbers = count()

    # ---- life --------------------------------------------------------------------------------

    async def start(self) -> str:
        self._loop = asyncio.get_running_loop()
        try:
            pull, router, address = self._options.bind_planes(self._context, self._bind)
        except ConfigError:
            await self.aclose()
            raise
        self._router_monitor = self._monitor(router, int(zmq.EVENT_DISCONNECTED), self._on_router_event)
        self._router = self._watch(router, self._on_router)
        self._bound = [self._watch(pull, self._on_pull), self._router, self._router_monitor]
        return address

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notices.clear()
        self._ending.clear()
        for channel in list(self._links):
            self.close_channel(channel)
        for channel in self._routing_ids:
            channel.closed, channel.connected = True, False
        if self._router is not None:
            self._router.socket.disable_monitor()
        for reader in self._bound:
            self._forget(reader)
        # A wait of about a millisecond for ZeroMQ's thread: every socket is closed with linger 0, and only then are the
        # ports free again.
        self._context.term()

    def open(self, address: str, *, data: bool = True) -> Channel:
        if not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"address {address!r}: expected host:port")
        channel = Channel(address, outgoing=True, data=data)
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
        link = self._links.pop(channel, None)
        if link is not None:
            self._disconnect(link)
        routing_id = self._routing_ids.pop(channel, None)
        if routing_id is not None:
            del self._incoming[routing_id]
            self._descriptors = {fd: other for fd, other in self._descriptors.items() if other is not channel}

    # ---- sending -----------------------------------------------------------------------------

    def send_data(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        link = self._links.get(channel)
        return link is not None and channel.connected and link.push is not None and send(link.push, frames)

    def send_control(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        routing_id = self._routing_ids.get(channel)
        if routing_id is not None:
            return self._answer(channel, routing_id, frames)
        link = self._links.get(channel)
        if link is None or link.dealer is None or not channel.connected:
            return False
        self._mark(link.dealer)
        return send(link.dealer.socket, frames)

    def _answer(self, channel: Channel, routing_id: bytes, frames: Sequence[Buffer]) -> bool:
        assert self._router is not None
        self._mark(self._router)
        try:
            return send(self._router.socket, [routing_id, *frames])
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise
            self._gone(channel, "peer closed the connection")
            return False

    # ---- receiving ---------------------------------------------------------------------------

    def _watch(self, socket: Socket, deliver: Callable[[list[zmq.Frame]], None]) -> _Reader:
        reader = _Reader(socket, deliver)
        self._loop.add_reader(reader.fd, self._on_readable, reader)
        self._mark(reader)
        return reader

    def _forget(self, reader: _Reader) -> None:
        self._loop.remove_reader(reader.fd)
        self._dirty.pop(reader, None)
        reader.closed = True
        reader.socket.close(0)

    def _mark(self, reader: _Reader) -> None:
        self._dirty[reader] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._on_scheduled)

    def _on_scheduled(self) -> None:
        self._scheduled = False
        self._drain()

    def _on_readable(self, reader: _Reader) -> None:
        # At once and not by _mark: a turn of asyncio costs more than the few messages do.
        self._dirty[reader] = None
        self._drain()

    def _drain(self) -> None:
        """Delivers notices and what the dirty sockets hold, up to QUOTA each, then says so once."""
        delivered = False
        try:
            while self._notices:
                delivered = True
                self._notices.popleft()()
            for reader in list(self._dirty):
                delivered |= self._drain_one(reader)
            if self._ending:
                delivered = True
                self._end_incoming()
            if delivered and not self._closed:
                self._handler.on_drained()
        finally:
            if self._dirty or self._notices or self._ending:
                self._schedule()

    def _drain_one(self, reader: _Reader) -> bool:
        socket = reader.socket
        for taken in range(QUOTA):
            # The handler may have closed this very socket.
            if reader.closed or not readable(socket):
                self._dirty.pop(reader, None)
                return taken > 0
            frames = receive(socket, reader.max_frames)
            if frames:
                reader.deliver(frames)
            else:
                self.dropped += 1
        return True

    def _on_pull(self, frames: list[zmq.Frame]) -> None:
        self._handler.on_data([buffer(frame) for frame in frames])

    def _on_dealer(self, channel: Channel, frames: list[zmq.Frame]) -> None:
        self._handler.on_control(channel, [buffer(frame) for frame in frames])

    def _on_router(self, frames: list[zmq.Frame]) -> None:
        routing_id = frames[0].bytes
        channel = self._incoming.get(routing_id) or self._new_incoming(routing_id, frames[0])
        if channel is not None:
            self._handler.on_control(channel, [buffer(frame) for frame in frames[1:]])

    # ---- incoming channels -------------------------------------------------------------------

    def _new_incoming(self, routing_id: bytes, frame: zmq.Frame) -> Channel | None:
        # First what the monitor knows: descriptors are used again, and the end of the last connection on this one was
        # reported before this message could be read.
        assert self._router_monitor is not None
        self._drain_one(self._router_monitor)
        if len(self._incoming) >= MAX_INCOMING and not self._evict():
            self.dropped += 1
            return None
        channel = Channel(connection_property(frame, "Peer-Address"), outgoing=False)
        self._incoming[routing_id] = channel
        self._routing_ids[channel] = routing_id
        self._descriptors[int(connection_property(frame, "__fd") or -1)] = channel
        return channel

    def _evict(self) -> bool:
        """Closes the oldest channel that was never confirmed; False when there is none."""
        oldest = next((channel for channel in self._incoming.values() if not channel.confirmed), None)
        if oldest is None:
            return False
        self._gone(oldest, "evicted: too many channels")
        return True

    def _gone(self, channel: Channel, reason: str) -> None:
        """An incoming channel ended."""
        self.close_channel(channel)
        self._notices.append(partial(self._handler.on_disconnected, channel, reason))
        self._schedule()

    def _on_router_event(self, frames: list[zmq.Frame]) -> None:
        _, descriptor = event_of(frames)
        channel = self._descriptors.pop(descriptor, None)
        if channel is not None:
            self._ending.append(channel)

    def _end_incoming(self) -> None:
        """Closes the channels whose end the monitor reported, after their last messages: those are in the ROUTER by then."""
        assert self._router is not None
        ending, self._ending = self._ending, []
        for _ in range(self._options.high_water // QUOTA + 1):
            if self._closed or not self._drain_one(self._router):
                break
        for channel in ending:
            if channel in self._routing_ids:
                self.close_channel(channel)
                self._handler.on_disconnected(channel, "peer closed the connection")

    # ---- outgoing channels -------------------------------------------------------------------

    def _connect(self, channel: Channel) -> None:
        """One attempt: new sockets, monitors first so that no event is missed."""
        link = self._links[channel]
        host, _, port = channel.name.rpartition(":")
        link.timer = self._loop.call_later(ATTEMPT_SECONDS, self._lost, channel, "no answer")
        dealer = self._join(channel, link, zmq.DEALER, host, int(port) + 1)
        link.dealer = self._watch(dealer, partial(self._on_dealer, channel))
        link.readers.append(link.dealer)
        if channel.data:
            link.push = self._join(channel, link, zmq.PUSH, host, int(port))

    def _join(self, channel: Channel, link: _Link, kind: int, host: str, port: int) -> Socket:
        socket = self._options.socket(self._context, kind, host)
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
            self._forget(reader)
        for socket in link.sockets:
            socket.close(0)
        link.dealer = link.push = link.timer = None
        link.sockets, link.readers, link.awaited = [], [], 0

    def _on_channel_event(self, channel: Channel, frames: list[zmq.Frame]) -> None:
        event, _ = event_of(frames)
        if event != _HANDSHAKE_SUCCEEDED:
            dealer = self._links[channel].dealer
            if channel.connected and dealer is not None:
                self._drain_one(dealer)  # the peer's last words
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
        self._handler.on_connected(channel)

    def _lost(self, channel: Channel, reason: str) -> None:
        """A connection or an attempt ended: close everything, try again later."""
        link = self._links[channel]
        self._disconnect(link)
        if channel.connected:
            channel.connected = False
            self._notices.append(partial(self._tell_disconnected, channel, reason))
            self._schedule()
            if self._loop.time() - link.connected_at >= BACKOFF_MAX_SECONDS:
                link.backoff = BACKOFF_SECONDS
        link.timer = self._loop.call_later(link.backoff, self._connect, channel)
        link.backoff = min(2 * link.backoff, BACKOFF_MAX_SECONDS)

    def _tell_disconnected(self, channel: Channel, reason: str) -> None:
        if not channel.closed:
            self._handler.on_disconnected(channel, reason)

    # ---- sockets -----------------------------------------------------------------------------

    def _monitor(self, socket: Socket, events: int, deliver: Callable[[list[zmq.Frame]], None]) -> _Reader:
        address = f"inproc://monitor-{next(self._monitor_numbers)}"
        socket.monitor(address, events)
        end = self._context.socket(zmq.PAIR)
        end.linger = 0
        # Unbounded: at a high-water mark ZeroMQ's thread would wait for us, and closing would wait for that thread.
        end.rcvhwm = 0
        end.connect(address)
        return self._watch(end, deliver)

"""ZeroMQ sockets watched by the event loop, and what is known of the connections to a bound one (see `zeromq`, rules 1 and 3)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import zmq

from zpipe.transport.base import MAX_FRAMES, TransportCounts
from zpipe.transport.sockets import Socket, connection_property, event_of, readable, receive

T = TypeVar("T")

#: Messages read from one socket per turn of the event loop.
QUOTA = 64


class Reader:
    """A watched socket and what is done with its messages."""

    __slots__ = ("closed", "deliver", "fd", "max_frames", "socket")

    def __init__(self, socket: Socket, deliver: Callable[[list[zmq.Frame]], None], max_frames: int) -> None:
        self.socket = socket
        self.fd = int(socket.get(zmq.FD))
        self.deliver = deliver
        self.max_frames = max_frames
        self.closed = False


class Readers:
    """The watched sockets of one transport, and calls of its handler that wait for the next turn.

    Args:
        counts: where messages of too many frames are counted.
        settle: called when a turn's messages have been delivered; True when it had something to do.
        drained: called once at the end of a turn in which anything was delivered.
    """

    def __init__(self, counts: TransportCounts, *, settle: Callable[[], bool], drained: Callable[[], None]) -> None:
        self._counts = counts
        self._settle = settle
        self._drained = drained
        #: insertion-ordered set of sockets that may have something to read
        self._dirty: dict[Reader, None] = {}
        self.posted: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self.closed = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watches on this loop from now on."""
        self._loop = loop

    def close(self) -> None:
        """Delivers nothing more. The sockets are the owner's to forget."""
        self.closed = True
        self.posted.clear()

    def watch(self, socket: Socket, deliver: Callable[[list[zmq.Frame]], None], max_frames: int = MAX_FRAMES) -> Reader:
        """Delivers what a socket receives."""
        reader = Reader(socket, deliver, max_frames)
        self._loop.add_reader(reader.fd, self._on_readable, reader)
        self.mark(reader)
        return reader

    def forget(self, reader: Reader) -> None:
        """Closes a watched socket."""
        self._loop.remove_reader(reader.fd)
        self._dirty.pop(reader, None)
        reader.closed = True
        reader.socket.close(0)

    def mark(self, reader: Reader) -> None:
        """A socket may have something to read: it was sent on, which can swallow its signal."""
        self._dirty[reader] = None
        self._schedule()

    def is_dirty(self, reader: Reader | None) -> bool:
        """Whether a socket may have something to read."""
        return reader in self._dirty

    def post(self, call: Callable[[], None]) -> None:
        """Has something called in the next turn, before any message is delivered."""
        self.posted.append(call)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self.closed:
            self._scheduled = True
            self._loop.call_soon(self._on_scheduled)

    def _on_scheduled(self) -> None:
        self._scheduled = False
        self._drain()

    def _on_readable(self, reader: Reader) -> None:
        # At once and not by mark: a turn of asyncio costs more than the few messages do.
        self._dirty[reader] = None
        self._drain(woken=reader)

    def _drain(self, woken: Reader | None = None) -> None:
        """Delivers what was posted and what the dirty sockets hold, up to QUOTA each, then says so once."""
        delivered = settled = False
        try:
            while self.posted:
                delivered = True
                self.posted.popleft()()
            for reader in list(self._dirty):
                delivered |= self.drain_one(reader, woken=reader is woken)
            settled = self._settle()
            if (delivered or settled) and not self.closed:
                self._drained()
                self._forget_silent()
        finally:
            if self._dirty or self.posted or settled:
                self._schedule()

    def _forget_silent(self) -> None:
        """What was sent on meanwhile and has nothing to read needs no turn of the loop to find that out."""
        for reader in list(self._dirty):
            if reader.closed or not readable(reader.socket):
                self._dirty.pop(reader, None)

    def drain_one(self, reader: Reader, *, woken: bool = False) -> bool:
        """Delivers up to QUOTA messages of one socket now; False when it had none, and is no longer dirty.

        One that has just `woken` nearly always has one: asking whether it has would be most of what reading it costs.
        """
        socket = reader.socket
        for taken in range(QUOTA):
            # The handler may have closed this very socket.
            if reader.closed or not ((woken and not taken) or readable(socket)):
                self._dirty.pop(reader, None)
                return taken > 0
            frames = receive(socket, reader.max_frames)
            if frames:
                reader.deliver(frames)
            elif frames is not None:
                self._counts.dropped += 1
        return True


class Connections(Generic[T]):
    """What is kept for each living connection to a bound socket.

    All three tables are of the connections in `by_user_id`, one entry each at most: who adds keeps that one bounded.

    A message shows its connection's User-Id (`zap`), which no other connection ever has. The socket's monitor names one that ended
    by its descriptor alone, and descriptors are used again at once: so whoever adds a connection reads the monitor first.
    """

    def __init__(self) -> None:
        self.by_user_id: dict[str, T] = {}  #: oldest first
        #: insertion-ordered set: ended by the monitor's word, until what came by them before has been read
        self.ended: dict[str, None] = {}
        self._descriptors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.by_user_id)

    def add(self, user_id: str, frame: zmq.Frame, kept: T) -> T:
        """Keeps something for the connection that a frame came by."""
        descriptor = int(connection_property(frame, "__fd") or -1)
        before = self._descriptors.get(descriptor, user_id)
        if before != user_id:
            self.ended[before] = None
        self._descriptors[descriptor] = user_id
        self.by_user_id[user_id] = kept
        return kept

    def on_event(self, frames: list[zmq.Frame]) -> None:
        """An EVENT_DISCONNECTED of the monitor."""
        user_id = self._descriptors.pop(event_of(frames)[1], None)
        if user_id is not None:
            self.ended[user_id] = None

    def forget(self, user_id: str) -> None:
        """Keeps nothing of a connection, which may go on."""
        self.by_user_id.pop(user_id, None)
        self.ended.pop(user_id, None)
        for descriptor in [descriptor for descriptor, whose in self._descriptors.items() if whose == user_id]:
            del self._descriptors[descriptor]

    def take_ended(self) -> list[T]:
        """What was kept for the connections that ended; it is kept no longer."""
        ended, self.ended = self.ended, {}
        return [self.by_user_id.pop(user_id) for user_id in ended]

"""The transport contract inside one process, for tests: same order, same losses, faults on demand.

A MemoryNetwork joins the MemoryTransports made from it. It delivers through `loop.call_soon`, never from inside a send.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from zpipe.errors import AddressInUse
from zpipe.transport.base import MAX_FRAMES, MAX_INCOMING, Buffer, Channel, Origin, TransportCounts, TransportHandler
from zpipe.transport.shared import Sharing

#: Messages on their way on one plane of one connection, before a send is refused.
HIGH_WATER = 1000

#: Deliveries per turn of the event loop, so that one busy node does not starve the others.
QUOTA = 64


class _Connection:
    """One living connection of an outgoing channel. Once not alive, what is still under way on it vanishes."""

    __slots__ = ("alive", "channel", "client", "drop_data", "incoming", "origin", "server", "under_way")

    def __init__(self, channel: Channel, client: MemoryTransport, server: MemoryTransport) -> None:
        self.channel, self.client, self.server = channel, client, server
        self.incoming: Channel | None = None
        self.origin = Origin(client.address, client.key)
        self.alive = True
        self.drop_data = 0
        #: {plane: messages sent and not delivered}
        self.under_way = {"data": 0, "control": 0, "back": 0}


class MemoryNetwork:
    """Where MemoryTransports meet, and where tests break things. Nodes are named by their `host:port`."""

    def __init__(self) -> None:
        self._nodes: dict[str, MemoryTransport] = {}
        self._cuts: set[frozenset[str]] = set()
        self._next_port = 40000

    def transport(
        self, handler: TransportHandler, *, bind: str = "127.0.0.1:0", max_message_bytes: int = 2**30, key: str = ""
    ) -> MemoryTransport:
        """A node of this network, not started.

        Args:
            handler: gets all that arrives.
            bind: its address.
            max_message_bytes: a frame above it ends the connection it came by.
            key: what the others see as its proven public key. Nobody is refused but who was banned.
        """
        return MemoryTransport(self, handler, bind, max_message_bytes, key)

    def drop_data(self, sender: str, receiver: str, count: int) -> None:
        """The next `count` data messages on the present connection vanish; their sends say True."""
        for connection in self._connections(sender, receiver):
            connection.drop_data += count

    def cut(self, one: str, other: str) -> None:
        """Breaks the connections between two nodes, both ways, until mend()."""
        self._cuts.add(frozenset((one, other)))
        for connection in self._connections(one, other) + self._connections(other, one):
            self._break(connection, "link cut")

    def mend(self, one: str, other: str) -> None:
        """Undoes cut()."""
        self._cuts.discard(frozenset((one, other)))
        self._seek()

    def kill(self, address: str) -> None:
        """A node is gone from one moment to the next, with everything it had queued or was about to receive."""
        self._nodes[address]._die()

    # -- what the transports use ---------------------------------------------------------------

    def _add(self, bind: str, node: MemoryTransport) -> str:
        host, _, port = bind.rpartition(":")
        if port == "0":
            port = str(self._next_port)
            self._next_port += 2
        address = f"{host}:{port}"
        if address in self._nodes:
            raise AddressInUse(address)
        self._nodes[address] = node
        self._seek()
        return address

    def _remove(self, node: MemoryTransport) -> None:
        if self._nodes.get(node.address) is node:
            del self._nodes[node.address]
        for other in list(self._nodes.values()):
            for connection in other.connections():
                if connection.server is node:
                    self._break(connection, "peer closed the connection")

    def _connections(self, client: str, server: str) -> list[_Connection]:
        node = self._nodes.get(client)
        return [each for each in node.connections() if each.server.address == server] if node is not None else []

    def _seek(self) -> None:
        for node in self._nodes.values():
            node.seek()

    def break_from(self, key: str, server: MemoryTransport) -> None:
        """Breaks the connections that the holders of a key made to a node."""
        for client in self._nodes.values():
            if client.key == key:
                for connection in self._connections(client.address, server.address):
                    self._break(connection, "banned")

    def _reach(self, client: MemoryTransport, address: str) -> MemoryTransport | None:
        server = self._nodes.get(address)
        cut = frozenset((client.address, address)) in self._cuts
        return None if cut or server is None or server.refuses(client.key) else server

    @staticmethod
    def _break(connection: _Connection, reason: str) -> None:
        if connection.alive:
            connection.alive = False
            connection.client.on_broken(connection, reason)
            connection.server.on_peer_gone(connection, reason)


class MemoryTransport:
    """One node on a MemoryNetwork (see `Transport`)."""

    def __init__(self, network: MemoryNetwork, handler: TransportHandler, bind: str, max_message_bytes: int, key: str) -> None:
        self.address = bind
        self.key = key
        self.counts = TransportCounts()
        self.turned_away = ""
        self.sharing = Sharing(self.counts, wanted=False)
        self._banned: set[str] = set()
        self._network = network
        self._handler = handler
        self._max_message_bytes = max_message_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        #: Calls of the handler to come, in order.
        self._inbox: deque[Callable[[], None]] = deque()
        self._scheduled = False
        #: {outgoing channel: its connection, None while it seeks}
        self._outgoing: dict[Channel, _Connection | None] = {}
        #: {incoming channel: the connection it answers on}, oldest first
        self._incoming: dict[Channel, _Connection] = {}

    def tables(self) -> dict[str, tuple[int, int]]:
        return {"incoming channels": (len(self._incoming), MAX_INCOMING)}

    async def start(self) -> str:
        self._loop = asyncio.get_running_loop()
        self.address = self._network._add(self.address, self)
        return self.address

    def open(self, address: str, *, data: bool = True, key: str = "") -> Channel:
        channel = Channel(address, outgoing=True, data=data, key=key)
        self._outgoing[channel] = None
        self.seek()
        return channel

    def confirm(self, channel: Channel) -> None:
        channel.confirmed = True

    def reset(self, channel: Channel) -> None:
        connection = self._outgoing.get(channel)
        if connection is not None:
            self._network._break(connection, "reset")

    def close_channel(self, channel: Channel) -> None:
        channel.closed, channel.connected = True, False
        connection = self._outgoing.pop(channel, None)
        if connection is not None:
            self._network._break(connection, "peer closed the connection")
        answered = self._incoming.pop(channel, None)
        if answered is not None:
            answered.incoming = None

    def ban(self, key: str) -> None:
        if not key or key in self._banned:
            return
        self._banned.add(key)
        self.counts.banned_keys += 1
        self._network.break_from(key, self)

    def send_data(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        connection = self._outgoing.get(channel)
        if connection is None or not channel.data or not channel.connected:
            return False
        if connection.drop_data:
            connection.drop_data -= 1
            return True
        return connection.server._take(connection, "data", connection.server._deliver_data, frames)

    def send_control(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        answered = self._incoming.get(channel)
        if answered is not None:
            return answered.client._take(answered, "back", answered.client._deliver_back, frames)
        connection = self._outgoing.get(channel)
        if connection is None or not channel.connected:
            return False
        return connection.server._take(connection, "control", connection.server._deliver_control, frames)

    async def aclose(self) -> None:
        self._die()

    # -- what the network and the other nodes use ----------------------------------------------

    def connections(self) -> list[_Connection]:
        """The living connections of the outgoing channels."""
        return [connection for connection in self._outgoing.values() if connection is not None]

    def seek(self) -> None:
        """Looks, in a later turn, for the peers of channels without a connection."""
        if None in self._outgoing.values():
            self._post(self._connect)

    def refuses(self, key: str) -> bool:
        """Whether who has this key may not connect."""
        return key in self._banned

    def on_broken(self, connection: _Connection, reason: str) -> None:
        """An outgoing channel's connection ended."""
        channel = connection.channel
        if channel not in self._outgoing:
            return
        self._outgoing[channel] = None
        if channel.connected:
            channel.connected = False
            self._post(partial(self._tell_disconnected, channel, reason))
        self.seek()

    def on_peer_gone(self, connection: _Connection, reason: str) -> None:
        """A connection to this node ended."""
        channel = connection.incoming
        if channel is not None and self._incoming.pop(channel, None) is not None:
            channel.closed, channel.connected = True, False
            self._post(partial(self._handler.on_disconnected, channel, reason))

    # -- inside --------------------------------------------------------------------------------

    def _die(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox.clear()
        for channel in [*self._outgoing, *self._incoming]:
            self.close_channel(channel)
        self._network._remove(self)

    def _connect(self) -> None:
        for channel, connection in list(self._outgoing.items()):
            server = self._network._reach(self, channel.name)
            if connection is None and server is not None:
                self._outgoing[channel] = made = _Connection(channel, self, server)
                self._post(partial(self._tell_connected, made))

    def _tell_connected(self, connection: _Connection) -> None:
        if connection.alive:
            connection.channel.connected = True
            self._handler.on_connected(connection.channel)

    def _tell_disconnected(self, channel: Channel, reason: str) -> None:
        if not channel.closed:
            self._handler.on_disconnected(channel, reason)

    def _take(
        self, connection: _Connection, plane: str, deliver: Callable[[_Connection, list[Buffer]], None], frames: Sequence[Buffer]
    ) -> bool:
        """Accepts a message that another node sends here. It is copied, since a socket would do no less."""
        if connection.under_way[plane] >= HIGH_WATER:
            return False
        if plane != "back" and max(map(len, frames)) > self._max_message_bytes:
            self._network._break(connection, "frame above the receiver's limit")
            return True
        connection.under_way[plane] += 1
        self._post(partial(self._arrive, connection, plane, deliver, [bytes(frame) for frame in frames]))
        return True

    def _arrive(
        self, connection: _Connection, plane: str, deliver: Callable[[_Connection, list[Buffer]], None], frames: list[Buffer]
    ) -> None:
        connection.under_way[plane] -= 1
        if not connection.alive:
            return
        if len(frames) > MAX_FRAMES:
            self.counts.dropped += 1
            return
        deliver(connection, frames)

    def _deliver_data(self, connection: _Connection, frames: list[Buffer]) -> None:
        self._handler.on_data(frames, connection.origin)

    def _deliver_back(self, connection: _Connection, frames: list[Buffer]) -> None:
        self._handler.on_control(connection.channel, frames)

    def _deliver_control(self, connection: _Connection, frames: list[Buffer]) -> None:
        if connection.incoming is None:
            if len(self._incoming) >= MAX_INCOMING and not self._evict():
                self.counts.dropped += 1
                return
            connection.incoming = Channel(connection.client.address, outgoing=False, key=connection.client.key)
            self._incoming[connection.incoming] = connection
        if connection.incoming.may_speak():
            self._handler.on_control(connection.incoming, frames)
        else:
            self.counts.dropped += 1

    def _evict(self) -> bool:
        for channel in self._incoming:
            if not channel.confirmed:
                self.counts.evicted += 1
                self.close_channel(channel)
                self._handler.on_disconnected(channel, "evicted: too many channels")
                return True
        return False

    def _post(self, call: Callable[[], None]) -> None:
        if self._closed or self._loop is None:
            return
        self._inbox.append(call)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        for _ in range(min(QUOTA, len(self._inbox))):
            if self._closed:
                return
            self._inbox.popleft()()
        if not self._closed:
            self._handler.on_drained()
        if self._inbox and not self._scheduled:
            self._scheduled = True
            assert self._loop is not None
            self._loop.call_soon(self._deliver)

"""Everything the transport over ZeroMQ keeps is in `tables()` or bounded by what is; a new container has to say where it stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from tests.transport.harness import KeyedTransport, Recorder, World, connect, run
from zpipe.transport import zeromq
from zpipe.transport.base import Buffer, Channel, Origin
from zpipe.transport.readers import Connections
from zpipe.transport.zeromq import ZeroMQTransport

KINDS = (dict, list, set, deque)
#: {container: its table, or what bounds it}
INVENTORY = {
    "ZeroMQTransport._bound": "the five sockets of a node",
    "ZeroMQTransport._links": "channels this node opened: the runtime's `channels` and `observed nodes`",
    "ZeroMQTransport._routes": "incoming channels",
    "ZeroMQTransport._banned": "keys banned",
    "_Link.sockets": "two a channel",
    "_Link.readers": "three a channel",
    "Readers._dirty": "watched sockets",
    "Readers.posted": "calls posted",
    "Connections.by_user_id": "origins, incoming channels",
    "Connections.ended": "of by_user_id",
    "Connections._descriptors": "of by_user_id",
    "Sharing._rings": "one a channel this node opened",
    "Sharing._mapped": "one an incoming channel",
    "Doorkeeper._allowed": "the allow-list: it only shrinks",
    "Doorkeeper._rates": "connection rates",
    "CurveKeys.allowed": "the allow-list",
}
WITH_KEYS = {"Doorkeeper._allowed", "CurveKeys.allowed"}


def attributes(thing: object) -> Iterator[tuple[str, object]]:
    names = getattr(type(thing), "__slots__", None) or vars(thing)
    return ((name, getattr(thing, name)) for name in names)


def containers(thing: object, seen: set[int]) -> Iterator[str]:
    """Every container that can be reached from here by objects of the transport's own modules."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, KINDS):
        for inner in thing.values() if isinstance(thing, dict) else thing:
            yield from containers(inner, seen)
        return
    ours = next((kind for kind in type(thing).__mro__ if kind.__module__.startswith("zpipe.transport")), None)
    if ours is not None:
        for name, value in attributes(thing):
            if isinstance(value, KINDS):
                yield f"{ours.__name__}.{name}"
            yield from containers(value, seen)


class Looker(Recorder):
    """Looks at a transport's tables with every message, and remembers those that were too long."""

    def __init__(self) -> None:
        super().__init__()
        self.transport: ZeroMQTransport | None = None
        self.broken: set[str] = set()

    def look(self) -> None:
        assert self.transport is not None
        self.broken |= {name for name, (now, most) in self.transport.tables().items() if now > most}
        for connections in (self.transport._origins, self.transport._incoming):
            if not {*connections.ended, *connections._descriptors.values()} <= connections.by_user_id.keys():
                self.broken.add("kept of connections that are forgotten")

    def on_data(self, frames: list[Buffer], origin: Origin) -> None:
        super().on_data(frames, origin)
        self.look()

    def on_control(self, channel: Channel, frames: list[Buffer]) -> None:
        super().on_control(channel, frames)
        self.look()


@pytest.mark.parametrize("kind", ["zeromq", "curve"])
def test_every_container_has_its_place_in_the_inventory(kind: str) -> None:
    async def main() -> None:
        async with World(kind) as world:
            server, heard, address = await world.node()
            client, client_heard, _ = await world.node()
            channel = await connect(client, client_heard, address)
            assert client.send_data(channel, [b"x"])
            assert client.send_control(channel, [b"x"])
            await heard.until(lambda: len(heard.data) == len(heard.control) == 1)
            seen: set[int] = set()
            found = {name for transport in (server, client) for name in containers(transport, seen)}
            assert found <= INVENTORY.keys(), "say in the inventory what bounds it; if nothing does, that is the mistake"
            assert INVENTORY.keys() - found <= (WITH_KEYS if kind == "zeromq" else set()), "it is gone from the code"

    run(main())


async def flood(heard: Looker) -> None:
    """Three waves of strangers, many more than there is room for; a banned one among them at last."""
    async with World("curve") as world:
        server = heard.transport = KeyedTransport(heard, bind="127.0.0.1:0")
        try:
            address = await server.start()
            client, client_heard, _ = await world.node()
            for _ in range(3):
                channels = [await connect(client, client_heard, address) for _ in range(10)]
                due = len(heard.data) + 20
                for channel in channels * 2:
                    assert client.send_data(channel, [b"x"])
                    assert client.send_control(channel, [b"x"])
                await heard.until(lambda due=due: len(heard.data) == len(heard.control) == due)  # type: ignore[misc]
                for channel in channels:
                    client.close_channel(channel)
                await heard.until(lambda: not server._incoming.by_user_id)
            server.ban(KeyedTransport.PUBLIC)
            heard.look()
            assert server.tables()["keys banned"] == (1, 1)
            assert server.tables()["connection rates"][0] == 1
        finally:
            await server.aclose()


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeromq, "MAX_ORIGINS", 4)
    monkeypatch.setattr(zeromq, "MAX_INCOMING", 4)


def test_no_table_outgrows_its_limit_in_a_flood_of_strangers() -> None:
    heard = Looker()
    run(flood(heard))
    assert heard.transport is not None
    assert heard.transport.counts.evicted > 0
    assert not heard.broken


def _forget_nothing(self: Connections[Any], user_id: str) -> None:
    """Keeps what was to make room."""


def _make_no_room(self: ZeroMQTransport) -> bool:
    return True


@pytest.mark.parametrize(
    ("owner", "name", "leak", "found"),
    [
        (Connections, "forget", _forget_nothing, "origins"),
        (ZeroMQTransport, "_evict", _make_no_room, "incoming channels"),
    ],
)
def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, leak: object, found: str) -> None:
    """The test above can fail."""
    monkeypatch.setattr(owner, name, leak)
    heard = Looker()
    run(flood(heard))
    assert found in heard.broken

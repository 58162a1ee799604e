"""A live mesh under a MetricsServer, and a client that says whatever it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from tests.runtime.mesh import LiveMesh, live, topology
from zpipe.metrics.server import MetricsServer
from zpipe.runtime.driver import Driver
from zpipe.runtime.node import Node

LINE = [[0], [1, 2], [3, 4]]


@dataclass(frozen=True)
class Said:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def plain(self) -> Any:
        return json.loads(self.body)


def server(driver: Driver | None, address: str = "0") -> MetricsServer:
    """Of a node whose driver this is; None: it has not started."""
    return MetricsServer(cast(Node, SimpleNamespace(_driver=driver)), address)


@asynccontextmanager
async def scraped(rank: int = 0, stages: list[list[int]] | None = None) -> AsyncIterator[tuple[LiveMesh, MetricsServer]]:
    async with live(topology(stages or LINE)) as mesh, server(mesh.drivers[rank]) as telling:
        yield mesh, telling


async def say(telling: MetricsServer, text: bytes) -> bytes:
    """All that comes back until the server has done."""
    reader, writer = await connected(telling)
    try:
        writer.write(text)
        return await reader.read()
    finally:
        writer.close()


async def connected(telling: MetricsServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = telling.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def get(telling: MetricsServer, path: str, accept: str = "*/*", method: str = "GET") -> Said:
    said = await say(telling, f"{method} {path} HTTP/1.1\r\nHost: here\r\nAccept: {accept}\r\n\r\n".encode())
    head, _, body = said.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return Said(int(line.split()[1]), dict(field.split(": ", 1) for field in fields), body)

"""(e') gRPC's asyncio API, the same streams as in (e); stages run in an executor thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio

from bench.peers.contender import Meet, Nodes, serve_node
from bench.peers.grpc_stream import METHOD, OPTIONS, QUEUE, SERVICE
from bench.peers.load import Load
from bench.peers.work import RANKS, Job, Stages, unpack_answers


async def listen(take: Any) -> tuple[Any, str]:
    """A server that awaits `take` for each message of its one stream; and its address."""

    async def carry(messages: AsyncIterator[bytes], context: Any) -> bytes:
        async for message in messages:
            await take(message)
        return b""

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_unary_rpc_method_handler(carry)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


class Out:
    """A stream to another rank."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._call = self._channel.stream_unary(f"/{SERVICE}/{METHOD}")()
        self.send = self._call.write

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


def serve(job: Job, rank: int, stages: Stages, meet: Meet) -> None:
    asyncio.run(_serve(rank, stages, meet))


async def _serve(rank: int, stages: Stages, meet: Meet) -> None:
    """One node: one task receives, one computes and sends."""
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    arrived: asyncio.Queue[bytes] = asyncio.Queue(QUEUE)
    _server, address = await listen(arrived.put)
    out = Out(meet(address)[(rank + 1) % RANKS])
    while True:
        output = await loop.run_in_executor(thread, stages.run, stages.unpack(await arrived.get()))
        await out.send(output.tobytes())


class Line:
    """The source, on zpipe's loop: gRPC's runs on uvloop as well."""

    batches = True

    async def open(self, job: Job) -> None:
        self._nodes = Nodes(__name__, job)
        self._stages, self._thread = Stages(job, 0), ThreadPoolExecutor(1)
        self._load: Load | None = None
        self._room = asyncio.Event()
        self._numbers: deque[int] = deque()
        self._server, address = await listen(self._take)
        addresses = {0: address, **self._nodes.addresses()}
        self._nodes.introduce(addresses)
        self._out = Out(addresses[1])

    async def drive(self, load: Load) -> None:
        self._load = load
        loop = asyncio.get_running_loop()
        while not load.finished:
            if load.has_room and (item := load.next()) is not None:
                number, batch = item
                activation = await loop.run_in_executor(self._thread, self._stages.run, batch)
                self._numbers.append(number)
                await self._out.send(activation.tobytes())
            elif not load.finished:
                self._room.clear()
                await self._room.wait()

    async def close(self) -> None:
        await self._out.close()
        self._nodes.close()
        await self._server.stop(0)
        self._thread.shutdown()

    async def _take(self, message: bytes) -> None:
        assert self._load is not None, "answers come to what was sent"
        self._load.done(self._numbers.popleft(), unpack_answers(message))
        self._room.set()


if __name__ == "__main__":
    serve_node(serve)

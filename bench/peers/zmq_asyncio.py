"""(a') The same line on asyncio: uvloop as in zpipe, `zmq.asyncio`, stages in an executor thread; again without any policy."""

from __future__ import annotations

import asyncio
import struct
from concurrent.futures import ThreadPoolExecutor

import zmq.asyncio

from bench.peers.contender import Meet, Nodes, serve_node
from bench.peers.load import Load
from bench.peers.work import RANKS, Job, Stages, unpack_answers
from bench.peers.zmq_blocking import is_small, pull, push
from zpipe.runtime import loops

_NUMBER = struct.Struct("<I")


def serve(job: Job, rank: int, stages: Stages, meet: Meet) -> None:
    loops.run(_serve(rank, stages, meet))


async def _serve(rank: int, stages: Stages, meet: Meet) -> None:
    """One node. ZeroMQ's own threads receive and send while a stage runs, so one task after the other keeps it busy."""
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
    context = zmq.asyncio.Context()
    entrance, address = pull(context)
    exit_ = push(context, meet(address)[(rank + 1) % RANKS])
    copy = is_small(stages.nbytes)
    while True:
        number, payload = await entrance.recv_multipart(copy=copy)
        output = await loop.run_in_executor(thread, stages.run, stages.unpack(payload))
        await exit_.send_multipart([number, output], copy=copy)


class Line:
    """The source: one task sends, one receives."""

    batches = True

    async def open(self, job: Job) -> None:
        self._nodes = Nodes(__name__, job)
        self._context = zmq.asyncio.Context()
        self._stages, self._thread = Stages(job, 0), ThreadPoolExecutor(1)
        self._entrance, address = pull(self._context, high_water=job.messages)
        addresses = {0: address, **self._nodes.addresses()}
        self._nodes.introduce(addresses)
        self._exit = push(self._context, addresses[1])
        self._room = asyncio.Event()

    async def drive(self, load: Load) -> None:
        receiving = asyncio.ensure_future(self._receive_all(load))
        await self._send_all(load)
        while not load.finished:
            self._room.clear()
            await self._room.wait()
        receiving.cancel()
        await asyncio.wait([receiving])

    async def close(self) -> None:
        self._nodes.close()
        self._thread.shutdown()
        self._context.destroy(linger=0)

    async def _receive_all(self, load: Load) -> None:
        while True:
            number, payload = await self._entrance.recv_multipart()
            load.done(_NUMBER.unpack(number)[0], unpack_answers(payload))
            self._room.set()

    async def _send_all(self, load: Load) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not load.has_room:
                self._room.clear()
                await self._room.wait()
            item = load.next()
            if item is None:
                return
            number, batch = item
            activation = await loop.run_in_executor(self._thread, self._stages.run, batch)
            await self._exit.send_multipart([_NUMBER.pack(number), activation], copy=is_small(activation.nbytes))


if __name__ == "__main__":
    serve_node(serve)

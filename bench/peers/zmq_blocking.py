"""(a) The floor: what a line costs in Python at all. Blocking sockets, PUSH to PULL, two raw frames, nothing else.

No credit, no failure handling, no batching of its own, no message that may be lost: a program nobody would run on a robot.
"""

from __future__ import annotations

import struct
from typing import Any

import zmq

from bench.peers.contender import Meet, Nodes, serve_node
from bench.peers.load import Answers, Load, pump
from bench.peers.work import RANKS, Job, Stages, unpack_answers

#: Messages that a socket may hold on either side, as many as a link's window in zpipe.
HIGH_WATER = 16
#: From here on pyzmq's zero-copy frames are worth their bookkeeping.
LARGE_BYTES = 65536
_NUMBER = struct.Struct("<I")


def pull(context: zmq.Context[Any], *, high_water: int = HIGH_WATER) -> tuple[zmq.Socket[Any], str]:
    """A bound socket and its address."""
    socket = context.socket(zmq.PULL)
    socket.set_hwm(high_water)
    return socket, f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"


def push(context: zmq.Context[Any], address: str, *, high_water: int = HIGH_WATER) -> zmq.Socket[Any]:
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(high_water)
    socket.linger = 0
    socket.connect(address)
    return socket


def is_small(nbytes: int) -> bool:
    """Whether pyzmq should copy messages of this size."""
    return nbytes < LARGE_BYTES


def serve(job: Job, rank: int, stages: Stages, meet: Meet) -> None:
    """One node: receive, run, send."""
    context = zmq.Context()
    entrance, address = pull(context)
    exit_ = push(context, meet(address)[(rank + 1) % RANKS])
    copy = is_small(stages.nbytes)
    while True:
        number, payload = entrance.recv_multipart(copy=copy)
        exit_.send_multipart([number, stages.run(stages.unpack(payload))], copy=copy)


class Line:
    """The source: stage 0 and both ends of the chain in one thread."""

    batches = True

    async def open(self, job: Job) -> None:
        self._nodes = Nodes(__name__, job)
        self._context = zmq.Context()
        self._stages = Stages(job, 0)
        # Answers must never wait for the source, which may itself be waiting to send.
        self._entrance, address = pull(self._context, high_water=job.messages)
        addresses = {0: address, **self._nodes.addresses()}
        self._nodes.introduce(addresses)
        self._exit = push(self._context, addresses[1])

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        self._nodes.close()
        self._context.destroy(linger=0)

    def _send(self, number: int, activation: Any) -> None:
        self._exit.send_multipart([_NUMBER.pack(number), activation], copy=is_small(activation.nbytes))

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        try:
            number, payload = self._entrance.recv_multipart(0 if wait else zmq.NOBLOCK)
        except zmq.Again:
            return None
        return _NUMBER.unpack(number)[0], unpack_answers(payload)


if __name__ == "__main__":
    serve_node(serve)

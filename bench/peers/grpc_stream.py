"""(e) gRPC: a stream of raw bytes from each rank to the next, the answers' from the last to the source.

Messages are `bytes`, passed through without protobuf. One-way streams keep the order, so there is no header; gRPC's own flow
control and a bounded queue hold the sender back. This is the synchronous API; (e') is the other.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from bench.peers.contender import Meet, Nodes, serve_node
from bench.peers.load import Answers, Load, pump
from bench.peers.work import RANKS, Job, Stages, unpack_answers

#: Messages between a stage and the stream that takes its output.
QUEUE = 16
SERVICE, METHOD = "zpipe.peers.Line", "Carry"
#: Messages of any size.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def listen(take: Callable[[bytes], None]) -> tuple[Any, str]:
    """A server that hands each message of its one stream to `take`, in the stream's thread; and its address."""

    def carry(messages: Iterator[bytes], context: Any) -> bytes:
        for message in messages:
            take(message)
        return b""

    handler = grpc.stream_unary_rpc_method_handler(carry)
    server = grpc.server(ThreadPoolExecutor(2), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


class Out:
    """A stream to another rank."""

    def __init__(self, address: str) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(QUEUE)
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._call = self._channel.stream_unary(f"/{SERVICE}/{METHOD}").future(iter(self._queue.get, None))

    def send(self, message: bytes) -> None:
        """Waits while the stream is behind."""
        self._queue.put(message)

    def close(self) -> None:
        self._call.cancel()
        self._channel.close()


def serve(job: Job, rank: int, stages: Stages, meet: Meet) -> None:
    """One node: the thread that receives runs the stages."""
    out: list[Out] = []
    ready = threading.Event()

    def take(message: bytes) -> None:
        ready.wait()
        out[0].send(stages.run(stages.unpack(message)).tobytes())

    server, address = listen(take)
    out.append(Out(meet(address)[(rank + 1) % RANKS]))
    ready.set()
    server.wait_for_termination()


class Line:
    """The source: stage 0 and the stream to rank 1 in the loop's thread, answers from a queue."""

    batches = True

    async def open(self, job: Job) -> None:
        self._nodes = Nodes(__name__, job)
        self._stages = Stages(job, 0)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._server, address = listen(self._answers.put)
        addresses = {0: address, **self._nodes.addresses()}
        self._nodes.introduce(addresses)
        self._out = Out(addresses[1])
        self._numbers: deque[int] = deque()

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        self._out.close()
        self._nodes.close()
        self._server.stop(0).wait()

    def _send(self, number: int, activation: Any) -> None:
        self._numbers.append(number)
        self._out.send(activation.tobytes())

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        try:
            answers = self._answers.get(block=wait)
        except queue.Empty:
            return None
        return self._numbers.popleft(), unpack_answers(answers)


if __name__ == "__main__":
    serve_node(serve)

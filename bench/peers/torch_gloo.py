"""(c) torch.distributed with gloo: point-to-point between four ranks; the next message is received while one is computed.

Gloo keeps the order and knows the shapes, so there is no header. A send ends when its receiver has asked for it: whoever sends must
not wait for that, and who receives asks early.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from bench.peers.contender import Meet, Nodes, serve_node
from bench.peers.load import Answers, Load, pump
from bench.peers.work import RANKS, Job, Stages

#: Messages asked for ahead of the one computed, and sent behind it: it hides the handshake of each.
DEPTH = 4
_PATIENCE = timedelta(hours=2)


def join(store: Any, rank: int) -> None:
    """Returns once all ranks are there."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=_PATIENCE)


def store_at(port: int, *, mine: bool) -> Any:
    """Where the ranks find each other; port 0 = chosen."""
    return dist.TCPStore("127.0.0.1", port, RANKS, is_master=mine, timeout=_PATIENCE, wait_for_workers=False)


def like(shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    return torch.from_numpy(np.empty(shape, dtype))


def serve(job: Job, rank: int, stages: Stages, meet: Meet) -> None:
    """One node."""
    join(store_at(int(meet("here")[0]), mine=False), rank)
    received: deque[tuple[torch.Tensor, Any]] = deque()
    sent: deque[tuple[torch.Tensor, Any]] = deque()
    for _ in range(DEPTH):
        ask(received, like(stages.shape, stages.dtype), rank - 1)
    while True:
        batch, arrival = received.popleft()
        arrival.wait()
        output = torch.from_numpy(stages.run(batch.numpy()))
        ask(received, batch, rank - 1)
        sent.append((output, dist.isend(output, (rank + 1) % RANKS)))
        if len(sent) > DEPTH:
            sent.popleft()[1].wait()


def ask(received: deque[tuple[torch.Tensor, Any]], into: torch.Tensor, rank: int) -> None:
    received.append((into, dist.irecv(into, rank)))


class Line:
    """The source: rank 0, which asks for a whole window of answers ahead."""

    batches = True

    async def open(self, job: Job) -> None:
        self._nodes = Nodes(__name__, job)
        self._stages = Stages(job, 0)
        self._nodes.addresses()
        store = store_at(0, mine=True)
        self._nodes.introduce({0: str(store.port)})
        join(store, 0)
        self._received: deque[tuple[torch.Tensor, Any]] = deque()
        self._sent: deque[tuple[torch.Tensor, Any]] = deque()
        self._numbers: deque[int] = deque()
        for _ in range(job.messages):
            self._ask(torch.empty((2, job.batch)))

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        self._nodes.close()
        dist.destroy_process_group()

    def _ask(self, into: torch.Tensor) -> None:
        ask(self._received, into, RANKS - 1)

    def _send(self, number: int, activation: Any) -> None:
        output = torch.from_numpy(activation)
        self._numbers.append(number)
        self._sent.append((output, dist.isend(output, 1)))
        if len(self._sent) > DEPTH:
            self._sent.popleft()[1].wait()

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        if not self._numbers or not (wait or self._received[0][1].is_completed()):
            return None
        answers, arrival = self._received.popleft()
        arrival.wait()
        given = answers.numpy().copy()
        self._ask(answers)
        return self._numbers.popleft(), given


if __name__ == "__main__":
    serve_node(serve)

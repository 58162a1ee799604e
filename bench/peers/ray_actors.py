"""(b) Ray actors: one per rank; the result of one is the argument of the next, so payloads go between workers by shared memory."""

from __future__ import annotations

from collections import deque
from typing import Any

import ray

from bench.peers.load import Answers, Load, pump
from bench.peers.work import RANKS, Job, Stages, read_job

#: Of Ray's shared memory; the window at the largest activation, in every stage, is a quarter of it.
STORE_BYTES = 1 << 30


@ray.remote(num_cpus=1)
class Node:
    """One rank."""

    def __init__(self, job: str, rank: int) -> None:
        self._stages = Stages(read_job(job), rank)

    def ready(self) -> bool:
        return True

    def run(self, batch: Any) -> Any:
        return self._stages.run(batch)


def start(job: Job) -> list[Any]:
    """Ray on this machine alone, without a dashboard, and the actors of ranks 1 to 3, ready."""
    ray.init(
        address="local",
        num_cpus=RANKS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
        logging_level="error",
    )
    path = str(job.write())
    nodes = [Node.remote(path, rank) for rank in range(1, RANKS)]
    ray.get([node.ready.remote() for node in nodes])
    return nodes


class Line:
    """The source is the program that drives Ray."""

    batches = True

    async def open(self, job: Job) -> None:
        self._stages = Stages(job, 0)
        self._nodes = start(job)
        self._answers: deque[tuple[int, Any]] = deque()

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        ray.shutdown()

    def _send(self, number: int, batch: Any) -> None:
        for node in self._nodes:
            batch = node.run.remote(batch)
        self._answers.append((number, batch))

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        """The oldest; asking whether it is there costs as much as fetching it, so that is left until the window is full."""
        if not wait:
            return None
        number, answers = self._answers.popleft()
        return number, ray.get(answers)

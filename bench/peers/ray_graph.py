"""(b') Ray's compiled graph of the same actors: shared-memory channels made once, no task submission per message."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import ray
from ray.dag import InputNode

from bench.peers.load import Answers, Load, pump
from bench.peers.ray_actors import start
from bench.peers.work import Job, Stages

#: For the window's first messages.
FIRST_SECONDS = 90.0


class Line:
    """The source is the program that drives Ray."""

    batches = True

    async def open(self, job: Job) -> None:
        self._stages = Stages(job, 0)
        nodes = start(job)
        with InputNode() as given:
            output = given
            for node in nodes:
                output = node.run.bind(output)
        # As many executions as the window has messages; and their largest payload with Ray's header.
        payload = max(self._stages.out_bytes, 1 << 16) + (1 << 14)
        self._graph = output.experimental_compile(
            _buffer_size_bytes=payload, _max_inflight_executions=job.messages + 1, _max_buffered_results=job.messages + 1
        )
        self._answers: deque[tuple[int, Any]] = deque()
        # The first executions make their buffers, which takes longer than Ray usually waits.
        given = np.zeros(self._stages.out_shape, self._stages.out_dtype)
        for answers in [self._graph.execute(given) for _ in range(job.messages)]:
            ray.get(answers, timeout=FIRST_SECONDS)

    async def drive(self, load: Load) -> None:
        pump(load, self._stages.run, self._send, self._receive)

    async def close(self) -> None:
        self._graph.teardown()
        ray.shutdown()

    def _send(self, number: int, batch: Any) -> None:
        self._answers.append((number, self._graph.execute(batch)))

    def _receive(self, wait: bool) -> tuple[int, Answers] | None:
        if not wait:
            return None
        number, answers = self._answers.popleft()
        return number, ray.get(answers).copy()  # what it gives lies in a channel's buffer, which the next answers overwrite

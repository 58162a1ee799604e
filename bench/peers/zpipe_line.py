"""(z) zpipe itself: `Pipeline.local` of the same line, exits off, no pacing. It makes its batches itself, of at most as many."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import numpy as np

from bench.peers.load import Load
from bench.peers.work import METER_VARIABLE, Job
from zpipe import Pipeline
from zpipe.model import Outcome
from zpipe.topology import from_dict


class Line:
    """The source is this process."""

    batches = False

    async def open(self, job: Job) -> None:
        os.environ[METER_VARIABLE] = str(job.meter_path)
        topology = {
            "name": "peers",
            "bundle": job.bundle,
            "nodes": [
                {"rank": rank, "stages": list(stages), "executor": "bench.peers.work:Metered", "max_batch": job.batch}
                for rank, stages in enumerate(job.hosted)
            ],
            "links": "ring",  # the fourth link carries answers alone: straight back to the source, as everybody's go
            "source": {"rank": 0, "admission": "fixed"},
            "policy": {"exit": "no-exit"},
            "shared_memory": job.shared_memory,
        }
        self._pipeline = Pipeline.local(from_dict(topology))
        await self._pipeline.__aenter__()

    async def drive(self, load: Load) -> None:
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        filling = False

        def fill() -> None:
            nonlocal filling
            filling = False
            while load.has_room and self._pipeline.has_room and (item := load.next()) is not None:
                number, batch = item
                self._pipeline.offer(batch[0], partial(ended, number))
            if load.finished and not finished.done():
                finished.set_result(None)

        def ended(number: int, outcome: Outcome) -> None:
            nonlocal filling
            result = outcome.result
            answers = (-1.0, 0.0) if result is None else (result.label, result.confidence)
            load.done(number, np.array(answers, np.float32)[:, None])
            if not filling:
                filling = True
                loop.call_soon(fill)

        fill()
        await finished

    async def close(self) -> None:
        await self._pipeline.aclose()

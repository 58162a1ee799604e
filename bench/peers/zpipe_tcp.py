"""(z') zpipe without shared memory: every activation goes through TCP, as the other contenders' do."""

from __future__ import annotations

from dataclasses import replace

from bench.peers import zpipe_line
from bench.peers.work import Job


class Line(zpipe_line.Line):
    """The source is this process."""

    async def open(self, job: Job) -> None:
        await super().open(replace(job, shared_memory=False))

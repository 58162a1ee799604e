"""The source's process of one contender: `python -m bench.peers.source KEY JOB.json`; JSON lines in and out.

It says {"ready": true}, or {"unavailable": why} where its library is not here. Told {"warm_seconds": w, "seconds": s} it runs a
load and answers with its result. The end of its input is its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from bench.peers import contender
from bench.peers.load import Load
from bench.peers.work import Job, read_job
from zpipe.runtime import loops


async def obey(key: str, job: Job, said: Any) -> None:
    """Until nothing more is asked."""

    def say(**message: Any) -> None:
        print(json.dumps(message), file=said, flush=True)

    try:
        line = contender.make(key)
        await line.open(job)
    except (ImportError, contender.Unavailable) as exc:
        say(unavailable=str(exc))
        return
    try:
        say(ready=True)
        loop = asyncio.get_running_loop()
        while asked := await loop.run_in_executor(None, sys.stdin.readline):
            load = Load(job, batch=job.batch if line.batches else 1, **json.loads(asked))
            await line.drive(load)
            say(**load.result())
    finally:
        await line.close()


def main() -> None:
    # Libraries print: what is said to the driver has a way of its own.
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loops.run(obey(sys.argv[1], read_job(sys.argv[2]), said))


if __name__ == "__main__":
    main()

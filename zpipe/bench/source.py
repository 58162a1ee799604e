"""A further source of a bench, in a process of its own: `python -m zpipe.bench.source`, one JSON line at a time on its pipes.

It starts as `zpipe.runtime.child` does, told besides `offers`: what `Offering` needs. Then

    in   {"warm_up": 100}                                      samples
    out  {"warm": true}
    in   {"start_at": 123.4, "samples": 500, "seconds": 10.0}  on the monotonic clock, which all processes here share; null = no end
    out  {"done": 0.25}                                        now and then
    out  {"ended": true}                                       every sample has its outcome
    in   {"report": "/path"}                                   all sources have ended
    out  {"series": [...]}                                     its log lies there

and it answers other nodes' tasks and results until its standard input ends.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from pathlib import Path

from zpipe.bench.offering import Offering
from zpipe.load import SourceLoad, Span
from zpipe.runtime.child import Parent, as_source, live, parent, say


async def life() -> None:
    """The whole life of a further source."""
    by = await parent()
    offers = by.spec["offers"]
    async with as_source(by, **offers["pipeline"]) as pipeline:
        load = SourceLoad(**offers["load"])
        offering = Offering(pipeline, load, severity=offers["severity"], window=offers["window"])
        await by.while_there(_offer(by, offering))
        await by.gone.wait()


async def _offer(by: Parent, offering: Offering) -> None:
    await offering.warm_up((await by.message())["warm_up"])
    say({"warm": True})
    start = await by.message()
    started_at = start["start_at"]
    span = Span(*[math.inf if start[key] is None else start[key] for key in ("samples", "seconds")])
    await asyncio.sleep(started_at - time.monotonic())
    log = offering.begin()
    recording = asyncio.ensure_future(offering.record_series(started_at))
    try:
        await offering.run(log, span, started_at=started_at, shown=lambda done: say({"done": done}))
        say({"ended": True})
        file = (await by.message())["report"]
    finally:
        recording.cancel()
    log.save(Path(file))
    say({"series": offering.series.rows})


if __name__ == "__main__":
    sys.exit(live(life))

"""A robot's control loop at 30 Hz that never waits for the network, in an asyncio program.

    python -m zpipe.examples.control_loop [--topology line4.yaml] [--connect] [--seconds 10]

Each tick acts on the newest answer there is and hands the camera's frame to the pipeline, which answers when it can: `offer` does
not wait, the deadline gives a frame up after 100 ms, and `latest` keeps no queue: while all boards are busy, the newest frame takes
the place of the one that waits. So under overload, or while a board is gone, the answers get older and the period stays; what to do
with an old one is for `steer` to say.

Whatever else runs on the event loop has to be short, too: a camera that makes one wait belongs on a thread
(`asyncio.to_thread`), a loop that must not share its thread with anything into `control_loop_sync.py`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

import zpipe
from zpipe.examples.demo import Log, arguments, camera, told_in_a_line
from zpipe.examples.last_known import DEADLINE_SECONDS, SWITCH_SECONDS, Known, LastKnown, next_due

#: Gives the newest frame, at once.
Camera = Callable[[], npt.NDArray[Any]]
#: Given what is known (None before the first answer), when this tick was due and when it came, monotonic seconds.
Steer = Callable[[Known | None, float, float], None]


async def control(pipeline: zpipe.Pipeline, camera: Camera, steer: Steer, *, seconds: float) -> LastKnown:
    """Runs the loop for so long; returns what it knows at the end."""
    known = LastKnown()
    due = time.monotonic()
    end = due + seconds
    while due < end:
        await asyncio.sleep(due - time.monotonic())  # a turn of the loop where it is late
        now = time.monotonic()
        steer(known.newest, due, now)
        try:
            pipeline.offer(camera(), known.take, deadline=DEADLINE_SECONDS)
        except zpipe.PipelineClosed:
            pass  # the network is gone for good, the robot is not: `known` gets old, which `steer` sees
        due = next_due(due, now)
    return known


async def main() -> None:
    """The program: its camera shows the bundle's evaluation images."""
    chosen = arguments(__doc__)
    sys.setswitchinterval(SWITCH_SECONDS)
    options: dict[str, Any] = {"when_full": "latest", "deadline": DEADLINE_SECONDS}
    start = zpipe.Pipeline.connect if chosen.connect else zpipe.Pipeline.local
    async with start(chosen.topology, **options) as pipeline:
        log = Log()
        known = await control(pipeline, camera(pipeline.bundle), log.steer, seconds=chosen.seconds)
    log.close(known)


if __name__ == "__main__":
    with told_in_a_line():
        asyncio.run(main())

"""A robot's control loop at 30 Hz that never waits for the network, in a program without asyncio.

    python -m zpipe.examples.control_loop_sync [--topology line4.yaml] [--connect] [--seconds 10]

The loop of `control_loop.py`, on the program's own thread: the pipeline lives on another one, `offer` hands it a copy of the frame
and returns, and answers are taken on that thread.
"""

from __future__ import annotations

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


def control(pipeline: zpipe.SyncPipeline, camera: Camera, steer: Steer, *, seconds: float) -> LastKnown:
    """Runs the loop for so long; returns what it knows at the end."""
    known = LastKnown()
    due = time.monotonic()
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        steer(known.newest, due, now)
        try:
            pipeline.offer(camera(), known.take, deadline=DEADLINE_SECONDS)
        except zpipe.PipelineClosed:
            pass  # the network is gone for good, the robot is not: `known` gets old, which `steer` sees
        due = next_due(due, now)
    return known


def main() -> None:
    """The program: its camera shows the bundle's evaluation images."""
    chosen = arguments(__doc__)
    sys.setswitchinterval(SWITCH_SECONDS)
    options: dict[str, Any] = {"when_full": "latest", "deadline": DEADLINE_SECONDS}
    start = zpipe.SyncPipeline.connect if chosen.connect else zpipe.SyncPipeline.local
    with start(chosen.topology, **options) as pipeline:
        log = Log()
        known = control(pipeline, camera(pipeline.pipeline.bundle), log.steer, seconds=chosen.seconds)
    log.close(known)


if __name__ == "__main__":
    with told_in_a_line():
        main()

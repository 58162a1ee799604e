"""The control loop of the examples: what it knows, when it ticks, and that it goes on whatever the network does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import zpipe
from tests.runtime.mesh import HALF
from zpipe.examples import control_loop, control_loop_sync
from zpipe.examples.last_known import PERIOD_SECONDS, Known, LastKnown, next_due
from zpipe.topology import Topology, load_topology

#: A few ticks.
SHORT_SECONDS = 5 * PERIOD_SECONDS
ENDS = {"result", "rejected", "expired", "failed"}


def alone() -> Topology:
    return replace(load_topology("local"), bundle=str(HALF))


def answered(sample: int, label: int, *, latency: float = 0.02) -> zpipe.Outcome:
    result = zpipe.Result(sample, label, str(label), 0.9, 0, latency, 0.0, 0.0, 1)
    return zpipe.Outcome(sample, "result", latency, 1, result)


class Robot:
    """Its camera shows one frame after the other; it remembers what it was told."""

    def __init__(self) -> None:
        self.frames = 0
        self.ticks: list[tuple[Known | None, float, float]] = []

    def camera(self) -> npt.NDArray[Any]:
        self.frames += 1
        return np.full((3, 32, 32), self.frames % 256, np.uint8)

    def steer(self, known: Known | None, due: float, now: float) -> None:
        self.ticks.append((known, due, now))


# ---- what it knows, and when it ticks ----------------------------------------------------------


def test_answer_of_an_older_frame_changes_nothing() -> None:
    known = LastKnown()
    for outcome in (answered(3, 7), answered(2, 1), zpipe.Outcome(4, "expired", 0.1, 1)):
        known.take(outcome)
    assert known.newest is not None
    assert known.newest.result.label == 7
    assert known.ends == {"result": 2, "rejected": 0, "expired": 1, "failed": 0}


def test_answer_is_as_old_as_its_frame() -> None:
    before = time.monotonic()
    known = LastKnown()
    known.take(answered(0, 1, latency=0.06))
    assert known.newest is not None
    taken = known.newest.taken_at
    assert before - 0.06 <= taken <= time.monotonic() - 0.06
    assert known.newest.age_seconds(taken + 0.25) == pytest.approx(0.25)
    assert known.newest.fresh(taken + 0.09)
    assert not known.newest.fresh(taken + 0.11)


def test_ticks_stay_on_their_grid_and_missed_ones_are_left_out() -> None:
    period = PERIOD_SECONDS
    assert next_due(10.0, 10.0) == pytest.approx(10.0 + period)
    assert next_due(10.0, 10.0 + 0.9 * period) == pytest.approx(10.0 + period)
    assert next_due(10.0, 10.0 + 3.5 * period) == pytest.approx(10.0 + 4 * period)


# ---- with a pipeline ---------------------------------------------------------------------------


def test_every_frame_ends_and_the_answers_are_known() -> None:
    robot = Robot()

    async def main() -> LastKnown:
        async with zpipe.Pipeline.local(alone(), when_full="latest") as pipeline:
            return await control_loop.control(pipeline, robot.camera, robot.steer, seconds=SHORT_SECONDS)

    known = asyncio.run(main())
    assert sum(known.ends.values()) == robot.frames == len(robot.ticks) >= 1
    assert robot.ticks[0][0] is None
    assert all(now >= due for _, due, now in robot.ticks)


def test_every_frame_ends_without_asyncio() -> None:
    robot = Robot()
    with zpipe.SyncPipeline.local(alone(), when_full="latest") as pipeline:
        known = control_loop_sync.control(pipeline, robot.camera, robot.steer, seconds=SHORT_SECONDS)
    assert sum(known.ends.values()) == robot.frames == len(robot.ticks) >= 1


class Gone:
    """A pipeline that is closed after some frames, answered at once."""

    def __init__(self, frames: int) -> None:
        self._left = frames
        self._numbers = count()

    def offer(self, x: npt.NDArray[Any], done: Any, *, deadline: float) -> None:
        if not self._left:
            raise zpipe.PipelineClosed("it is")
        self._left -= 1
        done(answered(next(self._numbers), 5))


def test_loop_outlives_its_pipeline() -> None:
    robot = Robot()
    gone: Any = Gone(1)
    known = asyncio.run(control_loop.control(gone, robot.camera, robot.steer, seconds=SHORT_SECONDS))
    assert robot.frames == len(robot.ticks)
    assert known.ends["result"] == 1
    gone = Gone(0)
    assert control_loop_sync.control(gone, robot.camera, robot.steer, seconds=SHORT_SECONDS).newest is None


# ---- as programs -------------------------------------------------------------------------------


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"zpipe.examples.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["control_loop", "control_loop_sync"])
def test_program_runs(name: str) -> None:
    done = program(name, "--topology", "local", "--seconds", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    *_, kept, frames = done.stdout.splitlines()
    assert "with an answer of the last 100 ms" in kept
    assert frames.startswith("frames: ")
    assert {word.strip(",") for word in frames.split()[2::2]} <= ENDS


def test_program_says_in_a_line_what_is_wrong() -> None:
    done = program("control_loop", "--topology", "nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("topology 'nowhere.yaml': found no such file")
    assert len(done.stderr.splitlines()) == 1

"""What a live node takes beside computing and sending, measured from the traces of short live runs: the simulator's hop profile.

A ring of emulated boards at loads of its own - never the runs the simulator is compared with - on one machine, whose nodes share a
monotonic clock, so the moment a command was given at one node and the moment its event was decided on at another can be compared.
`forward` and `control` are that, over loopback; `finish` is how late a busy device's batch is told, against its absolute schedule,
and `start` what an idle one takes longer than that.

It is a property of a machine and of what else runs there: on two cores that others kept busy every part of it was two to four
times what the same cores had shown alone. So who compares live runs with simulated ones measures it beside them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zpipe.bench.options import BenchOptions
from zpipe.bench.run import run_bench
from zpipe.bundle import Bundle, load_bundle
from zpipe.devices import load_device, service_seconds
from zpipe.executors.emulated import GRACE_SECONDS, Schedule
from zpipe.policy.messages import (
    Command,
    CreditReceived,
    Event,
    Forward,
    GrantCredit,
    ResultReceived,
    RunStage,
    SendResults,
    StageCompleted,
    TaskReceived,
)
from zpipe.service import Spread
from zpipe.sim import HopProfile
from zpipe.topology import Topology, from_dict
from zpipe.trace import read_rounds, trace_file

DEVICE = "raspberry-pi-4/2"
QUANTILES = 40
#: Rounds of the first second are left out: caches and sockets warm up.
WARM_UP_SECONDS = 1.0
#: Of one look: half of what the ring's stages without exits carry, which is 47 a second. Its frames and batches are some hundreds.
LOOK_HZ, LOOK_SECONDS = 24.0, 8.0
#: Sizes of frames that fewer have than this say nothing of what a byte costs.
LEAST_OF_A_SIZE = 30

_BUNDLE = "digits-mobilenetv2"
#: A message's name at both ends.
_Name = tuple[Any, ...]


def ring() -> Topology:
    """It has every cut of the bundle, and no topology that the simulator is compared with looks like it."""
    stages = ([0, 3], [1, 4], [2])
    nodes = [{"rank": rank, "stages": hosted, "executor": "emulated", "device": DEVICE} for rank, hosted in enumerate(stages)]
    return from_dict({"name": "hop", "bundle": _BUNDLE, "nodes": nodes, "links": "ring", "source": 0})


async def record(folder: Path, *, rate_hz: float, seconds: float, seed: int) -> None:
    """One live run of the ring with a trace of every node."""
    options = BenchOptions(
        topology=ring(), rate_hz=rate_hz, duration=seconds, seed=seed, warm_up=20, exit_point="no-exit", trace=folder
    )
    await run_bench(options, progress=lambda line, done: None)


async def look(*, seed: int) -> HopProfile:
    """The profile of this machine as it is now, from some ten seconds."""
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="zpipe-hop-") as folder:
        await record(Path(folder), rate_hz=LOOK_HZ, seconds=LOOK_SECONDS, seed=seed)
        measured.take(Path(folder))
    return measured.profile()


class Measured:
    """Differences found in the traces, in seconds.

    Attributes:
        forward: (payload bytes, seconds) of each frame of tasks.
        control: of each message of the control plane.
        busy, idle: how late the end of a batch was told, where the device was busy when it got it, and where it was not.
    """

    def __init__(self) -> None:
        self.forward: list[tuple[int, float]] = []
        self.control: list[float] = []
        self.busy: list[float] = []
        self.idle: list[float] = []

    def take(self, folder: Path) -> None:
        """Adds one run."""
        bundle = load_bundle(_BUNDLE, verify=False)
        rounds: dict[int, list[Any]] = {node.rank: list(read_rounds(trace_file(folder, node.rank))) for node in ring().nodes}
        begins = max(trace[0][0] for trace in rounds.values()) + WARM_UP_SECONDS
        sent: dict[_Name, tuple[float, int]] = {}
        for trace in rounds.values():
            for now, _, commands in trace:
                for name, size in _sendings(commands, bundle):
                    sent.setdefault(name, (now, size))
            self._device(trace, begins, bundle)
        for rank, trace in rounds.items():
            for now, events, _ in trace:
                for name in _arrivals(rank, events):
                    then, size = sent.get(name, (0.0, 0))
                    if then >= begins:
                        (self.forward.append((size, now - then)) if size else self.control.append(now - then))

    def profile(self) -> HopProfile:
        """What was found so far."""
        slope = per_byte(self.forward)
        return HopProfile(
            forward=Spread(quantiles([seconds - slope * size for size, seconds in self.forward])),
            forward_seconds_per_byte=slope,
            start=Spread((max(0.0, statistics.median(self.idle) - statistics.median(self.busy)),)),
            finish=Spread(quantiles(self.busy)),
            control=Spread(quantiles(self.control)),
            grace_seconds=GRACE_SECONDS,
        )

    def _device(self, trace: list[Any], begins: float, bundle: Bundle) -> None:
        """How late each batch was told of, against the schedule its device kept."""
        device, schedule = load_device(DEVICE), Schedule()
        running: tuple[float, float, bool] | None = None
        for now, events, commands in trace:
            waited = any(isinstance(event, StageCompleted) for event in events)
            if waited and running is not None:
                started, done_at, was_busy = running
                if started >= begins:
                    (self.busy if was_busy else self.idle).append(now - done_at)
            for command in commands:
                if isinstance(command, RunStage):
                    busy = waited or now <= schedule.free_at + GRACE_SECONDS / 2.0
                    seconds = service_seconds(device, bundle.stages[command.stage], len(command.tasks))
                    running = (now, schedule.take(seconds, now=now, waited=waited), busy)


def _sendings(commands: list[Command], bundle: Bundle) -> Iterator[tuple[_Name, int]]:
    """A name for each message, and its payload's bytes (0 on the control plane)."""
    for command in commands:
        if isinstance(command, Forward):
            first = command.tasks[0]
            yield ("task", command.peer, command.epoch, first.number), len(command.tasks) * bundle.stages[command.stage].input.bytes
        elif isinstance(command, GrantCredit):
            yield ("credit", command.peer, command.credit.epoch, command.credit.expected, command.credit.limit), 0
        elif isinstance(command, SendResults):
            yield ("result", command.peer, command.rows[0].key), 0


def _arrivals(rank: int, events: list[Event]) -> Iterator[_Name]:
    for event in events:
        if isinstance(event, TaskReceived):
            yield ("task", rank, event.epoch, event.tasks[0].number)
        elif isinstance(event, CreditReceived):
            yield ("credit", rank, event.credit.epoch, event.credit.expected, event.credit.limit)
        elif isinstance(event, ResultReceived):
            yield ("result", rank, event.rows[0].key)


def per_byte(forward: list[tuple[int, float]]) -> float:
    """Slope of the medians by size; sizes with few frames are left out."""
    by_size: dict[int, list[float]] = {}
    for size, seconds in forward:
        by_size.setdefault(size, []).append(seconds)
    points = [(size, statistics.median(seconds)) for size, seconds in by_size.items() if len(seconds) >= LEAST_OF_A_SIZE]
    if len(points) < 2:
        return 0.0
    return max(0.0, statistics.linear_regression([p[0] for p in points], [p[1] for p in points]).slope)


def quantiles(values: list[float]) -> tuple[float, ...]:
    """From the least to the largest but one in a thousand: one stall of the machine is not a property of a hop."""
    ordered = sorted(max(0.0, value) for value in values)
    ordered = ordered[: max(1, round(0.999 * len(ordered)))]
    return tuple(round(ordered[round(place * (len(ordered) - 1) / QUANTILES)], 7) for place in range(QUANTILES + 1))

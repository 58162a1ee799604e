"""What a live node takes beside computing and sending, measured from the traces of a short live run: the simulator's hop profile.

    python -m bench.hop [--parallel 4]     a minute; writes bench/results/hop.json

A ring of emulated boards at loads of its own - never the runs the simulator is compared with - on one machine, whose nodes share a
monotonic clock, so the moment a command was given at one node and the moment its event was decided on at another can be compared.
`forward` and `control` are that, over loopback; `finish` is how late a busy device's batch is told, against its absolute schedule,
and `start` what an idle one takes longer than that. `--parallel`: so many such rings at a time, for a profile of a machine as busy
as it is when that many runs share it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.bundle import load_bundle
from zpipe.devices import load_device, service_seconds
from zpipe.executors.emulated import GRACE_SECONDS, Schedule
from zpipe.policy.messages import (
    CreditReceived,
    Forward,
    GrantCredit,
    ResultReceived,
    RunStage,
    SendResults,
    StageCompleted,
    TaskReceived,
)
from zpipe.report import machine
from zpipe.topology import Topology, from_dict
from zpipe.trace import read_rounds, trace_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "hop.json"
DEVICE = "raspberry-pi-4/2"
QUANTILES = 40
#: A light and a busy ring; its stages without exits carry 47 a second at most.
RATES_HZ = (12.0, 36.0)
#: Rounds of the first second are left out: caches and sockets warm up.
WARM_UP_SECONDS = 1.0


def topology() -> Topology:
    """A ring: it has every cut of the bundle, and no topology that the simulator is compared with looks like it."""
    stages = ([0, 3], [1, 4], [2])
    nodes = [{"rank": rank, "stages": hosted, "executor": "emulated", "device": DEVICE} for rank, hosted in enumerate(stages)]
    return from_dict({"name": "hop", "bundle": "digits-mobilenetv2", "nodes": nodes, "links": "ring", "source": 0})


def record(folder: Path, rate_hz: float, seed: int) -> None:
    """One live run with a trace of every node."""
    options = BenchOptions(
        topology=topology(), rate_hz=rate_hz, duration=12.0, seed=seed, warm_up=20, exit_point="no-exit", trace=folder
    )
    asyncio.run(run_bench(options, progress=lambda line, done: None))


class Measured:
    """Differences found in the traces, in seconds."""

    def __init__(self) -> None:
        self.forward: list[tuple[int, float]] = []  #: (payload bytes, seconds)
        self.control: list[float] = []
        self.busy: list[float] = []
        self.idle: list[float] = []

    def take(self, folder: Path) -> None:
        """Adds one run."""
        bundle = load_bundle("digits-mobilenetv2", verify=False)
        rounds = {node.rank: list(read_rounds(trace_file(folder, node.rank))) for node in topology().nodes}
        begins = max(trace[0][0] for trace in rounds.values()) + WARM_UP_SECONDS
        sent: dict[tuple[Any, ...], tuple[float, int]] = {}
        for rank, trace in rounds.items():
            for now, _, commands in trace:
                for name, size in _sendings(rank, commands, bundle):
                    sent.setdefault(name, (now, size))
            self._device(trace, begins, bundle)
        for rank, trace in rounds.items():
            for now, events, _ in trace:
                for name in _arrivals(rank, events):
                    then, size = sent.get(name, (0.0, 0))
                    if then >= begins:
                        (self.forward.append((size, now - then)) if size else self.control.append(now - then))

    def _device(self, trace: list[Any], begins: float, bundle: Any) -> None:
        """How late each batch was told of, against the schedule its device kept."""
        device, schedule = load_device(DEVICE), Schedule()
        running: tuple[float, float, bool] | None = None
        for now, events, commands in trace:
            waited = any(isinstance(event, StageCompleted) for event in events)
            for event in events:
                if isinstance(event, StageCompleted) and running is not None:
                    started, done_at, was_busy = running
                    if started >= begins:
                        (self.busy if was_busy else self.idle).append(now - done_at)
            for command in commands:
                if isinstance(command, RunStage):
                    busy = waited or now <= schedule.free_at + GRACE_SECONDS / 2.0
                    seconds = service_seconds(device, bundle.stages[command.stage], len(command.tasks))
                    running = (now, schedule.take(seconds, now=now, waited=waited), busy)


def _sendings(rank: int, commands: list[Any], bundle: Any) -> Iterator[tuple[tuple[Any, ...], int]]:
    """A name for each message, and its payload's bytes (0 on the control plane)."""
    for command in commands:
        if isinstance(command, Forward):
            first = command.tasks[0]
            yield ("task", command.peer, command.epoch, first.number), len(command.tasks) * bundle.stages[command.stage].input.bytes
        elif isinstance(command, GrantCredit):
            yield ("credit", command.peer, command.credit.epoch, command.credit.expected, command.credit.limit), 0
        elif isinstance(command, SendResults):
            yield ("result", command.peer, command.rows[0].key), 0


def _arrivals(rank: int, events: list[Any]) -> Iterator[tuple[Any, ...]]:
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
    points = [(size, statistics.median(seconds)) for size, seconds in by_size.items() if len(seconds) >= 30]
    if len(points) < 2:
        return 0.0
    return max(0.0, statistics.linear_regression([p[0] for p in points], [p[1] for p in points]).slope)


def quantiles(values: list[float]) -> list[float]:
    """From the least to the largest but one in a thousand: one stall of the machine is not a property of a hop."""
    ordered = sorted(max(0.0, value) for value in values)
    ordered = ordered[: max(1, round(0.999 * len(ordered)))]
    return [round(ordered[round(place * (len(ordered) - 1) / QUANTILES)], 7) for place in range(QUANTILES + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parallel", type=int, default=1)
    measure(parallel=parser.parse_args().parallel)


def measure(*, parallel: int) -> None:
    """Measures, writes RESULTS and prints."""
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(parallel) as pool:
        for load, rate_hz in enumerate(RATES_HZ):
            folders = [Path(folder) / f"{load}-{run}" for run in range(parallel)]
            list(pool.map(record, folders, [rate_hz] * parallel, range(parallel)))
            for traces in folders:
                measured.take(traces)
    slope = per_byte(measured.forward)
    start = max(0.0, statistics.median(measured.idle) - statistics.median(measured.busy))
    profile = {
        "schema": "zpipe.hop/1",
        "forward": quantiles([seconds - slope * size for size, seconds in measured.forward]),
        "forward_seconds_per_byte": slope,
        "start": [start],
        "finish": quantiles(measured.busy),
        "control": quantiles(measured.control),
        "grace_seconds": GRACE_SECONDS,
        "machine": machine(),
        "commit": commit(),
        "command": f"python -m bench.hop --parallel {parallel}",
        "messages": {
            "forward": len(measured.forward),
            "control": len(measured.control),
            "batches": len(measured.busy) + len(measured.idle),
        },
    }
    RESULTS.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
    for key in ("forward", "finish", "control"):
        values = [1e6 * seconds for seconds in profile[key]]
        print(
            f"{key:<8} us: median {statistics.median(values):6.0f}   mean {statistics.fmean(values):6.0f}, most {values[-1]:6.0f}"
        )
    print(f"start    us: {1e6 * start:.0f}   per byte ns: {1e9 * slope:.3f}   {profile['messages']}")


if __name__ == "__main__":
    main()

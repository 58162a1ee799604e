"""Lines and a mesh of live nodes whose stages are emulated: how much of what their boards could do gets through.

    python -m bench.scale line        lines of 1 to 8 nodes, a stage of 20 ms each
    python -m bench.scale mesh        16 nodes, all linked, the whole network on each in stages of 160 ms, one source

Processes, sockets, policy and codec are real; a stage sleeps by an absolute schedule, as the emulated executor's do
(`zpipe.executors.emulated`), so many boards fit on few cores as long as these are not the bottleneck: how busy they were is
printed, by these nodes and by all that ran on the machine. A line of N is held against N times what one node does with all N
stages, by the stages' times 1 / 20 ms; a mesh against the stages it could run if no node ever waited. Batches of one, which is
where every hand-over counts. Figures are medians of rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from bench.peers.spin import INPUT_BYTES, write_bundle
from zpipe import Pipeline
from zpipe.bundle import Bundle
from zpipe.executors import GateSpec, StageOutput, undecided
from zpipe.executors.emulated import Schedule, SystemClock
from zpipe.model import Outcome
from zpipe.runtime.loops import run
from zpipe.topology import from_dict

LINE_SECONDS = 0.020
#: Eight times as long: 16 nodes take two cores three quarters of their time with stages of 40 ms, and 58 % with 80.
MESH_SECONDS = 0.160
#: What the digits bundle's later cuts take.
ACTIVATION_BYTES = 16 * 1024
LINES = range(1, 9)
MESH_NODES, MESH_STAGES = 16, 4
#: Samples under way for each node: no executor waits for them.
WINDOW_PER_NODE = 8
WARM_UP_SECONDS = 3.0
#: Of a line, and of the mesh: there more samples are half done at either end of the measured time.
LINE_RUN_SECONDS, MESH_RUN_SECONDS = 5.0, 32.0
ROUNDS = 3
#: What issue 7 wants; and above this share of the cores boards are not emulated but delayed.
LEAST_LINE, LEAST_MESH, MOST_BUSY = 0.95, 0.90, 0.50


class SleepExecutor:
    """Stages that take their seconds per row, as `bench.peers.spin` writes them, by a device's absolute schedule."""

    inline = False

    def __init__(self, bundle: Bundle, stages: Sequence[int]) -> None:
        self.stages = tuple(sorted(stages))
        self._specs = bundle.stages
        self._seconds = {stage: float(bundle.stage_path(stage).read_text(encoding="utf-8")) for stage in self.stages}
        self._schedule, self._clock = Schedule(), SystemClock()

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return dict(self._seconds)

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        now, cpu = self._clock.now(), time.thread_time()
        spec, rows = self._specs[stage], len(inputs)
        seconds = rows * self._seconds[stage]
        done_at = self._schedule.take(seconds, now=now)
        activation = None
        if spec.output is None:
            exited, labels, confidences = [True] * rows, [0] * rows, [1.0] * rows
        else:
            activation = np.zeros((rows, *spec.output.shape), np.uint8)
            exited, labels, confidences = undecided(stage, rows, gate)
        self._clock.sleep_until(done_at)
        return StageOutput(activation, exited, labels, confidences, seconds, time.thread_time() - cpu)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run did while it was measured.

    Attributes:
        hz: results a second.
        own_busy, all_busy: share of the cores, by these nodes and by everything on the machine.
    """

    hz: float
    own_busy: float
    all_busy: float


async def measure(topology: dict[str, Any], nodes: int, seconds: float) -> Seen:
    """A closed loop; what ends between two looks at the clock counts."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (64, INPUT_BYTES)).astype(np.uint8)
    ended, failed, stopping = 0, 0, False
    async with Pipeline.local(from_dict(topology)) as pipeline:
        loop = asyncio.get_running_loop()
        open_samples, idle = 0, loop.create_future()

        def offer() -> None:
            nonlocal open_samples
            if not stopping and not failed and pipeline.has_room:
                open_samples += 1
                pipeline.offer(inputs[pipeline.next_sample % len(inputs)], done)

        def done(outcome: Outcome) -> None:
            nonlocal ended, failed, open_samples
            open_samples -= 1
            ended += 1
            failed += outcome.result is None
            loop.call_soon(offer)  # not from within the policy's round
            if stopping and not open_samples:
                idle.set_result(None)

        for _ in range(WINDOW_PER_NODE * nodes):
            offer()
        await asyncio.sleep(WARM_UP_SECONDS)
        before, cpu, began = ended, _cpu(await pipeline.stats()), time.monotonic()
        psutil.cpu_percent()
        await asyncio.sleep(seconds)
        took, counted, all_busy = time.monotonic() - began, ended - before, psutil.cpu_percent() / 100.0
        own = _cpu(await pipeline.stats()) - cpu
        stopping = True
        await idle
    if failed:
        raise SystemExit(f"found {failed} of {ended} samples without a result, expected none")
    return Seen(counted / took, own / took / (psutil.cpu_count() or 1), all_busy)


def _cpu(stats: Iterable[dict[str, Any]]) -> float:
    return sum(node["cpu_seconds"] for node in stats)


def _topology(bundle: Path, stages: Sequence[Sequence[int]], **rest: Any) -> dict[str, Any]:
    nodes = [
        {"rank": rank, "stages": list(hosted), "executor": "bench.scale_live:SleepExecutor", "max_batch": 1}
        for rank, hosted in enumerate(stages)
    ]
    source = {"rank": 0, "admission": "fixed"}
    return {"name": "scale", "bundle": str(bundle), "nodes": nodes, "source": source, **rest}


def _once(stages: Sequence[Sequence[int]], *, stage_seconds: float, seconds: float, **rest: Any) -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "chain"
        write_bundle(bundle, spin_seconds=stage_seconds, activation_bytes=ACTIVATION_BYTES, count=max(map(max, stages)) + 1)
        return run(measure(_topology(bundle, stages, **rest), len(stages), seconds))


def _row(seen: Sequence[Seen], bound_hz: float) -> dict[str, Any]:
    shares = [each.hz / bound_hz for each in seen]
    return {
        "hz": statistics.median(each.hz for each in seen),
        "bound_hz": bound_hz,
        "share": {"median": statistics.median(shares), "low": min(shares), "high": max(shares)},
        "cores_busy": statistics.median(each.own_busy for each in seen),
        "machine_busy": statistics.median(each.all_busy for each in seen),
    }


def _show(name: str, row: dict[str, Any], wanted: float) -> None:
    share = row["share"]
    delayed = "" if row["machine_busy"] <= MOST_BUSY else "  (too busy: delayed, not emulated)"
    print(
        f"  {name:<10}{row['hz']:>8.2f} of {row['bound_hz']:>6.1f} Hz{share['median']:>8.1%} [{share['low']:.1%}, "
        f"{share['high']:.1%}]  wanted >= {wanted:.0%}; cores {row['cores_busy']:.0%} busy by these nodes, "
        f"{row['machine_busy']:.0%} in all{delayed}",
        flush=True,
    )


def line() -> dict[str, Any]:
    """Live lines of 1 to 8 nodes with a stage of 20 ms each: throughput of N-fold that of one node with all N stages."""
    seen: dict[int, list[Seen]] = {nodes: [] for nodes in LINES}
    once = partial(_once, stage_seconds=LINE_SECONDS, seconds=LINE_RUN_SECONDS)
    for _ in range(ROUNDS):
        for nodes in LINES:
            seen[nodes].append(once([[stage] for stage in range(nodes)], links="line" if nodes > 1 else []))
    found = {str(nodes): _row(each, 1.0 / LINE_SECONDS) for nodes, each in seen.items()}
    for nodes, row in found.items():
        _show(f"{nodes} nodes", row, LEAST_LINE)
    least = min(row["share"]["median"] for row in found.values())
    return {**_about(LINE_SECONDS, LINE_RUN_SECONDS), "wanted": LEAST_LINE, "least": least, "nodes": found}


def mesh() -> dict[str, Any]:
    """A live mesh of 16 nodes, all linked, each with all 4 stages of 160 ms, one source: throughput of what its boards could do."""
    once = partial(_once, [range(MESH_STAGES)] * MESH_NODES, stage_seconds=MESH_SECONDS, seconds=MESH_RUN_SECONDS)
    policy = {"offload": "mdi", "offload_input": "yes", "exit": "no-exit"}
    row = _row([once(links="mesh", policy=policy) for _ in range(ROUNDS)], MESH_NODES / (MESH_STAGES * MESH_SECONDS))
    _show("16 nodes", row, LEAST_MESH)
    return {**_about(MESH_SECONDS, MESH_RUN_SECONDS), "wanted": LEAST_MESH, **row}


def _about(stage_seconds: float, seconds: float) -> dict[str, Any]:
    stages = {"stage_seconds": stage_seconds, "activation_bytes": ACTIVATION_BYTES, "max_batch": 1}
    return {**stages, "rounds": ROUNDS, "seconds": seconds}

"""How long each stage takes on this device and what memory it needs, as a node would run it: `zpipe profile`.

Each stage runs in a process of its own, with the executor a node would use, on activations that real samples give there.

*Paced* times are taken with a pause before each batch, so that caches and clock are as on a board that also receives, decodes and
sends: a stage that takes 1 ms in a tight loop may take three when it runs a hundred times a second. Planner and simulator use
these.
*Tight* times are back to back, for people: the least that is possible.

*Memory* of a stage is what a second copy of it adds once it has run its largest batch: the first brings the engine's libraries with
it, which a node has once, however many stages it hosts. The rest is the process's own.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import ConfigError, ExecutorError, one_line
from zpipe.executors import StageExecutor, make_executor
from zpipe.model import NEVER_EXIT, GateSpec
from zpipe.report.machine import machine
from zpipe.service import SERVICE_SCHEMA

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]

#: A batch starts so often at most: a hundred times a second, as on a board with a camera.
PACE_SECONDS = 0.01
#: So many batches at least, however long one takes; and the least time for all of one size.
LEAST_BATCHES, SECONDS = 8, 0.4
#: Up to here every batch size is measured, beyond powers of two and the largest.
EVERY_SIZE = 8
QUANTILES = 20
#: The longest of twenty is left out: a stall of the machine is no property of a stage.
KEPT = 0.95
#: A stage that says nothing for so long hangs.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class StageProfile:
    """What one stage took here.

    Attributes:
        stage: which.
        paced, tight: {rows: seconds of each batch, rising}.
        process_bytes: of the process, its libraries and an engine without stages.
        added_bytes: what the stage adds.
    """

    stage: int
    paced: dict[int, list[float]]
    tight: dict[int, list[float]]
    process_bytes: int
    added_bytes: int


def profile_stages(
    bundle: Bundle,
    *,
    executor: str = "onnx",
    max_batch: int = 8,
    seconds: float = SECONDS,
    progress: Progress = lambda line, done: None,
) -> list[StageProfile]:
    """Measures every stage of a bundle.

    Args:
        bundle: a real one with an evaluation set.
        executor: as a topology names it; `emulated` would only repeat its profile.
        max_batch: the largest batch.
        seconds: for each batch size, paced; tight takes as many batches.
        progress: told what is measured.

    Raises:
        ConfigError: there is no such executor, or the bundle has no samples.
        ExecutorError: a stage could not be run.
    """
    if executor == "emulated":
        raise ConfigError("--executor: found emulated, expected one that computes; its times stand in zpipe/devices.yaml")
    inputs = stage_inputs(bundle, max_batch)
    sizes = batch_sizes(max_batch)
    found = []
    for stage in range(len(bundle.stages)):
        progress(f"stage {stage}", stage / len(bundle.stages))
        found.append(_in_a_process(bundle.path, executor, stage, inputs[stage], sizes, seconds))
    return found


def batch_sizes(largest: int) -> list[int]:
    """Those that are measured: every one while they are few."""
    if largest <= EVERY_SIZE:
        return list(range(1, largest + 1))
    powers = [2**power for power in range(largest.bit_length()) if 2**power < largest]
    return [*powers, largest]


def stage_inputs(bundle: Bundle, rows: int) -> list[npt.NDArray[Any]]:
    """Per stage `[rows, *shape]`: what real samples give at its entrance when nobody exits.

    Raises:
        ConfigError: the bundle has no samples.
    """
    if bundle.evaluation_file is None:
        raise ConfigError(f"bundle {bundle.name}: found no evaluation set, expected one: stages are measured on real samples")
    images = bundle.evaluation().images
    entering = images[np.arange(rows) * max(1, len(images) // rows) % len(images)]
    gate = GateSpec("max-probability", 1.0, (NEVER_EXIT,) * rows)
    inputs = []
    executor = make_executor("onnx", bundle, range(len(bundle.stages)))
    try:
        for chain in bundle.chains:
            tensor: Any = entering
            for stage in chain:
                inputs.append(np.ascontiguousarray(tensor))
                tensor = executor.run(stage, tensor, gate).activation
    finally:
        executor.close()
    return inputs


# ---- in the stage's own process ----------------------------------------------------------------


def _in_a_process(
    bundle: Path, executor: str, stage: int, inputs: npt.NDArray[Any], sizes: Sequence[int], seconds: float
) -> StageProfile:
    """Runs `measure_stage` in a new interpreter, so that neither memory nor threads of others are there."""
    here, there = multiprocessing.Pipe(duplex=False)
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=_child, args=(there, bundle, executor, stage, inputs, list(sizes), seconds), daemon=True)
    child.start()
    there.close()
    try:
        patience = PATIENCE_SECONDS + 10.0 * seconds * len(sizes)
        found = here.recv() if here.poll(patience) else f"nothing within {patience:.0f} s"
    except EOFError:
        child.join()
        found = f"that its process ended with exit code {child.exitcode}"
    finally:
        here.close()
        child.kill()
        child.join()
    if isinstance(found, StageProfile):
        return found
    raise ExecutorError(f"stage {stage}: found {found}, expected it measured by executor {executor}")


def _child(
    answers: Connection, bundle: Path, executor: str, stage: int, inputs: npt.NDArray[Any], sizes: list[int], seconds: float
) -> None:
    try:
        import zpipe.runtime.node  # noqa: F401 - so that the process is as large as a node

        answers.send(measure_stage(load_bundle(bundle, verify=False), executor, stage, inputs, sizes, seconds))
    except Exception as exc:  # whatever an executor raises
        answers.send(one_line(str(exc) or type(exc).__name__))


def measure_stage(
    bundle: Bundle,
    executor: str,
    stage: int,
    inputs: npt.NDArray[Any],
    sizes: Sequence[int],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> StageProfile:
    """Memory first, then times, by increasing batches.

    Args:
        bundle: with the stage.
        executor: as a topology names it.
        stage: which.
        inputs: `[largest batch, ...]`.
        sizes: of batches.
        seconds: for each size, paced.
        clock, sleep: the host's, unless a test has its own.
    """
    process = psutil.Process()
    runs = _warm(bundle, executor, stage, inputs)
    try:
        first = process.memory_info().rss
        second = _warm(bundle, executor, stage, inputs)
        added = max(0, process.memory_info().rss - first)
        second.close()
        paced, tight = {}, {}
        for rows in sizes:
            paced[rows] = _paced(runs, bundle, stage, inputs[:rows], seconds, clock, sleep)
            tight[rows] = sorted(_run(runs, bundle, stage, inputs[:rows]) for _ in paced[rows])
    finally:
        runs.close()
    return StageProfile(stage, paced, tight, first - added, added)


def _warm(bundle: Bundle, executor: str, stage: int, inputs: npt.NDArray[Any]) -> StageExecutor:
    """An executor that has run its largest batch."""
    runs = make_executor(executor, bundle, [stage])
    runs.warm_up(len(inputs))
    _run(runs, bundle, stage, inputs)
    return runs


def _paced(
    runs: StageExecutor,
    bundle: Bundle,
    stage: int,
    inputs: npt.NDArray[Any],
    seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[float]:
    """Seconds of each batch, rising; each starts at a tick of the pace, and after a pause as long as itself at least."""
    found: list[float] = []
    ends = clock() + seconds
    while len(found) < LEAST_BATCHES or clock() < ends:
        sleep(max(PACE_SECONDS - (found[-1] if found else 0.0), found[-1] if found else 0.0))
        found.append(_run(runs, bundle, stage, inputs))
    return sorted(found)


def _run(runs: StageExecutor, bundle: Bundle, stage: int, inputs: npt.NDArray[Any]) -> float:
    """As a node counts it: engine and gate."""
    head = bundle.stages[stage].exit_head
    gate = GateSpec(
        "max-probability",
        head.temperature if head else 1.0,
        (NEVER_EXIT,) * len(inputs),
        last=bundle.stages[stage].output is None,
        scores=bool(bundle.students),
    )
    return runs.run(stage, inputs, gate).wall_seconds


# ---- as a document -----------------------------------------------------------------------------


def to_document(bundle: Bundle, executor: str, found: Sequence[StageProfile], links: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `zpipe.service` reads, with where it comes from."""
    return {
        "schema": SERVICE_SCHEMA,
        "bundle": bundle.name,
        "digest": bundle.digest,
        "executor": executor,
        "machine": machine(),
        "pace": {"seconds": PACE_SECONDS, "kept": KEPT},
        "stages": {str(each.stage): {str(rows): quantiles(times) for rows, times in each.paced.items()} for each in found},
        "tight": {str(each.stage): {str(rows): quantiles(times) for rows, times in each.tight.items()} for each in found},
        "memory": {
            "process": statistics.median(each.process_bytes for each in found),
            "stages": {str(each.stage): each.added_bytes for each in found},
        },
        "macs": {str(spec.index): spec.macs for spec in bundle.stages},
        "links": list(links),
    }


def quantiles(times: Sequence[float]) -> list[float]:
    """Evenly spaced, from the least of rising times to the largest that is kept."""
    kept = times[: max(1, math.ceil(KEPT * len(times)))]
    return [round(kept[round(place * (len(kept) - 1) / QUANTILES)], 8) for place in range(QUANTILES + 1)]

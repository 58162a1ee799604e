"""Stages that use a fixed CPU time and write an activation of a fixed size, and the bundle that zpipe needs to host them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import MANIFEST, SCHEMA, Bundle, file_digest
from zpipe.executors import GateSpec, StageOutput, undecided

STAGES = 4
#: As much as a small camera image; it enters at the source and never travels.
INPUT_BYTES = 4096
CLASSES = 256
#: Spinning is done in few calls, the first of them a little too short: this much of what is left.
_SHARE = 0.95


class SpinExecutor:
    """Stages of which each takes its time per sample, by this thread's CPU clock, and adds 1 to every byte.

    CPU time rather than the clock: what is preempted has not worked meanwhile. The time is spent in OpenSSL without the GIL, as
    an engine's would be. The last stage's label depends on every byte.

    Args:
        bundle: of `write_bundle`; a stage's file says how many seconds it takes.
        stages: hosted ones.
    """

    inline = True

    def __init__(self, bundle: Bundle, stages: Sequence[int]) -> None:
        self.stages = tuple(sorted(stages))
        self._specs = bundle.stages
        self._seconds = {stage: float(bundle.stage_path(stage).read_text(encoding="utf-8")) for stage in self.stages}
        self._rate_hz = _iterations_per_second()

    def warm_up(self, max_batch: int) -> dict[int, float]:
        for stage in self.stages:
            spec = self._specs[stage]
            gate = GateSpec("max-probability", 1.0, (1.0,) * max_batch, last=spec.output is None)
            self.run(stage, np.zeros((max_batch, *spec.input.shape), np.uint8), gate)
        return dict(self._seconds)

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        wall, cpu = time.perf_counter(), time.thread_time()
        spec, rows = self._specs[stage], len(inputs)
        activation, labels = None, [-1] * rows
        if spec.output is None:
            labels = [_label(row) for row in inputs]
            exited, confidences = [True] * rows, [1.0] * rows
        else:
            activation = np.empty((rows, *spec.output.shape), np.uint8)
            np.add(inputs[:, None, :], np.uint8(1), out=activation.reshape(rows, -1, inputs.shape[1]))
            exited, _, confidences = undecided(stage, rows, gate)
        self._spin_until(cpu + rows * self._seconds[stage])
        cpu = time.thread_time() - cpu
        wall = time.perf_counter() - wall
        return StageOutput(activation, exited, labels, confidences, wall, cpu)

    def close(self) -> None:
        pass

    def _spin_until(self, when: float) -> None:
        while (left := when - time.thread_time()) > 0.0:
            hashlib.pbkdf2_hmac("sha256", b"spin", b"spin", max(1, int(_SHARE * left * self._rate_hz)))


def _label(row: npt.NDArray[np.uint8]) -> int:
    """0..255, of all bytes; the copies of the input in a large activation must not cancel each other."""
    total = int(np.add.reduce(row.view(np.uint64)))  # overflows wrap
    return (total * 0x9E3779B97F4A7C15 >> 56) & 0xFF


def _iterations_per_second() -> float:
    started, iterations = time.thread_time(), 20_000
    hashlib.pbkdf2_hmac("sha256", b"spin", b"spin", iterations)
    return iterations / (time.thread_time() - started)


def write_bundle(folder: Path, *, spin_seconds: float, activation_bytes: int, count: int = STAGES) -> None:
    """A bundle of `count` such stages; its files hold no network but the seconds each takes."""
    folder.mkdir(parents=True)
    shapes = [INPUT_BYTES] + [activation_bytes] * (count - 1)
    stages = []
    for stage in range(count):
        name = f"stage{stage}.txt"
        (folder / name).write_text(f"{spin_seconds!r}\n", encoding="utf-8")
        last = stage == count - 1
        stages.append(
            {
                "file": name,
                "input": {"dtype": "uint8", "shape": [shapes[stage]]},
                "output": None if last else {"dtype": "uint8", "shape": [shapes[stage + 1]]},
                "activation_bytes": 0 if last else shapes[stage + 1],
                "macs": 1,
                "exit": {"classes": CLASSES, "temperature": 1.0} if last else None,
            }
        )
    metrics = {"accuracy": 1.0, "exit_shares": [0.0] * (count - 1) + [1.0], "mean_macs": float(count)}
    point = {"name": "whole", "thresholds": [1.0] * count, "calibration": metrics, "test": metrics}
    manifest = {
        "schema": SCHEMA,
        "name": "spin",
        "classes": [str(label) for label in range(CLASSES)],
        "preprocessing": None,
        "stages": stages,
        "operating_points": [point],
        "default_operating_point": "whole",
        "evaluation": None,
        "replay": None,
        "digests": {stage["file"]: file_digest(folder / str(stage["file"])) for stage in stages},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

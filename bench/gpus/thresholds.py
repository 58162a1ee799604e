"""Thresholds that let half of what arrives at each exit leave there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle
from zpipe.executors.base import StageExecutor
from zpipe.model import NEVER_EXIT, GateSpec


def median_thresholds(executor: StageExecutor, bundle: Bundle, inputs: npt.NDArray[np.uint8], *, batch: int) -> tuple[float, ...]:
    """One threshold per stage so that half of what arrives at each leaves there, as these inputs and this executor have it."""
    arriving: npt.NDArray[np.generic] = inputs
    thresholds = []
    for spec in bundle.stages[:-1]:
        outputs = [_held(executor, bundle, spec.index, arriving[start : start + batch]) for start in range(0, len(arriving), batch)]
        confidences = np.concatenate([confidences for confidences, _ in outputs])
        activation = np.concatenate([rows for _, rows in outputs])
        if spec.exit_head is None:
            thresholds.append(NEVER_EXIT)
            arriving = activation
            continue
        threshold = np.median(confidences)
        thresholds.append(float(threshold))
        arriving = activation[confidences < threshold]
    return (*thresholds, 0.0)


def _held(
    executor: StageExecutor, bundle: Bundle, stage: int, rows: npt.NDArray[np.generic]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.generic]]:
    """Confidences and activation of a batch that nobody leaves."""
    output = executor.run(stage, rows, gate_of(bundle, stage, (NEVER_EXIT,) * len(bundle.stages), len(rows)))
    return np.array(output.confidences, np.float32), np.asarray(output.activation)


def gate_of(bundle: Bundle, stage: int, thresholds: Sequence[float], rows: int) -> GateSpec:
    """The gate of a stage for so many rows; `thresholds`: one per stage."""
    spec = bundle.stages[stage]
    temperature = 1.0 if spec.exit_head is None else spec.exit_head.temperature
    return GateSpec("max-probability", temperature, (thresholds[stage],) * rows, last=spec.output is None)

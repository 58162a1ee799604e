"""Bytes over PCIe of one batch through one stage, half of its rows leaving: what crosses, and what would without compaction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.gpus.backends import Backend, Tally
from zpipe.bundle import Bundle
from zpipe.executors.base import sample_inputs
from zpipe.executors.cuda.gate import decisions_bytes
from zpipe.model import NEVER_EXIT, GateSpec


@dataclass(frozen=True, slots=True)
class Crossing:
    """One stage.

    Attributes:
        survivors: rows of the batch that went on.
        to_host: bytes copied to the host.
        expected: survivors x activation bytes + 16 + 16 x batch (that alone at the last stage).
        uncompacted: with all rows, which is what leaves a GPU whose gate is on the CPU, but for the logits.
        to_device: bytes copied to the device.
    """

    stage: int
    batch: int
    survivors: int
    to_host: int
    expected: int
    uncompacted: int
    to_device: int


def crossing(backend: Backend, bundle: Bundle, stage: int, batch: int) -> Crossing:
    """Runs one stage that is hosted alone, so that all that goes on has to leave the device."""
    spec, tally = bundle.stages[stage], Tally()
    executor = backend.executor(bundle, [stage], tally=tally)
    try:
        executor.warm_up(batch)
        inputs: npt.NDArray[np.generic] = sample_inputs(spec, batch)
        before = (tally.to_device, tally.to_host)
        output = executor.run(stage, inputs, _half(bundle, stage, batch))
        if output.activation is not None:
            np.asarray(output.activation)
        to_device, to_host = tally.to_device - before[0], tally.to_host - before[1]
    finally:
        executor.close()
    survivors = output.exited.count(False)
    activation = 0 if spec.output is None else spec.output.bytes
    decisions = 0 if spec.exit_head is None else decisions_bytes(batch)
    return Crossing(stage, batch, survivors, to_host, survivors * activation + decisions, batch * activation + decisions, to_device)


def _half(bundle: Bundle, stage: int, batch: int) -> GateSpec:
    """Every other row leaves, where there is a head."""
    spec = bundle.stages[stage]
    if spec.exit_head is None:
        return GateSpec("max-probability", 1.0, (NEVER_EXIT,) * batch)
    thresholds = tuple((0.0, NEVER_EXIT)[row % 2] for row in range(batch))
    return GateSpec("max-probability", spec.exit_head.temperature, thresholds, last=spec.output is None)

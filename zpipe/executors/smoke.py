"""A first look at an executor: does it say of a few samples what is known of them?

Run before an executor is trusted with a node's stages: an engine that loads can still be wrong, for a driver, a precision or a
device it was never tried on. Every executor is looked at in the same way, whichever of the stages it hosts:

1. A few evaluation samples go through the stages in ONNX Runtime, so that each hosted stage gets the input it would get in a chain
   without any mistake; one wrong stage is then named alone. Without an evaluation set the samples are noise.
2. Each hosted stage runs them in one batch. Every other row is let out and the rest held: so gate, decisions and what is left of
   the activation are looked at in the same run.
3. Labels and confidences are compared with the bundle's replay, or with ONNX Runtime where there is none; activations with ONNX
   Runtime's, row by row for those that go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zpipe.executors.base import StageExecutor, StageOutput, make_executor, sample_inputs
from zpipe.model import NEVER_EXIT, GateSpec, StageSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

#: Samples looked at, evenly spread over the evaluation set: at least two of each fate in every stage.
SAMPLES = 8
#: What a confidence may be off, and an activation in parts of its largest value, by what the executor computes in. float32 on
#: another device is off by 1e-4. Converted stages of the digits bundles are by 0.0014 (fp16), 0.016 (bf16) and 0.062 (int8) at most
#: on 200 samples, one stage at a time in ONNX Runtime; deep nets in float16 by ten times that. A wrong engine is by tenths.
TOLERANCES = {"fp32": 0.01, "fp16": 0.03, "bf16": 0.06, "int8": 0.15}


@dataclass(frozen=True, slots=True)
class _Expected:
    """What one stage should make of its input.

    Attributes:
        inputs: `[samples, *shape]`.
        labels, confidences: `[samples]`; None where the stage has no exit head.
        activation: `[samples, *shape]`; None at the last stage.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    confidences: npt.NDArray[np.float32] | None
    activation: npt.NDArray[Any] | None


def smoke(
    executor: StageExecutor, bundle: Bundle, *, samples: int = SAMPLES, batch: int = SAMPLES, tolerance: float | None = None
) -> str | None:
    """Runs a few evaluation samples through each hosted stage and compares with what is known of them.

    Args:
        executor: any, for any of the bundle's stages; it stays open.
        bundle: a real one, not an emulation.
        samples: how many to look at.
        batch: rows of a run; no more than the executor's engines take.
        tolerance: see `TOLERANCES`; if not given, that of the executor's attribute `precision`, fp32 where it has none.

    Returns:
        None where all agrees, else one line that says what differs first.

    Raises:
        ZpipeError: what the executor raised when it ran, or the bundle when it was read.
    """
    if tolerance is None:
        tolerance = TOLERANCES[getattr(executor, "precision", "fp32")]
    for stage, expected in _expectations(bundle, executor.stages, samples).items():
        spec = bundle.stages[stage]
        for start in range(0, len(expected.inputs), batch):
            rows = slice(start, start + batch)
            inputs = expected.inputs[rows]
            gate = _gate(spec, tuple((0.0, NEVER_EXIT)[row % 2] for row in range(len(inputs))))
            output = executor.run(stage, inputs, gate)
            differs = _difference(spec, expected, rows, gate, output, tolerance)
            if differs is not None:
                return f"stage {stage}: {differs}"
    return None


# ---- what is expected --------------------------------------------------------------------------


def _expectations(bundle: Bundle, stages: tuple[int, ...], samples: int) -> dict[int, _Expected]:
    """{hosted stage: what it should do}, ascending."""
    chosen = np.unique(np.linspace(0, max(bundle.evaluation_samples - 1, 0), samples).astype(int))
    known = bundle.evaluation_file is not None and bundle.evaluation_samples > 0
    replay = bundle.replay() if known and bundle.replay_file is not None else None
    entering: Any = bundle.evaluation().images[chosen] if known else sample_inputs(bundle.stages[0], samples)
    inputs, firsts = entering, {chain[0] for chain in bundle.chains}
    expected = {}
    reference = make_executor("onnx", bundle, range(max(stages) + 1))
    try:
        for stage in reference.stages:
            spec = bundle.stages[stage]
            inputs = entering if stage in firsts else inputs
            output = reference.run(stage, inputs, _gate(spec, (NEVER_EXIT,) * len(inputs)))
            if stage in stages:
                labels, confidences = np.array(output.labels), np.array(output.confidences, np.float32)
                if replay is not None:
                    labels, confidences = replay.labels[chosen, stage].astype(np.int64), replay.confidences[chosen, stage]
                decided = spec.exit_head is not None
                activation = None if output.activation is None else np.asarray(output.activation)
                expected[stage] = _Expected(inputs, labels if decided else None, confidences if decided else None, activation)
            inputs = output.activation
    finally:
        reference.close()
    return expected


def _gate(spec: StageSpec, thresholds: tuple[float, ...]) -> GateSpec:
    temperature = 1.0 if spec.exit_head is None else spec.exit_head.temperature
    return GateSpec("max-probability", temperature, thresholds, last=spec.output is None)


# ---- what differs ------------------------------------------------------------------------------


def _difference(
    spec: StageSpec, expected: _Expected, rows: slice, gate: GateSpec, output: StageOutput, tolerance: float
) -> str | None:
    """The first of: who exits, what the head says, what goes on."""
    exits = [spec.exit_head is not None and (gate.last or threshold < NEVER_EXIT) for threshold in gate.thresholds]
    if output.exited != exits:
        return f"found exits {_bits(output.exited)}, expected {_bits(exits)}"
    if expected.labels is not None and expected.confidences is not None:
        said = _decision_difference(expected.labels[rows], expected.confidences[rows], output, tolerance)
        if said is not None:
            return said
    if expected.activation is None:
        return None if output.activation is None else "found an activation, expected none from the last stage"
    return _activation_difference(expected.activation[rows], np.array(exits), output, tolerance)


def _decision_difference(
    labels: npt.NDArray[np.int64], confidences: npt.NDArray[np.float32], output: StageOutput, tolerance: float
) -> str | None:
    off = np.abs(np.array(output.confidences, np.float32) - confidences)
    # A NaN compares as no: so it is "not within", never "not beyond".
    if not (off <= tolerance).all():
        row = int(np.argmax(~(off <= tolerance)))
        return f"found confidence {output.confidences[row]:.4f} in row {row}, expected {confidences[row]:.4f} within {tolerance:g}"
    # Whoever holds more than half by that much is the first, however the rest is shared out.
    clear = confidences > 0.5 + tolerance
    wrong = clear & (np.array(output.labels) != labels)
    if wrong.any():
        row = int(np.argmax(wrong))
        return f"found label {output.labels[row]} in row {row}, expected {labels[row]} (confidence {confidences[row]:.4f})"
    return None


def _activation_difference(
    expected: npt.NDArray[Any], exits: npt.NDArray[np.bool_], output: StageOutput, tolerance: float
) -> str | None:
    """An executor may give all rows, or those alone that go on."""
    found: npt.NDArray[Any] = np.asarray(output.activation)
    survivors = expected[~exits]
    if found.dtype != expected.dtype or found.shape not in (expected.shape, survivors.shape):
        return f"found activation {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    going = found[~exits] if len(found) == len(expected) else found
    if not len(survivors):
        return None
    off = np.abs(going.astype(np.float32) - survivors.astype(np.float32)).reshape(len(survivors), -1).max(axis=1)
    allowed = tolerance * max(float(np.abs(survivors.astype(np.float32)).max()), 1e-6)
    if not (off <= allowed).all():
        row = int(np.argmax(~(off <= allowed)))
        return f"found row {row} of the activation off by {off[row]:.4g}, expected ONNX Runtime's within {allowed:.4g}"
    return None


def _bits(flags: list[bool]) -> str:
    return "".join("x" if flag else "-" for flag in flags)

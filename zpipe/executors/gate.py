"""The exit gate: which rows of a batch are sure enough to leave here.

One formula in float32, the same on every device (the CUDA gate follows this file step by step):

1. `z = logits / temperature`; `d = z - max(z)`; `e = exp(d)`; `s = sum(e)`.
2. Confidence, in 0..1 and growing with certainty:
   - `max-probability`: `1 / s`, since the largest probability is `exp(0) / s`;
   - `margin`: `(1 - e2) / s`, where e2 is the second largest of e;
   - `entropy`: `1 - H / log(classes)` with `H = log(s) - sum(e * d) / s`.
3. A row exits when `confidence >= threshold` and `threshold < NEVER_EXIT`, both rounded to float32 (as they travel on the wire).
   At the last stage every row exits.
4. A row with NaN or infinity among its logits (or among these over the temperature) never exits; its label is the arg max
   with NaN read as minus infinity, its confidence 0. At the last stage nothing can answer it: the batch fails.

The label is the arg max of the raw logits (the first of equals): the temperature cannot change an answer.

There is one code path for every batch size, and every step works along rows only. So a row's decision is the same to the last bit
whatever shares its batch; a special case for one row in plain Python floats would have been 3 µs faster and could have
flipped a decision beside its threshold.

Source: calibrated exits (arXiv:2010.16335) for the temperature; entropy as in BranchyNet (arXiv:1709.01686), normalised here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError
from zpipe.model import NEVER_EXIT, GateRule, GateSpec

Floats = npt.NDArray[np.float32]

#: Below this exponent float32's exp is 0 (its smallest value is e^-103.3); it also keeps 0 * -inf out of the entropy.
_LEAST_EXPONENT = np.float32(-120.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class GateDecision(NamedTuple):
    """One entry per row, plain Python values (they go into policy events)."""

    exited: list[bool]
    labels: list[int]
    confidences: list[float]


def evaluate_gate(logits: npt.NDArray[Any], gate: GateSpec) -> GateDecision:
    """Decide for each row whether it exits, with which label and how sure.

    Args:
        logits: raw, `[batch, classes]` float32 or float16, classes >= 1.
        gate: its `thresholds` hold one value per row; at the last stage they are not read.

    Raises:
        ExecutorError: the shape of logits, the number of thresholds or the temperature is wrong, or at the last stage a row has
            logits that are not finite.
    """
    raw = np.ascontiguousarray(logits, dtype=np.float32)
    _check(raw, gate)
    labels = raw.argmax(axis=1)
    with np.errstate(all="ignore"):  # infinities are legal input here, logits' and thresholds', and handled below
        scaled = raw / np.float32(gate.temperature)
        finite = np.isfinite(scaled)
        confidence = _confidence(scaled, gate.rule)
        exited = _exits(confidence, gate)
    if not finite.all():  # rare, so the ordinary batch pays for one look only
        bad = ~finite.all(axis=1)
        if gate.last:
            row = int(bad.argmax())
            raise ExecutorError(not_finite(row, int(np.isfinite(raw[row]).sum()), raw.shape[1]))
        labels[bad] = np.where(np.isnan(raw[bad]), -np.inf, raw[bad]).argmax(axis=1)
        confidence[bad] = 0.0
        exited[bad] = False
    return GateDecision(exited.tolist(), labels.tolist(), confidence.tolist())


def recorded_decision(labels: npt.NDArray[Any], confidences: Floats, gate: GateSpec) -> GateDecision:
    """Decide rows whose label and confidence are known beforehand: rule 3 on them, as `evaluate_gate` does it.

    Args:
        labels: `[batch]`, any whole type.
        confidences: `[batch] float32`, recorded with the gate's own rule and temperature.
        gate: as for `evaluate_gate`.

    Raises:
        ExecutorError: the number of thresholds is wrong.
    """
    check_rows(len(confidences), gate)
    with np.errstate(over="ignore"):
        exited = _exits(confidences, gate)
    return GateDecision(exited.tolist(), labels.tolist(), confidences.tolist())


def wanted_scores(logits: npt.NDArray[Any], gate: GateSpec) -> Floats | None:
    """The raw logits `[batch, classes] float32` where the gate asks for them, else None."""
    return np.ascontiguousarray(logits, dtype=np.float32) if gate.scores else None


def undecided(stage: int, batch: int, gate: GateSpec) -> GateDecision:
    """What a stage without an exit head says of its rows: they all go on.

    Raises:
        ExecutorError: the gate wants all rows to leave here.
    """
    if gate.last:
        raise ExecutorError(f"stage {stage}: found no exit head, expected one where all rows must leave; check the GateSpec")
    return GateDecision([False] * batch, [-1] * batch, [0.0] * batch)


def check_rows(rows: int, gate: GateSpec) -> None:
    """Refuse a gate for another number of rows.

    Raises:
        ExecutorError: names both.
    """
    if not gate.last and len(gate.thresholds) != rows:
        found = f"{len(gate.thresholds)} thresholds for {rows} rows"
        raise ExecutorError(f"gate: found {found}, expected one per row; the GateSpec belongs to another batch")


def not_finite(row: int, finite: int, classes: int) -> str:
    """What rule 4 says at the last stage of the first bad row and how many of its logits are finite."""
    found = f"{finite} of {classes} logits finite in row {row}"
    return f"gate: found {found}, expected all where every row must be answered; look at this sample's input"


def check_temperature(temperature: float) -> None:
    """Refuse one that logits cannot be divided by.

    Raises:
        ExecutorError: names it.
    """
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ExecutorError(f"gate: found temperature {temperature}, expected a finite number > 0; check the bundle's manifest")


def _check(logits: Floats, gate: GateSpec) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ExecutorError(
            f"gate: found logits of shape {list(logits.shape)}, expected [batch, classes]; check the stage's exit head"
        )
    check_rows(len(logits), gate)
    check_temperature(gate.temperature)


def _exits(confidence: Floats, gate: GateSpec) -> npt.NDArray[np.bool_]:
    """Rule 3, for rows whose logits are finite. A threshold beyond float32 becomes an infinity, with a warning if not silenced."""
    if gate.last:
        return np.ones(len(confidence), dtype=np.bool_)
    thresholds = np.array(gate.thresholds, dtype=np.float32)
    return (confidence >= thresholds) & (thresholds < np.float32(NEVER_EXIT))


def _confidence(scaled: Floats, rule: GateRule) -> Floats:
    """Rules 1 and 2: `[batch]` float32 in 0..1; overwrites `scaled` with `d`; without meaning for rows that are not finite."""
    distance = np.subtract(scaled, np.maximum.reduce(scaled, axis=1, keepdims=True), out=scaled)
    exponential = np.exp(distance)
    total: Floats = np.add.reduce(exponential, axis=1)
    classes = scaled.shape[1]
    if rule == "max-probability":
        return np.reciprocal(total)
    if classes == 1:  # one class leaves no doubt, and log(1) = 0 cannot normalise
        return np.ones_like(total)
    if rule == "margin":
        second: Floats = np.partition(exponential, classes - 2, axis=1)[:, classes - 2]
        return (_ONE - second) / total
    weighted: Floats = np.add.reduce(exponential * np.maximum(distance, _LEAST_EXPONENT), axis=1) / total
    certainty = _ONE - (np.log(total) - weighted) / np.float32(math.log(classes))
    # Rounding takes equal logits to -1e-7 and a certain row to 1 + 1e-7. np.clip would take 2.4 µs where these two take 1.0.
    clipped: Floats = np.minimum(np.maximum(certainty, _ZERO), _ONE)
    return clipped

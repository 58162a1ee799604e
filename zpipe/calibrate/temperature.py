"""Temperatures: none, one for all exits, or one per exit, fitted on calibration logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from zpipe.calibrate.metrics import Answers, Bools, Floats, Ints, fit_temperature
from zpipe.model import NEVER_EXIT

#: Source: arXiv:2010.16335 compares these three.
Variant = Literal["none", "global", "per-exit"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


def fit_variant(variant: Variant, logits: Floats, truth: Ints) -> tuple[float, ...]:
    """One temperature per exit from calibration logits `[samples, exits, classes]` and labels `[samples]`.

    `global` minimises the summed negative log likelihood of all exits' answers (our reading), `per-exit` that of each.
    """
    exits = int(logits.shape[1])
    match variant:
        case "none":
            return (1.0,) * exits
        case "global":
            return (fit_temperature(logits.reshape(-1, logits.shape[2]), np.repeat(truth, exits)),) * exits
        case "per-exit":
            return tuple(fit_temperature(logits[:, index], truth) for index in range(exits))


def by_stage(answers: Answers, heads: Sequence[bool]) -> Answers:
    """Answers with one column per exit head to one column per stage; a stage without a head answers nothing, and is never sure.

    Args:
        answers: arrays `[samples, exits]`.
        heads: per stage, whether it has an exit head.
    """
    if all(heads):
        return answers
    columns = np.flatnonzero(heads)
    shape = (len(answers.labels), len(heads))
    labels, confidences, right = np.full(shape, -1, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    labels[:, columns], confidences[:, columns], right[:, columns] = answers.labels, answers.confidences, answers.right
    return Answers(labels, confidences, right)


def thresholds_by_stage(threshold: float, heads: Sequence[bool]) -> tuple[float, ...]:
    """One threshold for all exits; nothing leaves at a stage without a head."""
    return tuple(threshold if head else NEVER_EXIT for head in heads)


def left_early(exits: Ints, stages: int) -> Bools:
    """Which samples `[samples]` left before the last stage."""
    return np.asarray(exits < stages - 1)

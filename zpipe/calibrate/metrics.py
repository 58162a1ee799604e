"""Confidence, temperature and how well they fit: all of it works on logits already computed.

Samples that show one original image (a digit, say) are not independent, so every interval resamples originals, not samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: Equal-width bins of the expected calibration error, as is usual (Guo et al., arXiv:1706.04599).
ECE_BINS = 15

#: Resamples of a bootstrap, and its two-sided level.
BOOTSTRAP_DRAWS, BOOTSTRAP_LEVEL = 2000, 0.95

#: Standard deviations of a normal distribution that hold BOOTSTRAP_LEVEL of it.
NORMAL_QUANTILE = 1.959964

#: Searched range of a temperature: outside of it a head is broken, not miscalibrated.
TEMPERATURE_RANGE = (0.05, 20.0)


@dataclass(frozen=True, slots=True)
class Answers:
    """What every exit says: labels `[samples, exits] int64`, confidences `[samples, exits] float32`, right `[...] bool`."""

    labels: Ints
    confidences: Floats
    right: Bools


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


# ---- confidence and temperature ----------------------------------------------------------------


def max_probability(logits: Floats, temperature: float) -> Floats:
    """The gate's formula in float32: max softmax(logits / temperature) over the last axis."""
    scaled = logits / np.float32(temperature)
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(powers.max(-1) / powers.sum(-1), np.float32)


def answers_of(logits: Floats, temperatures: Sequence[float], truth: Ints) -> Answers:
    """Labels and confidences from logits `[samples, exits, classes]`, one temperature per exit."""
    confidences = [max_probability(logits[:, index], temperature) for index, temperature in enumerate(temperatures)]
    labels = logits.argmax(-1)
    return Answers(labels, np.stack(confidences, 1), labels == truth[:, None])


def negative_log_likelihood(logits: Floats, truth: Ints, temperature: float) -> float:
    """Mean over samples, natural logarithm; logits `[samples, classes]`."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(-1, keepdims=True)
    picked = np.take_along_axis(scaled, truth[:, None], 1)[:, 0]
    return float((np.log(np.exp(scaled).sum(-1)) - picked).mean())


def fit_temperature(logits: Floats, truth: Ints) -> float:
    """The temperature that minimises the negative log likelihood: golden section over its logarithm.

    The likelihood is convex in 1/temperature, so that a search over one valley finds it. Where every answer is right there is no
    minimum, ever lower temperatures only fit better: 1 is left. Source: Guo et al., arXiv:1706.04599.
    """
    if bool((logits.argmax(-1) == truth).all()):
        return 1.0
    ratio = (5**0.5 - 1) / 2
    low, high = (float(np.log(bound)) for bound in TEMPERATURE_RANGE)
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        at_left = negative_log_likelihood(logits, truth, float(np.exp(left)))
        if at_left < negative_log_likelihood(logits, truth, float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def reliability(confidences: Floats, right: Bools) -> tuple[Ints, Doubles, Doubles]:
    """The bins of a reliability diagram: samples, mean confidence and accuracy of each `[bins]`; NaN where a bin is empty."""
    bins = np.minimum((confidences * ECE_BINS).astype(int), ECE_BINS - 1)
    counts = np.bincount(bins, minlength=ECE_BINS)
    sums = (np.bincount(bins, weights=values.astype(float), minlength=ECE_BINS) for values in (confidences, right))
    filled = np.where(counts > 0, counts, np.nan)
    mean, accuracy = (values / filled for values in sums)
    return counts, mean, accuracy


def area_under_curve(confidences: Floats, right: Bools) -> float | None:
    """AUROC of "this answer is right": how often a right answer is surer than a wrong one, ties count half; both `[samples]`.

    Calibration alone does not promise good ranking. None where all answers are right, or all wrong.
    """
    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return None
    # The mean rank of equal confidences: half of them count as below.
    _, position, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[position][right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(confidences: Floats, right: Bools) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, 0..1; both `[samples]`."""
    bins = np.minimum((confidences * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = np.bincount(bins, weights=right.astype(float) - confidences, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(confidences))


# ---- intervals ---------------------------------------------------------------------------------


def bootstrap(values: npt.NDArray[np.generic], groups: Ints) -> Interval:
    """Mean of `values [samples]` with an interval over resampled groups (digits). Repeatable: its seed is fixed."""
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, weights=values.astype(np.float64))
    sizes = np.bincount(member).astype(np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sums), (BOOTSTRAP_DRAWS, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - BOOTSTRAP_LEVEL) / 2, (1 + BOOTSTRAP_LEVEL) / 2])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))


def capped_bootstrap(right: Bools, groups: Ints) -> Interval:
    """Accuracy of `right [samples]` with its bootstrap interval, which may not close where nothing, or everything, went wrong.

    A bootstrap cannot draw a mistake that is not there: of one right answer it makes 100..100 %. So it comes no closer to 1 (or 0)
    than as many originals, all right (all wrong), would let Wilson's interval come.
    """
    drawn = bootstrap(right, groups)
    originals = len(np.unique(groups))
    return Interval(
        drawn.value, min(drawn.low, wilson_interval(1.0, originals)[0]), max(drawn.high, wilson_interval(0.0, originals)[1])
    )


def accuracy_interval(right: Bools, groups: Ints) -> Interval:
    """The same for what is to be promised: where each original gives one sample, Wilson's interval if that is wider.

    Of few samples a bootstrap's low end lies too high (of 40, at 95 %, above the truth in one of eight draws). Where an original
    gives several samples only the bootstrap knows how much these depend on each other.
    """
    drawn = capped_bootstrap(right, groups)
    if len(np.unique(groups)) < len(right):
        return drawn
    low, high = wilson_interval(drawn.value, len(right))
    return Interval(drawn.value, min(drawn.low, low), max(drawn.high, high))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Where a probability may lie of which `count` independent samples showed `share`: its ends at the level of the bootstrap.

    Source: Wilson (1927).
    """
    square = NORMAL_QUANTILE**2
    middle = share + square / (2 * count)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    scale = 1 + square / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

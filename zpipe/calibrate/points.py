"""Operating points: where samples leave under given thresholds, and what that costs and brings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zpipe.calibrate.metrics import Answers, Bools, Floats, Interval, Ints, bootstrap
from zpipe.calibrate.temperature import thresholds_by_stage
from zpipe.model import NEVER_EXIT, PointMetrics

#: One threshold for all exits. Thresholds searched per exit on calibration lost more on other writers (a trial). Dense towards 1:
#: at 0.99 the 96-pixel network still loses 2 of 3,000 calibration samples, at 0.998 none at 0.59 of the compute.
THRESHOLD_LADDER = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)

NO_EXIT = "no-exit"


def exit_of(confidences: Floats, thresholds: Sequence[float]) -> Ints:
    """The stage at which each sample leaves: `[samples]` from confidences `[samples, exits]`; the last exit takes the rest."""
    limits = np.asarray(thresholds, np.float32)
    leaves = (confidences >= limits) & (limits < NEVER_EXIT)
    leaves[:, -1] = True
    return np.asarray(leaves.argmax(1), np.int64)


def right_at(answers: Answers, thresholds: Sequence[float]) -> Bools:
    """Whether each sample is answered rightly where it leaves, `[samples]`."""
    return np.asarray(np.take_along_axis(answers.right, exit_of(answers.confidences, thresholds)[:, None], 1)[:, 0])


def measure_point(answers: Answers, thresholds: Sequence[float], stage_macs: Sequence[int]) -> PointMetrics:
    """What these thresholds give on these samples."""
    exits = exit_of(answers.confidences, thresholds)
    shares = np.bincount(exits, minlength=len(stage_macs)) / len(exits)
    spent = np.cumsum(stage_macs)[exits]
    return PointMetrics(float(right_at(answers, thresholds).mean()), tuple(float(share) for share in shares), float(spent.mean()))


def threshold_vectors(heads: Sequence[bool]) -> dict[str, tuple[float, ...]]:
    """Every operating point of the ladder by name, cheapest first; `heads`: per stage, whether it has an exit head."""
    ladder = {f"t{format_threshold(threshold)}": thresholds_by_stage(threshold, heads) for threshold in THRESHOLD_LADDER}
    return {**ladder, NO_EXIT: (NEVER_EXIT,) * len(heads)}


def format_threshold(threshold: float) -> str:
    """At least two decimals, and no zeros beyond them: 0.90, 0.998."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:g}"


def choose_default(points: dict[str, PointMetrics], vectors: dict[str, tuple[float, ...]], *, least: float) -> str:
    """The cheapest point that loses nothing on calibration against `no-exit`, among thresholds of at least `least`.

    Zero slack and a floor, because a threshold chosen with half a point of slack lost up to 2.1 points on other writers.
    """
    for name, thresholds in vectors.items():
        if min(thresholds) >= least and points[name].accuracy >= points[NO_EXIT].accuracy:
            return name
    return NO_EXIT


def accuracy_lost(answers: Answers, thresholds: Sequence[float], groups: Ints) -> Interval:
    """Accuracy of the last exit minus that at these thresholds, paired by sample: fraction, negative when exits win."""
    difference = answers.right[:, -1].astype(np.float64) - right_at(answers, thresholds)
    return bootstrap(difference, groups)

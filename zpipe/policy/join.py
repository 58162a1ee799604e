"""The joining classifier: what several students say together (rule F2; RoCoIn, arXiv:2406.14185).

It is linear, so each student's own share of it lies in the student: what comes back is `W_p f_p`, one score per class, and the sum
over the parts, plus the bias, are the logits. A part that is missing is a sum without it, which the classifier was trained for.
"""

from __future__ import annotations

import math
import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: No logit is that large: what is beyond it is damage or a lie, and a sum of it might be no number.
MOST_SCORE = 1e30


def read_scores(data: bytes, classes: int) -> tuple[float, ...] | None:
    """A student's scores `[classes] float32`, little-endian; None where it is not so many, or one of them is no sane number."""
    if len(data) != 4 * classes:
        return None
    scores = array("f", data)
    if sys.byteorder == "big":
        scores.byteswap()
    return tuple(scores) if all(-MOST_SCORE < score < MOST_SCORE for score in scores) else None


def join(scores: Mapping[int, Sequence[float]], bias: Sequence[float], temperatures: Sequence[float]) -> tuple[int, float]:
    """The label, and its probability as calibrated for just the parts that are in.

    Sums are float32 in the order of the parts, whatever the order they came in, so that a label is the same on every machine.

    Args:
        scores: {part: one float32 per class}, at least one.
        bias: of the classifier, per class.
        temperatures: one per set of parts, as bits.
    """
    parts = sorted(scores)
    logits: Sequence[float] = scores[parts[0]]
    for other in (*[scores[part] for part in parts[1:]], bias):
        logits = array("f", [one + more for one, more in zip(logits, other, strict=True)])  # a double's sum, rounded: float32's own
    temperature = temperatures[sum([1 << part for part in parts])]
    most = max(logits)
    return logits.index(most), 1.0 / sum([math.exp((logit - most) / temperature) for logit in logits])

"""Means over seeds, with what is known of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = list[float]  #: [mean, half of the 95 % interval]; the half is 0 where one value is all there is


def interval(values: Sequence[float]) -> Interval:
    """Mean and half of its 95 % confidence interval (Student's t): values over seeds are taken as independent."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return [mean, 0.0]
    from scipy.special import stdtrit

    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return [mean, float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)]

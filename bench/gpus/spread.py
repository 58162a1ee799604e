"""Median and range of what was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TypedDict


class Spread(TypedDict):
    """As it goes into the JSON."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    numbers = [float(value) for value in values]
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}

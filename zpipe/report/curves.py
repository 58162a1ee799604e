"""The report's curves: how latencies spread, and what the bundle's operating points give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zpipe.model import OperatingPoint

#: Where a latency curve is told: every fiftieth of the answers, and finely where few are slow.
SHARES = (*(step / 50 for step in range(50)), 0.99, 0.995, 0.999, 1.0)


def latency_curve(columns: Mapping[str, np.ndarray[Any, Any]], answered: np.ndarray[Any, Any], stages: int) -> dict[str, Any]:
    """Latencies that given shares of the answers do not exceed.

    Args:
        columns: of the log.
        answered: `[samples] bool`, those that have a result.
        stages: how many.

    Returns:
        `shares`, 0..1; `ms`, the latency at each, [] without answers; `exits`, the same of the answers from each stage alone.
    """
    latency, stage = 1e3 * columns["latency"], columns["stage"]
    exits = [_at_shares(latency[answered & (stage == index)]) for index in range(stages)]
    return {"shares": list(SHARES), "ms": _at_shares(latency[answered]), "exits": exits}


def _at_shares(values: np.ndarray[Any, Any]) -> list[float]:
    """Rounded to a microsecond: the curve is to be drawn."""
    return [round(float(value), 3) for value in np.quantile(values, SHARES)] if len(values) else []


def point_rows(points: Sequence[OperatingPoint], macs: int) -> list[dict[str, Any]]:
    """The operating points: their share of the whole network's `macs`, and their accuracy on both splits."""
    return [
        {
            "name": point.name,
            "macs_share": point.test.mean_macs / macs,
            "calibration": point.calibration.accuracy,
            "test": point.test.accuracy,
        }
        for point in points
    ]

"""The report's `series`: how sources let samples in, over time; live and simulated runs record it alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zpipe.policy import NodePolicy

#: How often a row is recorded, at first.
STEP_SECONDS = 0.1
#: Rows kept: above it every second one is dropped and the step doubles, so a long run stays readable.
MOST_ROWS = 1200


class AdmissionSeries:
    """Rows of the sources' admission state; of several sources the sums, and the mean operating point.

    Args:
        nodes: the policies at which samples enter.

    Attributes:
        rows: #: one dict per step, at most MOST_ROWS.
        step_seconds: until the next row is due.
    """

    def __init__(self, nodes: Sequence[NodePolicy]) -> None:
        self.rows: list[dict[str, Any]] = []
        self.step_seconds = STEP_SECONDS
        self._nodes = [(node, node.source) for node in nodes if node.source is not None]
        self._admitted = self._results = 0

    def record(self, t: float) -> None:
        """A row, `t` seconds after the start of the run."""
        sources = [source for _, source in self._nodes]
        elapsed = t - self.rows[-1]["t"] if self.rows else math.inf
        admitted = sum(source.counts.admitted for source in sources)
        results = sum(source.counts.results for source in sources)
        points = [source.admission.point for source in sources]
        self.rows.append(
            {
                "t": round(t, 4),
                "admitted_hz": round((admitted - self._admitted) / elapsed, 2),
                "result_hz": round((results - self._results) / elapsed, 2),
                "queue": sum(node.input_length + node.output_length for node, _ in self._nodes),
                "waiting": sum(source.waiting_count for source in sources),
                "in_flight": sum(source.in_flight for source in sources),
                "point": points[0] if len(points) == 1 else sum(points) / len(points),
                "window": _sum([source.admission.window_samples for source in sources]),
                "rate_hz": _sum([source.admission.rate_hz for source in sources]),
            }
        )
        self._admitted, self._results = admitted, results
        if len(self.rows) >= MOST_ROWS:
            self.rows = self.rows[::2]
            self.step_seconds *= 2.0


def merged_series(series: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that several sources recorded each for itself, as one: the sums, at the moments of the one with fewest rows.

    Of the others the last row before each moment counts: it is a step old at most.
    """
    whole = []
    cursors = [0] * len(series)
    for row in min(series, key=len):
        rows: list[Mapping[str, Any]] = []
        for index, other in enumerate(series):
            while cursors[index] + 1 < len(other) and other[cursors[index] + 1]["t"] <= row["t"]:
                cursors[index] += 1
            rows.extend(other[cursors[index] : cursors[index] + 1])
        summed = {key: _sum([each[key] for each in rows]) for key in row if key not in ("t", "point")}
        points = [each["point"] for each in rows]
        point = points[0] if len(points) == 1 else sum(points) / len(points)
        whole.append({"t": row["t"], **summed, "point": point})
    return whole


def _sum(values: Sequence[float | None]) -> float | None:
    """None where some source sets none: then nothing bounds the sum."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None

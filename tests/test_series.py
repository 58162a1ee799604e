"""What several sources recorded, each for itself, as one series."""

from __future__ import annotations

from typing import Any

import pytest

from zpipe.series import merged_series


def row(t: float, **changes: Any) -> dict[str, Any]:
    return {"t": t, "result_hz": 10.0, "queue": 2, "waiting": 0, "point": 3, "window": 4.0, "rate_hz": None, **changes}


def test_one_source_is_what_it_recorded() -> None:
    rows = [row(0.0), row(0.1)]
    assert merged_series([rows]) == rows


def test_several_sources_are_summed_at_the_moments_of_the_coarsest_and_points_are_averaged() -> None:
    fine = [row(0.1 * step, queue=step) for step in range(5)]
    coarse = [row(0.05, result_hz=5.0, point=0), row(0.25, result_hz=7.0, point=0, window=None)]
    first, second = merged_series([fine, coarse])
    assert (first["t"], first["queue"], first["result_hz"], first["point"], first["window"]) == (0.05, 0 + 2, 15.0, 1.5, 8.0)
    assert (second["t"], second["queue"], second["result_hz"], second["window"]) == (0.25, 2 + 2, 17.0, None)
    assert second["rate_hz"] is None


def test_the_sum_grows_by_each_source() -> None:
    rows = [row(0.0), row(0.1)]
    assert [each["queue"] for each in merged_series([rows, rows, rows])] == pytest.approx([6, 6])

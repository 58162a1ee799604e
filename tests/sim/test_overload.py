"""Overload on the virtual clock: live video stays fresh, deadlines are foreseen, nothing is submitted again without a loss."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from zpipe.policy.admission import ADMISSIONS
from zpipe.sim import SimOptions, run_sim

LINE, BOARD = "line4.yaml", "raspberry-pi-3"


@cache
def capacity_hz() -> float:
    """Of the line, with full batches."""
    report, _ = run_sim(SimOptions(LINE, count=1500, window=64, admission="fixed", device=BOARD))
    return float(report["throughput_hz"])


def offered(load: float, *, seconds: float = 8.0, **options: Any) -> dict[str, Any]:
    """A run at a multiple of capacity."""
    return run_sim(SimOptions(LINE, duration=seconds, rate_hz=load * capacity_hz(), device=BOARD, **options))[0]


def test_live_video_at_five_times_capacity_keeps_its_latency_and_loses_no_throughput() -> None:
    calm, over = offered(0.5, when_full="latest"), offered(5.0, when_full="latest")
    assert over["latency_ms"]["p99"] <= 3.0 * calm["latency_ms"]["p99"]
    assert over["throughput_hz"] >= 0.95 * capacity_hz()


@pytest.mark.parametrize("admission", ["aimd", "fixed", "mdi-rate"])
@pytest.mark.parametrize("deadline", [0.1, 0.5, 2.0])
def test_of_what_deadline_mode_admits_at_five_times_capacity_hardly_anything_expires(admission: str, deadline: float) -> None:
    """D4: it is rejected before, and the boards are as busy as ever."""
    report = offered(5.0, when_full="deadline", deadline=deadline, admission=admission)
    admitted = report["counts"]["result"] + report["counts"]["expired"]
    assert report["counts"]["expired"] < 0.01 * admitted
    assert report["goodput_hz"] >= 0.9 * capacity_hz()


def test_a_deadline_below_the_slowest_samples_own_time_still_lets_the_others_through() -> None:
    """D4: calm p99 is above 50 ms, so one in 200 cannot be promised; most leave at an early exit all the same."""
    report = offered(5.0, when_full="deadline", deadline=0.05)
    assert report["counts"]["result"] > 0.9 * (report["counts"]["result"] + report["counts"]["expired"])
    assert report["goodput_hz"] >= 0.6 * capacity_hz()


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("mode", ["block", "latest", "deadline"])
def test_at_three_times_capacity_without_a_fault_hardly_anything_is_submitted_again(admission: str, mode: str) -> None:
    """R3: less than one in a hundred results, those of the first seconds too, when no time is known yet."""
    counts = offered(3.0, seconds=15.0, when_full=mode, admission=admission)["counts"]
    assert counts["resubmitted"] < 0.01 * counts["result"]

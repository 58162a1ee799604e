"""What a source expects of its next sample (rule D4)."""

from __future__ import annotations

import random

import pytest

from zpipe.policy.forecast import MARGIN_QUANTILE, MARGIN_SHARE, Forecast


def test_nothing_known_nothing_rejected() -> None:
    assert not Forecast().misses(1000, left=0.001, span=0.001)


def test_the_queue_leaves_at_the_measured_rate() -> None:
    forecast = Forecast()
    forecast.interval(50.0, busy=True)
    assert forecast.queue_seconds(10) == pytest.approx(0.2)
    assert forecast.misses(10, left=0.19, span=1.0)
    assert not forecast.misses(10, left=0.21, span=1.0)


def test_a_rate_that_only_measured_the_arrivals_lowers_nothing() -> None:
    forecast = Forecast()
    forecast.interval(50.0, busy=True)
    forecast.interval(1.0, busy=False)
    assert forecast.throughput_hz == 50.0
    forecast.interval(60.0, busy=False)
    assert forecast.throughput_hz > 50.0


def test_the_margin_is_the_quantile_of_what_the_queue_does_not_explain() -> None:
    """Sojourns of 10 ms that have a long tail: few are above the margin, and it is not far above them either."""
    forecast, rng = Forecast(), random.Random(1)
    above, margins = 0, []
    for sample in range(40_000):
        seconds = 0.01 + rng.expovariate(1 / 0.02)
        if sample > 20_000:
            above += seconds > forecast.margin_seconds
            margins.append(forecast.margin_seconds)
        forecast.came(seconds)
    assert above / len(margins) == pytest.approx(1.0 - MARGIN_QUANTILE, rel=0.4)
    assert sum(margins) / len(margins) == pytest.approx(0.01 + 0.02 * 5.3, rel=0.2)  # ln(200) = 5.3


def test_the_margin_follows_a_network_that_became_slower_within_a_few_samples() -> None:
    forecast = Forecast()
    for _ in range(1000):
        forecast.came(0.01)
    for _ in range(20):
        forecast.came(0.1)
    assert forecast.margin_seconds >= 0.1


def test_a_deadline_below_the_margin_is_given_a_chance_behind_an_empty_queue() -> None:
    """An empty network is too slow for one sample in 200; a shallow one may still make it."""
    forecast = Forecast()
    forecast.interval(100.0, busy=True)
    forecast.came(1.0)
    assert not forecast.misses(1, left=0.1, span=0.1)
    assert forecast.misses(4, left=0.1, span=0.1), f"{MARGIN_SHARE} of its time is kept for its own depth"

"""What the numbers of a link tell of its speed (A5, design section 6)."""

from __future__ import annotations

import math
import random

import pytest

from zpipe.policy.estimates import LinkEstimate


class Road:
    """A true link: FIFO, so many bytes a second, so long a way; each Credit comes back `back` later and names the last arrival."""

    def __init__(self, *, rate: float, latency: float, estimate: LinkEstimate | None = None) -> None:
        self.rate, self.latency = rate, latency
        self.estimate = estimate or LinkEstimate()
        self.free_at = 0.0
        self.number = 0
        self.arrivals: list[float] = []

    def send(self, size: float, *, now: float) -> float:
        """Returns when it arrives."""
        self.free_at = max(now, self.free_at) + size / self.rate
        self.estimate.sent(self.number, size, now=now)
        self.number += 1
        self.arrivals.append(self.free_at + self.latency)
        return self.arrivals[-1]

    def credit(self, *, now: float) -> None:
        """A Credit that arrives now: written `latency` ago, it names what had arrived by then."""
        written = now - self.latency + 1e-9
        seen = [arrival for arrival in self.arrivals if arrival <= written]
        if seen:
            self.estimate.credited(len(seen), written - seen[-1], now=now)

    def burst(self, frames: int, *, now: float) -> float:
        """Frames of 24 kB back to back; returns when the last arrives."""
        return [self.send(24_000, now=now) for _ in range(frames)][-1]


def test_nothing_is_known_before_the_first_credit() -> None:
    estimate = LinkEstimate()
    assert estimate.bandwidth_bps == math.inf
    assert estimate.transfer_seconds(1e6, now=0.0) == 0.0


def test_what_the_topology_says_is_the_first_guess() -> None:
    estimate = LinkEstimate(bandwidth_bps=8e6, latency_seconds=0.005)
    assert estimate.transfer_seconds(10_000, now=0.0) == pytest.approx(0.015)


def test_tasks_given_before_are_carried_first() -> None:
    estimate = LinkEstimate(bandwidth_bps=8e6)
    estimate.sent(0, 20_000, now=1.0)
    assert estimate.transfer_seconds(10_000, now=1.005) == pytest.approx(0.025)


def test_a_lone_small_task_tells_the_latency() -> None:
    road = Road(rate=1e9, latency=0.010)
    for now in (0.0, 1.0, 2.0):
        arrived = road.send(100, now=now)
        road.credit(now=arrived + 0.010)
    assert road.estimate.round_trip_seconds == pytest.approx(0.020, rel=0.01)
    assert road.estimate.transfer_seconds(100, now=3.0) == pytest.approx(0.010, rel=0.05)


def test_a_busy_link_tells_its_bandwidth() -> None:
    """2.5 MB/s (20 Mbit/s), 5 ms: windows of frames back to back, a Credit after every fourth."""
    road = Road(rate=2.5e6, latency=0.005)
    now = 0.0
    for _ in range(20):
        last = road.burst(12, now=now)
        for arrival in road.arrivals[-12::4]:
            road.credit(now=arrival + 0.005)
        now = last + 0.011
        road.credit(now=now)
    assert road.estimate.bandwidth_bps == pytest.approx(20e6, rel=0.05)
    assert road.estimate.transfer_seconds(24_000, now=now) == pytest.approx(0.0096 + 0.005, rel=0.4)


def test_a_change_of_bandwidth_is_followed_both_ways() -> None:
    road = Road(rate=2.5e6, latency=0.002)
    now = 0.0
    for rate in (2.5e6, 0.5e6, 5e6):
        road.rate = rate
        for _ in range(30):
            last = road.burst(8, now=now)
            for arrival in road.arrivals[-8:]:
                road.credit(now=arrival + 0.002)
            now = last + 0.005
        assert road.estimate.bandwidth_bps == pytest.approx(8 * rate, rel=0.1)


def test_an_estimate_too_low_is_raised_by_what_came_through() -> None:
    """Not even busy: 24 kB within 12 ms are more than 0.1 MB/s."""
    road = Road(rate=1e8, latency=0.005, estimate=LinkEstimate(bandwidth_bps=0.8e6))
    arrived = road.send(24_000, now=0.0)
    road.credit(now=arrived + 0.005)
    assert road.estimate.bandwidth_bps > 8e6


def test_the_size_a_codec_decided_replaces_the_expected_one() -> None:
    estimate = LinkEstimate(bandwidth_bps=8e3)
    for number in range(4):
        estimate.sent(number, 24_000, now=0.0)
    estimate.sized(1, 3, 3_000)
    assert estimate.transfer_seconds(0.0, now=0.0) == pytest.approx(27.0)
    estimate.credited(4, 0.0, now=1.0)
    assert estimate.bandwidth_bps == pytest.approx(8 * 27_000)


def test_tasks_without_bytes_tell_no_rate() -> None:
    """Where nobody says how large a task is: dividing by a rate of 0 would be the end."""
    estimate = LinkEstimate()
    for number in range(4):
        estimate.sent(number, 0.0, now=0.0)
        estimate.credited(number + 1, 0.0, now=1.0 + number)
    assert estimate.bandwidth_bps == math.inf


def test_a_number_that_got_lost_measures_nothing() -> None:
    """A Credit whose last number never arrived has no holding time."""
    estimate = LinkEstimate()
    estimate.sent(0, 100, now=0.0)
    estimate.credited(1, -1.0, now=5.0)
    assert estimate.round_trip_seconds == 0.0


def test_a_credit_without_a_holding_time_does_not_halve_the_rate() -> None:
    """8 kB in each 80 ms: what the second one named arrived unseen."""
    estimate = LinkEstimate()
    for number in range(40):
        estimate.sent(number, 1000, now=0.0)
    for expected, holding, now in ((8, 0.0, 0.08), (16, 0.0, 0.16), (24, -1.0, 0.24), (32, 0.0, 0.32), (40, 0.0, 0.40)):
        estimate.credited(expected, holding, now=now)
    assert estimate.bandwidth_bps == pytest.approx(800_000)


def test_a_new_connection_keeps_what_is_known_of_the_road() -> None:
    estimate = LinkEstimate(bandwidth_bps=8e6, latency_seconds=0.005)
    estimate.sent(0, 1e6, now=0.0)
    estimate.reset()
    assert estimate.transfer_seconds(10_000, now=0.0) == pytest.approx(0.015)


def test_jitter_of_the_way_back_does_not_invent_bandwidth() -> None:
    rng = random.Random(1)
    road = Road(rate=2.5e6, latency=0.005)
    now = 0.0
    for _ in range(60):
        last = road.burst(12, now=now)
        told = now
        for arrival in road.arrivals[-12::4]:
            told = max(told, arrival + 0.005 + rng.uniform(0.0, 0.004))
            written = told - 0.005
            seen = [a for a in road.arrivals if a <= written]
            road.estimate.credited(len(seen), max(0.0, written - seen[-1] + rng.uniform(-0.002, 0.002)), now=told)
        now = last + 0.02
        road.credit(now=now)
    assert road.estimate.bandwidth_bps == pytest.approx(20e6, rel=0.2)

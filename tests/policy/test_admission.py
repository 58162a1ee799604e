"""Admission strategies, alone and against a simple plant (D4)."""

from __future__ import annotations

import math
from collections import deque

import pytest

from zpipe.policy.admission import ADMISSIONS, Admission, Aimd, Feedback, MdiRate, MdiThreshold


def start(strategy: Admission, *, now: float) -> bool:
    """Admits one sample if the strategy lets it."""
    if strategy.next_at(in_flight=0, now=now) > now:
        return False
    strategy.admitted(now=now)
    return True


# ---- the pacer -----------------------------------------------------------------------------------


def test_without_a_rate_nothing_is_paced() -> None:
    pacer = Admission(points=1, default_point=0)
    assert all(start(pacer, now=0.0) for _ in range(1000))
    assert (pacer.rate_hz, pacer.window_samples) == (None, None)


def test_punctual_wakeups_give_the_rate() -> None:
    pacer = Admission(points=1, default_point=0, rate_hz=100.0)
    now, admitted = 0.0, 0
    while now < 10.0:
        assert start(pacer, now=now)
        admitted += 1
        now = max(now, pacer.next_at(in_flight=0, now=now))
    assert admitted == pytest.approx(1000, abs=2)
    assert pacer.rate_hz == 100.0


@pytest.mark.parametrize("late", [0.001, 0.004])
def test_late_wakeups_within_five_milliseconds_are_made_up_for(late: float) -> None:
    pacer = Admission(points=1, default_point=0, rate_hz=100.0)
    now, admitted = 0.0, 0
    while now < 10.0:
        assert start(pacer, now=now)
        admitted += 1
        now = max(now, pacer.next_at(in_flight=0, now=now) + late)
    assert admitted == pytest.approx(1000, abs=2)


def test_later_than_that_is_lost_and_not_made_up_for_in_a_burst() -> None:
    """After a pause of a minute the second sample comes one gap, less five milliseconds, after the first."""
    pacer = Admission(points=1, default_point=0, rate_hz=50.0)
    assert start(pacer, now=0.0)
    assert start(pacer, now=60.0)
    assert not start(pacer, now=60.0149)
    assert start(pacer, now=60.0151)


def test_at_a_high_rate_a_burst_makes_up_for_five_milliseconds() -> None:
    pacer = Admission(points=1, default_point=0, rate_hz=1000.0)
    start(pacer, now=0.0)
    assert sum(start(pacer, now=1.0) for _ in range(100)) == 6


# ---- mdi-rate ------------------------------------------------------------------------------------


def rate(**options: float) -> MdiRate:
    return MdiRate(points=1, default_point=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queue", "limited", "factor"),
    [(9, True, 0.8), (10, True, 0.9), (29, True, 0.9), (30, True, 1.2), (30, False, 1.2), (9, False, 1.0), (29, False, 1.0)],
)
def test_mdi_rate_moves_the_gap_by_the_band_of_the_queue(queue: int, limited: bool, factor: float) -> None:
    """Alg. 3, and our guard: where the application is the limit only a full queue counts."""
    strategy = rate(rate_hz=100.0)
    strategy.adapt(Feedback(queue, limited))
    assert strategy.gap_seconds == pytest.approx(0.01 * factor)


def test_mdi_rate_stays_within_its_bounds() -> None:
    strategy = rate(rate_hz=100.0, min_hz=10.0, max_hz=200.0)
    for _ in range(50):
        strategy.adapt(Feedback(0, True))
    assert strategy.rate_hz == pytest.approx(200.0)
    for _ in range(50):
        strategy.adapt(Feedback(99, True))
    assert strategy.rate_hz == pytest.approx(10.0)


@pytest.mark.parametrize("capacity_hz", [20.0, 150.0, 900.0])
def test_mdi_rate_settles_near_capacity(capacity_hz: float) -> None:
    """A queue served at `capacity_hz`, an application that always has more: it oscillates, as papers.md says, around it."""
    strategy = rate(rate_hz=50.0)
    queue, admitted, lengths = 0.0, 0.0, []
    for interval in range(1200):
        hz = strategy.rate_hz
        assert hz is not None
        queue = max(0.0, queue + 0.1 * (hz - capacity_hz))
        strategy.adapt(Feedback(int(queue), True))
        if interval >= 200:
            admitted += 0.1 * hz
            lengths.append(queue)
    assert admitted / 100.0 == pytest.approx(capacity_hz, rel=0.1)
    assert max(lengths) < 70 + 0.1 * capacity_hz


# ---- mdi-threshold -------------------------------------------------------------------------------


def threshold(points: int = 8, default: int = 4) -> MdiThreshold:
    return MdiThreshold(points=points, default_point=default)


def test_mdi_threshold_starts_at_the_default_point() -> None:
    assert [threshold(8, default).point for default in range(8)] == list(range(8))


def test_mdi_threshold_walks_down_under_load_and_up_when_idle_inside_the_ladder() -> None:
    """Alg. 4."""
    strategy = threshold()
    down = []
    for _ in range(40):
        strategy.adapt(Feedback(30, True))
        down.append(strategy.point)
    assert down == sorted(down, reverse=True)
    assert (min(down), down[-1]) == (0, 0)
    up = []
    for _ in range(40):
        strategy.adapt(Feedback(9, True))
        up.append(strategy.point)
    assert up == sorted(up)
    assert (max(up), up[-1]) == (7, 7)


def test_mdi_threshold_climbs_faster_from_an_empty_queue_than_from_a_middling_one() -> None:
    """Alg. 4: alpha > beta, on either side of T_Q1."""
    steps = {}
    for queue in (9, 10, 29):
        strategy = threshold(100, 9)
        steps[queue] = 0
        while strategy.point < 99:
            strategy.adapt(Feedback(queue, False))
            steps[queue] += 1
    assert steps == {9: 13, 10: 25, 29: 25}


def test_mdi_threshold_walks_down_while_deadlines_press() -> None:
    """Samples that are turned away never come into a queue, and the rate contract is broken all the same."""
    strategy = threshold()
    for _ in range(40):
        strategy.adapt(Feedback(0, True, pressed=True))
    assert strategy.point == 0


def test_mdi_threshold_with_one_point_stays() -> None:
    strategy = threshold(1, 0)
    for queue in (0, 99, 20):
        strategy.adapt(Feedback(queue, True))
        assert strategy.point == 0


def test_mdi_threshold_settles_where_the_plant_keeps_up() -> None:
    """100 samples a second; point p costs 4 + 2p ms: point 3 just keeps up. The mean stays near it, the queue bounded."""
    strategy = threshold()
    queue, points, lengths = 0.0, [], []
    for _ in range(1000):
        queue = max(0.0, queue + 0.1 * (100.0 - 1.0 / (0.004 + 0.002 * strategy.point)))
        strategy.adapt(Feedback(int(queue), True))
        points.append(strategy.point)
        lengths.append(queue)
    assert sum(points[200:]) / 800 == pytest.approx(3.0, abs=1.0)
    assert max(lengths[200:]) < 60
    assert set(points) <= set(range(8))


# ---- aimd ----------------------------------------------------------------------------------------


class Line:
    """One server behind an aimd window; an application that always has more."""

    def __init__(self, strategy: Aimd, service_seconds: float) -> None:
        self.strategy = strategy
        self.service_seconds = service_seconds
        self.now = 0.0
        self._free_at = 0.0
        self._flying: deque[tuple[float, float, float]] = deque()  # done at, queued, sent at

    def run(self, seconds: float) -> list[float]:
        """Returns what each delivered sample waited."""
        until, waits = self.now + seconds, []
        while self.now < until:
            while self.strategy.next_at(in_flight=len(self._flying), now=self.now) <= self.now:
                begin = max(self.now, self._free_at)
                self._free_at = begin + self.service_seconds
                self._flying.append((self._free_at, begin - self.now, self.now))
                self.strategy.admitted(now=self.now)
            done, queued, sent = self._flying.popleft()
            self.now = done
            self.strategy.resolved(
                queued_seconds=queued,
                service_seconds=self.service_seconds,
                sojourn_seconds=done - sent,
                in_flight=len(self._flying),
                now=done,
            )
            waits.append(queued)
        return waits


def aimd(**options: float) -> Aimd:
    return Aimd(points=1, default_point=0, **options)


@pytest.mark.parametrize("service_seconds", [0.002, 0.02, 0.2])
def test_aimd_keeps_the_queueing_delay_near_its_target(service_seconds: float) -> None:
    strategy = aimd()
    line = Line(strategy, service_seconds)
    line.run(2000 * service_seconds)
    waits = line.run(1000 * service_seconds)
    assert len(waits) == pytest.approx(1000, abs=2)  # the server never ran dry
    assert sum(waits) / len(waits) == pytest.approx(strategy.target_seconds, rel=0.5)


def test_aimd_recovers_when_the_server_slows_and_mends() -> None:
    strategy = aimd()
    line = Line(strategy, 0.0005)
    line.run(5.0)
    wide = strategy.window_samples
    assert wide is not None
    line.service_seconds = 0.05
    line.run(30.0)
    narrow = strategy.window_samples
    assert narrow is not None
    assert narrow < 0.6 * wide
    line.service_seconds = 0.0005
    line.run(5.0)
    assert strategy.window_samples == pytest.approx(wide, rel=0.35)


def test_aimd_shrinks_at_most_once_per_sojourn() -> None:
    strategy = aimd()

    def late(now: float) -> None:
        strategy.resolved(queued_seconds=9.0, service_seconds=0.01, sojourn_seconds=1.0, in_flight=8, now=now)

    late(0.0)
    assert strategy.window_samples == pytest.approx(6.4)
    late(0.999)
    assert strategy.window_samples == pytest.approx(6.4)
    late(1.0)
    assert strategy.window_samples == pytest.approx(5.12)


def test_aimd_never_closes() -> None:
    strategy = aimd()
    for second in range(100):
        strategy.resolved(queued_seconds=9.0, service_seconds=0.01, sojourn_seconds=0.5, in_flight=0, now=float(second))
    assert strategy.window_samples == 1.0
    assert strategy.next_at(in_flight=0, now=0.0) == -math.inf
    assert strategy.next_at(in_flight=1, now=0.0) == math.inf


def test_aimd_grows_only_while_it_is_the_limit_and_never_beyond_its_maximum() -> None:
    strategy = aimd(max_window=9.0)

    def prompt(in_flight: int) -> float | None:
        strategy.resolved(queued_seconds=0.0, service_seconds=0.01, sojourn_seconds=0.01, in_flight=in_flight, now=0.0)
        return strategy.window_samples

    assert prompt(6) == 8.0
    assert prompt(7) == 8.125
    for _ in range(100):
        prompt(300)
    assert strategy.window_samples == 9.0


def test_a_strategy_is_found_by_its_name() -> None:
    assert {name: kind.name for name, kind in ADMISSIONS.items()} == {name: name for name in ADMISSIONS}  # type: ignore[attr-defined]

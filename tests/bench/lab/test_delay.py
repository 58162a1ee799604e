"""Delay lines on a clock that the test sets."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from zpipe.bench.lab.delay import BROKEN, END, Conditions, DelayLine, Way


def way(**conditions: float) -> Way:
    return Way(Conditions(**conditions), rng=random.Random(1))


def test_piece_comes_out_after_the_latency_and_not_before() -> None:
    line = DelayLine(way(latency_seconds=0.5))
    line.push(b"a", now=10.0)
    assert line.next_wakeup() == 10.5
    assert line.pop_due(now=10.499) == []
    assert line.pop_due(now=10.5) == [b"a"]
    assert line.next_wakeup() is None


def test_shorter_latency_lets_nothing_overtake() -> None:
    lane = way(latency_seconds=1.0)
    line = DelayLine(lane)
    line.push(b"a", now=0.0)
    lane.conditions.latency_seconds = 0.0
    line.push(b"b", now=0.1)
    assert line.pop_due(now=0.9) == []
    assert line.pop_due(now=1.0) == [b"a", b"b"]


def test_stall_holds_what_was_due_and_ends_when_it_is_taken_back() -> None:
    lane = way(latency_seconds=0.1)
    line = DelayLine(lane)
    line.push(b"a", now=0.0)
    lane.conditions.stalled_until = 5.0
    assert line.next_wakeup() == 5.0
    assert line.pop_due(now=4.9) == []
    lane.conditions.stalled_until = 1.0
    assert line.pop_due(now=1.0) == [b"a"]


def test_ends_come_out_in_their_place() -> None:
    line = DelayLine(way(latency_seconds=0.1))
    for piece in (b"a", END, BROKEN):
        line.push(piece, now=0.0)
    assert line.pop_due(now=0.1) == [b"a", END, BROKEN]


def test_frame_alone_crosses_at_the_cables_pace_whatever_the_bucket_lets_go() -> None:
    line = DelayLine(way(bandwidth_bps=8000.0, burst_seconds=1.0))
    line.push(bytes(500), now=0.0)  # the bucket's burst: at once
    line.push(bytes(500), now=0.0)
    line.push(bytes(500), now=0.5)  # and then at its rate
    assert line.next_wakeup() == 0.5
    assert len(line.pop_due(now=1.0)) == 2
    assert line.next_wakeup() == 1.5


def test_streams_of_one_direction_share_its_bandwidth() -> None:
    lane = way(bandwidth_bps=8000.0, burst_seconds=2.0)
    first, second = DelayLine(lane), DelayLine(lane)
    first.push(bytes(1000), now=0.0)
    second.push(bytes(1000), now=0.0)
    assert (first.next_wakeup(), second.next_wakeup()) == (1.0, 2.0)


def test_never_more_is_put_back_than_the_bucket_can_have_saved() -> None:
    line = DelayLine(way(bandwidth_bps=8000.0, burst_seconds=0.25))
    line.push(bytes(10_000), now=0.0)
    assert line.next_wakeup() == 0.25


@given(
    pieces=st.lists(st.tuples(st.floats(0.0, 1.0), st.binary(min_size=1, max_size=20)), max_size=30),
    jitter=st.floats(0.0, 2.0),
    steps=st.lists(st.floats(0.0, 1.0), max_size=20),
)
def test_bytes_come_out_once_in_order_and_never_early(pieces: list[tuple[float, bytes]], jitter: float, steps: list[float]) -> None:
    line = DelayLine(way(latency_seconds=0.3, jitter_seconds=jitter))
    now = last = 0.0
    for pause, piece in pieces:
        last += pause
        line.push(piece, now=last)
    out: list[bytes] = []
    for step in [*steps, last + jitter + 1.0]:
        now += step
        out += [piece for piece in line.pop_due(now=now) if piece]
        assert len(b"".join(out)) == 0 or now >= 0.3
        assert line.held_bytes == sum(len(piece) for _, piece in pieces) - len(b"".join(out))
    assert b"".join(out) == b"".join(piece for _, piece in pieces)


def test_jitter_is_the_seeds() -> None:
    def dues(seed: int) -> list[float]:
        lane = Way(Conditions(jitter_seconds=1.0), rng=random.Random(seed))
        return [lane.due(1, now=0.0) for _ in range(5)]

    assert dues(1) == dues(1) != dues(2)
    assert all(0.0 <= due <= 1.0 for due in dues(3))


def test_cleared_line_is_empty() -> None:
    line = DelayLine(way())
    line.push(b"abc", now=0.0)
    line.clear()
    assert (line.held_bytes, line.next_wakeup()) == (0, None)

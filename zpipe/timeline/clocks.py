"""Brings the clocks of several nodes together by the messages between them.

Each node's times are its own monotonic clock's, whose 0 means nothing to the others. A message that node i sent at s, on its clock,
and node j took in at r, on its own, was on its way for longer than nothing: r - s is more than what j's clock is ahead of i's. A
message the other way bounds it from below. What the fastest of both leave between them is the room, their shortest round trip; the
middle of it is the estimate, off by half of it at the most (and by as much again at the ends, where a drift was too small to be
told). Nothing is assumed of both ways taking equally long.

Crystals differ by some 10 ppm, which is a round trip in a minute: what a clock is ahead by is a straight line over time, of the
slope that leaves the most room. (Source: the linear programme of Moon, Skelly, Towsley, "Estimation and removal of clock skew from
network delay measurements", INFOCOM 1999, with bounds from both ways.)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

#: Clocks that differ by more are broken; NTP's own limit is 500 ppm.
MOST_DRIFT = 500e-6
#: A drift is believed only where it makes the room so much larger than none does: over a short time every slope fits.
DRIFT_GAIN = 2.0
#: Steps of the search for the slope: MOST_DRIFT times (2/3)^80 is below any float's grain.
_STEPS = 80

#: A message: (sent, received), each on the clock of whoever did it.
Passage: TypeAlias = "tuple[float, float]"
Point: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True, slots=True)
class Ahead:
    """What one clock is ahead of another, over time.

    Attributes:
        at: the middle of what was seen, on the other clock.
        seconds: ahead by so much then.
        drift: seconds it gains per second of the other.
        room_seconds: between the bounds at the tightest place; below 0 where messages contradict each other: a clock stood still or
            ran unevenly.
    """

    at: float
    seconds: float
    drift: float
    room_seconds: float


@dataclass(frozen=True, slots=True)
class Clock:
    """How a node's clock becomes the common one: `rate * now + shift`.

    Attributes:
        ahead_seconds: of the reference, in the middle of the trace.
        uncertainty_seconds: the estimate is not off by more; None where it comes from wall clocks, or from nothing at all.
        source: `reference`, `messages`, `wall clock` or `nothing`.
    """

    rate: float = 1.0
    shift: float = 0.0
    ahead_seconds: float = 0.0
    uncertainty_seconds: float | None = 0.0
    source: str = "reference"

    def common(self, now: float) -> float:
        """The common time of a time on this clock."""
        return self.rate * now + self.shift


def how_far_ahead(there: Sequence[Passage], back: Sequence[Passage]) -> Ahead | None:
    """What j's clock is ahead of i's; None where messages went one way only.

    Args:
        there: messages from i to j.
        back: messages from j to i.
    """
    if not there or not back:
        return None
    first = min(there[0][0], back[0][1])
    over = _hull([(sent - first, received - sent) for sent, received in there], upper=False)
    under = _hull([(received - first, sent - received) for sent, received in back], upper=True)
    seen = [x for x, _ in (*over, *under)]
    middle = (min(seen) + max(seen)) / 2.0

    def bounds(drift: float) -> tuple[float, float]:
        return max(y - drift * (x - middle) for x, y in under), min(y - drift * (x - middle) for x, y in over)

    def room(drift: float) -> float:
        low, high = bounds(drift)
        return high - low

    low, high = -MOST_DRIFT, MOST_DRIFT
    for _ in range(_STEPS):  # the room is concave in the slope
        third = (high - low) / 3.0
        if room(low + third) < room(high - third):
            low += third
        else:
            high -= third
    drift = (low + high) / 2.0
    if room(0.0) > 0.0 and room(drift) < DRIFT_GAIN * room(0.0):
        drift = 0.0
    least, most = bounds(drift)
    return Ahead(first + middle, (least + most) / 2.0, drift, most - least)


def align(passages: Mapping[tuple[int, int], Sequence[Passage]], epochs: Sequence[float | None], *, reference: int) -> list[Clock]:
    """A clock for each node, by the chain of links that leaves the least doubt.

    Args:
        passages: {(i, j): messages from i to j}.
        epochs: of each node: the wall time of its clock's 0, which is taken where no messages went to and fro.
        reference: the node whose clock is the common one.
    """
    clocks: list[Clock | None] = [None] * len(epochs)
    ways = _ways(passages)
    waiting: list[tuple[float, int, Clock]] = [(0.0, reference, Clock())]
    while waiting:
        doubt, node, clock = heapq.heappop(waiting)
        if clocks[node] is not None:
            continue
        clocks[node] = clock
        for other, ahead in ways.get(node, {}).items():
            if clocks[other] is None:
                room = abs(ahead.room_seconds) / 2.0
                heapq.heappush(waiting, (doubt + room, other, _chained(clock, ahead, doubt + room)))
    return [clock or _by_wall_clock(epochs, node, reference) for node, clock in enumerate(clocks)]


def _ways(passages: Mapping[tuple[int, int], Sequence[Passage]]) -> dict[int, dict[int, Ahead]]:
    """{node: {other: what the other's clock is ahead}}, where messages went both ways."""
    ways: dict[int, dict[int, Ahead]] = {}
    for (node, other), there in passages.items():
        ahead = how_far_ahead(there, passages.get((other, node), ()))
        if ahead is not None:
            ways.setdefault(node, {})[other] = ahead
    return ways


def _chained(clock: Clock, ahead: Ahead, doubt: float) -> Clock:
    """The clock of a node that is `ahead` of one whose clock is known."""
    # now = (1 + drift) * t + seconds - drift * at, for a time t of the known clock; solved for t, then made common.
    rate = clock.rate / (1.0 + ahead.drift)
    shift = clock.shift - rate * (ahead.seconds - ahead.drift * ahead.at)
    here = ahead.at + ahead.seconds
    return Clock(rate, shift, here - (rate * here + shift), doubt, "messages")


def _by_wall_clock(epochs: Sequence[float | None], node: int, reference: int) -> Clock:
    mine, common = epochs[node], epochs[reference]
    if mine is None or common is None:
        return Clock(uncertainty_seconds=None, source="nothing")
    return Clock(1.0, mine - common, common - mine, None, "wall clock")


def _hull(points: Sequence[Point], *, upper: bool) -> list[Point]:
    """The points on the upper or lower side of their convex hull: no other can be a bound of any slope."""
    sign = -1.0 if upper else 1.0
    side: list[Point] = []
    for x, y in sorted((x, sign * y) for x, y in points):
        while len(side) >= 2 and _turns_down(side[-2], side[-1], (x, y)):
            side.pop()
        side.append((x, y))
    return [(x, sign * y) for x, y in side]


def _turns_down(a: Point, b: Point, c: Point) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])

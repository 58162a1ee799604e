"""How long a link takes, from the numbers of its tasks and the Credits that name them (design section 6).

No clock is compared: the moment a number arrived is the Credit that names it, less the holding time the receiver states. Both
carry the way back, which cancels between two of them and bounds the way there from above where one stands alone.
"""

from __future__ import annotations

import math
from collections import deque

#: Weight of a new round trip in the smoothed one (TCP's choice, RFC 6298).
ROUND_TRIP_GAIN = 0.125
#: Weight of a new rate: a few Credits of a link that changed its speed, without following every burst.
RATE_GAIN = 0.25
#: Two arrivals closer than this say more about the event loops than about the link.
LEAST_INTERVAL_SECONDS = 0.001
#: How long the shortest round trip is believed: routes and radio change, a queue that stood all the time does not hide for ever.
FLOOR_SECONDS = 10.0


class LinkEstimate:
    """D of Alg. 2: seconds for one activation to a neighbour, and the bandwidth behind it.

    Source: delivery rate of a busy path as in BBR (a rate counts only where the later bytes were already waiting when the
    earlier ones arrived), smoothed round trip as in TCP; ours for link numbers.

    Args:
        bandwidth_bps: a first guess in bits per second, `inf` = none.
        latency_seconds: a first guess, one way.

    Attributes:
        busy_until: when the link will have carried what we gave it; -inf while its bandwidth is not known.
    """

    def __init__(self, *, bandwidth_bps: float = math.inf, latency_seconds: float = 0.0) -> None:
        self._bytes_per_second = bandwidth_bps / 8.0
        #: (number, when it was sent, bytes) of each task not yet known to have arrived, rising; plain tuples are the cheapest
        self._unseen: deque[tuple[int, float, float]] = deque()
        self._arrived_at = -math.inf  #: when the latest known arrival was told, on our clock, the way back included
        self.busy_until = -math.inf
        self._floor, self._floor_at = 2.0 * latency_seconds, -math.inf
        self._lowest = math.inf  #: shortest round trip of the present stretch of FLOOR_SECONDS
        self._measured = False
        self.round_trip_seconds = 2.0 * latency_seconds

    def __repr__(self) -> str:
        return f"<LinkEstimate {self.bandwidth_bps / 1e6:.1f} Mbit/s | round trip {1e3 * self.round_trip_seconds:.1f} ms>"

    @property
    def bandwidth_bps(self) -> float:
        """Bits per second, `inf` while nothing showed a limit."""
        return 8.0 * self._bytes_per_second

    @property
    def latency_seconds(self) -> float:
        """One way: half the shortest round trip of late, a first guess before there was one."""
        return self._floor / 2.0

    def transfer_seconds(self, size: float, *, now: float) -> float:
        """D: until `size` bytes given to the link now have arrived, behind all it was given before."""
        if self._bytes_per_second < math.inf:
            return max(0.0, self.busy_until - now) + size / self._bytes_per_second + self._floor / 2.0
        return max(0.0, self.round_trip_seconds - self._floor / 2.0)

    # ---- what happens --------------------------------------------------------------------------

    def reset(self) -> None:
        """A new connection: numbers begin again, the road is the same."""
        self._unseen.clear()
        self._arrived_at = self.busy_until = -math.inf

    def sent(self, number: int, size: float, *, now: float) -> None:
        """One task was given to the link."""
        self._unseen.append((number, now, size))
        if self._bytes_per_second < math.inf:
            begin = self.busy_until if self.busy_until > now else now
            self.busy_until = begin + size / self._bytes_per_second

    def sized(self, first: int, rows: int, size: int) -> None:
        """What the frame with these numbers really had in bytes, where a codec decides that."""
        for index, (number, sent_at, guessed) in enumerate(self._unseen):
            if first <= number < first + rows:
                self.busy_until += (size / rows - guessed) / self._bytes_per_second
                self._unseen[index] = number, sent_at, size / rows

    def credited(self, expected: int, holding_seconds: float, *, now: float) -> None:
        """A Credit: every number below `expected` arrived, the last one `holding_seconds` ago (< 0: not said)."""
        unseen = self._unseen
        if not unseen or unseen[0][0] >= expected:
            return
        size, number, sent_at = 0.0, 0, 0.0
        first_sent_at = unseen[0][1]
        while unseen and unseen[0][0] < expected:
            number, sent_at, each = unseen.popleft()
            size += each
        arrived_at = now - holding_seconds
        if holding_seconds >= 0.0 and number == expected - 1 and arrived_at >= sent_at:
            self._measure_round_trip(arrived_at - sent_at, now)
            if size > 0.0:
                self._measure_rate(size, first_sent_at, sent_at, arrived_at)
            self._arrived_at = arrived_at
        else:
            self._arrived_at = -math.inf  # nobody knows when these arrived, so no rate can be measured from here
        if not unseen and self.busy_until > now:
            self.busy_until = now

    def _measure_round_trip(self, seconds: float, now: float) -> None:
        old = self.round_trip_seconds if self._measured else seconds
        self._measured = True
        self.round_trip_seconds = old + ROUND_TRIP_GAIN * (seconds - old)
        if seconds < self._lowest:
            self._lowest = seconds
        if now - self._floor_at >= FLOOR_SECONDS:
            self._floor, self._floor_at, self._lowest = self._lowest, now, math.inf
        if seconds < self._floor:
            self._floor = seconds

    def _measure_rate(self, size: float, first_sent_at: float, last_sent_at: float, arrived_at: float) -> None:
        """Busy all the time between two arrivals: that was the rate. Else it was at least what came since the first byte."""
        interval = arrived_at - self._arrived_at
        if last_sent_at <= self._arrived_at - self._floor and LEAST_INTERVAL_SECONDS <= interval < math.inf:
            old, rate = self._bytes_per_second, size / interval
            self._bytes_per_second = rate if old == math.inf else old + RATE_GAIN * (rate - old)
        elif arrived_at > first_sent_at:
            self._bytes_per_second = max(self._bytes_per_second, size / (arrived_at - first_sent_at))

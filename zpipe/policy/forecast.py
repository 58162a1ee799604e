"""How long a sample would take if it were let in now, as far as the source can tell from its own queues (rule D4).

1. What is ahead of it - samples in flight, and those that wait before it - leaves at the rate at which results come while the
   network is busy: `ahead / throughput_hz` (Little's law; no clock of another node, no model of the mesh).
2. What that leaves unexplained - the sample's own depth, batches, other sources - is measured on every sample that ends: its
   sojourn less the time that 1 gave it. Of this the MARGIN_QUANTILE is followed, by steps that a sample above it takes up and
   one below takes down (Robbins-Monro). A sample that expires in flight counts as above: were only those measured that came
   back, the margin would forget just the slow ones, and the more of them expire the shorter the rest would look.
3. A sample gives at most MARGIN_SHARE of its whole time to the margin. Where even an empty network is too slow for so high a
   quantile, a shallow sample may still make it, and only a queue is a reason to reject one.
"""

from __future__ import annotations

#: The part of admitted samples that shall make their deadline: less than 1 % should expire, and half of that is for what changes.
MARGIN_QUANTILE = 0.995
#: A sample above the margin raises it by this many mean deviations. In the simulator at 2x and 5x overload, deadlines from 0.1 to
#: 2 s, 0 to 0.7 % of the admitted expired (mdi-threshold at 1 s: 1.5 %; without a margin it was 2 to 99 %), and throughput was
#: 97 % of the most.
STEP_DEVIATIONS = 0.5
#: The most of a sample's time that is kept for what the queues do not explain.
MARGIN_SHARE = 0.7
#: Weight of a new control interval, and of a new deviation.
RATE_GAIN, DEVIATION_GAIN = 0.125, 0.05


class Forecast:
    """Learns from every admitted sample, tells what the next one has to expect.

    Attributes:
        throughput_hz: results a second while the network is busy; 0 = not known yet.
        margin_seconds: the MARGIN_QUANTILE of what the queues do not explain.
    """

    def __init__(self) -> None:
        self.throughput_hz = 0.0
        self.margin_seconds = 0.0
        self._mean = self._deviation = 0.0

    def queue_seconds(self, ahead: int) -> float:
        """Until `ahead` samples are done."""
        return ahead / self.throughput_hz if self.throughput_hz else 0.0

    def misses(self, ahead: int, *, left: float, span: float) -> bool:
        """Whether a sample with `ahead` others before it has too little time.

        Args:
            left: seconds until its deadline.
            span: seconds it had when it was submitted.
        """
        return self.queue_seconds(ahead) + min(self.margin_seconds, MARGIN_SHARE * span) > left

    def interval(self, hz: float, *, busy: bool) -> None:
        """One control interval's results. Where nobody waited it measured the arrivals, not what the nodes can do."""
        if hz > self.throughput_hz or busy:
            self.throughput_hz += (RATE_GAIN if self.throughput_hz else 1.0) * (hz - self.throughput_hz)

    def came(self, unexplained: float) -> None:
        """A sample's sojourn, less the queue it was let in behind."""
        if not self._deviation:
            self._mean, self._deviation, self.margin_seconds = unexplained, abs(unexplained) / 2.0, 1.5 * max(0.0, unexplained)
            return
        self._deviation += DEVIATION_GAIN * (abs(unexplained - self._mean) - self._deviation)
        self._mean += DEVIATION_GAIN * (unexplained - self._mean)
        if unexplained > self.margin_seconds:
            self.expired()
        else:
            step = STEP_DEVIATIONS * self._deviation * (1.0 - MARGIN_QUANTILE) / MARGIN_QUANTILE
            self.margin_seconds = max(0.0, self.margin_seconds - step)

    def expired(self) -> None:
        """A sample took longer than was kept for it."""
        self.margin_seconds += STEP_DEVIATIONS * self._deviation

"""How fast the source lets samples in, and which operating point they carry: one small strategy object each.

`fixed`           a constant rate, or none: only slots and credits limit.
`mdi-rate`        thresholds fixed, the inter-arrival time adapts (MDI-Exit Alg. 3).
`mdi-threshold`   arrivals given, the thresholds adapt (MDI-Exit Alg. 4).
`aimd`            a window on samples in flight, driven by their measured queueing delay (the default for robots).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

#: Defaults of MDI-Exit's constants: ours, not the paper's (papers.md section 1).
T_Q1, T_Q2 = 10, 30
ALPHA, BETA, ZETA = 0.2, 0.1, 0.2
CONTROL_INTERVAL_SECONDS = 0.1
#: How much lateness the pacer makes up for in one go: event loops wake with about a millisecond's grain.
CATCH_UP_SECONDS = 0.005


@dataclass(slots=True)
class Feedback:
    """What one control interval showed.

    Attributes:
        queue_length: |I| + |O| at the source, at its end.
        pacer_limited: some sample waited for the pacer alone (neither the application nor the slots were the limit).
        pressed: in `deadline` mode some sample was expected to take most of its time, or did take all of it.
    """

    queue_length: int
    pacer_limited: bool
    pressed: bool = False


class Admission:
    """The strategy's face to the source. This base is `fixed`; the others override what they adapt.

    Attributes:
        point: index into the exit ladder for the next sample.
        gap_seconds: mu, the least time between admissions; 0 = none.
    """

    name = "fixed"

    def __init__(self, *, points: int, default_point: int, rate_hz: float | None = None) -> None:
        self.points = points
        self.point = default_point
        self.gap_seconds = 1.0 / rate_hz if rate_hz else 0.0
        self._next_at = -math.inf

    def next_at(self, *, in_flight: int, now: float) -> float:
        """The earliest time the next sample may be admitted; `inf` = not before a result came."""
        return self._next_at

    def admitted(self, *, now: float) -> None:
        """One sample was admitted."""
        self._next_at = max(self._next_at, now - CATCH_UP_SECONDS) + self.gap_seconds

    def resolved(
        self, *, queued_seconds: float, service_seconds: float, sojourn_seconds: float, in_flight: int, now: float
    ) -> None:
        """A result came back; the timings are durations over all nodes; waiting for lower classes is none (`yielded_seconds`)."""

    def adapt(self, feedback: Feedback) -> None:
        """A control interval ended."""

    @property
    def rate_hz(self) -> float | None:
        """The admission rate the pacer aims at, None where it sets none."""
        return 1.0 / self.gap_seconds if self.gap_seconds else None

    @property
    def window_samples(self) -> float | None:
        """The limit on samples in flight, None where there is none."""
        return None


class MdiRate(Admission):
    """Alg. 3: accuracy contract fixed, the inter-arrival time mu adapts.

    Source: MDI-Exit (arXiv:2408.05247), our reading of Alg. 3. Differs: mu stays in [1/max_hz, 1/min_hz] and adapts only in
    intervals in which the pacer or a full queue, not the application, was the limit.
    """

    name = "mdi-rate"

    def __init__(
        self,
        *,
        points: int,
        default_point: int,
        rate_hz: float = 50.0,
        min_hz: float = 1.0,
        max_hz: float = 10_000.0,
        t_q1: int = T_Q1,
        t_q2: int = T_Q2,
        alpha: float = ALPHA,
        beta: float = BETA,
        zeta: float = ZETA,
    ) -> None:
        super().__init__(points=points, default_point=default_point, rate_hz=rate_hz)
        self._bounds = (1.0 / max_hz, 1.0 / min_hz)
        self._t_q1, self._t_q2 = t_q1, t_q2
        self._alpha, self._beta, self._zeta = alpha, beta, zeta

    def adapt(self, feedback: Feedback) -> None:
        if feedback.queue_length >= self._t_q2:
            factor = 1.0 + self._zeta
        elif not feedback.pacer_limited:
            return
        elif feedback.queue_length < self._t_q1:
            factor = 1.0 - self._alpha
        else:
            factor = 1.0 - self._beta
        low, high = self._bounds
        self.gap_seconds = min(high, max(low, factor * self.gap_seconds))


class MdiThreshold(Admission):
    """Alg. 4: rate contract fixed, the thresholds adapt.

    Source: MDI-Exit (arXiv:2408.05247), our reading of Alg. 4. Differs: the adapted value T_e in (0, 1] is a position along the
    bundle's operating points (1 = the dearest), so that every vector in use stands in the calibration table. Samples whose
    deadlines press count as a full queue: `deadline` mode turns them away before they are in one, and the rate contract is broken.
    """

    name = "mdi-threshold"

    def __init__(
        self,
        *,
        points: int,
        default_point: int,
        t_q1: int = T_Q1,
        t_q2: int = T_Q2,
        alpha: float = ALPHA,
        beta: float = BETA,
        zeta: float = ZETA,
    ) -> None:
        super().__init__(points=points, default_point=default_point)
        self._lowest = 1.0 / points
        self._position = (default_point + 1) / points
        self._t_q1, self._t_q2 = t_q1, t_q2
        self._alpha, self._beta, self._zeta = alpha, beta, zeta

    def adapt(self, feedback: Feedback) -> None:
        if feedback.queue_length >= self._t_q2 or feedback.pressed:
            factor = 1.0 - self._zeta
        elif feedback.queue_length >= self._t_q1:
            factor = 1.0 + self._beta
        else:
            factor = 1.0 + self._alpha
        self._position = min(1.0, max(self._lowest, factor * self._position))
        self.point = min(self.points - 1, max(0, round(self._position * self.points) - 1))


class Aimd(Admission):
    """Additive increase, multiplicative decrease of a window on samples in flight, on their measured queueing delay.

    Each result tells how long its sample waited in queues, over all nodes: no clock is compared and no base round trip is
    guessed. What it waited for lower classes does not count: fewer samples in flight would not shorten that. Above the target
    the window shrinks by `decrease`, at most once per sojourn; below it, it grows by one sample per window, but only while it is
    the limit. The target follows the service time (twice a sample's own, at least `min_target_seconds`), so that slow boards and
    large batches keep their pipeline full.

    Source: AIMD as in TCP, on delay as in TIMELY and LEDBAT; ours.
    """

    name = "aimd"

    #: Weight of a new sample in the smoothed service time and sojourn (TCP's choice, RFC 6298).
    GAIN = 0.125

    def __init__(
        self,
        *,
        points: int,
        default_point: int,
        window: float = 8.0,
        max_window: float = 256.0,
        decrease: float = 0.8,
        target_factor: float = 2.0,
        min_target_seconds: float = 0.005,
    ) -> None:
        super().__init__(points=points, default_point=default_point)
        self._window = window
        self._max_window = max_window
        self._decrease = decrease
        self._target_factor = target_factor
        self._min_target_seconds = min_target_seconds
        self._service_seconds = 0.0
        self._sojourn_seconds = 0.0
        self._hold_until = -math.inf

    @property
    def window_samples(self) -> float | None:
        return self._window

    @property
    def target_seconds(self) -> float:
        """The queueing delay at which the window stops growing."""
        return max(self._min_target_seconds, self._target_factor * self._service_seconds)

    def next_at(self, *, in_flight: int, now: float) -> float:
        return -math.inf if in_flight < self._window else math.inf

    def resolved(
        self, *, queued_seconds: float, service_seconds: float, sojourn_seconds: float, in_flight: int, now: float
    ) -> None:
        gain = self.GAIN if self._sojourn_seconds else 1.0
        self._service_seconds += gain * (service_seconds - self._service_seconds)
        self._sojourn_seconds += gain * (sojourn_seconds - self._sojourn_seconds)
        if queued_seconds > self.target_seconds:
            if now >= self._hold_until:
                self._window = max(1.0, self._decrease * self._window)
                self._hold_until = now + self._sojourn_seconds
        elif in_flight + 1 >= self._window:
            self._window = min(self._max_window, self._window + 1.0 / self._window)


AdmissionFactory: TypeAlias = Callable[..., Admission]

ADMISSIONS: dict[str, AdmissionFactory] = {kind.name: kind for kind in (Admission, MdiRate, MdiThreshold, Aimd)}

#: What a strategy does otherwise in a mode, unless the topology says more: {(strategy, when_full): options}. Live video wants the
#: newest frame. Where a batch takes as long as its rows together, a target of a sample's service time or more feeds itself: longer
#: batches, a longer service time, a longer target. In the simulator 0.9 keeps p99 at 5x overload at twice its calm value on line4
#: (1.0: three times, 2.0: four times). A mesh pays with some of its throughput: mesh5 gives 78 % of its most, 94 % at 2.0.
MODE_OPTIONS: dict[tuple[str, str], dict[str, float]] = {("aimd", "latest"): {"target_factor": 0.9}}

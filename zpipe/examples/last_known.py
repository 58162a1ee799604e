"""What a control loop knows at a tick: the newest answer, and how old it is."""

from __future__ import annotations

import time
from dataclasses import dataclass

import zpipe

#: The loop's period: 30 Hz.
PERIOD_SECONDS = 1.0 / 30.0
#: An answer that comes later is of no use any more; its frame is given up.
DEADLINE_SECONDS = 0.1
#: Python lets one thread run at a time: another has its turn when the first waits for something, or after 5 ms. So late may a
#: loop be where a stage runs on its board, on a thread beside it; or, with `sys.setswitchinterval`, so late.
SWITCH_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Known:
    """An answer and when its frame was taken.

    Attributes:
        result: of the newest frame that has one.
        taken_at: when that frame was submitted, monotonic seconds.
    """

    result: zpipe.Result
    taken_at: float

    def age_seconds(self, now: float) -> float:
        """How old the picture is that it speaks of."""
        return now - self.taken_at

    def fresh(self, now: float) -> bool:
        """Whether its frame was taken within the deadline: else it is the last known."""
        return self.age_seconds(now) <= DEADLINE_SECONDS


class LastKnown:
    """Keeps the newest answer. One thread may tell it while another reads: what changes is one reference.

    Attributes:
        newest: None before the first answer.
        ends: #: {how a frame ended: how many did}
    """

    def __init__(self) -> None:
        self.newest: Known | None = None
        self.ends: dict[str, int] = {"result": 0, "rejected": 0, "expired": 0, "failed": 0}

    def take(self, outcome: zpipe.Outcome) -> None:
        """The end of a frame. Answers may overtake each other: one of an older frame than the newest known changes nothing."""
        self.ends[outcome.kind] += 1
        result = outcome.result
        if result is not None and (self.newest is None or result.sample > self.newest.result.sample):
            self.newest = Known(result, time.monotonic() - outcome.latency_seconds)


def next_due(due: float, now: float) -> float:
    """When the next tick is: on the grid of the period. Ticks that are over already are left out, never made up for in a burst."""
    missed = max(0, int((now - due) / PERIOD_SECONDS))
    return due + (1 + missed) * PERIOD_SECONDS

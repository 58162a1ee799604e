"""The records a source keeps of its samples' parts and of their copies (rules F1-F5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zpipe.policy.delivery import DEVIATION_GAIN, MEAN_GAIN, DeliveryCounts

if TYPE_CHECKING:
    from zpipe.model import ResultRow
    from zpipe.policy.delivery import OpenSample


@dataclass(slots=True)
class FanoutCounts(DeliveryCounts):
    """Totals since the start, for the report; `resubmitted` and `second_results` count copies here, not samples."""

    copies: int = 0  #: sent, or given to this node's own queue
    hedged: int = 0  #: of these, those sent since an earlier one was late (F5)
    partial: int = 0  #: results without every part (F2)
    unsound: int = 0  #: answers no student of that part can give: of another stage, without scores, of a copy never made


@dataclass(slots=True)
class Copy:
    """One copy that is out: with whom, since when."""

    rank: int
    sent_at: float


@dataclass(slots=True)
class PartOfSample:
    """One part of an open sample.

    Attributes:
        attempts: copies made so far; the latest has this number.
        waiting: copies of it in the outbox.
        out: #: {attempt: a copy that may still be answered}, each with another replica.
        tried: #: replicas that were given it.
        scores: its answer, None while it is not in.
        dead: it failed on its own twice (R4): no more copies.
    """

    attempts: int = 0
    waiting: int = 0
    out: dict[int, Copy] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)
    scores: tuple[float, ...] | None = None
    timeouts: int = 0
    stage_failures: int = 0
    dead: bool = False


@dataclass(slots=True)
class SharedSample:
    """An admitted sample without an outcome.

    Attributes:
        thresholds: of its operating point, one per stage of the bundle.
        parts: one each.
        last: the answer that came in last.
        disturbed: a copy of it was lost, so its time says nothing of the queues.
    """

    entry: OpenSample
    thresholds: tuple[float, ...]
    parts: list[PartOfSample]
    last: ResultRow | None = None
    disturbed: bool = False


class Sojourn:
    """How long a part takes, from the sending of a copy to its answer, smoothed (RFC 6298)."""

    def __init__(self) -> None:
        self.mean = self.deviation = 0.0

    def measure(self, seconds: float, *, in_flight: int) -> None:
        """One answer. The gains are those of one measurement per round trip (RFC 7323, G)."""
        if not self.mean:
            self.mean, self.deviation = seconds, seconds / 2.0
            return
        per_sojourn = max(1.0, in_flight / 2.0)
        self.deviation += DEVIATION_GAIN / per_sojourn * (abs(seconds - self.mean) - self.deviation)
        self.mean += MEAN_GAIN / per_sojourn * (seconds - self.mean)

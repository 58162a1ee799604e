"""What a relay does with time: bytes go in and come out later, in order. No clock, no IO."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

#: What stands in a line for the end of a stream, and for its breaking off.
END, BROKEN = b"", None
Piece = bytes | None


@dataclass(slots=True)
class Conditions:
    """A link as it is now, both ways.

    Attributes:
        latency_seconds: one way, >= 0.
        jitter_seconds: each piece takes up to this much longer, evenly distributed.
        bandwidth_bps: what the token bucket before us lets through.
        burst_seconds: how early that bucket, when full, lets bytes go.
        stalled_until: nothing passes before this time.
    """

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bandwidth_bps: float = math.inf
    burst_seconds: float = 0.0
    stalled_until: float = 0.0


class Way:
    """One direction of a link; all streams in that direction share it."""

    def __init__(self, conditions: Conditions, *, rng: random.Random) -> None:
        self.conditions = conditions
        self._rng = rng
        self._sent_at = 0.0  #: when a cable of this bandwidth would have got the last bit out

    def due(self, size_bytes: int, *, now: float) -> float:
        """When a piece that arrives now would have come out of a cable.

        A token bucket lets a burst go at once that a cable sends at its own pace: 4 KiB would cross a link of 20 Mbit/s in
        1.1 ms, not 1.6. Here that time is put back, piece by piece, and never more of it than the bucket can have saved.
        """
        link = self.conditions
        sent_at = max(self._sent_at, now) + 8 * size_bytes / link.bandwidth_bps
        self._sent_at = min(sent_at, now + link.burst_seconds)
        jitter = self._rng.uniform(0.0, link.jitter_seconds) if link.jitter_seconds else 0.0
        return self._sent_at + link.latency_seconds + jitter

    def catch_up(self, *, now: float) -> None:
        """Bandwidth has risen: what the cable has not got out yet counts no more, `DelayLine.retime` has it sent anew."""
        self._sent_at = min(self._sent_at, now)


class DelayLine:
    """One direction of one stream: first in, first out, each piece not before its time.

    Attributes:
        held_bytes: in the line now.
    """

    def __init__(self, way: Way) -> None:
        self.held_bytes = 0
        self._way = way
        self._pieces: deque[tuple[float, Piece]] = deque()  #: (due, piece), due never falls

    def push(self, piece: Piece, *, now: float) -> None:
        """Takes what just arrived. A latency that has become shorter lets nothing overtake."""
        size_bytes = len(piece or b"")
        due = self._way.due(size_bytes, now=now)
        if self._pieces:
            due = max(due, self._pieces[-1][0])
        self._pieces.append((due, piece))
        self.held_bytes += size_bytes

    def retime(self, *, now: float) -> None:
        """What waits goes out at the link's present pace where that is earlier."""
        last = 0.0
        for place, (due, piece) in enumerate(self._pieces):
            last = max(last, min(due, self._way.due(len(piece or b""), now=now)))
            self._pieces[place] = (last, piece)

    def next_wakeup(self) -> float | None:
        """When the next piece is due; None while the line is empty."""
        return max(self._pieces[0][0], self._way.conditions.stalled_until) if self._pieces else None

    def pop_due(self, *, now: float) -> list[Piece]:
        """Everything that is due by now, oldest first."""
        due: list[Piece] = []
        if now < self._way.conditions.stalled_until:
            return due
        while self._pieces and self._pieces[0][0] <= now:
            piece = self._pieces.popleft()[1]
            self.held_bytes -= len(piece or b"")
            due.append(piece)
        return due

    def clear(self) -> None:
        """Forgets everything."""
        self._pieces.clear()
        self.held_bytes = 0

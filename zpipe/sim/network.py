"""Links in the simulator: when a frame that is sent now arrives.

One direction of a link is a FIFO: a frame waits until the medium is free, occupies it for `bytes / bandwidth`, and arrives the
latency (and a seeded part of the jitter) later. Links that share a medium, and both directions of a link on one, share its
airtime in the order in which frames were sent. Each plane keeps its order, as a TCP connection does, whatever the jitter.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from zpipe.topology import Topology


@dataclass(slots=True)
class Medium:
    """What frames occupy one after the other: a direction of a link, or a channel that several share.

    Attributes:
        free_at: when its last frame has gone.
        busy_seconds: airtime used.
    """

    free_at: float = 0.0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class Direction:
    """One direction of a link.

    Attributes:
        epoch: of the present connection (policy rule L1); -1 while there is none.
        tasks, frames, bytes: carried as tasks, for the report; `raw_bytes`: what these would be without a codec.
    """

    sender: int
    receiver: int
    medium: Medium
    seconds_per_byte: float
    latency_seconds: float
    jitter_seconds: float
    codec: str
    epoch: int = -1
    tasks: int = 0
    frames: int = 0
    bytes: int = 0
    raw_bytes: int = 0
    _arrived: list[float] = field(default_factory=lambda: [0.0, 0.0])  #: {plane: when its last frame arrives}

    @property
    def last_arrival(self) -> float:
        """When the last of what was sent so far arrives."""
        return max(self._arrived)

    def carry(self, size: int, plane: int, overhead_seconds: float, now: float, rng: random.Random) -> float:
        """When `size` bytes sent now on a plane arrive; `overhead_seconds`: what the two nodes add."""
        medium = self.medium
        airtime = size * self.seconds_per_byte
        start = medium.free_at if medium.free_at > now else now
        medium.free_at = start + airtime
        medium.busy_seconds += airtime
        arrival = start + airtime + self.latency_seconds + overhead_seconds
        if self.jitter_seconds:
            arrival += rng.random() * self.jitter_seconds
        if arrival < self._arrived[plane]:
            arrival = self._arrived[plane]
        self._arrived[plane] = arrival
        return arrival


#: The two planes of a connection, as indices.
DATA, CONTROL = 0, 1


def directions(topology: Topology) -> list[dict[int, Direction]]:
    """`[rank][neighbour]` -> the direction from rank to neighbour."""
    media: dict[str, Medium] = {}
    found: list[dict[int, Direction]] = [{} for _ in topology.nodes]
    for link in topology.links:
        seconds_per_byte = 0.0 if math.isinf(link.bandwidth_bps) else 8.0 / link.bandwidth_bps
        for sender, receiver in (link.between, link.between[::-1]):
            medium = media.setdefault(link.medium, Medium()) if link.medium else Medium()
            found[sender][receiver] = Direction(
                sender=sender,
                receiver=receiver,
                medium=medium,
                seconds_per_byte=seconds_per_byte,
                latency_seconds=link.latency_seconds,
                jitter_seconds=link.jitter_seconds,
                codec=link.codec,
            )
    return found

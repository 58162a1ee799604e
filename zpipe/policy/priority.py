"""Service order: which waiting tasks run next, and as what batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Mapping

    from zpipe.model import Task


class ServiceOrder(Protocol):
    """Picks the stage whose first task leads the next batch; the batch is then filled from that queue in its order."""

    def leader(self, queues: Mapping[int, deque[Task]], *, now: float) -> int:
        """Returns the leader's stage; at least one of `queues` is not empty."""


class FifoOrder:
    """First come, first served, over all stages this node hosts."""

    def leader(self, queues: Mapping[int, deque[Task]], *, now: float) -> int:
        best, best_since = -1, math.inf
        for stage, queue in queues.items():
            if queue and queue[0].since < best_since:
                best, best_since = stage, queue[0].since
        return best


SERVICE_ORDERS: dict[str, type[ServiceOrder]] = {"fifo": FifoOrder}


def fill_batch(queue: deque[Task], *, max_batch: int, seconds_per_sample: float, now: float) -> list[Task]:
    """Takes a batch from the front of `queue`: never waits to fill, and keeps the leader's budget.

    A task that must run alone (R4) leads a batch of one and never joins another.
    """
    leader = queue.popleft()
    batch = [leader]
    if not queue or leader.alone or max_batch == 1:
        return batch
    if seconds_per_sample > 0.0:
        max_batch = max(1, min(max_batch, int(min((leader.deadline - now) / seconds_per_sample, max_batch))))
    while queue and len(batch) < max_batch and not queue[0].alone:
        batch.append(queue.popleft())
    return batch

"""Service order: which waiting tasks run next, and as what batch (rules A3, A7)."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zpipe.model import Task

#: Orders by name in a topology. `fifo`: first come, first served, over all stages. `priority`: rule A7.
FIFO, PRIORITY = "fifo", "priority"
ORDERS = (FIFO, PRIORITY)


# ---- first come, first served ------------------------------------------------------------------


def first_stage(queues: Mapping[int, deque[Task]]) -> int:
    """The stage whose first task waits longest; at least one of `queues` is not empty."""
    best, best_since = -1, math.inf
    for stage, queue in queues.items():
        if queue and queue[0].since < best_since:
            best, best_since = stage, queue[0].since
    return best


def fill_batch(queue: deque[Task], *, max_batch: int, seconds_per_sample: float, now: float) -> list[Task]:
    """Takes a batch from the front of `queue`: never waits to fill, and keeps the leader's budget.

    A task that must run alone (R4) leads a batch of one and never joins another.
    """
    leader = queue.popleft()
    batch = [leader]
    if not queue or leader.alone or max_batch == 1:
        return batch
    max_batch = within_budget(leader, max_batch, seconds_per_sample, now)
    while queue and len(batch) < max_batch and not queue[0].alone:
        batch.append(queue.popleft())
    return batch


def within_budget(leader: Task, max_batch: int, seconds_per_sample: float, now: float) -> int:
    """The most tasks with which the leader of a batch still keeps its deadline, at least itself."""
    if seconds_per_sample <= 0.0:
        return max_batch
    return max(1, min(max_batch, int(min((leader.deadline - now) / seconds_per_sample, max_batch))))


# ---- by class and age --------------------------------------------------------------------------


def is_before(task: Task, other: Task) -> bool:
    """Rule A7: the higher class first, in a class who came here first.

    Not the older sample: it would run to its end where it began, while those behind it wait for stage 0 and may not go elsewhere.
    """
    if task.priority != other.priority:
        return task.priority > other.priority
    return task.since < other.since


def insert_ranked(queue: deque[Task], task: Task) -> None:
    """Puts a task where it belongs in a queue that rule A7 orders."""
    if not queue or not is_before(task, queue[-1]):
        queue.append(task)
        return
    index = len(queue) - 1
    while index > 0 and is_before(task, queue[index - 1]):
        index -= 1
    queue.insert(index, task)


def first_of_classes(queues: Mapping[int, deque[Task]]) -> dict[int, tuple[Task, int, int]]:
    """{class: (its first waiting task, stage, place in that queue)} of queues that rule A7 orders."""
    firsts: dict[int, tuple[Task, int, int]] = {}
    for stage, queue in queues.items():
        last = -1
        for index, task in enumerate(queue):
            if task.priority != last:
                last = task.priority
                found = firsts.get(last)
                if found is None or task.since < found[0].since:
                    firsts[last] = task, stage, index
    return firsts


#: Batches of lower classes that are remembered, to tell what a higher one waited for: more than go before it, but for debts.
LOWER_RUNS = 8
#: Weight of a new batch in what a row takes.
BATCH_GAIN = 0.1
#: A batch pays when a row of it takes less than this share of what it takes alone.
PAYING_SHARE = 0.8


class PriorityOrder:
    """Rule A7: the highest class first, but for what lower ones are owed.

    A class that waits while others are served is owed `min_share` of that time; when this is enough for one of its tasks, that
    task goes next. So nobody starves, and a higher class loses at most that share to each lower one. In a queue of one class
    nothing is owed.

    With `ageing_seconds`, a class is worth so many seconds of waiting: a task of class p goes before one of class q > p that came
    (q - p) times as much later. So a task waits for a time, however few of its class there are, and not for a share only; but where
    a lower class offers too much, all it offers is old, and what a higher one waits for is no longer a single service of it.

    Of the highest of several classes a batch holds more than one task only where that pays: on a board that takes eight times as
    long for eight, each of them would wait for all, and go on in a clump.

    Source: service by weight and age after PA-MDI (arXiv:2412.12371), our reading: weights gamma say which class a source is of
    (`zpipe.topology.sources`), how far apart they lie says nothing, since no ratio of them keeps a higher class's wait below one
    service; age orders a class, and classes as `ageing_seconds` says. The debt is a deficit counter as in deficit round robin
    (doi:10.1109/90.502236), in seconds; ageing is the urgency number of a dynamic-priority queue (Jackson, 1960).

    Args:
        classes: of all sources, rising.
        min_share: 0..1, of a node's time.
        max_batch_low: most tasks of any class but the highest in a batch; 0: no less than of the highest.
        ageing_seconds: of waiting here that a class is worth; 0: no waiting is worth one.

    Attributes:
        yields: whether a higher class that waits may have to let a lower one go first.
    """

    def __init__(self, classes: Iterable[int], *, min_share: float, max_batch_low: int, ageing_seconds: float = 0.0) -> None:
        self._min_share = min_share
        self._max_batch_low = max_batch_low
        self._owed = dict.fromkeys(classes, 0.0)  #: {class: seconds it may have before those above it}
        self._highest = max(self._owed)
        self._ageing_seconds = ageing_seconds
        self.yields = len(self._owed) > 1 and (min_share > 0.0 or ageing_seconds > 0.0)
        self._alone: dict[int, float] = {}  #: {stage: seconds a row took in a batch of its own, smoothed}
        self._among: dict[int, float] = {}  #: ... and among others
        self._lower: deque[tuple[int, float, float]] = deque(maxlen=LOWER_RUNS)  #: (class, from, to)

    def ran(self, stage: int, rows: int, seconds: float) -> None:
        """A batch took so long."""
        known = self._alone if rows == 1 else self._among
        each = seconds / rows
        known[stage] = each if stage not in known else known[stage] + BATCH_GAIN * (each - known[stage])

    def note_yielded(self, rows: Sequence[Task], began_at: float, now: float) -> None:
        """A batch ran in that time: its tasks are told how long, while they waited here, lower classes computed."""
        priority = rows[0].priority
        for each, since, until in self._lower:
            if each < priority:
                for task in rows:
                    overlap = min(until, began_at) - max(since, task.since)
                    if overlap > 0.0:
                        task.yielded_seconds += overlap
        if priority < self._highest:
            self._lower.append((priority, began_at, now))

    def take(
        self, queues: Mapping[int, deque[Task]], *, max_batch: int, service_seconds: Mapping[int, float], now: float
    ) -> list[Task]:
        """Takes the next batch, of one class and stage; at least one of `queues` is not empty."""
        firsts = first_of_classes(queues)
        highest = max(firsts)
        chosen = self._due(firsts, highest, service_seconds)
        leader, stage, index = firsts[chosen]
        queue, seconds = queues[stage], service_seconds.get(stage, 0.0)
        most = 1 if leader.alone or chosen != highest else within_budget(leader, self._most(chosen, stage, max_batch), seconds, now)
        queue.rotate(-index)
        batch = [queue.popleft()]
        while queue and len(batch) < most and queue[0].priority == chosen and not queue[0].alone:
            batch.append(queue.popleft())
        queue.rotate(index)
        self._charge(firsts, chosen, seconds * len(batch))
        return batch

    def _most(self, chosen: int, stage: int, max_batch: int) -> int:
        if chosen < self._highest:
            return min(max_batch, self._max_batch_low) if self._max_batch_low else max_batch
        among = self._among.get(stage)
        if len(self._owed) == 1 or among is None:
            return max_batch
        return max_batch if among < PAYING_SHARE * self._alone.get(stage, among) else 1

    def _due(self, firsts: Mapping[int, tuple[Task, int, int]], highest: int, service_seconds: Mapping[int, float]) -> int:
        """The class whose turn it is: the one that is owed a task, most by what it is owed, else the highest, but for ageing."""
        chosen, most = highest, 0.0
        if self._ageing_seconds and len(firsts) > 1:
            chosen = min(firsts, key=lambda each: (firsts[each][0].since - self._ageing_seconds * each, -each))
        for each, (_, stage, _) in firsts.items():
            owed = self._owed.get(each, 0.0)
            if each < highest and owed > most and owed >= service_seconds.get(stage, 0.0):
                chosen, most = each, owed
        return chosen

    def _charge(self, firsts: Mapping[int, tuple[Task, int, int]], chosen: int, seconds: float) -> None:
        """What the batch takes: paid by its class, owed to those below that wait. Who does not wait is owed nothing."""
        for each in self._owed:
            if each not in firsts:
                self._owed[each] = 0.0
            elif each == chosen:
                self._owed[each] = max(0.0, self._owed[each] - (1.0 - self._min_share) * seconds)
            elif each < max(firsts):
                self._owed[each] += self._min_share * seconds

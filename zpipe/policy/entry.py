"""How a source's own samples come into its queues (rules D4, C1, S2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zpipe.model import Task
    from zpipe.policy.delivery import Source
    from zpipe.policy.messages import Command
    from zpipe.policy.state import NodeCounts
    from zpipe.policy.tasks import TaskTable


class Entry:
    """Takes new attempts from the Source to I or O, one task each.

    Args:
        source: admits them.
        tasks: of the node.
        own_slots: tasks of its own it holds at most.
        place: puts a task into I or O (A1).
        counts: of the node.
    """

    def __init__(
        self, source: Source, *, tasks: TaskTable, own_slots: int, place: Callable[[Task, float], None], counts: NodeCounts
    ) -> None:
        self._source = source
        self._tasks = tasks
        self._own_slots = own_slots
        self._place = place
        self._counts = counts

    def admit(self, commands: list[Command], now: float) -> None:
        """New attempts, while admission (D4) and own slots (C1) allow; they leave with what else waits in O, not by `commands`."""
        tasks, source = self._tasks, self._source
        again, waiting = source.queues
        while (waiting or again) and tasks.own_held < self._own_slots:
            task = source.next_task(now=now)
            if task is None:
                return
            other = tasks.held.get((task.key, task.part))
            if other is not None:  # a ring brought the earlier attempt back here: it is further on (S2)
                self._counts.met_again += 1
                other.attempt = task.attempt
                continue
            tasks.hold(task)
            self._place(task, now)

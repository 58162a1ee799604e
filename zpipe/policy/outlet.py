"""What leaves a node: I or O, which neighbour, in which frame (rules A1, A2, A4)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zpipe.policy.messages import Forward
from zpipe.policy.offload import OFFLOADS, Candidate, Here

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from zpipe.model import SampleKey, Task
    from zpipe.policy.delivery import Source
    from zpipe.policy.links import Links
    from zpipe.policy.messages import Command
    from zpipe.policy.state import Neighbour, NodeConfig, NodeCounts
    from zpipe.policy.tasks import TaskTable


#: A link that is given more work than this takes nothing that could run here as well: what waits in O can still be decided anew,
#: and a small activation does not stand behind a pile of large ones. Ours: in the simulator 20 and 50 ms did equally well.
LINK_QUEUE_SECONDS = 0.05

#: A frame of more tasks than a batch's takes its link no longer than this: its first task waits for the last.
FRAME_SECONDS = 0.002


class Outlet:
    """Serves O by the node's offload strategy.

    Args:
        config: of the node.
        tasks: O, and the slots a task leaves free.
        links: who takes which lane, with how much credit.
        source: whose `oldest` its own tasks tell.
        counts: of the node.
        backlog: |I| * Gamma of this node, given the time.
        rng: the dice.

    Attributes:
        weighs: whether the strategy looks at loads.
        serving: whether this node can run what it hosts (R6).
        takes_back: whether O may hold what is hosted here (A3).
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        tasks: TaskTable,
        links: Links,
        source: Source | None,
        counts: NodeCounts,
        backlog: Callable[[float], float],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._links = links
        self._source = source
        self._counts = counts
        self._backlog = backlog
        self._rng = rng
        self._offload = OFFLOADS[config.offload](config.output_threshold)
        self.weighs = self._offload.weighs
        self.serving = True
        self.takes_back = not tasks.input.keys().isdisjoint(tasks.output)
        self._thrown: dict[tuple[int, int], tuple[SampleKey, int, int]] = {}  #: {(lane, peer): head, attempt, Report} (A4)

    def keeps(self, task: Task) -> bool:
        """Rule A1: whether it goes to I. It does where nobody else may have it."""
        tasks = self._tasks
        return task.stage in tasks.input and (
            task.stage not in tasks.output
            or (task.stage == 0 and task.key.source not in self._config.farther)
            or self._offload.keep(
                stage=task.stage,
                input_length=tasks.input_length + self._raw_inputs,
                output_length=tasks.output_length - self._raw_inputs,
            )
        )

    @property
    def _raw_inputs(self) -> int:
        """Raw inputs in O: by rule A1 they would be in I, were they not allowed to go out."""
        return len(self._tasks.output.get(0, ())) if 0 in self._tasks.input else 0

    def take_back(self) -> bool:
        """Rule A3: this node is idle and runs a task of O itself, where it hosts the stage of one."""
        return self.takes_back and self._tasks.output_length > 0 and self._tasks.take_back(self._wanted)

    def _wanted(self, lane: int) -> bool:
        """Whether some neighbour takes tasks of this lane, now or when it has room."""
        return any(neighbour.takes for neighbour in self._links.takers[lane])

    def flush(self, commands: list[Command], now: float) -> None:
        """Sends what may go (A2), one frame per neighbour and batch."""
        tasks = self._tasks
        better_waits = False  #: a lane that is worth more to a link has a task that could run here, too
        for lane, queue in tasks.output.items():
            if not queue:
                continue
            hosted = self.serving and lane in tasks.input
            if hosted and better_waits:
                continue
            frames: dict[int, tuple[Forward, int]] = {}  #: {neighbour: its last frame, and how many tasks that takes}
            takers = self._links.takers[lane]
            only = takers[0] if len(takers) == 1 and not hosted else None  # as on a line: there is nothing to weigh
            while queue:
                task = queue[0]
                if tasks.is_stale(task, now):
                    queue.popleft()
                    tasks.output_length -= 1
                    tasks.drop_stale(task)
                    continue
                neighbour = self._choose_neighbour(task, now) if only is None else _if_able(only, lane, now)
                if neighbour is None:
                    break
                queue.popleft()
                tasks.output_length -= 1
                self._send(task, neighbour, now)
                link, rank = neighbour.outgoing, neighbour.config.rank
                assert link is not None
                assert link.epoch is not None
                frame, most = frames.get(rank, (None, 0))
                if frame is None or len(frame.tasks) >= most:
                    frame = Forward(rank, link.epoch, lane, [])
                    frames[rank] = frame, self._frame_rows(neighbour, lane)
                    commands.append(frame)
                frame.tasks.append(task)
            better_waits = better_waits or (hosted and bool(queue))

    def _frame_rows(self, neighbour: Neighbour, lane: int) -> int:
        """A2: how many tasks of a lane a frame holds. More than a batch's only where the first hardly waits for the last."""
        link, rows = neighbour.outgoing, self._config.frame_rows.get(lane, 0)
        assert link is not None
        if rows > self._config.max_batch:
            size, most = neighbour.config.lane_bytes.get(lane, 0.0), link.bandwidth_bps / 8.0 * FRAME_SECONDS
            rows = rows if rows * size <= most else int(most / size)
        return max(self._config.max_batch, rows)

    def _choose_neighbour(self, task: Task, now: float) -> Neighbour | None:
        """The neighbour for the head of a lane, None when none may be sent to, or none is better than this node."""
        able, lane = [], task.stage
        hosted = self.serving and lane in self._tasks.input
        within = self._config.farther.get(task.key.source, ()) if hosted and lane == 0 else None
        for neighbour in self._links.takers[lane]:
            if not neighbour.takes or (within is not None and neighbour.config.rank not in within):
                continue
            link = neighbour.outgoing
            assert link is not None
            if hosted and link.estimate.busy_until - now > LINK_QUEUE_SECONDS:
                continue
            if link.may_send(lane):
                able.append(neighbour)
            elif link.waiting_since is None:
                link.waiting_since = now
        if not able:
            return None
        if not hosted:
            return able[0] if len(able) == 1 else min(able, key=lambda neighbour: _candidate(neighbour, lane, now).cost_seconds)
        output_length = self._tasks.output_length
        shorter_than = self._offload.shorter_than(output_length)
        # most often nobody is left here, and what the others would cost is not asked
        able = [neighbour for neighbour in able if neighbour.input_length < shorter_than]
        if not able:
            return None
        candidates = sorted([_candidate(neighbour, lane, now) for neighbour in able], key=_cost)
        here = Here(self._backlog(now), output_length)
        chosen = self._offload.choose(candidates, here, may_throw=partial(self._may_throw, task), rng=self._rng)
        return None if chosen is None else self._links.neighbours[chosen.peer]

    def _may_throw(self, task: Task, candidate: Candidate) -> bool:
        """Rule A4: the dice decide once on each head, neighbour and Report."""
        name = (task.key, task.attempt, candidate.report)
        if self._thrown.get((task.stage, candidate.peer)) == name:
            return False
        self._thrown[task.stage, candidate.peer] = name
        return True

    def _send(self, task: Task, neighbour: Neighbour, now: float) -> None:
        """Moves the task onto the link: its slot here is free, one there is taken."""
        assert neighbour.outgoing is not None
        self._tasks.leave(task)
        task.queued_seconds += now - task.since
        if task.key.source == self._config.rank and self._source is not None:
            task.oldest = self._source.oldest
            self._source.let_out(task.key)
        neighbour.outgoing.send(task, now=now)
        self._counts.sent += 1
        self._counts.sent_inputs += task.stage == 0


def _if_able(neighbour: Neighbour, lane: int, now: float) -> Neighbour | None:
    """The only neighbour that takes this lane, None while it may not be sent to."""
    link = neighbour.outgoing
    assert link is not None
    if not neighbour.takes:
        return None
    if link.may_send(lane):
        return neighbour
    if link.waiting_since is None:
        link.waiting_since = now
    return None


def _candidate(neighbour: Neighbour, lane: int, now: float) -> Candidate:
    """What the offload strategy looks at."""
    assert neighbour.outgoing is not None
    return Candidate(
        neighbour.config.rank,
        neighbour.outgoing.transfer_seconds(lane, now=now),
        neighbour.backlog_seconds,
        neighbour.input_length,
        neighbour.report_number,
    )


def _cost(candidate: Candidate) -> float:
    return candidate.cost_seconds

"""Which replica gets a copy, and its sending (rules F1, F3, F4, F6)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zpipe.model import SampleKey
from zpipe.policy.messages import Forward
from zpipe.policy.outlet import LINK_IDLE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized

    from zpipe.model import Task
    from zpipe.policy.credit import OutgoingLink
    from zpipe.policy.fanout import FanoutSource
    from zpipe.policy.links import Links
    from zpipe.policy.load import Load
    from zpipe.policy.messages import Command
    from zpipe.policy.outlet import Outlet
    from zpipe.policy.parts import PartOfSample
    from zpipe.policy.state import Neighbour, NodeConfig, NodeCounts
    from zpipe.policy.tasks import TaskTable


@dataclass(frozen=True, slots=True)
class Group:
    """Those who host one part's student, as far as this source reaches them.

    Attributes:
        stage: the student's first.
        neighbours: each with the link to it.
        here: whether this node hosts it.
    """

    stage: int
    neighbours: tuple[tuple[Neighbour, OutgoingLink], ...]
    here: bool


class _Waiting:
    """What waits for a lane in two places."""

    def __init__(self, *places: Sized) -> None:
        self._places = places

    def __len__(self) -> int:
        return sum(map(len, self._places))


class Dispatch:
    """Takes copies from a FanoutSource to the replicas, this node's own queue among them.

    Args:
        config: of the node.
        source: custody of the samples.
        tasks: of the node: copies for itself go to I.
        links: who takes what, with how much credit.
        outlet: how many tasks share a frame, and whether this node can run anything.
        load: how much there is to do here.
        counts: of the node.

    Attributes:
        waiting: #: {lane: what waits for it}: O, and the outbox for a student's first stage (C6).
    """

    def __init__(
        self,
        config: NodeConfig,
        source: FanoutSource,
        *,
        tasks: TaskTable,
        links: Links,
        outlet: Outlet,
        load: Load,
        counts: NodeCounts,
    ) -> None:
        self._config = config
        self._source = source
        self._tasks = tasks
        self._links = links
        self._outlet = outlet
        self._load = load
        self._counts = counts
        self._highest = config.classes[-1]
        self._groups = [self._group(stage) for stage in source.fanout.firsts]
        self.waiting: dict[int, Sized] = dict(tasks.output)
        for group, outbox in zip(self._groups, source.outbox, strict=True):
            self.waiting[group.stage] = _Waiting(tasks.output.get(group.stage, ()), outbox)

    def _group(self, stage: int) -> Group:
        takers = self._links.takers.get(stage, [])
        return Group(stage, tuple([(n, n.outgoing) for n in takers if n.outgoing is not None]), stage in self._tasks.input)

    def admit(self, commands: list[Command], now: float) -> None:
        """Lets samples in and sends what may go, as long as one makes room for the other."""
        source = self._source
        for part, group in enumerate(self._groups):
            live = sum([neighbour.takes for neighbour, _ in group.neighbours]) + (group.here and self._outlet.serving)
            if live != source.live[part]:
                source.see(part, live, now=now)
        source.let_in(now=now)
        frames: dict[tuple[int, int], tuple[list[Task], int]] = {}  #: {(neighbour, stage): its last frame, and what that takes}
        source.free_at = math.inf
        while source.unsent and self._serve(commands, frames, now) and source.let_in(now=now):
            pass
        if source.hedges:
            hedges, source.hedges = source.hedges, []
            for sample, part in hedges:
                self._hedge(sample, part, commands, frames, now)

    def _serve(self, commands: list[Command], frames: dict[tuple[int, int], tuple[list[Task], int]], now: float) -> bool:
        """Sends what may go of every part. Returns whether something did."""
        source, copies = self._source, self._source.counts.copies
        for part, group in enumerate(self._groups):
            for sample in list(source.outbox[part]):
                state = source.part(sample, part)
                assert state is not None, "the outbox holds copies of open parts"
                if not any(self._left(group, state)):
                    source.take_out(sample, part)  # every replica there is has one (`all`)
                    continue
                rank = self._choose(group, sample, part, state, now, waits=True)
                if rank is not None:
                    source.take_out(sample, part)
                    self._send(group, source.copy(sample, part, rank, now=now), rank, commands, frames, now)
                elif not state.out:
                    break  # nobody is able, whoever it is for
        return source.counts.copies > copies

    def _hedge(
        self, sample: int, part: int, commands: list[Command], frames: dict[tuple[int, int], tuple[list[Task], int]], now: float
    ) -> None:
        """Rule F5: another replica, if one can take it now."""
        source, group, state = self._source, self._groups[part], self._source.part(sample, part)
        if state is None or not state.out or state.waiting:
            return
        rank = None if source.outbox[part] else self._choose(group, sample, part, state, now, waits=False)
        if rank is None:
            source.hedge_later(sample, part, now=now)
            return
        self._send(group, source.hedges_now(sample, part, rank, now=now), rank, commands, frames, now)

    def _left(self, group: Group, state: PartOfSample) -> Iterator[bool]:
        """Per replica, whether it takes copies and has none of this part out."""
        out = [copy.rank for copy in state.out.values()]
        yield group.here and self._outlet.serving and self._config.rank not in out
        for neighbour, _ in group.neighbours:
            yield neighbour.takes and neighbour.config.rank not in out

    def _choose(self, group: Group, sample: int, part: int, state: PartOfSample, now: float, *, waits: bool) -> int | None:
        """Rule F4: of those that can take it now, the one that has it done first; None: nobody can.

        Who is late with another copy comes last (F5), who was given this one before next to last. `waits`: what finds no credit
        is to be noted, so that a lost Credit is asked for (C6).
        """
        out = [copy.rank for copy in state.out.values()]
        best: tuple[bool, bool, float, int] = (True, True, math.inf, 0)
        chosen, priority, late = None, self._source.priority(sample), self._source.late
        lower = self._tasks.ranked and priority < self._highest
        for neighbour, link in group.neighbours:
            rank = neighbour.config.rank
            if not neighbour.takes or rank in out:
                continue
            if not link.may_send(group.stage) or (lower and not link.is_clear(group.stage, priority)):
                if waits and link.waiting_since is None:
                    link.waiting_since = now
                continue
            if lower and link.estimate.busy_until > now + LINK_IDLE_SECONDS:  # A7
                self._source.free_at = min(self._source.free_at, link.estimate.busy_until)
                continue
            service = neighbour.report.service_seconds.get(group.stage, 0.0) if neighbour.report is not None else 0.0
            cost = (
                rank in late,
                rank in state.tried,
                link.transfer_seconds(group.stage, now=now) + neighbour.backlog_seconds + service,
                neighbour.input_length,  # before the first Report nobody knows what a task takes
            )
            if chosen is None or cost < best:
                best, chosen = cost, rank
        if self._may_run_here(group, sample, part, out):
            ahead = self._load.backlog(now)
            rank = self._config.rank
            seconds = sum(ahead.values()) + self._load.service_seconds(group.stage)
            cost = rank in late, rank in state.tried, seconds, self._tasks.input_length
            if chosen is None or cost < best:
                chosen = rank
        return chosen

    def _may_run_here(self, group: Group, sample: int, part: int, out: list[int]) -> bool:
        """Whether this node's own queue takes it; not where an attempt came back that is further on (S2)."""
        if not group.here or not self._outlet.serving or self._config.rank in out:
            return False
        key = SampleKey(self._config.rank, self._source.session, sample)
        return self._tasks.own_held < self._config.own_slots and not self._tasks.holds(key, part)

    def _send(
        self,
        group: Group,
        task: Task,
        rank: int,
        commands: list[Command],
        frames: dict[tuple[int, int], tuple[list[Task], int]],
        now: float,
    ) -> None:
        """To I, or onto a link in a frame with others."""
        if rank == self._config.rank:
            self._tasks.hold(task)
            self._tasks.to_input(task, now)
            return
        neighbour = self._links.neighbours[rank]
        link = neighbour.outgoing
        assert link is not None
        assert link.epoch is not None
        self._source.let_out(task.key)
        link.send(task, now=now)
        self._links.changed = True  # it ended the link's `waiting_since`, which O has to note again
        self._counts.sent += 1
        self._counts.sent_inputs += 1
        frame, most = frames.get((rank, group.stage), (None, 0))
        if frame is None or len(frame) >= most:
            frame = []
            rows = self._outlet.frame_rows(neighbour, group.stage, lower=self._tasks.ranked and task.priority < self._highest)
            frames[rank, group.stage] = frame, rows
            commands.append(Forward(rank, link.epoch, group.stage, frame))
        frame.append(task)

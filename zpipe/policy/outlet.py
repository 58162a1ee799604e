"""What leaves a node: I or O, which neighbour, in which frame (rules A1, A2, A4, A6-A9)."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING

from zpipe.policy.messages import Forward
from zpipe.policy.offload import Candidate, Here
from zpipe.policy.priority import first_of_classes

if TYPE_CHECKING:
    import random
    from collections import deque
    from collections.abc import Container, Mapping, Sequence

    from zpipe.model import SampleKey, Task
    from zpipe.policy.allocation import Lookahead
    from zpipe.policy.credit import OutgoingLink
    from zpipe.policy.delivery import Source
    from zpipe.policy.links import Links
    from zpipe.policy.load import Load
    from zpipe.policy.messages import Command
    from zpipe.policy.offload import Offload
    from zpipe.policy.state import Neighbour, NodeConfig, NodeCounts
    from zpipe.policy.tasks import TaskTable


#: A link that is given more work than this takes nothing that could run here as well: what waits in O can still be decided anew,
#: and a small activation does not stand behind a pile of large ones. Ours: in the simulator 20 and 50 ms did equally well.
LINK_QUEUE_SECONDS = 0.05

#: Of a lower class a link is given nothing before it is done with what it has, but for this: wake-ups are no more exact, and what
#: is under way when a higher class comes is a frame at most (A7).
LINK_IDLE_SECONDS = 0.001

#: Tasks a lower class may be owed on links (A7): where none could go for long, higher classes are not paid back with a burst.
MOST_OWED = 2.0

#: A frame of more tasks than a batch's takes its link no longer than this: its first task waits for the last.
FRAME_SECONDS = 0.002


class Outlet:
    """Serves O by the node's offload strategy.

    Args:
        config: of the node.
        offload: its strategy.
        tasks: O, and the slots a task leaves free.
        links: who takes which lane, with how much credit.
        source: whose `oldest` its own tasks tell.
        counts: of the node.
        load: how much there is to do here.
        rng: the dice.

    Attributes:
        weighs: whether the strategy looks at loads.
        serving: whether this node can run what it hosts (R6).
        takes_back: whether O may hold what is hosted here (A3).
        link_free_at: when a link is done that a task of a lower class waits for; `inf`: none does.
    """

    def __init__(
        self,
        config: NodeConfig,
        offload: Offload,
        *,
        tasks: TaskTable,
        links: Links,
        source: Source | None,
        counts: NodeCounts,
        load: Load,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._tasks = tasks
        self._links = links
        self._source = source
        self._counts = counts
        self._load = load
        self._lookahead = load.lookahead
        self._chains = load.chains
        self._highest = config.classes[-1]
        #: {class below the highest: tasks it may send before those above it} (A7)
        self._owed = dict.fromkeys(config.classes[:-1] if tasks.yields else (), 0.0)
        self._rng = rng
        self._offload = offload
        self.weighs = self._offload.weighs
        self.serving = True
        self.link_free_at = math.inf
        self.takes_back = not tasks.input.keys().isdisjoint(tasks.output)
        #: {lane: those who take it, each with its link}
        self._takers = {lane: [(n, n.outgoing) for n in takers if n.outgoing is not None] for lane, takers in links.takers.items()}
        self._thrown: dict[tuple[int, int], tuple[SampleKey, int, int]] = {}  #: {(lane, peer): head, attempt, Report} (A4)
        #: {lane: its head, for which nobody was able; before a link's `busy_until` and while |O| is at most so long, if not None}
        self._held_up: dict[int, tuple[Task, tuple[float, int] | None]] = {}

    def keeps(self, task: Task) -> bool:
        """Rule A1: whether a task that a neighbour could run, too, goes to I. A raw input does where none may have it (S3)."""
        tasks, stage = self._tasks, task.stage
        if stage == 0 and task.key.source not in self._config.farther:
            return True
        if self._chains is not None:
            return self._chains.keeps(task)
        # raw inputs in O: by rule A1 they would be in I, were they not allowed to go out
        raw = len(tasks.output[0]) if 0 in tasks.output and 0 in tasks.input else 0
        return self._offload.keep(stage=stage, input_length=tasks.input_length + raw, output_length=tasks.output_length - raw)

    def take_back(self) -> bool:
        """Rule A3: this node is idle and runs a task of O itself, where it hosts the stage of one."""
        if not self.takes_back or not self._tasks.output_length:
            return False
        return self._tasks.take_back(self._wanted, wanted_too=self._chains is None)

    def _wanted(self, lane: int) -> bool:
        """Whether some neighbour takes tasks of this lane, now or when it has room."""
        return any(neighbour.takes for neighbour in self._links.takers[lane])

    def flush(self, commands: list[Command], now: float) -> None:
        """Sends what may go (A2), one frame per neighbour and batch.

        It is tried after every event, and most often nothing may: a lane that nobody was able to take from is not looked at again
        before that can have changed. Whatever makes a neighbour able sets `Links.changed`, or is noted with the lane.
        """
        tasks, held_up = self._tasks, self._held_up
        hosts: Container[int] = tasks.input if self.serving else ()
        if tasks.ranked:
            self._flush_ranked(hosts, commands, now)
            return
        if self._chains is not None:
            hosts = ()  # what goes along a chain is another's part
        if self._links.changed:
            self._links.changed = False
            held_up.clear()
        better_waits = False  #: a lane that is worth more to a link has a task that could run here, too
        for lane, queue in tasks.output.items():
            if queue:
                hosted = lane in hosts
                if hosted and better_waits:
                    continue
                if lane in held_up:
                    head, bounds = held_up[lane]
                    if head is queue[0] and (bounds is None or self._is_within(bounds, now)) and not tasks.is_stale(head, now):
                        better_waits = better_waits or hosted
                        continue
                self._serve(lane, queue, commands, hosted=hosted, now=now)
                better_waits = better_waits or (hosted and len(queue) > 0)

    def _is_within(self, bounds: tuple[float, int], now: float) -> bool:
        busy_until, most = bounds
        return self._tasks.output_length <= most and now + LINK_QUEUE_SECONDS < busy_until

    def _flush_ranked(self, hosts: Container[int], commands: list[Command], now: float) -> None:
        """The same where A7 orders: the lane with the highest class first, and a class that may not go holds up none below it."""
        self.link_free_at = math.inf
        if self._owed:
            self._pay(hosts, commands, now)
        lanes = [(lane, queue) for lane, queue in self._tasks.output.items() if queue]
        lanes.sort(key=_by_class)
        for lane, queue in lanes:
            self._serve_ranked(lane, queue, commands, hosted=lane in hosts, now=now)

    def _pay(self, hosts: Container[int], commands: list[Command], now: float) -> None:
        """Sends a task of a lower class that is owed one, or waited long enough (A7); who does not wait here is owed nothing."""
        firsts = first_of_classes(self._tasks.output)
        for priority, owed in self._owed.items():
            if priority not in firsts:
                self._owed[priority] = 0.0
            elif owed >= 1.0 or self._is_aged(priority, firsts, now):
                task, lane, index = firsts[priority]
                neighbour = self._choose_neighbour(task, hosted=lane in hosts, owed=True, now=now)
                if neighbour is not None and not self._tasks.is_stale(task, now):
                    assert neighbour.outgoing is not None
                    assert neighbour.outgoing.epoch is not None
                    del self._tasks.output[lane][index]
                    self._tasks.output_length -= 1
                    self._send(task, neighbour, now)
                    commands.append(Forward(neighbour.config.rank, neighbour.outgoing.epoch, lane, [task]))
                    self._owed[priority] = max(0.0, owed - (1.0 - self._config.min_share))
                    return  # places in the queues have changed: the next one's turn comes with the next event

    def _is_aged(self, priority: int, firsts: Mapping[int, tuple[Task, int, int]], now: float) -> bool:
        """Whether the first of a class goes before all that wait above it, and before whoever may come now."""
        worth, since = self._config.ageing_seconds, firsts[priority][0].since
        if not worth:
            return False
        return all(
            since + worth * (each - priority) <= (firsts[each][0].since if each in firsts else now)
            for each in self._config.classes
            if each > priority
        )

    def _serve_ranked(self, lane: int, queue: deque[Task], commands: list[Command], *, hosted: bool, now: float) -> None:
        """Sends of one lane what may go; a frame holds one class."""
        tasks = self._tasks
        frames: dict[tuple[int, int], tuple[list[Task], int]] = {}  #: {(neighbour, class): its last frame, and what that takes}
        index, waits = 0, -1  #: waits: a class of which nothing may go
        while index < len(queue):
            task = queue[index]
            stale = tasks.is_stale(task, now)
            neighbour = None if stale or task.priority == waits else self._choose_neighbour(task, hosted=hosted, now=now)
            if neighbour is None and not stale:
                waits = task.priority
                index += 1
                continue
            del queue[index]
            tasks.output_length -= 1
            if neighbour is None:
                tasks.drop_stale(task)
                continue
            self._send(task, neighbour, now)
            for each in self._owed:
                if each < task.priority:
                    self._owed[each] = min(MOST_OWED, self._owed[each] + self._config.min_share)
            name = neighbour.config.rank, task.priority
            frame, most = frames.get(name, (None, 0))
            if frame is None or len(frame) >= most:
                assert neighbour.outgoing is not None
                assert neighbour.outgoing.epoch is not None
                frame = []
                frames[name] = frame, self.frame_rows(neighbour, lane, lower=task.priority < self._highest)
                commands.append(Forward(neighbour.config.rank, neighbour.outgoing.epoch, lane, frame))
            frame.append(task)

    def _serve(self, lane: int, queue: deque[Task], commands: list[Command], *, hosted: bool, now: float) -> None:
        """Sends of one lane what may go."""
        tasks, is_stale = self._tasks, self._tasks.is_stale
        takers = self._takers[lane]
        only = len(takers) == 1 and not hosted  # as on a line: there is nothing to weigh
        neighbour: Neighbour | None
        neighbour, link = takers[0]
        frames: dict[int, tuple[list[Task], int]] = {}  #: {neighbour: its last frame, and how many tasks that takes}
        while queue:
            task = queue[0]
            if is_stale(task, now):
                queue.popleft()
                tasks.output_length -= 1
                tasks.drop_stale(task)
                continue
            if not only:
                neighbour = self._choose_neighbour(task, hosted=hosted, now=now)
                if neighbour is None:
                    return
            elif not neighbour.sends or not neighbour.accepting or neighbour.suspected:
                self._held_up[lane] = task, None
                return
            elif not link.free and not link.may_send(lane):
                self._held_up[lane] = task, None
                if link.waiting_since is None:
                    link.waiting_since = now
                return
            queue.popleft()
            tasks.output_length -= 1
            self._send(task, neighbour, now)
            rank = neighbour.config.rank
            frame, most = frames.get(rank, (None, 0))
            if frame is None or len(frame) >= most:
                assert neighbour.outgoing is not None
                assert neighbour.outgoing.epoch is not None
                frame = []
                frames[rank] = frame, self.frame_rows(neighbour, lane)
                commands.append(Forward(rank, neighbour.outgoing.epoch, lane, frame))
            frame.append(task)

    def frame_rows(self, neighbour: Neighbour, lane: int, *, lower: bool = False) -> int:
        """A2: how many tasks of a lane a frame holds. More than a batch's only where the first hardly waits for the last.

        Of a class below the highest no more at all: who comes behind it would wait for it.
        """
        link, rows = neighbour.outgoing, self._config.frame_rows.get(lane, 0)
        assert link is not None
        if lower:
            size, most = neighbour.config.lane_bytes.get(lane, 0.0), link.bandwidth_bps / 8.0 * FRAME_SECONDS
            return max(1, self._config.max_batch if self._config.max_batch * size <= most else int(most / size))
        if rows > self._config.max_batch:
            size, most = neighbour.config.lane_bytes.get(lane, 0.0), link.bandwidth_bps / 8.0 * FRAME_SECONDS
            rows = rows if rows * size <= most else int(most / size)
        return max(self._config.max_batch, rows)

    def _choose_neighbour(self, task: Task, *, hosted: bool, now: float, owed: bool = False) -> Neighbour | None:
        """The neighbour for the head of a lane, None when none may be sent to, or none is better than this node.

        Most often nobody is left after a look at credit and |I|, and what the others would cost is not asked.
        """
        lane, output_length = task.stage, self._tasks.output_length
        shorter_than, latest, within = math.inf, math.inf, None
        if hosted:
            shorter_than, latest = self._offload.shorter_than(output_length), now + LINK_QUEUE_SECONDS
            if shorter_than <= 0:
                shorter_than = -math.inf  # no |I| is; the estimate below is not yet bounded by 0
            if lane == 0:
                within = self._config.farther.get(task.key.source, ())
        ranked, lower = self._tasks.ranked, task.priority < self._highest
        able = []
        busy_until, shortest = math.inf, sys.maxsize
        for neighbour, link in self._takers[lane]:  # `takes` and `input_length` of a neighbour stand here without their calls
            if not neighbour.sends or not neighbour.accepting or neighbour.suspected:
                continue
            if link.estimate.busy_until > latest:
                if link.estimate.busy_until < busy_until:
                    busy_until = link.estimate.busy_until
                continue
            if within is not None and neighbour.config.rank not in within:
                continue
            if not link.free and not link.may_send(lane):
                if link.waiting_since is None:
                    link.waiting_since = now
                continue
            if ranked and lower and not self._may_take_lower(task, link, now, owed=owed):
                continue
            length = neighbour.reported_length - link.released + neighbour.released_then
            sent = link.next_number - neighbour.arrived_then
            if sent > 0:
                length += sent
            if length < shorter_than:
                able.append(neighbour)
            elif length < shortest:
                shortest = length
        if not able:
            if not ranked:
                most = shortest if shortest == sys.maxsize or self._offload.shorter_than(shortest) <= shortest else output_length
                self._held_up[lane] = task, (busy_until, most)
            return None
        if self._chains is not None:
            return self._next_on_chain(task, able)
        if self._lookahead is not None:
            return self._earliest_end(task, able, self._lookahead, hosted=hosted, now=now)
        if not hosted:
            return able[0] if len(able) == 1 else min(able, key=lambda neighbour: _candidate(neighbour, lane, now).cost_seconds)
        candidates = [_candidate(neighbour, lane, now) for neighbour in able]
        candidates.sort(key=_cost)
        here = Here(sum(self._load.backlog(now).values()), output_length)
        chosen = self._offload.choose(candidates, here, may_throw=partial(self._may_throw, task), rng=self._rng)
        return None if chosen is None else self._links.neighbours[chosen.peer]

    def _may_take_lower(self, task: Task, link: OutgoingLink, now: float, *, owed: bool) -> bool:
        """Whether a link is clear for a task below the highest class (C8), and done with what it has, or owes it this (A7)."""
        if not link.is_clear(task.stage, task.priority, owed=owed):
            if link.waiting_since is None:
                link.waiting_since = now
            return False
        free_at = link.estimate.busy_until
        if free_at > now + LINK_IDLE_SECONDS and not owed:
            self.link_free_at = min(self.link_free_at, free_at)
            return False
        return True

    def _next_on_chain(self, task: Task, able: Sequence[Neighbour]) -> Neighbour | None:
        """Rule A9: the next node, and where that is gone any other."""
        assert self._chains is not None
        rank = self._chains.next(task.key)
        for neighbour in able:
            if neighbour.config.rank == rank:
                return neighbour
        follower = self._links.neighbours.get(rank)
        gone = follower is None or not follower.takes or task.stage not in follower.config.lanes_out
        return able[0] if gone else None

    def _earliest_end(
        self, task: Task, able: Sequence[Neighbour], lookahead: Lookahead, *, hosted: bool, now: float
    ) -> Neighbour | None:
        """Rule A6: where what is left of the task is done first; who withholds the stage comes last (A8)."""
        lane, priority = task.stage, task.priority
        willing: Sequence[Neighbour] = able
        if self._offload.withholds and any(neighbour.withholds(lane, priority) for neighbour in able):
            willing = [neighbour for neighbour in able if not neighbour.withholds(lane, priority)]
            if not willing and (hosted or any(n.takes and not n.withholds(lane, priority) for n in self._links.takers[lane])):
                return None
            willing = willing or able
        candidates = []
        for neighbour in willing:
            lasts = lookahead.at(neighbour.config.rank)
            assert neighbour.outgoing is not None
            candidates.append(
                Candidate(
                    neighbour.config.rank,
                    neighbour.outgoing.transfer_seconds(lane, now=now),
                    neighbour.ahead_seconds(priority, lasts, now=now),
                    work_seconds=lasts.get(lane, 0.0),
                )
            )
        candidates.sort(key=_cost)
        if not hosted:
            return self._links.neighbours[candidates[0].peer]
        here = Here(self._load.ahead_of(task, now), self._tasks.output_length, lookahead.here().get(lane, 0.0))
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
        link, source, counts = neighbour.outgoing, self._source, self._counts
        assert link is not None
        self._tasks.leave(task)
        task.queued_seconds += now - task.since
        if source is not None and task.key[0] == source.rank:
            task.oldest = source.oldest
            source.let_out(task.key)
        link.send(task, now=now)
        if self._held_up:
            self._held_up.clear()  # it ended this link's `waiting_since`, which a lane that waits for it has to note again
        counts.sent += 1
        if task.stage == 0:
            counts.sent_inputs += 1

    def check(self) -> None:
        """Asserts that nobody takes what is held up, where this node has no say in it."""
        for lane, (task, _) in self._held_up.items():
            queue = self._tasks.output[lane]
            if queue and queue[0] is task and lane not in self._tasks.input and not self._links.changed:
                assert not any(neighbour.takes and link.may_send(lane) for neighbour, link in self._takers[lane]), (lane, task)


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


def _by_class(lane: tuple[int, deque[Task]]) -> int:
    return -lane[1][0].priority


def _cost(candidate: Candidate) -> float:
    return candidate.cost_seconds

"""The tasks at one node: queues I and O, what runs, and the slot each of them holds (rules S1, S2, S5, C1, A1, A3)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zpipe.model import LostRow
from zpipe.policy.priority import fill_batch, first_of_classes, first_stage, insert_ranked, is_before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from zpipe.model import SampleKey, Task
    from zpipe.policy.credit import IncomingLink
    from zpipe.policy.priority import PriorityOrder
    from zpipe.policy.state import NodeCounts


#: A source of which nothing came over a link for so long is forgotten there, whatever deadline it last told: a wrong session cannot
#: shut out the right one for ever, and all that is lost with it is which tasks are old (S5).
MAX_MEMORY_SECONDS = 60.0


@dataclass(slots=True)
class _Heard:
    """What one neighbour said of one source: a lie shuts out nothing but its own link (S1, S5).

    Attributes:
        session, oldest: what is below, in this order, is old.
        until: the latest deadline of that session, MAX_MEMORY_SECONDS from its last task at most.
    """

    session: int
    oldest: int
    until: float


class TaskTable:
    """Every task here is in exactly one place - I, O or a run - and holds exactly one slot until it leaves.

    Args:
        rank: of this node.
        stages: hosted here: the queues of I.
        lanes_out: stages some neighbour takes: the queues of O.
        incoming: {neighbour: the link whose slots its tasks hold}.
        is_current: whether a sample of this node's own is still open.
        counts: of the node.
        order: rule A7, None: first come, first served.

    Attributes:
        ranked: whether queues are in the order of rule A7, else first in first.
        yields: whether a higher class may have to let a lower one go first (A7).
        input: #: {stage: I, first in first}.
        output: #: {lane: O}; lanes in the order in which a scarce link serves them.
        input_length, output_length: #: |I| and |O| over all stages.
        held: #: {(key, part): the one live task of it here} (S2); an attempt replaced while it runs is no longer in it.
        own_held: #: tasks of this node's own samples; they hold own slots.
        discards: #: payload tokens nobody needs any more.
        shut_out: #: what came and was dropped as old: news for a source that does not think so (S5).
    """

    def __init__(
        self,
        *,
        rank: int,
        stages: Iterable[int],
        lanes_out: Iterable[int],
        incoming: Mapping[int, IncomingLink],
        is_current: Callable[[SampleKey], bool],
        counts: NodeCounts,
        order: PriorityOrder | None = None,
    ) -> None:
        self._rank = rank
        self._order = order
        self.ranked = order is not None
        self.yields = order is not None and order.yields
        self._incoming = incoming
        self._is_current = is_current
        self._counts = counts
        self.input: dict[int, deque[Task]] = {stage: deque() for stage in stages}
        self.output: dict[int, deque[Task]] = {lane: deque() for lane in lanes_out}
        self._only_stage = next(iter(self.input)) if len(self.input) == 1 else None
        self.input_length = self.output_length = 0
        self.held: dict[tuple[SampleKey, int], Task] = {}
        self.own_held = 0
        self.discards: list[int] = []
        self.shut_out: list[LostRow] = []
        self._sessions: dict[tuple[int, int], _Heard] = {}  #: {(source, neighbour): what that said of it}

    def holds(self, key: SampleKey, part: int = 0) -> bool:
        """Whether a task of this part of a sample is here."""
        return (key, part) in self.held

    # ---- in ------------------------------------------------------------------------------------

    def receive(self, task: Task, now: float) -> bool:
        """A task came over a link, which took a slot for it. Whether it stays: somebody waits for it, and no better one is here."""
        key, deadline, oldest = task.key, task.deadline, task.oldest
        rank, session, sample = key
        source = rank, task.peer
        until = now + MAX_MEMORY_SECONDS
        if deadline < until:
            until = deadline
        known = self._sessions.get(source)
        if known is not None and session == known.session:
            if oldest > known.oldest:
                known.oldest = oldest
            if until > known.until:
                known.until = until
            old = sample < known.oldest
        elif known is None or session > known.session:
            known = self._sessions[source] = _Heard(session, oldest, until)
            old = sample < oldest
        else:
            old = True
        if rank == self._rank:
            old = not self._is_current(key)
        if old or deadline <= now:
            if deadline > now and rank != self._rank:
                self._tell_shut_out(task, known)
            self.drop_stale(task)
            return False
        name = key, task.part
        if name in self.held and not self._replaces(task):
            return False
        self.held[name] = task
        if task.peer < 0:
            self.own_held += 1
        return True

    def _tell_shut_out(self, task: Task, known: _Heard) -> None:
        cause = (
            f"shut-out: node {self._rank} knows of session {known.session} of node {task.key.source}, from sample {known.oldest} on"
        )
        self.shut_out.append(LostRow(task.key, task.attempt, cause, known.session, task.part))

    def _replaces(self, task: Task) -> bool:
        """Rule S2. Returns whether the newcomer stays; whichever goes frees its slot."""
        other = self.held[task.key, task.part]
        self._counts.met_again += 1
        task.deadline = other.deadline = max(task.deadline, other.deadline)  # one sample, two estimates of the time left
        if task.stage <= other.stage:
            other.attempt = max(other.attempt, task.attempt)
            self.discards.append(task.token)
            self._free_slot(task)
            return False
        task.attempt = max(other.attempt, task.attempt)
        self._take_out(other)
        return True

    def hold(self, task: Task) -> None:
        """Notes a task as the one of its sample here; one of our own takes an own slot."""
        self.held[task.key, task.part] = task
        if task.peer < 0:
            self.own_held += 1

    def to_input(self, task: Task, now: float) -> None:
        """To the end of I, or to its place there."""
        task.since = now
        if self.ranked:
            insert_ranked(self.input[task.stage], task)
        else:
            self.input[task.stage].append(task)
        self.input_length += 1

    def to_output(self, task: Task, now: float) -> None:
        """To the end of O, or to its place there."""
        task.since = now
        if self.ranked:
            insert_ranked(self.output[task.stage], task)
        else:
            self.output[task.stage].append(task)
        self.output_length += 1

    def run_again_alone(self, tasks: Sequence[Task]) -> None:
        """Back to the front of I, in their order, each to run in a batch of one (R4)."""
        for task in reversed(tasks):
            task.alone = True
            self.input[task.stage].appendleft(task)
        self.input_length += len(tasks)

    # ---- out -----------------------------------------------------------------------------------

    def take_batch(self, max_batch: int, service_seconds: Mapping[int, float], now: float) -> list[Task]:
        """The next batch out of I, without what nobody waits for; empty when I is."""
        while self.input_length:
            if self._order is not None:
                taken = self._order.take(self.input, max_batch=max_batch, service_seconds=service_seconds, now=now)
            else:
                stage = first_stage(self.input) if self._only_stage is None else self._only_stage
                queue = self.input[stage]
                if max_batch == 1:
                    task = queue.popleft()
                    self.input_length -= 1
                    if not self.is_stale(task, now):
                        return [task]
                    self.drop_stale(task)
                    continue
                taken = fill_batch(queue, max_batch=max_batch, seconds_per_sample=service_seconds.get(stage, 0.0), now=now)
            self.input_length -= len(taken)
            stale = [task for task in taken if self.is_stale(task, now)]
            if not stale:
                return taken
            for task in stale:
                self.drop_stale(task)
            batch = [task for task in taken if all(task is not other for other in stale)]
            if batch:
                return batch
        return []

    def take_back(self, wanted: Callable[[int], bool], *, wanted_too: bool = True) -> bool:
        """Rule A3: a head of O whose stage is hosted here goes to I.

        The oldest of those that nobody can take; else that of the lane which is worth least to a link.

        Args:
            wanted: whether some neighbour could take tasks of a lane, now or later.
            wanted_too: whether those may be taken back that one could.
        """
        heads = [queue[0] for stage, queue in self.output.items() if queue and stage in self.input]
        if not heads:
            return False
        unwanted = [head for head in heads if not wanted(head.stage)]
        if not unwanted and not wanted_too:
            return False
        task = min(unwanted, key=lambda head: head.since, default=heads[-1])
        self.output[task.stage].popleft()
        self.output_length -= 1
        self.input[task.stage].append(task)
        self.input_length += 1
        return True

    def take_back_ranked(self, most: int) -> None:
        """Rule A3 where A7 orders: if the first of what is hosted here waits in O it goes to I, with others for its batch.

        So does the first of each other class where A7 may let a lower one go first, if none of its class in I came before it: who
        waits in O for a place elsewhere waits here, too, however many of a higher class are in I.
        """
        hosted = {stage: queue for stage, queue in self.output.items() if queue and stage in self.input}
        if not hosted:
            return
        firsts = first_of_classes(hosted)
        first, stage, _ = firsts[max(firsts)]
        if all(not queue or is_before(first, queue[0]) for queue in self.input.values()):
            queue, taken = self.output[stage], 0
            while queue and taken < most and queue[0].priority == first.priority:
                self._take_back(queue, 0)
                taken += 1
        if self.yields:
            present, others = first_of_classes(self.input), []
            for each, (task, stage, index) in first_of_classes(hosted).items():
                if each not in present or task.since < present[each][0].since:
                    others.append((index, stage))
            for index, stage in sorted(others, reverse=True):  # of one queue the last first: the places of the others stay
                self._take_back(self.output[stage], index)

    def _take_back(self, queue: deque[Task], index: int) -> None:
        task = queue[index]
        del queue[index]
        insert_ranked(self.input[task.stage], task)
        self.output_length -= 1
        self.input_length += 1

    def leave(self, task: Task) -> None:
        """The task is no longer here: its slot is free."""
        held, name = self.held, (task.key, task.part)
        if held.get(name) is task:
            del held[name]
        if task.peer < 0:
            self.own_held -= 1
        else:
            self._incoming[task.peer].release(task.epoch, task.number)

    def drop(self, task: Task) -> None:
        """It leaves, and its payload goes."""
        self.leave(task)
        self.discards.append(task.token)

    def drop_stale(self, task: Task) -> None:
        """Rule S5: the task is in no queue, and `is_stale`."""
        self._counts.stale += 1
        self.drop(task)

    def drop_answered(self, key: SampleKey, part: int) -> None:
        """The sample has its answer: another attempt of it that is here need not go on."""
        task = self.held.get((key, part))
        if task is not None:
            self._take_out(task)

    def sweep(self, now: float) -> None:
        """Drops waiting tasks that nobody waits for, so that their slots come free, and forgets silent sources (S5)."""
        for task in [task for queue in (*self.input.values(), *self.output.values()) for task in queue]:
            if self.is_stale(task, now):
                self._unqueue(task)
                self.drop_stale(task)
        for source in [source for source, known in self._sessions.items() if known.until <= now]:
            del self._sessions[source]

    def is_stale(self, task: Task, now: float) -> bool:
        """Rule S5: nobody waits for it."""
        if task.stale or task.deadline <= now:
            return True
        key = task.key
        rank, session, sample = key
        if rank == self._rank:
            return not self._is_current(key)
        known = self._sessions.get((rank, task.peer))
        if known is None:
            return False
        return sample < known.oldest if session == known.session else session < known.session

    # ---- inside --------------------------------------------------------------------------------

    def _take_out(self, task: Task) -> None:
        """Another attempt is better: this one goes at once when it waits, else when its run is over."""
        if self._unqueue(task):
            self.drop(task)
        else:
            task.stale = True
            del self.held[task.key, task.part]

    def _unqueue(self, task: Task) -> bool:
        """Takes a waiting task out of I or O; False when it runs."""
        if _remove(self.input.get(task.stage), task):
            self.input_length -= 1
            return True
        if _remove(self.output.get(task.stage), task):
            self.output_length -= 1
            return True
        return False

    def _free_slot(self, task: Task) -> None:
        if task.peer < 0:
            self.own_held -= 1
        else:
            self._incoming[task.peer].release(task.epoch, task.number)

    def check(self, running: Sequence[Task]) -> None:
        """Asserts the invariants; `running`: the tasks in the executor."""
        queued = [task for queue in (*self.input.values(), *self.output.values()) for task in queue]
        here = {id(task): task for task in (*queued, *running)}
        assert self.input_length == sum(map(len, self.input.values())), self.input
        assert self.output_length == sum(map(len, self.output.values())), self.output
        assert len(here) == len(queued) + len(running), "a task is in two places"
        assert {id(task) for task in self.held.values()} == {name for name, task in here.items() if not task.stale}, self.held
        assert all(name == (task.key, task.part) for name, task in self.held.items()), self.held
        assert all(task in running for task in here.values() if task.stale and not task.alone), "a replaced attempt waits"
        for queues in (self.input, self.output):
            assert all(task.stage == stage for stage, queue in queues.items() for task in queue), queues
        assert self.own_held == sum(1 for task in here.values() if task.peer < 0), self.own_held
        for rank, link in self._incoming.items():
            names = {(task.epoch, task.number) for task in here.values() if task.peer == rank}
            assert names == {*((link.connection, number) for number in link.held), *link.carried}, (names, link)


def _remove(queue: deque[Task] | None, task: Task) -> bool:
    """Takes out this very task, not an equal one; returns whether it was there."""
    if queue is not None:
        for index, waiting in enumerate(queue):
            if waiting is task:
                del queue[index]
                return True
    return False

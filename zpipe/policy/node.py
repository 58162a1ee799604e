"""One node's decisions: what to run, where to send it, what to tell whom. See the package docstring for the rules."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zpipe.model import LostRow, ResultRow
from zpipe.policy.answers import Answers
from zpipe.policy.delivery import Source
from zpipe.policy.dispatch import Dispatch
from zpipe.policy.entry import Entry
from zpipe.policy.fanout import FanoutSource
from zpipe.policy.links import HEARTBEAT_SECONDS, Links
from zpipe.policy.load import Load
from zpipe.policy.messages import (
    BlockedReceived,
    CreditReceived,
    Discard,
    DrainStarted,
    LostReceived,
    PeerLost,
    PeerUp,
    ReportReceived,
    ResultReceived,
    RunStage,
    SampleCancelled,
    SampleSubmitted,
    SendCompleted,
    SendFailed,
    StageCompleted,
    StageFailed,
    TaskReceived,
    TimerFired,
)
from zpipe.policy.offload import OFFLOADS
from zpipe.policy.outlet import Outlet
from zpipe.policy.priority import PRIORITY, PriorityOrder
from zpipe.policy.state import NodeCounts, Run
from zpipe.policy.tasks import TaskTable

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence, Sized

    from zpipe.model import SampleKey, Task
    from zpipe.policy.messages import Command, Event
    from zpipe.policy.state import Neighbour, NodeConfig

#: Weight of a new batch in the smoothed service time Gamma.
SERVICE_GAIN = 0.1
#: A change of |I| over this share, and of at least so many tasks, is told to those who weigh it before the interval is over ...
PROMPT_SHARE, PROMPT_TASKS = 0.25, 4
#: ... but not before this part of it: a short queue changes by more than its share with every task.
PROMPT_INTERVAL = 0.25


def _nothing(commands: list[Command], now: float) -> None:
    """Where no samples enter."""


class NodePolicy:
    """The single mutator of a node's state: events in, commands out.

    Its rooms - TaskTable, Links, Outlet, Answers, Source - are changed by nobody else, and only inside `handle_all`.

    Args:
        config: what the node knows before it starts.
        rng: the only source of chance.
    """

    def __init__(self, config: NodeConfig, *, rng: random.Random) -> None:
        for neighbour in config.neighbours:
            assert set(neighbour.lanes_in) <= set(config.stages), f"lanes {neighbour.lanes_in} lead to stages {config.stages} (L3)"
        self.config = config
        self.counts = NodeCounts()
        self.source: Source | None = None
        if config.source is not None and config.source.fanout is not None:
            self.source = FanoutSource(config.source, rank=config.rank, own_slots=config.own_slots)
        elif config.source is not None:
            self.source = Source(config.source, rank=config.rank)
        self._links = Links(config, self.counts)
        self._service = dict(config.service_seconds)
        offload = OFFLOADS[config.offload](config.output_threshold)
        self._classed = config.order == PRIORITY
        ranked = self._classed or offload.looks_ahead  # what looks ahead asks who goes before whom, of one class too
        self._order = (
            PriorityOrder(
                config.classes,
                min_share=config.min_share,
                max_batch_low=config.max_batch_low,
                ageing_seconds=config.ageing_seconds,
            )
            if ranked
            else None
        )
        self._tasks = TaskTable(
            rank=config.rank,
            stages=config.stages,
            lanes_out=self._links.takers,
            incoming=self._links.incoming,
            is_current=self.source.is_current if self.source else lambda key: False,
            counts=self.counts,
            order=self._order,
        )
        self._answers = Answers(
            rank=config.rank,
            nearer=config.nearer,
            beside=config.beside,
            neighbours=self._links.neighbours,
            source=self.source,
            tasks=self._tasks,
            counts=self.counts,
        )
        self._runs: dict[int, Run] = {}  #: {run: a batch in the executor}, in the order given; `config.runs` at most
        self._load = Load(
            config, offload, service=self._service, neighbours=self._links.neighbours, tasks=self._tasks, runs=self._runs
        )
        self._outlet = Outlet(
            config,
            offload,
            tasks=self._tasks,
            links=self._links,
            source=self.source,
            counts=self.counts,
            load=self._load,
            rng=rng,
        )
        self._shared = self.source if isinstance(self.source, FanoutSource) else None
        self._admit: Callable[[list[Command], float], None] = _nothing  #: takes in samples, where they enter
        self._waiting: Mapping[int, Sized] = self._tasks.output  #: {lane: what waits for it}
        if self._shared is not None:
            dispatch = Dispatch(
                config,
                self._shared,
                tasks=self._tasks,
                links=self._links,
                outlet=self._outlet,
                load=self._load,
                counts=self.counts,
            )
            self._admit, self._waiting = dispatch.admit, dispatch.waiting
        elif self.source is not None:
            entry = Entry(self.source, tasks=self._tasks, own_slots=config.own_slots, place=self._place, counts=self.counts)
            self._admit = entry.admit
        self._prompt = self._outlet.weighs and any(neighbour.lanes_in for neighbour in config.neighbours)
        self._ends = config.gates.ends
        self._most_runs = config.runs  #: 0 once the executor was lost
        self._rows_running = 0  #: tasks in `_runs`
        self._next_run = 0
        self._reported_at = self._ran_at = -math.inf
        self._look_at = self._due_at = -math.inf  #: before it no Report is due; from it on one is due without news, if at work
        self._reported_length = 0
        self._prompt_seconds = PROMPT_INTERVAL * config.report_seconds
        self._least_seconds = self._prompt_seconds if self._prompt else config.report_seconds  #: from one Report to the next
        self._slept_seconds = 0.0  #: of the time since the last Report this node did not run
        self._accepting = self._told_accepting = True
        self._lost_executor = ""  #: why; "" while it works
        self._commands: list[Command] = []

    def __repr__(self) -> str:
        credit = ", ".join(
            f"->{n.config.rank} {n.outgoing.limit - n.outgoing.next_number}/{n.outgoing.window}"
            for n in self._links.neighbours.values()
            if n.outgoing
        )
        return (
            f"<Node {self.config.rank} | stages {self.config.stages} | ready {self.input_length}, running {self._rows_running}, "
            f"out {self.output_length}, credit {credit or '-'}>"
        )

    # ---- the face ------------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Command]:
        """Takes in one event; returns what to do, in this order, but for a RunStage: it comes last and may be done at any time."""
        return self.handle_all((event,), now=now)

    def handle_all(self, events: Sequence[Event], *, now: float) -> list[Command]:
        """Takes in all that is ready, then decides once: batches and frames come out fuller than one by one."""
        if now >= self._due_at:
            self._count_sleep(now)
        self._ran_at = now
        for event in events:
            kind = type(event)  # the most frequent ones without a call
            if kind is TaskReceived:
                self._on_tasks(event, now)  # type: ignore[arg-type]
            elif kind is StageCompleted:
                self._on_completed(event, now)  # type: ignore[arg-type]
            elif kind is ResultReceived:
                self._on_results(event, now)  # type: ignore[arg-type]
            elif kind is not TimerFired:
                self._take_in(event, now)
        self._decide(now)
        commands, self._commands = self._commands, []
        return commands

    def next_wakeup(self) -> float | None:
        """When a TimerFired is due, on the clock of `now`; None: not before another event."""
        wakeup, source = self._report_due_at() if self._links.neighbours else math.inf, self.source
        if source is not None:
            due_at = source.next_wakeup(slot_free=self._tasks.own_held < self.config.own_slots)
            if due_at < wakeup:
                wakeup = due_at
        if self._outlet.link_free_at < wakeup and self._tasks.output_length:
            wakeup = self._outlet.link_free_at
        return None if wakeup == math.inf else wakeup

    @property
    def input_length(self) -> int:
        """|I|: tasks waiting to run here."""
        return self._tasks.input_length

    @property
    def output_length(self) -> int:
        """|O|: tasks waiting for a neighbour."""
        return self._tasks.output_length

    @property
    def held_count(self) -> int:
        """Tasks that occupy a slot here."""
        return len(self._tasks.held)

    @property
    def accepting(self) -> bool:
        """Whether it takes tasks of others (R6)."""
        return self._accepting

    @property
    def serving(self) -> bool:
        """Whether its executor works (R6)."""
        return not self._lost_executor

    @property
    def drained(self) -> bool:
        """Whether it holds nothing more and everybody knows: the time to leave, after a DrainStarted."""
        idle = not self._tasks.held and not self._runs and not self._answers.stranded
        return idle and not self._accepting and self._told_accepting is False and not self._links.credit_changed()

    @property
    def service_seconds(self) -> Mapping[int, float]:
        """Gamma: {stage: smoothed seconds per sample}."""
        return self._service

    def neighbour(self, rank: int) -> Neighbour:
        """The present state of a neighbour."""
        return self._links.neighbours[rank]

    # ---- events --------------------------------------------------------------------------------

    def _count_sleep(self, now: float) -> None:
        """Since a Report was due, this node did not run."""
        if self.config.report_seconds <= now - self._reported_at < math.inf:
            self._slept_seconds += max(0.0, now - max(self._ran_at, self._report_due_at()))

    def _take_in(self, event: Event, now: float) -> None:
        match event:  # the frequent ones first
            case ResultReceived():
                self._on_results(event, now)
            case SampleSubmitted():
                self._on_submitted(event, now)
            case CreditReceived():
                lost = self._links.on_credit(event, self._commands, now)
                if lost:
                    self._answers.lost(lost, now)
            case TaskReceived():
                self._on_tasks(event, now)
            case StageCompleted():
                self._on_completed(event, now)
            case TimerFired():
                pass
            case SendCompleted():
                self._links.on_send_completed(event)
            case ReportReceived():
                self._links.on_report(event, now)
                self._load.heard()
            case BlockedReceived():
                self._links.on_blocked(event, now)
            case LostReceived():
                self._links.heard(event.peer, now)
                self._answers.lost(event.rows, now, peer=event.peer)
            case SampleCancelled():
                if self.source is not None:
                    self.source.cancel(event.sample, cause=event.cause, now=now)
            case StageFailed():
                self._on_failed(event, now)
            case SendFailed():
                self._answers.lost(self._links.on_send_failed(event, self._commands), now)
            case PeerUp():
                self._answers.lost(self._links.on_peer_up(event, now), now)
            case PeerLost():
                self._answers.lost(self._links.on_peer_lost(event), now)
            case DrainStarted():
                self._stop_accepting()

    def _on_submitted(self, event: SampleSubmitted, now: float) -> None:
        assert self.source is not None, "samples are submitted at a source"
        self.source.submit(
            event.sample,
            deadline=event.deadline,
            submitted_at=event.submitted_at,
            priority=event.priority if self._classed else 0,
            weight=event.weight,
            now=now,
        )
        self._admit(self._commands, now)  # at once: the next sample of the same turn should find the room this one left

    def _on_tasks(self, event: TaskReceived, now: float) -> None:
        tasks, peer = self._tasks, event.peer
        link = self._links.incoming.get(peer)
        if link is None or event.epoch != link.epoch:
            self.counts.wrong_epoch += len(event.tasks)
            tasks.discards.extend([task.token for task in event.tasks])
            return
        self._links.heard(peer, now)
        accept, receive, connection, received = link.accept, tasks.receive, link.connection, 0
        for task in event.tasks:
            if not accept(task, now=now):
                tasks.discards.append(task.token)
                continue
            received += 1
            task.peer, task.epoch = peer, connection  # not event.epoch: see IncomingLink
            if receive(task, now):
                if task.stage == 0 or self._lost_executor:
                    self._place(task, now)
                elif tasks.ranked:
                    tasks.to_input(task, now)
                else:
                    task.since = now
                    tasks.input[task.stage].append(task)
                    tasks.input_length += 1
        self.counts.received += received
        if tasks.shut_out:
            rows, tasks.shut_out = tasks.shut_out, []
            self._answers.lost(rows, now)

    def _on_results(self, event: ResultReceived, now: float) -> None:
        if self._links.heard(event.peer, now) is None:
            return
        lie = self._answers.results(event.peer, event.rows, now)
        if lie:
            self._answers.lost(self._links.ban(event.peer, lie, self._commands), now)

    def _on_completed(self, event: StageCompleted, now: float) -> None:
        run = self._end_run(event.run, now)
        stage, began_at, rows, tasks, counts = run.stage, run.began_at, run.tasks, self._tasks, self.counts
        counts.tasks_run += len(rows)
        counts.batches += 1
        self._measure_service(stage, event.seconds / len(rows))
        if self._load.usage is not None:
            self._load.usage.ran(rows, event.seconds)
        if self._order is not None:
            self._order.ran(stage, len(rows), event.seconds)
            self._order.note_yielded(rows, began_at, now)
        if event.tokens:
            for task, token in zip(rows, event.tokens, strict=False):
                task.token = token
        is_stale, seconds, last = tasks.is_stale, now - began_at, self._ends[stage]
        scores = {id(task): each for task, each in zip(rows, event.scores, strict=True)} if event.scores else None
        for task, exited, label, confidence in zip(rows, event.exited, event.labels, event.confidences, strict=True):
            task.queued_seconds += began_at - task.since
            task.service_seconds += seconds
            if is_stale(task, now):
                tasks.drop_stale(task)
            elif exited or last:
                counts.exited += 1
                tasks.leave(task)
                row = ResultRow(
                    task.key, task.attempt, stage, label, confidence, task.queued_seconds, task.service_seconds, task.part
                )
                row.yielded_seconds = task.yielded_seconds
                if scores is not None:
                    row.scores = scores[id(task)]
                self._answers.result(row, now)
            else:
                task.stage = stage + 1
                task.thresholds = task.thresholds[1:]
                task.alone = False
                self._place(task, now)
        length, histogram = tasks.input_length + tasks.output_length, counts.queue_histogram
        histogram[length] = histogram.get(length, 0) + 1

    def _end_run(self, number: int, now: float) -> Run:
        run = self._runs.pop(number)
        self._rows_running -= len(run.tasks)
        if self._runs:  # the first of those left has the device to itself from now on
            following = next(iter(self._runs.values()))
            following.began_at = max(following.began_at, now)
        return run

    def _on_failed(self, event: StageFailed, now: float) -> None:
        """Rule R4; a task that nobody waits for is no loss."""
        run = self._end_run(event.run, now)
        self.counts.stage_failures += 1
        if event.executor_lost:
            self._lose_executor(run, event.error, now)
            return
        if len(run.tasks) > 1:
            self._tasks.run_again_alone(run.tasks)
            return
        task = run.tasks[0]
        if self._tasks.is_stale(task, now):
            self._tasks.drop_stale(task)
        else:
            self._tasks.drop(task)
            cause = f"stage-failed: stage {run.stage} on node {self.config.rank}: {event.error}"
            self._answers.lost([LostRow(task.key, task.attempt, cause, part=task.part)], now)

    def _lose_executor(self, run: Run, error: str, now: float) -> None:
        """Rule R6: this node takes nothing more, and what it held goes elsewhere."""
        self._lost_executor, self._outlet.serving, self._most_runs = error, False, 0
        self._stop_accepting()
        waiting = [task for queue in self._tasks.input.values() for task in queue]
        for queue in self._tasks.input.values():
            queue.clear()
        self._tasks.input_length = 0
        for task in (*run.tasks, *waiting):
            if self._tasks.is_stale(task, now):
                self._tasks.drop_stale(task)
            else:
                self._hand_over(task, now)

    def _stop_accepting(self) -> None:
        """Rule R6: the Report says so, and whoever does not hear it gets no credit."""
        self._accepting = False
        self._least_seconds = self._prompt_seconds
        self._look_at = self._due_at = -math.inf
        self._links.shut()

    def _hand_over(self, task: Task, now: float) -> None:
        """A task that would run here, had this node an executor: to O, or back to its source. Its own samples wait (S5)."""
        self.counts.handed_over += 1
        shared = task.peer < 0 and self._shared is not None  # another replica takes it, from its first stage
        if task.stage in self._tasks.output and not shared:
            self._tasks.to_output(task, now)
        elif task.peer < 0 and not shared:
            self._tasks.to_input(task, now)
        else:
            self._tasks.drop(task)
            cause = f"executor-lost: node {self.config.rank}: {self._lost_executor}"
            self._answers.lost([LostRow(task.key, task.attempt, cause, part=task.part)], now)

    def _place(self, task: Task, now: float) -> None:
        """Rule A1: to I or to O."""
        tasks, stage = self._tasks, task.stage
        if stage not in tasks.input:
            tasks.to_output(task, now)
        elif self._lost_executor:
            self._hand_over(task, now)
        elif stage not in tasks.output or self._outlet.keeps(task):
            tasks.to_input(task, now)
        else:
            tasks.to_output(task, now)

    def _measure_service(self, stage: int, seconds: float) -> None:
        old = self._service.get(stage, 0.0)
        if not old:
            self._load.heard()
        self._service[stage] = old + SERVICE_GAIN * (seconds - old) if old else seconds

    # ---- decisions -----------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        """What is over goes first, since it frees slots and resubmits; then sends, so that neighbours work while we compute.

        It runs after every event, so each step looks first whether there is anything to do.
        """
        commands, tasks, source, links = self._commands, self._tasks, self.source, self._links
        if source is not None:  # before the sweep: a sample that expires here tells what its task waited for
            length = tasks.input_length + tasks.output_length
            source.tick(queue_length=length, under_way=self._under_way, hindrance=self._hindrance, now=now)
        report_due = now >= self._look_at and self._look_around(now)
        if links.returned:
            links.returned = False
            self._answers.retry()
        if source is not None and 0 in tasks.output:
            self._admit(commands, now)  # raw inputs may go out in this very round
        if tasks.output_length:
            self._outlet.flush(commands, now)
        if source is not None:
            self._admit(commands, now)
        runs: Sequence[RunStage] = ()
        if len(self._runs) < self._most_runs and (tasks.input_length or (tasks.output_length and self._outlet.takes_back)):
            runs = self._choose_runs(now)
            if runs and tasks.output_length and (self._outlet.weighs or tasks.ranked):
                self._outlet.flush(commands, now)  # this node has work again: what else waits may do better elsewhere
        if not report_due and now >= self._look_at:
            report_due = self._look_around(now)  # what was decided may be news
        if self._answers.waiting:
            self._answers.flush(commands)
        for link in links.incoming.values():
            if link.due:
                links.grant(commands, now)
                break
        if report_due:
            links.report(self._load.report(accepting=self._accepting, now=now), commands, waiting=self._waiting, now=now)
            self._reported_at, self._reported_length = now, tasks.input_length + self._rows_running
            self._look_at, self._due_at = now + self._least_seconds, now + self.config.report_seconds
            self._told_accepting = self._accepting
        if source is not None and source.told:
            commands.extend(source.told)
            source.told = []
        if tasks.discards:
            tokens = [token for token in tasks.discards if token]
            tasks.discards.clear()
            if tokens:
                commands.append(Discard(tokens))
        if runs:
            commands.extend(runs)

    def _look_around(self, now: float) -> bool:
        """Whether a Report is due, which it never is before `_look_at`; then who is silent is looked for, too."""
        if now < self._due_at and self._tasks.input_length + self._rows_running == self._reported_length:
            return False  # no interval is over, and no news is to be told
        if now < self._report_due_at():
            return False
        self._tasks.sweep(now)
        self._answers.lost(self._links.watch(self._commands, slept_seconds=self._slept_seconds, now=now), now)
        self._slept_seconds = 0.0
        return True

    def _under_way(self, key: SampleKey, attempt: int, part: int) -> bool:
        """Whether an attempt is here, or on a link of this node: it is not lost, or the link will say so (C7, R1)."""
        return self._tasks.holds(key, part) or self._links.on_the_way(key, attempt, part)

    def _hindrance(self, key: SampleKey) -> str:
        """Why an own sample that waits here for a stage can't go on, "" where that is a matter of time."""
        task = self._tasks.held.get((key, 0))
        if task is None:
            return ""
        takers = self._links.takers.get(task.stage, [])
        if any(neighbour.takes for neighbour in takers):
            return ""
        why = [f"node {neighbour.config.rank} {neighbour.state}" for neighbour in takers]
        if task.stage in self._tasks.input:
            if not self._lost_executor:
                return ""
            why.append(f"this node lost its executor: {self._lost_executor}")
        return f"waiting for stage {task.stage}: {', '.join(why)}"

    def _choose_runs(self, now: float) -> list[RunStage]:
        """Finds work for a free executor; stale tasks met on the way leave slots that are filled at once."""
        tasks, source, chosen = self._tasks, self.source, []
        ranked = tasks.ranked and self._outlet.takes_back
        while len(self._runs) < self._most_runs:
            if ranked:
                tasks.take_back_ranked(self.config.max_batch)
            if not tasks.input_length and (self._runs or not self._outlet.take_back()):
                break
            batch = tasks.take_batch(self.config.max_batch, self._service, now)
            if batch:
                chosen.append(self._start_run(tuple(batch), now))
            if source is not None:
                self._admit(self._commands, now)
        return chosen

    def _start_run(self, rows: tuple[Task, ...], now: float) -> RunStage:
        run, stage = self._next_run, rows[0].stage
        self._next_run += 1
        self._runs[run] = Run(stage, rows, now)
        self._rows_running += len(rows)
        return RunStage(run, stage, rows, self.config.gates.gate(stage, rows))

    # ---- reports -------------------------------------------------------------------------------

    def _report_due_at(self) -> float:
        """A node at work reports every `report_seconds`, an idle one only shows that it lives; a large change is told sooner."""
        interval = self.config.report_seconds
        if self._accepting != self._told_accepting:
            return self._reported_at + self._prompt_seconds
        if self._prompt:
            length, told = self._tasks.input_length + self._rows_running, self._reported_length
            if length != told:
                change = abs(length - told)
                if not length or (change >= PROMPT_TASKS and change > PROMPT_SHARE * told):
                    return self._reported_at + self._prompt_seconds
        busy = self._tasks.held or self._links.waits() or self._links.credit_changed() or (self._shared and self._shared.unsent)
        return self._reported_at + (interval if busy else HEARTBEAT_SECONDS)

    # ---- invariants ----------------------------------------------------------------------------

    def check(self) -> None:
        """Asserts what must hold after every `handle`."""
        assert len(self._runs) <= self.config.runs, self
        self._tasks.check([task for run in self._runs.values() for task in run.tasks])
        self._links.check()
        self._outlet.check()
        self._answers.check()
        assert self._tasks.own_held <= self.config.own_slots, self
        assert not self._tasks.discards, self
        assert self._rows_running == sum(len(run.tasks) for run in self._runs.values()), self
        assert len(self._runs) >= self._most_runs or not self.input_length, self
        if self.source is not None:
            self.source.check()
            assert not self.source.told, self

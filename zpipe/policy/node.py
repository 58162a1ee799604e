"""One node's decisions: what to run, where to send it, what to tell whom. See the package docstring for the rules."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from zpipe.model import LostRow, Report, ResultRow
from zpipe.policy.credit import IncomingLink, OutgoingLink
from zpipe.policy.delivery import Source
from zpipe.policy.messages import (
    BlockedReceived,
    CreditReceived,
    Discard,
    Forward,
    GrantCredit,
    LostReceived,
    PeerLost,
    PeerUp,
    ReportReceived,
    ResetLink,
    ResultReceived,
    RunStage,
    SampleCancelled,
    SampleSubmitted,
    SendBlocked,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    StageCompleted,
    StageFailed,
    TaskReceived,
    TimerFired,
)
from zpipe.policy.offload import OFFLOADS, Candidate
from zpipe.policy.priority import SERVICE_ORDERS, fill_batch
from zpipe.policy.state import Neighbour, NodeCounts, Run

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from zpipe.model import SampleKey, Task
    from zpipe.policy.messages import Command, Event
    from zpipe.policy.state import NodeConfig

#: Weight of a new batch in the smoothed service time Gamma.
SERVICE_GAIN = 0.1
#: A node with nothing to tell still says so this often.
HEARTBEAT_SECONDS = 1.0


class NodePolicy:
    """The single mutator of a node's state: events in, commands out.

    Args:
        config: what the node knows before it starts.
        rng: the only source of chance.
    """

    def __init__(self, config: NodeConfig, *, rng: random.Random) -> None:
        self.config = config
        self.rng = rng
        self.counts = NodeCounts()
        self.source = Source(config.source, rank=config.rank) if config.source else None
        self._offload = OFFLOADS[config.offload]()
        self._order = SERVICE_ORDERS[config.order]()
        self._neighbours = {
            neighbour.rank: Neighbour(
                neighbour,
                OutgoingLink(neighbour.lanes_out, neighbour.window_out) if neighbour.lanes_out else None,
                IncomingLink(neighbour.lanes_in, neighbour.window_in) if neighbour.lanes_in else None,
            )
            for neighbour in config.neighbours
        }
        hosted_elsewhere = {lane for neighbour in config.neighbours for lane in neighbour.lanes_out}
        #: {lane: neighbours that take it}
        self._takers = {
            lane: [n for n in self._neighbours.values() if lane in n.config.lanes_out] for lane in sorted(hosted_elsewhere)
        }
        self._input: dict[int, deque[Task]] = {stage: deque() for stage in config.stages}
        self._output: dict[int, deque[Task]] = {lane: deque() for lane in sorted(hosted_elsewhere)}
        self._input_length = self._output_length = 0
        self._held: dict[tuple[SampleKey, int], Task] = {}  #: (key, part): the one task of it here (S2)
        self._own_held = 0
        self._runs: dict[int, Run] = {}
        self._next_run = 0
        self._service = dict(config.service_seconds)
        self._sessions: dict[int, tuple[int, int]] = {}  #: {source: (session, oldest)} (S1, S5)
        self._reported_at = -math.inf
        self._results: dict[int, list[ResultRow]] = {}
        self._lost: dict[int, list[LostRow]] = {}
        self._discards: list[int] = []
        self._commands: list[Command] = []

    def __repr__(self) -> str:
        credit = ", ".join(
            f"->{n.config.rank} {n.outgoing.limit - n.outgoing.next_number}/{n.outgoing.window}"
            for n in self._neighbours.values()
            if n.outgoing
        )
        running = sum(len(run.tasks) for run in self._runs.values())
        return f"<Node {self.config.rank} | stages {self.config.stages} | ready {self._input_length}, running {running}, out {self._output_length}, credit {credit or '-'}>"

    # ---- the face ------------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Command]:
        """Takes in one event; returns what to do, in this order, a RunStage last."""
        return self.handle_all((event,), now=now)

    def handle_all(self, events: Sequence[Event], *, now: float) -> list[Command]:
        """Takes in all that is ready, then decides once: batches and frames come out fuller than one by one."""
        for event in events:
            self._take_in(event, now)
        self._decide(now)
        commands, self._commands = self._commands, []
        return commands

    def next_wakeup(self) -> float | None:
        """When a TimerFired is due, on the clock of `now`; None: not before another event."""
        wakeup = self._report_due_at() if self._neighbours else math.inf
        if self.source is not None:
            wakeup = min(wakeup, self.source.next_wakeup(slot_free=self._own_held < self.config.own_slots))
        return None if wakeup == math.inf else wakeup

    @property
    def input_length(self) -> int:
        """|I|: tasks waiting to run here."""
        return self._input_length

    @property
    def output_length(self) -> int:
        """|O|: tasks waiting for a neighbour."""
        return self._output_length

    @property
    def held_count(self) -> int:
        """Tasks that occupy a slot here."""
        return len(self._held)

    @property
    def service_seconds(self) -> Mapping[int, float]:
        """Gamma: {stage: smoothed seconds per sample}."""
        return self._service

    def neighbour(self, rank: int) -> Neighbour:
        """The present state of a neighbour."""
        return self._neighbours[rank]

    # ---- events --------------------------------------------------------------------------------

    def _take_in(self, event: Event, now: float) -> None:
        match event:
            case TaskReceived():
                self._on_tasks(event, now)
            case StageCompleted():
                self._on_completed(event, now)
            case CreditReceived():
                self._on_credit(event, now)
            case ResultReceived():
                self._heard(event.peer, now)
                self._route_results(event.rows, now)
            case SampleSubmitted():
                self._on_submitted(event, now)
            case TimerFired():
                pass
            case ReportReceived():
                self._heard(event.peer, now)
                neighbour = self._neighbours.get(event.peer)
                if neighbour is not None:
                    neighbour.report, neighbour.sent_since_report = event.report, 0
            case BlockedReceived():
                self._on_blocked(event, now)
            case LostReceived():
                self._heard(event.peer, now)
                self._route_lost(event.rows, now)
            case SampleCancelled():
                if self.source is not None:
                    self.source.cancel(event.sample, cause=event.cause, now=now)
            case StageFailed():
                self._on_failed(event, now)
            case SendFailed():
                self._on_send_failed(event, now)
            case PeerUp():
                self._on_peer_up(event, now)
            case PeerLost():
                self._on_peer_lost(event, now)

    def _on_submitted(self, event: SampleSubmitted, now: float) -> None:
        assert self.source is not None, "samples are submitted at a source"
        self.source.submit(
            event.sample,
            deadline=event.deadline,
            submitted_at=event.submitted_at,
            priority=event.priority,
            weight=event.weight,
            now=now,
        )
        self._admit(now)

    def _on_tasks(self, event: TaskReceived, now: float) -> None:
        neighbour = self._neighbours.get(event.peer)
        link = neighbour.incoming if neighbour else None
        if neighbour is None or link is None or event.epoch != link.epoch:
            self.counts.wrong_epoch += len(event.tasks)
            self._discards.extend([task.token for task in event.tasks])
            return
        neighbour.heard_at = now
        for task in event.tasks:
            if not link.accept(task, now=now):
                self._discards.append(task.token)
                continue
            self.counts.received += 1
            task.peer, task.epoch, task.since = event.peer, event.epoch, now
            self._note_session(task)
            if not self._drop_if_stale(task, now) and self._meets(task):
                self._hold(task)
                self._enqueue_input(task, now)

    def _on_completed(self, event: StageCompleted, now: float) -> None:
        run = self._runs.pop(event.run)
        tasks = run.tasks
        self.counts.tasks_run += len(tasks)
        self.counts.batches += 1
        self._measure_service(run.stage, event.seconds / len(tasks))
        last = run.stage == len(self.config.gates.temperatures) - 1
        for task, exited, label, confidence in zip(tasks, event.exited, event.labels, event.confidences, strict=True):
            task.queued_seconds += run.started_at - task.since
            task.service_seconds += now - run.started_at
            if self._drop_if_stale(task, now):
                continue
            if exited or last:
                self.counts.exited += 1
                self._release(task)
                self._route_result(
                    ResultRow(
                        task.key, task.attempt, run.stage, label, confidence, task.queued_seconds, task.service_seconds, task.part
                    ),
                    now,
                )
            else:
                task.stage += 1
                task.thresholds = task.thresholds[1:]
                task.alone = False
                self._place(task, now)
        self._see_queues()

    def _on_failed(self, event: StageFailed, now: float) -> None:
        """Rule R4."""
        run = self._runs.pop(event.run)
        self.counts.stage_failures += 1
        if len(run.tasks) == 1:
            task = run.tasks[0]
            self._drop(task)
            self._route_lost(
                [LostRow(task.key, task.attempt, f"stage-failed: stage {run.stage} on node {self.config.rank}: {event.error}")], now
            )
            return
        for task in reversed(run.tasks):
            task.alone = True
            self._input[run.stage].appendleft(task)
        self._input_length += len(run.tasks)

    def _on_credit(self, event: CreditReceived, now: float) -> None:
        self._heard(event.peer, now)
        neighbour = self._neighbours.get(event.peer)
        if neighbour is None or neighbour.outgoing is None or not neighbour.outgoing.credit(event.credit, now=now):
            self.counts.bad_credit += 1

    def _on_blocked(self, event: BlockedReceived, now: float) -> None:
        self._heard(event.peer, now)
        neighbour = self._neighbours.get(event.peer)
        if neighbour is not None and neighbour.incoming is not None and neighbour.incoming.epoch == event.epoch:
            neighbour.incoming.settle_blocked(event.next_number)

    def _on_send_failed(self, event: SendFailed, now: float) -> None:
        neighbour = self._neighbours[event.peer]
        if neighbour.outgoing is not None and neighbour.outgoing.epoch == event.epoch:
            self._reset(neighbour, "a task could not be sent", now)

    def _on_peer_up(self, event: PeerUp, now: float) -> None:
        neighbour = self._neighbours.get(event.peer)
        if neighbour is None:
            return
        neighbour.heard_at = now
        neighbour.sent_since_report = 0
        if event.outgoing:
            if neighbour.sends:
                self._lose_outstanding(neighbour, "peer-lost: it connected anew", now)
            neighbour.sends = True
            if neighbour.outgoing is not None:
                neighbour.outgoing.open(event.epoch)
        else:
            neighbour.receives = True
            if neighbour.incoming is not None:
                neighbour.incoming.open(event.epoch)

    def _on_peer_lost(self, event: PeerLost, now: float) -> None:
        neighbour = self._neighbours.get(event.peer)
        if neighbour is None:
            return
        if not event.outgoing:
            neighbour.receives = False
            if neighbour.incoming is not None:
                neighbour.incoming.close()
        else:
            neighbour.sends = False
            self._lose_outstanding(neighbour, f"peer-lost: node {event.peer}: {event.reason}", now)
        if not neighbour.up:
            neighbour.report = None

    def _lose_outstanding(self, neighbour: Neighbour, cause: str, now: float) -> None:
        """Rule R1."""
        if neighbour.outgoing is not None:
            rows = [LostRow(sent.key, sent.attempt, cause) for sent in neighbour.outgoing.close()]
            self._route_lost(rows, now)

    # ---- tasks here ----------------------------------------------------------------------------

    def _note_session(self, task: Task) -> None:
        source, session, _ = task.key
        known = self._sessions.get(source)
        if known is None or (session, task.oldest) > known:
            self._sessions[source] = (session, task.oldest)

    def _is_stale(self, task: Task, now: float) -> bool:
        """Rule S5: nobody waits for it."""
        if task.stale or task.deadline <= now:
            return True
        if task.key.source == self.config.rank:
            return self.source is None or not self.source.is_current(task.key)
        known = self._sessions.get(task.key.source)
        return known is not None and (task.key.session < known[0] or (task.key.session == known[0] and task.key.sample < known[1]))

    def _meets(self, task: Task) -> bool:
        """Rule S2. Returns whether the newcomer stays; whichever goes frees its slot."""
        other = self._held.get((task.key, task.part))
        if other is None:
            return True
        self.counts.met_again += 1
        if task.stage <= other.stage:
            other.attempt = max(other.attempt, task.attempt)
            self._discards.append(task.token)
            self._release_slot(task)
            return False
        task.attempt = max(other.attempt, task.attempt)
        if self._unqueue(other):
            self._drop(other)
        else:
            other.stale = True
            del self._held[(other.key, other.part)]
        return True

    def _hold(self, task: Task) -> None:
        self._held[(task.key, task.part)] = task
        if task.peer < 0:
            self._own_held += 1

    def _release(self, task: Task) -> None:
        """The task is no longer here: its slot is free."""
        if self._held.get((task.key, task.part)) is task:
            del self._held[(task.key, task.part)]
        self._release_slot(task)

    def _release_slot(self, task: Task) -> None:
        if task.peer < 0:
            self._own_held -= 1
            return
        link = self._neighbours[task.peer].incoming
        assert link is not None
        link.release(task.epoch, task.number)

    def _drop(self, task: Task) -> None:
        self._release(task)
        self._discards.append(task.token)

    def _drop_if_stale(self, task: Task, now: float) -> bool:
        if not self._is_stale(task, now):
            return False
        self.counts.stale += 1
        self._drop(task)
        return True

    def _unqueue(self, task: Task) -> bool:
        """Takes a waiting task out of I or O; False when it runs."""
        for queues, is_input in ((self._input, True), (self._output, False)):
            queue = queues.get(task.stage)
            if queue is not None and task in queue:
                queue.remove(task)
                if is_input:
                    self._input_length -= 1
                else:
                    self._output_length -= 1
                return True
        return False

    def _place(self, task: Task, now: float) -> None:
        """Rule A1: to I or to O."""
        if task.stage in self._input and (
            task.stage not in self._output or self._offload.keep(input_length=self._input_length, output_length=self._output_length)
        ):
            self._enqueue_input(task, now)
        else:
            task.since = now
            self._output[task.stage].append(task)
            self._output_length += 1

    def _enqueue_input(self, task: Task, now: float) -> None:
        task.since = now
        self._input[task.stage].append(task)
        self._input_length += 1

    def _measure_service(self, stage: int, seconds: float) -> None:
        old = self._service.get(stage, 0.0)
        self._service[stage] = old + SERVICE_GAIN * (seconds - old) if old else seconds

    def _backlog_seconds(self) -> float:
        """|I| * Gamma over all stages hosted here."""
        return sum(len(queue) * self._service.get(stage, 0.0) for stage, queue in self._input.items() if queue)

    def _see_queues(self) -> None:
        length = self._input_length + self._output_length
        histogram = self.counts.queue_histogram
        histogram[length] = histogram.get(length, 0) + 1

    # ---- decisions -----------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        """Sends before it runs, so that neighbours work while this node computes."""
        report_due = now >= self._report_due_at()
        if report_due:
            self._sweep(now)
        if self.source is not None:
            self.source.tick(queue_length=self._input_length + self._output_length, held=self._holds, now=now)
        if self._output_length:
            self._flush_output(now)
        self._admit(now)
        self._flush_rows()
        for neighbour in self._neighbours.values():
            if neighbour.incoming is not None and neighbour.incoming.credit_due():
                self._grant(neighbour, now)
        if report_due:
            self._report(now)
        if self.source is not None and self.source.resolved:
            self._commands.extend(self.source.resolved)
            self.source.resolved = []
        if not self._runs:
            self._run_next(now)
        else:
            self._flush_discards()

    def _flush_discards(self) -> None:
        tokens = [token for token in self._discards if token]
        self._discards = []
        if tokens:
            self._commands.append(Discard(tokens))

    def _holds(self, key: SampleKey) -> bool:
        return (key, 0) in self._held

    def _admit(self, now: float) -> None:
        source = self.source
        if source is None:
            return
        while self._own_held < self.config.own_slots:
            task = source.next_task(now=now)
            if task is None:
                return
            other = self._held.get((task.key, task.part))
            if other is not None:  # a ring brought the earlier attempt back here: it is further on (S2)
                self.counts.met_again += 1
                other.attempt = task.attempt
                continue
            self._hold(task)
            self._enqueue_input(task, now)

    def _run_next(self, now: float) -> None:
        batch: list[Task] = []
        while not batch:
            if not self._input_length and not self._take_back(now):
                break
            stage = self._order.leader(self._input, now=now)
            taken = fill_batch(
                self._input[stage], max_batch=self.config.max_batch, seconds_per_sample=self._service.get(stage, 0.0), now=now
            )
            self._input_length -= len(taken)
            batch = [task for task in taken if not self._drop_if_stale(task, now)]
        self._flush_discards()
        if not batch:
            return
        run, stage = self._next_run, batch[0].stage
        self._next_run += 1
        tasks = tuple(batch)
        self._runs[run] = Run(stage, tasks, now)
        self._commands.append(RunStage(run, stage, tasks, self.config.gates.gate(stage, tasks)))

    def _take_back(self, now: float) -> bool:
        """Rule A3."""
        heads = [queue[0] for stage, queue in self._output.items() if queue and stage in self._input]
        if not heads:
            return False
        task = min(heads, key=lambda head: head.since)
        self._output[task.stage].popleft()
        self._output_length -= 1
        self._input[task.stage].append(task)
        self._input_length += 1
        return True

    def _flush_output(self, now: float) -> None:
        """Rule A2: each lane for itself."""
        for lane, queue in self._output.items():
            frames: dict[int, list[Task]] = {}
            while queue:
                task = queue[0]
                if self._drop_if_stale(task, now):
                    queue.popleft()
                    self._output_length -= 1
                    continue
                neighbour = self._choose(lane, now)
                if neighbour is None:
                    break
                queue.popleft()
                self._output_length -= 1
                self._send(task, neighbour, now)
                frames.setdefault(neighbour.config.rank, []).append(task)
            for peer, tasks in frames.items():
                self._forward(peer, lane, tasks)

    def _choose(self, lane: int, now: float) -> Neighbour | None:
        """The neighbour for the head of a lane, None when none may be sent to."""
        able = []
        for neighbour in self._takers[lane]:
            assert neighbour.outgoing is not None
            if neighbour.outgoing.may_send(lane):
                able.append(neighbour)
            elif neighbour.outgoing.epoch is not None and neighbour.outgoing.waiting_since is None:
                neighbour.outgoing.waiting_since = now
        if not able:
            return None
        if len(able) == 1 and lane not in self._input:
            return able[0]
        here = self._backlog_seconds() if lane in self._input else None
        chosen = self._offload.choose([self._candidate(neighbour) for neighbour in able], here_seconds=here)
        return None if chosen is None else self._neighbours[chosen.peer]

    def _candidate(self, neighbour: Neighbour) -> Candidate:
        assert neighbour.outgoing is not None
        backlog = 0.0
        if neighbour.report is not None:
            services = neighbour.report.service_seconds.values()
            each = sum(services) / len(services) if services else 0.0
            backlog = sum(neighbour.report.backlog_seconds.values()) + neighbour.sent_since_report * each
        return Candidate(neighbour.config.rank, neighbour.outgoing.round_trip_seconds / 2.0, backlog)

    def _send(self, task: Task, neighbour: Neighbour, now: float) -> None:
        """Moves the task onto the link: its slot here is free, one there is taken."""
        assert neighbour.outgoing is not None
        self._release(task)
        task.queued_seconds += now - task.since
        if task.key.source == self.config.rank and self.source is not None:
            task.oldest = self.source.oldest
        neighbour.outgoing.send(task, now=now)
        neighbour.sent_since_report += 1
        self.counts.sent += 1

    def _forward(self, peer: int, lane: int, tasks: list[Task]) -> None:
        link = self._neighbours[peer].outgoing
        assert link is not None
        assert link.epoch is not None
        for start in range(0, len(tasks), self.config.max_batch):
            self._commands.append(Forward(peer, link.epoch, lane, tasks[start : start + self.config.max_batch]))

    # ---- answers and losses on their way to their source ---------------------------------------

    def _route_result(self, row: ResultRow, now: float) -> None:
        if row.key.source == self.config.rank:
            if self.source is not None:
                self.source.result(row, now=now)
                self._drop_local(row.key, row.part)
            return
        hop = self.config.next_hop.get(row.key.source)
        if hop is None or not self._neighbours[hop].up:
            self.counts.unroutable += 1
            return
        self._results.setdefault(hop, []).append(row)

    def _route_results(self, rows: Sequence[ResultRow], now: float) -> None:
        self.counts.relayed += len(rows)
        for row in rows:
            self._route_result(row, now)

    def _drop_local(self, key: SampleKey, part: int) -> None:
        """The sample is answered: another attempt of it that waits here need not run."""
        task = self._held.get((key, part))
        if task is not None:
            if self._unqueue(task):
                self._drop(task)
            else:
                task.stale = True

    def _route_lost(self, rows: Sequence[LostRow], now: float) -> None:
        own: list[LostRow] = []
        for row in rows:
            hop = self.config.next_hop.get(row.key.source)
            if row.key.source == self.config.rank:
                own.append(row)
            elif hop is None or not self._neighbours[hop].up:
                self.counts.unroutable += 1
            else:
                self._lost.setdefault(hop, []).append(row)
        if own and self.source is not None:
            self.source.lost(own, held=self._holds, now=now)

    def _flush_rows(self) -> None:
        if self._results:
            self._commands.extend(SendResults(peer, rows) for peer, rows in self._results.items())
            self._results = {}
        if self._lost:
            self._commands.extend(SendLost(peer, rows) for peer, rows in self._lost.items())
            self._lost = {}

    # ---- credit, reports, silence --------------------------------------------------------------

    def _grant(self, neighbour: Neighbour, now: float) -> None:
        assert neighbour.incoming is not None
        self._commands.append(GrantCredit(neighbour.config.rank, neighbour.incoming.credit(now=now)))

    def _sweep(self, now: float) -> None:
        """Drops waiting tasks that nobody waits for, so that their slots come free (S5)."""
        for task in [task for queue in (*self._input.values(), *self._output.values()) for task in queue]:
            if self._is_stale(task, now) and self._unqueue(task):
                self._drop_if_stale(task, now)

    def _report(self, now: float) -> None:
        """Load to every neighbour, outstanding Credit, Blocked where we starve, and a look at who is silent."""
        report = Report(
            self._input_length,
            self._output_length,
            dict(self._service),
            {stage: len(queue) * self._service.get(stage, 0.0) for stage, queue in self._input.items()},
        )
        for neighbour in self._neighbours.values():
            if neighbour.incoming is not None and neighbour.incoming.credit_changed():
                self._grant(neighbour, now)
            if not neighbour.up:
                continue
            self._commands.append(SendReport(neighbour.config.rank, report))
            self._tell_blocked(neighbour, now)
            if now - neighbour.heard_at > self.config.hang_seconds:
                self._reset(neighbour, f"nothing heard for {now - neighbour.heard_at:.1f} s", now)
        self._reported_at = now

    def _report_due_at(self) -> float:
        """A node at work reports every `report_seconds`, an idle one only shows that it lives."""
        busy = self._held or any(n.incoming is not None and n.incoming.credit_changed() for n in self._neighbours.values())
        return self._reported_at + (self.config.report_seconds if busy else HEARTBEAT_SECONDS)

    def _tell_blocked(self, neighbour: Neighbour, now: float) -> None:
        """Rule C6."""
        link = neighbour.outgoing
        if link is None or link.epoch is None or link.waiting_since is None:
            return
        if not any(self._output[lane] for lane in link.lanes):
            link.waiting_since = None
        elif now - link.waiting_since >= self.config.report_seconds:
            self.counts.blocked += 1
            link.waiting_since = now
            self._commands.append(SendBlocked(neighbour.config.rank, link.epoch, link.next_number))

    def _reset(self, neighbour: Neighbour, reason: str, now: float) -> None:
        """Rule R5."""
        self.counts.resets += 1
        neighbour.heard_at = now  # the new connection gets a full `hang_seconds` too
        self._commands.append(ResetLink(neighbour.config.rank, reason))
        self._lose_outstanding(neighbour, f"peer-lost: node {neighbour.config.rank}: {reason}", now)
        neighbour.sends = neighbour.receives = False
        if neighbour.incoming is not None:
            neighbour.incoming.close()

    def _heard(self, peer: int, now: float) -> None:
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.heard_at = now

    # ---- invariants ----------------------------------------------------------------------------

    def check(self) -> None:
        """Asserts what must hold after every `handle`."""
        queued = [task for queue in (*self._input.values(), *self._output.values()) for task in queue]
        running = [task for run in self._runs.values() for task in run.tasks]
        assert self._input_length == sum(map(len, self._input.values())), self
        assert self._output_length == sum(map(len, self._output.values())), self
        held = [task for task in (*queued, *running) if not task.stale]
        assert {id(task) for task in held} <= {id(task) for task in self._held.values()}, self
        assert len(queued) + len(running) == len({id(task) for task in (*queued, *running)}), self
        assert {id(task) for task in self._held.values()} <= {id(task) for task in (*queued, *running)}, self
        own = sum(1 for task in (*queued, *running) if task.peer < 0)
        assert own == self._own_held, (self, own, self._own_held)
        assert self._own_held <= self.config.own_slots + 1, self
        assert all(task.stage == stage for stage, queue in self._input.items() for task in queue), self
        for neighbour in self._neighbours.values():
            if neighbour.outgoing is not None:
                neighbour.outgoing.check()
            if neighbour.incoming is not None:
                neighbour.incoming.check()
                came = sum(1 for task in (*queued, *running) if task.peer == neighbour.config.rank)
                assert came == len(neighbour.incoming.held) + len(neighbour.incoming.carried), (self, neighbour.incoming)
        if self.source is not None:
            self.source.check()
        assert self._runs or not self._input_length, self

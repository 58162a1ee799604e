"""What one trace tells of one start of a node: what it ran, sent and took in, and what waited meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from zpipe.model import SampleKey, Task
from zpipe.policy import NodePolicy
from zpipe.policy.messages import (
    BanPeer,
    BlockedReceived,
    Command,
    CreditReceived,
    DrainStarted,
    Event,
    Forward,
    GrantCredit,
    LostReceived,
    PeerLost,
    PeerUp,
    ReportReceived,
    ResetLink,
    Resolve,
    ResultReceived,
    RunStage,
    SampleSubmitted,
    SendBlocked,
    SendCompleted,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    SessionRaised,
    StageCompleted,
    StageFailed,
    TaskReceived,
)
from zpipe.trace import Trace

#: How far reading is, 0..1.
Progress: TypeAlias = Callable[[float], None]
#: A task's sample, and which attempt at it.
Attempt: TypeAlias = "tuple[SampleKey, int]"
#: What a message says, so that it is known again where it arrives.
Words: TypeAlias = "tuple[Any, ...]"


@dataclass(slots=True)
class Ran:
    """A batch, from when the executor turned to it to when its outcome was taken in.

    Attributes:
        exited: its rows that were answered here; None: it has no outcome.
        failed: why it failed.
    """

    began_at: float
    ended_at: float
    stage: int
    rows: tuple[Attempt, ...]
    exited: int | None = None
    failed: str = ""


@dataclass(slots=True)
class Waited:
    """A task in a queue, until it ran here or was sent; one that was to be sent and is taken back (rule A3) waited to run."""

    began_at: float
    ended_at: float
    until: Literal["run", "sent"]
    stage: int
    row: Attempt


@dataclass(slots=True)
class Frame:
    """Tasks sent in one message. `bytes`: where a codec decides its size, else 0."""

    sent_at: float
    peer: int
    epoch: int
    first: int
    stage: int
    rows: tuple[Attempt, ...]
    bytes: int = 0


@dataclass(slots=True)
class Ended:
    """The outcome of a sample of this node. `label`, `confidence`, `exit_stage` of a result, else -1 and 0."""

    submitted_at: float
    ended_at: float
    sample: int
    kind: str
    attempts: int
    answered: Attempt | None
    cause: str
    label: int = -1
    confidence: float = 0.0
    exit_stage: int = -1
    queued_seconds: float = 0.0
    service_seconds: float = 0.0


@dataclass(slots=True)
class Note:
    """Something that happened at one moment."""

    at: float
    name: str
    says: dict[str, Any]


@dataclass(slots=True)
class Life:
    """One start of a node, all times on its own clock.

    Attributes:
        end: as Trace.end.
        differs_at: when the policy here first answered otherwise than the one that was traced: no counters beyond it; None: never.
        stalls: (neighbour, from, to) in which a task waited for credit alone.
        counters: {name: [(now, {series: value}), ...]}, where it changed.
        said: {(neighbour, what): when}; None: said more than once, so that it cannot be told which arrived.
        heard: (neighbour, what, when).
    """

    path: Path
    rank: int
    stages: tuple[int, ...]
    epoch: float | None
    is_source: bool
    began_at: float = math.inf
    ended_at: float = -math.inf
    end: str = ""
    broke: str = ""
    rounds: int = 0
    differs_at: float | None = None
    runs: list[Ran] = field(default_factory=list)
    waits: list[Waited] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    outcomes: list[Ended] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    stalls: list[tuple[int, float, float]] = field(default_factory=list)
    counters: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)
    arrived: dict[tuple[int, int, int], float] = field(default_factory=dict)  #: {(neighbour, epoch, first number): when}
    said: dict[tuple[int, Words], float | None] = field(default_factory=dict)
    heard: list[tuple[int, Words, float]] = field(default_factory=list)


def read_life(path: Path, *, progress: Progress = lambda share: None) -> Life:
    """Reads a trace to its end, and tells it to a fresh policy on the way: queues, credit and admission are looked at there.

    Raises:
        ConfigError: the file is no trace, or from a zpipe with other events, commands or strategies.
    """
    with Trace(path) as trace:
        policy = trace.fresh_policy()
        reader = _LifeReader(policy, path, trace.epoch)
        life = reader.life
        for now, events, answer in trace.rounds():
            reader.take(now, events, answer)
            if life.rounds % 512 == 0:
                progress(trace.read_share())
        life.end = trace.end
    reader.finish()
    return life


class _LifeReader:
    def __init__(self, policy: NodePolicy, path: Path, epoch: float | None) -> None:
        config = policy.config
        self.life = Life(path, config.rank, config.stages, epoch, config.source is not None)
        self._policy = policy
        self._running: dict[int, tuple[float, RunStage, tuple[Attempt, ...]]] = {}
        self._free_at = -math.inf
        self._submitted: dict[int, float] = {}
        self._unsized: dict[tuple[int, int, int], Frame] = {}
        self._stalled: dict[int, float] = {}
        self._links = [neighbour.rank for neighbour in config.neighbours if neighbour.lanes_out]
        self._outcomes = {"result": 0, "rejected": 0, "expired": 0, "failed": 0}
        self._again: dict[int, int] = {}  #: {sample: latest attempt}, of those that had to be submitted again

    def take(self, now: float, events: list[Event], answer: list[Command] | dict[str, str]) -> None:
        life = self.life
        life.rounds += 1
        life.began_at, life.ended_at = min(life.began_at, now), max(life.ended_at, now)
        for event in events:
            self._event(event, now)
        if isinstance(answer, dict):
            life.broke = answer["raised"]
            return
        self._retell(events, answer, now)
        for command in answer:
            self._command(command, now)

    def finish(self) -> None:
        """What was under way when the trace ends, ends with it."""
        life = self.life
        for began_at, run, rows in self._running.values():
            life.runs.append(Ran(max(began_at, min(self._free_at, life.ended_at)), life.ended_at, run.stage, rows))
        for peer, since in self._stalled.items():
            life.stalls.append((peer, since, life.ended_at))

    # ---- the policy, told again ----------------------------------------------------------------

    def _retell(self, events: list[Event], expected: list[Command], now: float) -> None:
        life, policy = self.life, self._policy
        if life.differs_at is not None:
            return
        try:
            equal = policy.handle_all(events, now=now) == expected
        except Exception:  # of a policy that is not the one that was traced: what it thinks is worth nothing from here on
            equal = False
        if not equal:
            life.differs_at = now
            return
        self._count("queue", {"input": policy.input_length, "output": policy.output_length}, now)
        for rank in self._links:
            link = policy.neighbour(rank).outgoing
            assert link is not None
            self._count(f"credit to node {rank}", {"tasks": max(0, link.limit - link.next_number)}, now)
            self._stall(rank, link.waiting_since, now)
        source = policy.source
        if source is not None:
            self._count("samples", {"in flight": source.in_flight, "waiting": source.waiting_count}, now)
            admission = source.admission
            if admission.rate_hz is not None:
                self._count("admission rate", {"hz": admission.rate_hz}, now)
            if admission.window_samples is not None:
                self._count("admission window", {"samples": admission.window_samples}, now)
            self._count("operating point", {"point": admission.point}, now)

    def _count(self, name: str, values: dict[str, float], now: float) -> None:
        rows = self.life.counters.setdefault(name, [])
        if not rows or rows[-1][1] != values:
            rows.append((now, values))

    def _stall(self, rank: int, since: float | None, now: float) -> None:
        began_at = self._stalled.get(rank)
        if since is not None:
            self._stalled.setdefault(rank, since)
        elif began_at is not None:
            self.life.stalls.append((rank, began_at, now))
            del self._stalled[rank]

    # ---- events --------------------------------------------------------------------------------

    def _event(self, event: Event, now: float) -> None:
        match event:
            case TaskReceived():
                first = event.tasks[0].number
                self.life.arrived.setdefault((event.peer, event.epoch, first), now)
                self._hear(event.peer, ("task", event.epoch, first), now)
            case StageCompleted() | StageFailed():
                self._ran(event, now)
            case SampleSubmitted():
                self._submitted[event.sample] = event.submitted_at
            case SendCompleted():
                frame = self._unsized.pop((event.peer, event.epoch, event.first), None)
                if frame is not None:
                    frame.bytes = event.bytes
            case CreditReceived():
                self._hear(event.peer, _words(event), now)
            case ReportReceived() | ResultReceived() | BlockedReceived():
                self._hear(event.peer, _words(event), now)
            case LostReceived():
                self._hear(event.peer, _words(event), now)
                self._note(now, "heard of lost tasks", {"from": event.peer, "tasks": len(event.rows), "cause": event.rows[0].cause})
            case SendFailed():
                self._note(now, "send failed", {"to": event.peer})
            case PeerUp():
                self._note(now, f"node {event.peer} up", {"direction": "out" if event.outgoing else "in"})
            case PeerLost():
                self._note(now, f"node {event.peer} lost", {"direction": "out" if event.outgoing else "in", "reason": event.reason})
            case DrainStarted():
                self._note(now, "drain started", {})
            case _:
                pass  # a cancelled sample has its outcome, a timer says nothing

    def _ran(self, event: StageCompleted | StageFailed, now: float) -> None:
        run = self._running.pop(event.run, None)
        if run is None:
            return
        told_at, command, rows = run
        if isinstance(event, StageFailed):
            ran = Ran(max(told_at, min(self._free_at, now)), now, command.stage, rows, failed=event.error)
            self._note(now, f"stage {command.stage} failed", {"error": event.error, "executor lost": event.executor_lost})
        else:
            began_at = max(told_at, now - event.seconds, min(self._free_at, now))
            last = command.gate.last
            ran = Ran(began_at, now, command.stage, rows, exited=len(rows) if last else sum(event.exited))
        self._free_at = now
        self.life.runs.append(ran)

    # ---- commands ------------------------------------------------------------------------------

    def _command(self, command: Command, now: float) -> None:
        life = self.life
        match command:
            case RunStage():
                self._running[command.run] = (now, command, self._attempts(command.tasks, now))
                life.waits.extend(_waits(command.tasks, "run", now))
            case Forward():
                first = command.tasks[0].number
                rows = self._attempts(command.tasks, now)
                frame = Frame(now, command.peer, command.epoch, first, command.stage, rows)
                life.frames.append(frame)
                self._unsized[command.peer, command.epoch, first] = frame
                life.waits.extend(_waits(command.tasks, "sent", now))
                self._say(command.peer, ("task", command.epoch, first), now)
            case Resolve():
                self._resolved(command, now)
            case GrantCredit() | SendReport() | SendResults() | SendBlocked():
                self._say(command.peer, _words(command), now)
            case SendLost():
                self._say(command.peer, _words(command), now)
                self._note(
                    now, "told of lost tasks", {"to": command.peer, "tasks": len(command.rows), "cause": command.rows[0].cause}
                )
            case ResetLink():
                self._note(now, f"link to node {command.peer} reset", {"reason": command.reason})
            case BanPeer():
                self._note(now, f"node {command.peer} banned", {"reason": command.reason})
            case SessionRaised():
                self._note(now, "session raised", {"session": command.session, "cause": command.cause})
            case _:
                pass  # payloads that are dropped

    def _attempts(self, tasks: Sequence[Task], now: float) -> tuple[Attempt, ...]:
        """The rows of a batch; the first time that a source lets out a further attempt is a note."""
        for task in tasks:
            if task.attempt > 1 and task.key.source == self.life.rank and self._again.get(task.key.sample, 1) < task.attempt:
                self._again[task.key.sample] = task.attempt
                self._note(now, "submitted again", {"sample": task.key.sample, "attempt": task.attempt})
        return tuple((task.key, task.attempt) for task in tasks)

    def _resolved(self, command: Resolve, now: float) -> None:
        row = command.row
        submitted_at = self._submitted.pop(command.sample, now - command.latency_seconds)
        ended = Ended(submitted_at, now, command.sample, command.kind, command.attempts, None, command.cause)
        if row is not None:
            ended.answered = (row.key, row.attempt)
            ended.label, ended.confidence, ended.exit_stage = row.label, row.confidence, row.exit_stage
            ended.queued_seconds, ended.service_seconds = row.queued_seconds, row.service_seconds
        self.life.outcomes.append(ended)
        self._outcomes[command.kind] += 1
        self._count("outcomes", dict(self._outcomes), now)

    # ---- what is told --------------------------------------------------------------------------

    def _say(self, peer: int, words: Words, now: float) -> None:
        known = (peer, words) in self.life.said
        self.life.said[peer, words] = None if known else now

    def _hear(self, peer: int, words: Words, now: float) -> None:
        self.life.heard.append((peer, words, now))

    def _note(self, now: float, name: str, says: dict[str, Any]) -> None:
        self.life.notes.append(Note(now, name, says))


def _waits(tasks: Sequence[Task], until: Literal["run", "sent"], now: float) -> list[Waited]:
    return [Waited(task.since, now, until, task.stage, (task.key, task.attempt)) for task in tasks]


def _words(message: Command | Event) -> Words:
    """The same where a message is sent and where it is heard, and as good as never the same for two of them."""
    match message:
        case GrantCredit() | CreditReceived():
            credit = message.credit
            return ("credit", credit.epoch, credit.expected, credit.limit, credit.holding_seconds, credit.held)
        case SendReport() | ReportReceived():
            report = message.report
            return (
                "report",
                report.input_length,
                report.output_length,
                *report.backlog_seconds.values(),
                *report.service_seconds.values(),
            )
        case SendResults() | ResultReceived():
            row = message.rows[0]
            return ("result", row.key, row.attempt, row.exit_stage, row.hops)
        case SendLost() | LostReceived():
            return ("lost", message.rows[0].key, message.rows[0].attempt, len(message.rows))
        case SendBlocked() | BlockedReceived():
            return ("blocked", message.epoch, message.next_number)
        case _:
            raise AssertionError(f"{type(message).__name__} is no message between nodes")

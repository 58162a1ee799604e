"""One node's part of the exploration: states it was seen in, and what each event does to each, computed once.

A node is a deterministic function of (its state, the event, the time), so a transition is computed on a copy the first time it
is met and looked up ever after; the world's state then holds a number per node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from tests.policy.explore.freeze import NO_DICE, copier, freeze
from tests.policy.mesh import Shape
from zpipe.model import Task
from zpipe.policy.messages import (
    BanPeer,
    BlockedReceived,
    Command,
    CreditReceived,
    Discard,
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
    SampleCancelled,
    SampleSubmitted,
    SendBlocked,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    SessionRaised,
    StageCompleted,
    StageFailed,
    TaskReceived,
    TimerFired,
)
from zpipe.policy.node import NodePolicy

#: Seconds between two moments at which time stands still for deliveries. Timers fire up to one moment late, as real ones do.
MOMENT_SECONDS = 0.5
#: What every executor says a batch took: long against a link that takes no time, so that neighbours are worth asking.
BATCH_SECONDS = 0.25


def label(source: int, session: int, sample: int) -> int:
    """The right answer: another one for each sample of each session of each source."""
    return 100 * source + 3 * session + sample


class Violation(AssertionError):
    """Something happened that never may. `search` adds the way there."""


class Frame(NamedTuple):
    """Something for a neighbour: numbers of the message, of the epoch it names (-1: none), and the plane."""

    peer: int
    message: int
    epoch: int
    data: bool


class Reset(NamedTuple):
    """The node gives up its connections with a neighbour."""

    peer: int


class Running(NamedTuple):
    """What is in the executor."""

    run: int
    stage: int
    samples: tuple[tuple[int, int, int], ...]  #: (source, session, sample)


class End(NamedTuple):
    """One end of a link, for comparing it with the other end."""

    epoch: int | None
    numbers: frozenset[int]  #: outstanding, or held
    border: int  #: next number, or limit
    carried: int
    lower: frozenset[int]  #: of the numbers, those of tasks below the highest class (C8)
    clear: tuple[int, ...]  #: by class, as heard or told


Output: TypeAlias = Frame | Reset | Resolve


class Step(NamedTuple):
    """What one event did: the state after it, and what is to be done outside, in order."""

    state: int
    outputs: tuple[Output, ...]


@dataclass(slots=True)
class State:
    """A node as it may be. Nothing changes it: events go to copies.

    Attributes:
        wakeup: the moment its timer is due, None when it waits for no time.
        sends, receives: {neighbour: our end of the link}.
        idle: it holds no task and runs none.
        accepting: it takes tasks.
        leaves: it drained, or its executor is lost: whoever runs it may start it anew.
    """

    copy: Callable[[], NodePolicy]
    running: Running | None
    wakeup: int | None
    sends: dict[int, End]
    receives: dict[int, End]
    idle: bool
    accepting: bool
    leaves: bool
    by_timer: int
    shown: str


class Nodes:
    """All states of all nodes that were met, the messages they sent, and the steps between them.

    Args:
        shape: who hosts what.
        leaves_at: {sample: the stage at which it exits}; the last one if not named.
    """

    def __init__(self, shape: Shape, leaves_at: dict[int, int]) -> None:
        self.shape = shape
        self._leaves_at = leaves_at
        self._last_stage = shape.stage_count - 1
        self.states: list[State] = []
        self._numbers: dict[Hashable, int] = {}
        self.messages: list[Event] = []
        self._message_numbers: dict[Hashable, int] = {}
        self._steps: dict[tuple[int, Any, int], Step] = {}
        self.steps_computed = 0

    # ---- in ------------------------------------------------------------------------------------

    def born(self, rank: int, session: int) -> int:
        """A node that just started."""
        config = replace(self.shape.config(rank, session), report_seconds=MOMENT_SECONDS)
        return self._intern(NodePolicy(config, rng=NO_DICE), rank, session, None)

    def tell(self, state: int, event: tuple[Any, ...], moment: int) -> Step:
        """What an event does, in the words of `_event`."""
        name = (state, event, moment)
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = self._compute(*name)
        return step

    def _event(self, running: Running | None, event: Any, now: float) -> Event:
        match event:
            case ("message", int(number)):
                return self._fresh(self.messages[number])
            case ("completed",):
                assert running is not None
                run, stage, samples = running
                exited = [stage >= self._leaves_at.get(sample, self._last_stage) for *_, sample in samples]
                labels, confidences = [label(*sample) for sample in samples], [0.9] * len(samples)
                scores = [self.shape.scores(stage, sample) for *_, sample in samples] if self.shape.students else ()
                return StageCompleted(run, exited, labels, confidences, BATCH_SECONDS, (), scores)
            case ("failed",):
                assert running is not None
                return StageFailed(running.run, "poison")
            case ("broken",):
                assert running is not None
                return StageFailed(running.run, "device lost", executor_lost=True)
            case ("draining",):
                return DrainStarted()
            case ("submitted", int(sample), float(deadline), int(priority)):
                return SampleSubmitted(sample, deadline, now, priority)
            case ("cancelled", int(sample)):
                return SampleCancelled(sample, "the caller gave up")
            case ("fired",):
                return TimerFired()
            case ("up", int(peer), int(epoch), bool(outgoing)):
                return PeerUp(peer, epoch, outgoing=outgoing)
            case ("lost", int(peer), bool(outgoing)):
                return PeerLost(peer, outgoing=outgoing, reason="cut")
            case ("refused", int(peer), int(epoch)):
                return SendFailed(peer, epoch)
            case _:
                raise AssertionError(event)

    @staticmethod
    def _fresh(event: Event) -> Event:
        """The policy changes the tasks it is given, and nothing else."""
        if isinstance(event, TaskReceived):
            return TaskReceived(event.peer, event.epoch, [_on_the_wire(task) for task in event.tasks])
        return event

    def _compute(self, state: int, event: tuple[Any, ...], moment: int) -> Step:
        before = self.states[state]
        node = before.copy()
        self.steps_computed += 1
        running, outputs = self.carry_out(node, before.running, event, moment)
        session = node.source.config.session if node.source else 0
        after = self._intern(node, node.config.rank, session, running)
        if event == ("fired",) and after == state:
            raise Violation(f"a timer of node {node.config.rank} fires without end")
        return Step(after, tuple(outputs))

    def carry_out(
        self, node: NodePolicy, running: Running | None, event: tuple[Any, ...], moment: int
    ) -> tuple[Running | None, list[Output]]:
        """Tells a node of an event; returns what it runs then, and what is to be done outside.

        Raises:
            Violation: an invariant broke, or it did what it never may.
        """
        rank, now = node.config.rank, moment * MOMENT_SECONDS
        told = event[1:] if event[0] == "together" else (event,)
        try:
            commands = node.handle_all([self._event(running, part, now) for part in told], now=now)
            node.check()
        except AssertionError as error:
            raise Violation(f"an invariant of node {rank} broke: {error}") from error
        if ("completed",) in told or ("failed",) in told or ("broken",) in told:
            running = None
        outputs: list[Output] = []
        for command in commands:
            if isinstance(command, RunStage):
                if running is not None:
                    raise Violation(f"node {rank} runs two batches at once")
                running = Running(command.run, command.stage, tuple((*task.key,) for task in command.tasks))
            else:
                self._output(rank, command, outputs)
        for neighbour in node.config.neighbours:
            incoming = node.neighbour(neighbour.rank).incoming
            if incoming is not None and incoming.overruns:
                raise Violation(f"node {neighbour.rank} sent node {rank} a task it had no credit for")
        return running, outputs

    # ---- out -----------------------------------------------------------------------------------

    def _output(self, rank: int, command: Command, outputs: list[Output]) -> None:
        match command:
            case Forward():
                tasks = [_on_the_wire(task) for task in command.tasks]
                event: Event = TaskReceived(rank, command.epoch, tasks)
                outputs.append(Frame(command.peer, self._message(event), command.epoch, data=True))
            case SendBlocked():
                event = BlockedReceived(rank, command.epoch, command.next_number)
                outputs.append(Frame(command.peer, self._message(event), command.epoch, data=True))
            case GrantCredit():
                outputs.append(Frame(command.peer, self._message(CreditReceived(rank, command.credit)), -1, data=False))
            case SendReport():
                outputs.append(Frame(command.peer, self._message(ReportReceived(rank, command.report)), -1, data=False))
            case SendResults():
                outputs.append(Frame(command.peer, self._message(ResultReceived(rank, list(command.rows))), -1, data=False))
            case SendLost():
                outputs.append(Frame(command.peer, self._message(LostReceived(rank, list(command.rows))), -1, data=False))
            case Resolve():
                outputs.append(command)
            case ResetLink():
                outputs.append(Reset(command.peer))
            case BanPeer():
                raise Violation(f"node {rank} bans node {command.peer}, which keeps the rules: {command.reason} (R7)")
            case SessionRaised():
                raise Violation(f"node {rank} raised its session among nodes that keep the rules: {command.cause} (S5)")
            case Discard():
                raise Violation(f"node {rank} discards a payload it was never given: {command}")
            case _:
                raise AssertionError(f"a command the explorer does not know, so it would be lost: {command}")

    def _message(self, event: Event) -> int:
        name = freeze(event)
        if name not in self._message_numbers:
            self._message_numbers[name] = len(self.messages)
            self.messages.append(event)
        return self._message_numbers[name]

    def _intern(self, node: NodePolicy, rank: int, session: int, running: Running | None) -> int:
        name = (rank, session, running and running[1:], freeze(node))
        if name in self._numbers:
            return self._numbers[name]
        number = self._numbers[name] = len(self.states)
        wakeup = node.next_wakeup()
        if wakeup is not None:
            wakeup = max(0, math.ceil(wakeup / MOMENT_SECONDS)) if wakeup > -math.inf else 0
        sends, receives = {}, {}
        for config in node.config.neighbours:
            near = node.neighbour(config.rank)
            if near.outgoing is not None:
                link = near.outgoing
                lower = frozenset(number for number, each in link.outstanding.items() if each.priority < node.config.classes[-1])
                numbers, clear = frozenset(link.outstanding), tuple(link.clear.values())
                sends[config.rank] = End(link.epoch, numbers, link.next_number, link.limit, lower, clear)
            if near.incoming is not None:
                held = near.incoming
                lower = frozenset(number for connection, number in held.lower if connection == held.connection)
                numbers, clear = frozenset(held.held), tuple(held.clear.values())
                receives[config.rank] = End(held.epoch, numbers, held.limit, len(held.carried), lower, clear)
        self.states.append(
            State(
                copier(node),
                running,
                wakeup,
                sends,
                receives,
                not node.held_count and running is None,
                node.accepting,
                node.drained or not node.serving,
                node.source.counts.by_timer if node.source else 0,
                repr(node),
            )
        )
        return number


def _on_the_wire(task: Task) -> Task:
    """A task as the next node gets it: what belongs to this node stays here."""
    return replace(task, peer=-1, epoch=0, since=0.0, alone=False, stale=False, token=0)

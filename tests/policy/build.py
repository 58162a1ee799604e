"""Short names for what the tests of the policy say over and over."""

from __future__ import annotations

import math
from typing import Any

import pytest

from zpipe.model import Credit, GateSpec, LostRow, ResultRow, SampleKey, Task
from zpipe.policy.delivery import Source, SourceConfig
from zpipe.policy.exits import no_exit
from zpipe.policy.messages import (
    Command,
    CreditReceived,
    Event,
    PeerUp,
    Resolve,
    RunStage,
    SampleSubmitted,
    StageCompleted,
    TaskReceived,
)
from zpipe.policy.node import NodePolicy

#: Epochs of the first connections: into a node, and out of it.
INTO, OUT = 10, 20


def about(seconds: float) -> Any:
    """Equal but for rounding, inside of a value."""
    return pytest.approx(seconds)


def key(sample: int, *, source: int = 0, session: int = 1) -> SampleKey:
    return SampleKey(source, session, sample)


def task(sample: int, stage: int, number: int = -1, *, attempt: int = 1, session: int = 1, source: int = 0, **other: Any) -> Task:
    """A task whose payload token is 100 + its number."""
    other.setdefault("token", 100 + number)
    return Task(key(sample, source=source, session=session), attempt, stage, (0.5,) * 3, number=number, **other)


def lost(sample: int, attempt: int, cause: str, *, session: int = 1) -> LostRow:
    return LostRow(key(sample, session=session), attempt, cause)


def answer(sample: int, attempt: int = 1, *, stage: int = 2, session: int = 1, source: int = 0) -> ResultRow:
    return ResultRow(key(sample, source=source, session=session), attempt, stage, sample % 10, 0.9, 0.0, 0.004)


def gate(rows: int, *, last: bool = False, threshold: float = 0.5) -> GateSpec:
    return GateSpec("max-probability", 1.0, (threshold,) * rows, last)


class Driven:
    """A node with its invariants checked after every event."""

    def __init__(self, policy: NodePolicy) -> None:
        self.policy = policy
        self.counts = policy.counts
        self.last_run = -1

    def tell(self, *events: Event, now: float = 0.0) -> list[Command]:
        commands = self.policy.handle_all(events, now=now)
        self.policy.check()
        for command in commands:
            if isinstance(command, RunStage):
                self.last_run = command.run
        return commands

    def connect(self, peer: int, *, epoch: int = 0, now: float = 0.0, credit: int | None = None) -> list[Command]:
        """Both directions come up, and the first Credit (all of the window) with them."""
        neighbour = self.policy.neighbour(peer)
        commands: list[Command] = []
        if neighbour.incoming is not None:
            commands += self.tell(PeerUp(peer, epoch or INTO, outgoing=False), now=now)
        if neighbour.outgoing is not None:
            commands += self.tell(PeerUp(peer, epoch or OUT, outgoing=True), now=now)
            window = neighbour.outgoing.window if credit is None else credit
            commands += self.tell(CreditReceived(peer, Credit(epoch or OUT, 0, (), window)), now=now)
        return commands

    def receive(self, *tasks: Task, peer: int = 0, epoch: int = INTO, now: float = 0.0) -> list[Command]:
        return self.tell(TaskReceived(peer, epoch, list(tasks)), now=now)

    def complete(self, *exited: bool, run: int | None = None, now: float = 0.01) -> list[Command]:
        """The batch in the executor is done; True: that row left."""
        rows = len(exited)
        return self.tell(
            StageCompleted(self.last_run if run is None else run, exited, [7] * rows, [0.9] * rows, 0.004 * rows), now=now
        )

    def submit(self, *samples: int, now: float = 0.0, deadline: float = math.inf) -> list[Command]:
        return self.tell(*[SampleSubmitted(sample, deadline, now) for sample in samples], now=now)


class DrivenSource:
    """A Source and what its owner does, in one line each."""

    def __init__(self, **config: Any) -> None:
        config.setdefault("ladder", no_exit(3))
        config.setdefault("admission", "fixed")
        self.source = Source(SourceConfig(session=1, **config), rank=0)
        self.counts = self.source.counts

    def submit(self, *samples: int, now: float = 0.0, deadline: float = math.inf) -> None:
        for sample in samples:
            self.source.submit(sample, deadline=deadline, submitted_at=now, priority=0, weight=1.0, now=now)

    def start(self, *, now: float = 0.0, most: int = 1000) -> list[tuple[int, int]]:
        """Admits all it may: (sample, attempt) of each."""
        started: list[tuple[int, int]] = []
        while len(started) < most and (new := self.source.next_task(now=now)) is not None:
            started.append((new.key.sample, new.attempt))
        return started

    def result(self, sample: int, attempt: int = 1, *, now: float = 0.1, session: int = 1) -> None:
        self.source.result(answer(sample, attempt, session=session), now=now)

    def lost(self, sample: int, attempt: int = 1, cause: str = "peer-lost", *, held: bool = False, now: float = 0.1) -> None:
        self.source.lost(lost(sample, attempt, cause), held=held, now=now)

    def tick(self, now: float, *, held: tuple[int, ...] = (), queue_length: int = 0) -> None:
        self.source.tick(
            queue_length=queue_length, under_way=lambda key, attempt, part: key.sample in held, hindrance=lambda key: "", now=now
        )

    def outcomes(self) -> list[tuple[int, str]]:
        """(sample, kind) since the last look."""
        return [(resolve.sample, resolve.kind) for resolve in self.resolves()]

    def resolves(self) -> list[Resolve]:
        told, self.source.told = self.source.told, []
        return [command for command in told if isinstance(command, Resolve)]

    def check(self) -> None:
        self.source.check()

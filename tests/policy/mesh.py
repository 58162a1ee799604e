"""A mesh of NodePolicy objects on a virtual clock: perfect executors, FIFO links, and every fault a test asks for.

The answer of a stage is a pure function of (sample, stage), so that every attempt of a sample exits where the first would have.
"""

from __future__ import annotations

import heapq
import itertools
import random
from array import array
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from zpipe.policy.allocation import chain_of
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import ExitGates, ExitLadder
from zpipe.policy.fanout import FanoutConfig
from zpipe.policy.messages import (
    BanPeer,
    BlockedReceived,
    Command,
    CreditReceived,
    Discard,
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
from zpipe.policy.state import NeighbourConfig, NodeConfig

LINK_SECONDS = 0.001
SERVICE_SECONDS = 0.004


@dataclass
class Shape:
    """A mesh for a test: which rank hosts which stages, who neighbours whom.

    Attributes:
        sources: {rank: class of its samples}; rank 0 is one.
        students: stages of each student; () is one chain of all.
    """

    stages: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, int], ...]
    window: int = 4
    max_batch: int = 1
    runs: int = 1
    own_slots: int = 4
    admission: str = "fixed"
    options: dict[str, float] = field(default_factory=dict)
    when_full: str = "block"
    waiting: int = 1000
    ladder: ExitLadder | None = None
    offload: str = "local"
    offload_input: bool = False
    output_threshold: int = 50
    sources: dict[int, int] = field(default_factory=lambda: {0: 0})
    order: str = "fifo"
    min_share: float = 0.05
    max_batch_low: int = 0
    ageing_seconds: float = 0.0
    students: tuple[int, ...] = ()
    redundancy: str = "hedged"

    @property
    def stage_count(self) -> int:
        return sum(self.students) or 1 + max(stage for hosted in self.stages for stage in hosted)

    @property
    def firsts(self) -> tuple[int, ...]:
        """Each student's first stage."""
        return tuple(itertools.accumulate(self.students[:-1], initial=0))

    @property
    def ends(self) -> tuple[int, ...]:
        """Each student's last stage."""
        return tuple(end - 1 for end in itertools.accumulate(self.students))

    @property
    def gates(self) -> ExitGates:
        ends = tuple(stage in self.ends for stage in range(self.stage_count)) if self.students else ()
        return ExitGates((1.0,) * self.stage_count, ends=ends, scores=bool(self.students))

    @property
    def fanout(self) -> FanoutConfig | None:
        """With a class per set of parts, so that an answer's label tells which parts were joined (see `scores`)."""
        if not self.students:
            return None
        sets = range(1 << len(self.students))
        bias = tuple(-0.5 * bin(each).count("1") for each in sets)
        return FanoutConfig(self.firsts, self.ends, bias, (1.0,) * len(sets), self.redundancy)  # type: ignore[arg-type]

    def scores(self, stage: int, sample: int) -> bytes:
        """A student's: more for every set of parts that holds its own, so that the sum is largest for just the set that is in."""
        part, sets = self.gates.parts[stage], range(1 << len(self.students))
        return array("f", [(1.0 + sample % 7) * (each >> part & 1) for each in sets]).tobytes()

    def lanes(self, sender: int, receiver: int) -> tuple[int, ...]:
        if self.students:
            return tuple(
                stage
                for stage in self.stages[receiver]
                if (sender in self.sources if stage in self.firsts else stage - 1 in self.stages[sender])
            )
        raw = any(receiver in self.farther(sender, source) for source in self.sources)
        raw = raw or (sender in self.sources and 0 not in self.stages[sender])
        hosted = self.stages[receiver]
        return tuple(sorted(stage for stage in hosted if stage - 1 in self.stages[sender] or (stage == 0 and raw)))

    def farther(self, rank: int, source: int = 0) -> tuple[int, ...]:
        """Neighbours to which a raw input of that source may go on."""
        if not self.offload_input or not (rank == source or 0 in self.stages[rank]):
            return ()
        hops = self.distances(source)
        return tuple(near for near in self.neighbours(rank) if hops[near] > hops[rank] and 0 in self.stages[near])

    def connects(self, sender: int, receiver: int) -> bool:
        """Where no tasks pass either way, the lower rank connects all the same, for answers."""
        return bool(self.lanes(sender, receiver)) or (sender < receiver and not self.lanes(receiver, sender))

    def neighbours(self, rank: int) -> list[int]:
        return sorted({b for a, b in self.links if a == rank} | {a for a, b in self.links if b == rank})

    def distances(self, source: int = 0) -> dict[int, int]:
        """Breadth first from a source, over the links."""
        hops, frontier = {source: 0}, [source]
        while frontier:
            found = []
            for at in frontier:
                for near in self.neighbours(at):
                    if near not in hops:
                        hops[near] = hops[at] + 1
                        found.append(near)
            frontier = found
        return hops

    def nearer(self, rank: int, source: int = 0) -> tuple[int, ...]:
        hops = self.distances(source)
        return tuple(near for near in self.neighbours(rank) if hops[near] < hops[rank])

    def beside(self, rank: int, source: int = 0) -> tuple[int, ...]:
        hops = self.distances(source)
        return tuple(near for near in self.neighbours(rank) if hops[near] == hops[rank])

    def chains(self, rank: int) -> dict[int, tuple[int, int]]:
        """{source: the ranks before and behind this one on its chain}."""
        ranks, found = range(len(self.stages)), {}
        for source in self.sources:
            hosts = [other for other in ranks if self.stages[other]]
            way = [-1, *chain_of(source, {other: self.neighbours(other) for other in ranks}, hosts), -1]
            if rank in way:
                found[source] = way[way.index(rank) - 1], way[way.index(rank) + 1]
        return found

    def config(self, rank: int, session: int) -> NodeConfig:
        neighbours = []
        for near in self.neighbours(rank):
            out, into = self.lanes(rank, near), self.lanes(near, rank)
            alone = not any(self.lanes(other, near) for other in self.neighbours(near) if other != rank)
            windows = (max(self.window, len(out)), max(self.window, len(into)))
            hosted = self.stages[near]
            neighbours.append(NeighbourConfig(near, out, into, *windows, fed_by_us_alone=alone, stages=hosted))
        source, others = None, [other for other in self.sources if other != rank]
        if rank in self.sources:
            source = SourceConfig(
                session=session,
                ladder=self.ladder or ExitLadder(((0.5,) * self.stage_count,), 0),
                admission=self.admission,
                options=self.options,
                when_full=self.when_full,  # type: ignore[arg-type]
                waiting=self.waiting,
                fanout=self.fanout,
            )
        return NodeConfig(
            rank=rank,
            stages=self.stages[rank],
            gates=self.gates,
            neighbours=tuple(neighbours),
            nearer={other: self.nearer(rank, other) for other in others},
            beside={other: self.beside(rank, other) for other in others},
            farther={other: self.farther(rank, other) for other in self.sources if self.farther(rank, other)},
            max_batch=self.max_batch,
            runs=self.runs,
            own_slots=self.own_slots,
            offload=self.offload,
            output_threshold=self.output_threshold,
            order=self.order,
            classes=tuple(sorted(set(self.sources.values()))),
            min_share=self.min_share,
            max_batch_low=self.max_batch_low,
            ageing_seconds=self.ageing_seconds,
            macs=(1.0,) * self.stage_count,
            reach=(1.0,) * self.stage_count,
            chains=self.chains(rank),
            source=source,
            hang_seconds=3.0,
        )


def leaves_at(exit_stage: Callable[[int], int]) -> Callable[[int, int, float], tuple[bool, int, float]]:
    """Answers for the executor: sample s leaves at `exit_stage(s)`, with label s % 10."""
    return lambda sample, stage, threshold: (stage >= exit_stage(sample) and threshold < 1.0, sample % 10, 0.9)


class Mesh:
    """The world: nodes, links, clock.

    Attributes:
        lose: called with (sender, receiver, command) for each frame; True loses it.
        repeat: likewise; True delivers the frame twice.
        poison: (sample, stage) pairs on which the executor raises.
        ended: #: {source: every Resolve, with its time and the source's session}
        ran: told of every batch as it starts: (rank, command).
        checked: whether every node asserts its invariants after every event.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        answer: Callable[[int, int, float], tuple[bool, int, float]] | None = None,
        seed: int = 0,
        service: Callable[[int, int], float] | None = None,
    ) -> None:
        self.shape = shape
        self.now = 0.0
        self.rng = random.Random(seed)
        self.answer = answer or leaves_at(lambda sample: sample % shape.stage_count)
        self.service = service or (lambda rank, stage: SERVICE_SECONDS)
        self.lose: Callable[[int, int, Any], bool] = lambda sender, receiver, command: False
        self.repeat: Callable[[int, int, Any], bool] = lambda sender, receiver, command: False
        self.poison: set[tuple[int, int]] = set()
        self.ended: dict[int, list[tuple[float, int, Resolve]]] = {source: [] for source in shape.sources}
        self.ran: Callable[[int, RunStage], None] = lambda rank, command: None
        self.checked = True
        self.handled = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self._epochs = itertools.count(1)
        self._free_at: dict[tuple[int, int], float] = {}
        self._lives = [0] * len(shape.stages)
        self._alive = [True] * len(shape.stages)
        self._pairs: dict[tuple[int, int], int] = {}  # sender, receiver -> epoch of the standing connection
        self._wakeups: list[float | None] = [None] * len(shape.stages)
        self.nodes = [NodePolicy(shape.config(rank, 1), rng=self.rng) for rank in range(len(shape.stages))]
        for a, b in shape.links:
            self.connect(a, b)

    # ---- the world's hand

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._ids), action))

    def submit(self, sample: int, *, deadline: float = 1e9, source: int = 0) -> None:
        priority = self.shape.sources[source]
        self.tell(source, SampleSubmitted(sample, self.now + deadline, self.now, priority, 1.0 + priority))

    def connect(self, a: int, b: int) -> None:
        """Both directions get a new epoch; the receiver hears of it first, as with Hello."""
        for sender, receiver in ((a, b), (b, a)):
            if self.shape.connects(sender, receiver) and self._alive[a] and self._alive[b]:
                epoch = self._pairs[sender, receiver] = next(self._epochs)
                self.tell(receiver, PeerUp(sender, epoch, outgoing=False))
                self.tell(sender, PeerUp(receiver, epoch, outgoing=True))

    def cut(self, a: int, b: int, *, back_after: float | None = 0.2) -> None:
        """The connection breaks: frames on their way vanish, both ends notice."""
        for sender, receiver in ((a, b), (b, a)):
            if self._pairs.pop((sender, receiver), None) is not None:
                if self._alive[sender]:
                    self.tell(sender, PeerLost(receiver, outgoing=True, reason="cut"))
                if self._alive[receiver]:
                    self.tell(receiver, PeerLost(sender, outgoing=False, reason="cut"))
        if back_after is not None:
            self.at(self.now + back_after, lambda: self._reconnect(a, b))

    def _reconnect(self, a: int, b: int) -> None:
        if (a, b) not in self._pairs and (b, a) not in self._pairs:
            self.connect(a, b)

    def restart(self, rank: int, *, after: float = 0.3) -> None:
        """A node dies with all it holds and comes back empty; the source in a new session."""
        self._alive[rank] = False
        self._lives[rank] += 1
        for near in self.shape.neighbours(rank):
            self.cut(rank, near, back_after=None)
        self._wakeups[rank] = None

        life = self._lives[rank]

        def rise() -> None:
            if self._lives[rank] != life:
                return  # it died again meanwhile; that death has a rise of its own
            self._alive[rank] = True
            self.nodes[rank] = NodePolicy(self.shape.config(rank, 1 + self._lives[rank]), rng=self.rng)
            for near in self.shape.neighbours(rank):
                self._reconnect(rank, near)

        self.at(self.now + after, rise)

    # ---- the machinery

    def tell(self, rank: int, event: Event) -> None:
        if not self._alive[rank]:
            return
        node = self.nodes[rank]
        commands = node.handle(event, now=self.now)
        self.handled += 1
        if self.checked:
            node.check()
        for command in commands:
            self._perform(rank, command)
        wakeup = node.next_wakeup()
        if isinstance(event, TimerFired):
            assert wakeup is None or wakeup > self.now or commands, f"a timer that fires without end: {node}"
        if wakeup is not None and (self._wakeups[rank] is None or wakeup < self._wakeups[rank]):  # type: ignore[operator]
            self._wakeups[rank] = wakeup
            self.at(max(wakeup, self.now + 1e-6), lambda: self._wake(rank, wakeup))

    def _wake(self, rank: int, wakeup: float) -> None:
        if self._wakeups[rank] == wakeup:
            self._wakeups[rank] = None
            self.tell(rank, TimerFired())

    def _perform(self, rank: int, command: Command) -> None:
        match command:
            case RunStage():
                self.ran(rank, command)
                life = self._lives[rank]
                seconds = self.service(rank, command.stage) * len(command.tasks)
                self.at(self.now + seconds, lambda: self._completed(rank, life, command, seconds))
            case Forward():
                rows = [copy(task) for task in command.tasks]
                self._carry(rank, command.peer, "data", command, TaskReceived(rank, command.epoch, rows), epoch=command.epoch)
            case SendBlocked():
                event = BlockedReceived(rank, command.epoch, command.next_number)
                self._carry(rank, command.peer, "data", command, event, epoch=command.epoch)
            case GrantCredit():
                self._carry(rank, command.peer, "control", command, CreditReceived(rank, command.credit))
            case SendReport():
                self._carry(rank, command.peer, "control", command, ReportReceived(rank, command.report))
            case SendResults():
                self._carry(rank, command.peer, "control", command, ResultReceived(rank, command.rows))
            case SendLost():
                self._carry(rank, command.peer, "control", command, LostReceived(rank, command.rows))
            case Resolve():
                self.ended[rank].append((self.now, 1 + self._lives[rank], command))
            case ResetLink():
                self.cut(rank, command.peer)
            case BanPeer() | SessionRaised():
                raise AssertionError(f"an honest neighbour was blamed: {command}")
            case Discard():
                pass

    def _completed(self, rank: int, life: int, command: RunStage, seconds: float) -> None:
        if self._lives[rank] != life:
            return
        if any((task.key.sample, command.stage) in self.poison for task in command.tasks):
            self.tell(rank, StageFailed(command.run, "poison"))
            return
        answers = [
            self.answer(task.key.sample, command.stage, threshold)
            for task, threshold in zip(command.tasks, command.gate.thresholds, strict=True)
        ]
        exited = [command.gate.last or answer[0] for answer in answers]
        labels, confidences = [answer[1] for answer in answers], [answer[2] for answer in answers]
        scores = [self.shape.scores(command.stage, task.key.sample) for task in command.tasks] if command.gate.scores else ()
        self.tell(rank, StageCompleted(command.run, exited, labels, confidences, seconds, (), scores))

    def _carry(self, sender: int, receiver: int, plane: str, command: Any, event: Event, *, epoch: int | None = None) -> None:
        """A frame on a FIFO link. It vanishes with its connection."""
        if self.lose(sender, receiver, command):
            return
        lives = (self._lives[sender], self._lives[receiver])
        standing = (self._pairs.get((sender, receiver)), self._pairs.get((receiver, sender)))
        if standing == (None, None):
            return
        lane = (sender, receiver) if plane == "data" else (sender + 1000, receiver)
        arrival = max(self.now + LINK_SECONDS * self.rng.uniform(0.5, 1.5), self._free_at.get(lane, 0.0))
        self._free_at[lane] = arrival

        def arrive() -> None:
            if lives == (self._lives[sender], self._lives[receiver]) and standing == (
                self._pairs.get((sender, receiver)),
                self._pairs.get((receiver, sender)),
            ):
                self.tell(receiver, event)

        self.at(arrival, arrive)
        if self.repeat(sender, receiver, command):
            if isinstance(event, TaskReceived):
                twin: Event = TaskReceived(event.peer, event.epoch, [copy(task) for task in event.tasks])
            else:
                twin = event
            self.at(
                arrival,
                lambda: (
                    self.tell(receiver, twin)
                    if self._alive[receiver]
                    and standing == (self._pairs.get((sender, receiver)), self._pairs.get((receiver, sender)))
                    else None
                ),
            )

    def run(self, *, until: float = 1e6, max_events: int = 1_000_000) -> None:
        """Runs until nothing but heartbeats is left of the source's samples, or the time is up."""
        steps = 0
        while self._heap and self._heap[0][0] <= until:
            when, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            action()
            steps += 1
            assert steps < max_events, f"no end in sight at {self.now}: {self.nodes}"
            if self.settled:
                return

    def run_for(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            when, _, action = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            action()
        self.now = until

    @property
    def settled(self) -> bool:
        sources = [self.nodes[rank].source for rank in self.shape.sources]
        return not self._pending_submissions and all(source is not None and source.open_count == 0 for source in sources)

    _pending_submissions = 0

    def submit_at(self, when: float, sample: int, *, deadline: float = 1e9, source: int = 0) -> None:
        self._pending_submissions += 1

        def go() -> None:
            self._pending_submissions -= 1
            self.submit(sample, deadline=deadline, source=source)

        self.at(when, go)

    @property
    def outcomes(self) -> list[tuple[float, int, Resolve]]:
        """Of rank 0."""
        return self.ended[0]

    def kinds(self, *, session: int = 1, source: int = 0) -> dict[int, list[str]]:
        """{sample: its outcomes} of one source's session: exactly one each, or rule D1 is broken."""
        kinds: dict[int, list[str]] = {}
        for _, of, resolve in self.ended[source]:
            if of == session:
                kinds.setdefault(resolve.sample, []).append(resolve.kind)
        return kinds

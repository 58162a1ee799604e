"""The world around the policies: a heap of what happens when, one virtual clock, and what each command leads to.

Everything that happens at one node at one instant goes into one `handle_all`, as the live driver does with all that is readable
in one wake-up.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from zpipe.model import Report
from zpipe.policy import NodePolicy
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
    SendBlocked,
    SendCompleted,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    SessionRaised,
    StageCompleted,
    TaskReceived,
    TimerFired,
)
from zpipe.policy.state import NodeConfig
from zpipe.sim import sizes
from zpipe.sim.faults import Absences
from zpipe.sim.hop import HopProfile
from zpipe.sim.network import CONTROL, DATA, directions
from zpipe.sim.packing import Pack
from zpipe.sim.service import Answers, Service
from zpipe.topology import Topology

#: How long two nodes take to connect again after one gave the connection up (policy rule R5).
RECONNECT_SECONDS = 0.1
#: A wake-up that is due at once comes this much later: no event loop is faster, and time goes on whatever a policy asks for.
LEAST_WAIT_SECONDS = 1e-6

#: Takes what a node resolved: (rank, outcome).
Resolved = Callable[[int, Resolve], None]
_TIMER = TimerFired()


@dataclass(slots=True)
class Traffic:
    """What one node's runtime would count: bytes and frames as `zpipe.wire` would have made them, without what TCP adds.

    Attributes:
        served_seconds: #: {source: seconds computed for its samples}, which no live node tells.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    control_sent: int = 0
    control_received: int = 0
    busy_seconds: float = 0.0
    served_seconds: dict[int, float] = field(default_factory=dict)


class World:
    """Nodes, links and executors on one virtual clock.

    Args:
        topology: its links and who sends what to whom.
        configs: of every node, by rank.
        service: how long a batch takes.
        answers: what the exits say, by a task's token: what its row passed on its way decides.
        pack: how links pack frames.
        hop: what nodes take beside.
        seed: of the policies' dice and of all that is drawn here.
        dead: nodes that are not there.

    Attributes:
        now: the clock, seconds.
        nodes: the policies, by rank.
        indices: #: {source: index into the evaluation set, per sample}.
        resolved: takes outcomes; set it before samples are submitted.
        pumped: #: {rank: called after each round of its decisions}.
        events: what the policies were told so far.
        absences: who is dead or stands still.
        checked: whether every node asserts its invariants after each round.
    """

    def __init__(
        self,
        topology: Topology,
        configs: Sequence[NodeConfig],
        *,
        service: Service,
        answers: Sequence[Answers],
        pack: Pack,
        hop: HopProfile,
        seed: int,
        dead: frozenset[int] = frozenset(),
    ) -> None:
        self.topology = topology
        self.now = 0.0
        self.events = 0
        self.checked = False
        self.nodes = [NodePolicy(config, rng=random.Random(f"{seed}/{config.rank}")) for config in configs]
        self.indices: dict[int, list[int]] = {spec.rank: [] for spec in topology.sources}
        self.resolved: Resolved = lambda rank, resolve: None
        self.pumped: dict[int, Callable[[], None]] = {}
        self.traffic = [Traffic() for _ in configs]
        self.links = directions(topology)
        self._service = service
        self._answers = answers
        self._pack = pack
        self._hop = hop
        self._control_seconds = hop.control.constant
        self._forward_seconds = hop.forward.constant
        self._start_seconds, self._finish_seconds = hop.start.constant, hop.finish.constant
        self._rng = random.Random(f"{seed}/world")
        self._heap: list[tuple[float, int, int, Any]] = []  #: when, in which order, to which rank (-1: a call), what
        self._ids = itertools.count()
        self._epochs = itertools.count(1)
        self._inbox: list[list[Event]] = [[] for _ in configs]
        self._touched: list[int] = []
        self._wake_at = [float("inf")] * len(configs)
        self._free_at = [-1.0] * len(configs)  #: when each node's executor was done with its last batch,
        self._told_at = [-1.0] * len(configs)  #: ... and when the node heard of it
        self._running = False
        self.absences = Absences(self, dead)
        self._waiting = self.absences.waiting
        self._measured_report: tuple[Report | None, int] = (None, 0)  #: the last one sent, and its bytes
        self._perform: dict[type[Command], Callable[[int, Any], None]] = {
            RunStage: self._run_stage,
            Forward: self._forward,
            GrantCredit: self._grant,
            SendResults: self._send_results,
            Resolve: lambda rank, command: self.resolved(rank, command),
            Discard: lambda rank, command: None,
            SendBlocked: self._send_blocked,
            SendReport: self._send_report,
            SendLost: self._send_lost,
            ResetLink: self._reset,
            BanPeer: self._broke_rules,
            SessionRaised: self._broke_rules,
        }
        for a, b in (link.between for link in topology.links):
            self._connect(a, b)
        for rank in range(len(configs)):
            self.tell(rank, _TIMER)

    # ---- the clock -----------------------------------------------------------------------------

    def tell(self, rank: int, event: Event) -> None:
        """An event at a node, now."""
        inbox = self._inbox[rank]
        if not inbox:
            self._touched.append(rank)
        inbox.append(event)

    def call_at(self, when: float, action: Callable[[], None]) -> None:
        """Calls something at a time; what it tells nodes is decided in that very instant."""
        heapq.heappush(self._heap, (when, next(self._ids), -1, action))

    def stop(self) -> None:
        """Ends `run` after the present instant."""
        self._running = False

    def run(self) -> None:
        """Runs until `stop` is called, or nothing will happen any more."""
        heap, pop = self._heap, heapq.heappop
        self._running = True
        while self._touched:
            self._decide()
        while self._running and heap:
            now, _, rank, event = pop(heap)
            self.now = now
            if rank >= 0 and event is not _TIMER and (not heap or heap[0][0] != now):
                self._round(rank, [event])  # most often nothing else happens at that instant
            else:
                self._gather(rank, event)
            while self._touched:
                self._decide()

    def _gather(self, rank: int, event: Any) -> None:
        """Takes in all that happens now, of which this entry of the heap comes first."""
        heap, now = self._heap, self.now
        while True:
            if rank < 0:
                event()
            elif event is not _TIMER or self._timer_is_due(rank):
                self.tell(rank, event)
            if not heap or heap[0][0] != now:
                return
            _, _, rank, event = heapq.heappop(heap)

    def _decide(self) -> None:
        """One round of decisions at every node that something happened to."""
        touched, self._touched = self._touched, []
        inboxes = self._inbox
        for rank in touched:
            events, inboxes[rank] = inboxes[rank], []
            self._round(rank, events)

    def _round(self, rank: int, events: list[Event]) -> None:
        """What one node makes of what happened to it."""
        if rank in self._waiting:
            self.absences.put_off(rank, events)
            return
        self.events += len(events)
        policy, perform = self.nodes[rank], self._perform
        for command in policy.handle_all(events, now=self.now):
            perform[type(command)](rank, command)
        if self.checked:
            policy.check()
        pumped = self.pumped.get(rank)
        if pumped is not None:
            pumped()
        wakeup = policy.next_wakeup()
        if wakeup is not None and wakeup < self._wake_at[rank]:
            self._arm(rank, wakeup)

    def _arm(self, rank: int, wakeup: float | None) -> None:
        """A timer stands that fires no later than the policy wants; one that fires early finds nothing due and arms the next."""
        if wakeup is not None and wakeup < self._wake_at[rank]:
            if wakeup <= self.now:
                wakeup = self.now + LEAST_WAIT_SECONDS
            self._wake_at[rank] = wakeup
            heapq.heappush(self._heap, (wakeup, next(self._ids), rank, _TIMER))

    def _timer_is_due(self, rank: int) -> bool:
        if self._wake_at[rank] != self.now:
            return False  # an earlier one took its place
        self._wake_at[rank] = float("inf")
        wakeup = self.nodes[rank].next_wakeup()
        if wakeup is not None and wakeup <= self.now:
            return True
        self._arm(rank, wakeup)
        return False

    # ---- connections ---------------------------------------------------------------------------

    def _connect(self, a: int, b: int) -> None:
        """Hello is instantaneous: both ends know at once, the receiver first. It waits for one that stands still."""
        there_from = self.absences.both_from(a, b)
        if there_from > self.now:
            if there_from < float("inf"):
                self.call_at(there_from, lambda: self._connect(a, b))
            return
        for sender, receiver in ((a, b), (b, a)):
            if self._connects(sender, receiver):
                epoch = self.links[sender][receiver].epoch = next(self._epochs)
                self.tell(receiver, PeerUp(sender, epoch, outgoing=False))
                self.tell(sender, PeerUp(receiver, epoch, outgoing=True))

    def _connects(self, sender: int, receiver: int) -> bool:
        """As on live nodes: who sends tasks opens the connection; where nobody does, the lower rank, for answers."""
        lanes = self.topology.lanes
        return bool(lanes(sender, receiver)) or (sender < receiver and not lanes(receiver, sender))

    def _reset(self, rank: int, command: ResetLink) -> None:
        """The connection is given up with what is on its way; both ends notice, and connect again."""
        peer = command.peer
        forth, back = self.links[rank][peer], self.links[peer][rank]
        if forth.epoch < 0 and back.epoch < 0:
            return  # the other end gave it up already
        forth.epoch = back.epoch = -1
        self._heap[:] = [entry for entry in self._heap if not _is_between(entry, rank, peer)]
        heapq.heapify(self._heap)
        self.absences.forget(rank, peer)
        for outgoing in (True, False):
            self.tell(peer, PeerLost(rank, outgoing, command.reason))
        self.call_at(self.now + RECONNECT_SECONDS, lambda: self._connect(rank, peer))

    def _broke_rules(self, rank: int, command: BanPeer | SessionRaised) -> None:
        raise AssertionError(f"node {rank} was lied to by a simulated node, which keeps the rules: {command}")

    # ---- executors -----------------------------------------------------------------------------

    def _run_stage(self, rank: int, command: RunStage) -> None:
        """The policy runs one batch at a time, so the executor is free."""
        tasks, stage, hop, indices = command.tasks, command.stage, self._hop, self.indices
        seconds = self._service(rank, stage, len(tasks))
        rows = [indices[task.key[0]][task.key[2]] for task in tasks]
        if len(self._answers) == 1:
            exited, labels, confidences, scores = self._answers[0](stage, rows, command.gate)
        else:
            exited, labels, confidences, scores = self._answer_each(command, rows)
        traffic = self.traffic[rank]
        traffic.busy_seconds += seconds
        served, each = traffic.served_seconds, seconds / len(tasks)
        for task in tasks:
            source = task.key[0]
            served[source] = served.get(source, 0.0) + each
        before = self._start_seconds
        start = self.now + (hop.start.draw(self._rng) if before is None else before)
        grace = hop.grace_seconds
        if start <= self._free_at[rank] + grace or (grace and self.now == self._told_at[rank]):
            start = self._free_at[rank]
        end = self._free_at[rank] = start + seconds
        after = self._finish_seconds
        when = self._told_at[rank] = max(self.now, end + (hop.finish.draw(self._rng) if after is None else after))
        event = StageCompleted(command.run, exited, labels, confidences, seconds, (), scores)
        heapq.heappush(self._heap, (when, next(self._ids), rank, event))

    def _answer_each(self, command: RunStage, rows: Sequence[int]) -> tuple[list[bool], list[int], list[float], Sequence[bytes]]:
        """Rows that passed different codecs may share a batch."""
        exited, labels, confidences, scores = [], [], [], list[bytes]()
        for index, (task, row) in enumerate(zip(command.tasks, rows, strict=True)):
            gate = replace(command.gate, thresholds=command.gate.thresholds[index : index + 1])
            (left,), (label,), (confidence,), said = self._answers[task.token](command.stage, (row,), gate)
            exited.append(left)
            labels.append(label)
            confidences.append(confidence)
            scores += said
        return exited, labels, confidences, scores

    # ---- messages ------------------------------------------------------------------------------

    def _forward(self, rank: int, command: Forward) -> None:
        link, tasks = self.links[rank][command.peer], command.tasks
        if link.epoch != command.epoch:
            self.tell(rank, SendFailed(command.peer, command.epoch))
            return
        packed = self._pack(link.codec, self.nodes[rank], command.peer, command.stage, self.now)
        header = sizes.task_header(rank, packed.name, command.stage, tasks)
        payload = len(tasks) * packed.row_bytes
        if packed.token:
            for task in tasks:
                task.token = packed.token
        if packed.tell_size:
            self.tell(rank, SendCompleted(command.peer, command.epoch, tasks[0].number, len(tasks), header + payload))
        overhead = self._forward_seconds
        if overhead is None:
            overhead = self._hop.forward.draw(self._rng)
        overhead += self._hop.forward_seconds_per_byte * payload
        arrival = link.carry(sizes.on_link(header, payload), DATA, overhead, self.now, self._rng)
        size = header + payload
        link.tasks += len(tasks)
        link.frames += 1
        link.bytes += size
        link.raw_bytes += header + len(tasks) * packed.raw_bytes
        sent, received = self.traffic[rank], self.traffic[command.peer]
        sent.frames_sent += 1
        sent.sent_bytes += size
        received.frames_received += 1
        received.received_bytes += size
        # The sender's policy is done with these tasks; the receiver's goes on with the same objects.
        heapq.heappush(self._heap, (arrival, next(self._ids), command.peer, TaskReceived(rank, command.epoch, tasks)))

    def _send_blocked(self, rank: int, command: SendBlocked) -> None:
        event = BlockedReceived(rank, command.epoch, command.next_number)
        self._carry(rank, command.peer, sizes.blocked(rank, command.next_number), DATA, event)

    def _grant(self, rank: int, command: GrantCredit) -> None:
        self._carry(rank, command.peer, sizes.credit(rank, command.credit), CONTROL, CreditReceived(rank, command.credit))

    def _send_results(self, rank: int, command: SendResults) -> None:
        self._carry(rank, command.peer, sizes.results(rank, command.rows), CONTROL, ResultReceived(rank, command.rows))

    def _send_report(self, rank: int, command: SendReport) -> None:
        report = command.report
        if self._measured_report[0] is not report:  # every neighbour is told the same one
            self._measured_report = report, sizes.report(rank, report)
        self._carry(rank, command.peer, self._measured_report[1], CONTROL, ReportReceived(rank, report))

    def _send_lost(self, rank: int, command: SendLost) -> None:
        self._carry(rank, command.peer, sizes.lost(rank, command.rows), CONTROL, LostReceived(rank, command.rows))

    def _carry(self, rank: int, peer: int, size: int, plane: int, event: Event) -> None:
        """A message of one frame; without a connection it goes nowhere, as on a live node."""
        link = self.links[rank][peer]
        if link.epoch < 0 and self.links[peer][rank].epoch < 0:
            return
        sent, received = self.traffic[rank], self.traffic[peer]
        sent.control_sent += 1
        sent.sent_bytes += size
        received.control_received += 1
        received.received_bytes += size
        overhead = self._control_seconds
        if overhead is None:
            overhead = self._hop.control.draw(self._rng)
        arrival = link.carry(sizes.on_link(size), plane, overhead, self.now, self._rng)
        heapq.heappush(self._heap, (arrival, next(self._ids), peer, event))

    # ---- looking at nodes ----------------------------------------------------------------------

    def stats(self) -> list[dict[str, Any]]:
        """Every node's counters since the start, with the keys of a live node's; None where only a process has an answer."""
        return [self._stats(rank) for rank in range(len(self.nodes))]

    def _stats(self, rank: int) -> dict[str, Any]:
        policy = self.nodes[rank]
        stats: dict[str, Any] = {
            "rank": rank,
            "stages": list(policy.config.stages),
            "executor": None,
            "cpu_seconds": None,
            "stage_cpu_seconds": None,
            "rss_bytes": None,
            "clock_seconds": self.now,
            "held": policy.held_count,
            **asdict(self.traffic[rank]),
            "busy_seconds": self.traffic[rank].busy_seconds - max(0.0, self._free_at[rank] - self.now),  # a batch under way
            **asdict(policy.counts),
        }
        stats["links"] = [
            {
                "to": peer,
                "tasks": link.tasks,
                "frames": link.frames,
                "bytes": link.bytes,
                "raw_bytes": link.raw_bytes,
                "round_trip_seconds": self._round_trip(rank, peer),
            }
            for peer, link in self.links[rank].items()
            if link.frames
        ]
        stats["queue_histogram"] = sorted(policy.counts.queue_histogram.items())
        stats["service_seconds"] = sorted(policy.service_seconds.items())
        if policy.source is not None:
            stats["delivery"] = asdict(policy.source.counts)
        return stats

    def _round_trip(self, rank: int, peer: int) -> float:
        outgoing = self.nodes[rank].neighbour(peer).outgoing
        return outgoing.round_trip_seconds if outgoing is not None else 0.0


def _is_between(entry: tuple[float, int, int, Any], a: int, b: int) -> bool:
    """Whether this is a message on its way between two nodes."""
    _, _, rank, event = entry
    return (rank == a and getattr(event, "peer", -1) == b) or (rank == b and getattr(event, "peer", -1) == a)

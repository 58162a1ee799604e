"""What a node's policy knows before it starts, and the records it keeps while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zpipe.model import Report, Task
    from zpipe.policy.credit import IncomingLink, OutgoingLink
    from zpipe.policy.delivery import SourceConfig
    from zpipe.policy.exits import ExitGates

#: Weight of a new lateness in the smoothed one (RFC 6298's for deviations).
LATENESS_GAIN = 0.25


@dataclass(frozen=True, slots=True)
class NeighbourConfig:
    """One neighbour in the topology.

    Attributes:
        lanes_out: stages we may send it (L3); empty: none.
        lanes_in: stages it may send us.
        window_out, window_in: slots of each direction, at the receiver (C1).
        lane_bytes: {stage: bytes one task for it has on the link to it}.
        bandwidth_bps, latency_seconds: what the topology says of the link, a first guess; `inf` and 0 where it says nothing.
        fed_by_us_alone: whether nobody else may send it tasks: what it answers, it was given by us, or made up (R7).
        stages: that it hosts.
    """

    rank: int
    lanes_out: tuple[int, ...] = ()
    lanes_in: tuple[int, ...] = ()
    window_out: int = 0
    window_in: int = 0
    lane_bytes: Mapping[int, float] = field(default_factory=dict)
    bandwidth_bps: float = math.inf
    latency_seconds: float = 0.0
    fed_by_us_alone: bool = False
    stages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a node's policy knows before it starts.

    Attributes:
        stages: the stages it hosts.
        neighbours: by topology.
        nearer: {source rank: neighbours nearer to it, the first of them on the way its answers take}.
        beside: {source rank: neighbours as far from it as this node}: where answers go while none of those is up.
        farther: {source rank: neighbours farther from it than this node}: where its raw inputs may go on to (S3).
        service_seconds: {stage: seconds per sample}, a first guess of Gamma, measured or profiled.
        runs: batches the executor is given at once; with 2 a GPU copies one while it computes the other.
        own_slots: tasks of this node's own samples it holds at once (C1).
        offload: name of the strategy (rules A1, A4).
        frame_rows: {stage: so many tasks for it may share a frame, where `max_batch` is smaller} (A2).
        output_threshold: T_O of Alg. 1, tasks.
        lane_order: lanes of O in the order they are served; those it does not name come behind, rising.
        order: of service, `fifo` or `priority` (A7).
        classes: of all sources, rising; the lowest alone where `order` is not `priority`.
        min_share: of this node's time, for a class that waits below others (A7).
        max_batch_low: most tasks in a batch of any class but the highest; 0: `max_batch`.
        ageing_seconds: of waiting that a class is worth (A7); 0: none is.
        macs: multiply-adds of each stage.
        reach: share of samples that get to each stage.
        chains: {source: the ranks before and behind this node on its chain, -1: none} (A9).
        hang_seconds: R5.
        source: None where no samples enter.
    """

    rank: int
    stages: tuple[int, ...]
    gates: ExitGates
    neighbours: tuple[NeighbourConfig, ...] = ()
    nearer: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    beside: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    farther: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    service_seconds: Mapping[int, float] = field(default_factory=dict)
    max_batch: int = 1
    runs: int = 1
    own_slots: int = 64
    frame_rows: Mapping[int, int] = field(default_factory=dict)
    offload: str = "local"
    output_threshold: int = 50
    lane_order: tuple[int, ...] = ()
    order: str = "fifo"
    classes: tuple[int, ...] = (0,)
    min_share: float = 0.05
    max_batch_low: int = 0
    ageing_seconds: float = 0.0
    macs: tuple[float, ...] = ()
    reach: tuple[float, ...] = ()
    chains: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    report_seconds: float = 0.1
    hang_seconds: float = 5.0
    source: SourceConfig | None = None


@dataclass(slots=True)
class Run:
    """A batch in the executor.

    Attributes:
        began_at: when the device could turn to it: at once, or when the batch before it was done.
    """

    stage: int
    tasks: tuple[Task, ...]
    began_at: float


@dataclass(slots=True)
class NodeCounts:
    """Totals since the start, for reports and tests."""

    tasks_run: int = 0
    batches: int = 0
    sent: int = 0
    sent_inputs: int = 0  #: of these, raw inputs (lane 0)
    received: int = 0
    exited: int = 0
    relayed: int = 0
    unroutable: int = 0  #: answers given up: no live way to their source, and too many wait for one
    met_again: int = 0  #: attempts that met another here (S2)
    stale: int = 0  #: tasks nobody waits for (S5)
    wrong_epoch: int = 0
    wrong_epoch_credit: int = 0
    frames_missed: int = 0  #: tasks sent that never arrived (C7)
    stage_failures: int = 0
    blocked: int = 0
    suspicions: int = 0  #: neighbours that were silent too long (R5)
    resets: int = 0
    false_results: int = 0  #: for samples that never left this source, whoever made them up (R7)
    bans: int = 0  #: times a neighbour lied (R7)
    handed_over: int = 0  #: tasks that had to go elsewhere, since this node's executor was lost (R6)
    queue_histogram: dict[int, int] = field(default_factory=dict)  #: {|I| + |O|: times seen}, looked at when tasks come and go


@dataclass(slots=True)
class Neighbour:
    """A neighbour as it is now. Where neither side sends tasks, the lower rank still connects: answers pass there.

    Attributes:
        report: its last, with the number it has here.
        reported_at: when that Report came.
        lateness: smoothed seconds its Reports came later than they were due, while it had work.
        heard_at: its last sign of life.
        suspected: it is silent for too long: nothing is sent there (R5).
        accepting: as its last Report said (R6).
        stuck_factor: how much longer than at first its data plane may give no answer (R5).
        arrived_then, released_then: what its Credits had told when that Report came: the rest was sent, or released, since.
        sends, receives: whether the connection we opened, and the one it opened, stands.
    """

    config: NeighbourConfig
    outgoing: OutgoingLink | None
    incoming: IncomingLink | None
    report: Report | None = None
    report_number: int = 0
    reported_length: int = 0
    reported_backlog: float = 0.0
    seconds_each: float = 0.0  #: mean Gamma over its stages, as reported
    arrived_then: int = 0
    released_then: int = 0
    reported_at: float = -math.inf
    lateness: float = 0.0
    heard_at: float = -math.inf
    suspected: bool = False
    accepting: bool = True
    stuck_factor: int = 1
    sends: bool = False
    receives: bool = False

    def take_in(self, report: Report, *, interval_seconds: float, now: float) -> None:
        """A new Report: from here on count what it cannot know of."""
        last = self.report
        if last is not None and (last.input_length or last.output_length):  # it had work, so this one was due
            late = max(0.0, now - self.reported_at - interval_seconds)
            self.lateness += LATENESS_GAIN * (late - self.lateness)
        self.report, self.reported_at, self.accepting = report, now, report.accepting
        self.report_number += 1
        self.reported_length = report.input_length
        self.reported_backlog = sum(report.backlog_seconds.values())
        services = report.service_seconds.values()
        self.seconds_each = sum(services) / len(services) if services else 0.0
        if self.outgoing is not None:
            self.arrived_then, self.released_then = self.outgoing.expected, self.outgoing.released

    def forget_report(self) -> None:
        """It is gone: what it said is no more."""
        self.report, self.reported_length, self.reported_backlog = None, 0, 0.0
        self.accepting = True  # until it says otherwise: who comes back may be another

    @property
    def change(self) -> int:
        """Tasks sent and not told of in its Report, less those released since."""
        link = self.outgoing
        assert link is not None
        sent = link.next_number - self.arrived_then
        return (sent if sent > 0 else 0) - (link.released - self.released_then)

    @property
    def input_length(self) -> int:
        """|I| there, estimated: last reported + sent since - released since."""
        length = self.reported_length + self.change
        return length if length > 0 else 0

    @property
    def backlog_seconds(self) -> float:
        """|I| * Gamma there, estimated likewise."""
        seconds = self.reported_backlog + self.change * self.seconds_each
        return seconds if seconds > 0.0 else 0.0

    def ahead_seconds(self, priority: int, lasts: Mapping[int, float], *, now: float) -> float:
        """Seconds of work there that goes before a task of that class, estimated.

        As last reported, less the time since, plus what was sent and could not have been counted yet.

        Args:
            priority: the class.
            lasts: {stage: seconds that a sample has left there}.
            now: the time.
        """
        seconds = 0.0
        if self.report is not None:
            told = sum(value for each, value in self.report.ahead_seconds.items() if each >= priority)
            seconds = max(0.0, told - (now - self.reported_at))
        link = self.outgoing
        if link is not None:
            for number, sent in reversed(link.outstanding.items()):
                if number < self.arrived_then:
                    break
                if sent.priority >= priority:
                    seconds += lasts.get(sent.lane, 0.0)
        return seconds

    def withholds(self, stage: int, priority: int) -> bool:
        """Whether it hosts that stage and would rather not serve it for that class (A8)."""
        return self.report is not None and bool(self.report.withheld.get(priority, 0) >> stage & 1)

    @property
    def up(self) -> bool:
        """Whether any connection with it stands."""
        return self.sends or self.receives

    @property
    def takes(self) -> bool:
        """Whether tasks may be sent there, as far as it is not a matter of credit."""
        return self.sends and self.accepting and not self.suspected

    @property
    def state(self) -> str:
        """How it stands towards new tasks, in words that follow its name."""
        if not self.sends:
            return "is not connected"
        if self.suspected:
            return "is silent"
        return "takes tasks" if self.accepting else "takes no tasks: it leaves, or lost its executor"

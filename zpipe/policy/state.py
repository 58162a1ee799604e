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


@dataclass(frozen=True, slots=True)
class NeighbourConfig:
    """One neighbour in the topology.

    Attributes:
        lanes_out: stages we may send it (L3); empty: none.
        lanes_in: stages it may send us.
        window_out, window_in: slots of each direction, at the receiver (C1).
    """

    rank: int
    lanes_out: tuple[int, ...] = ()
    lanes_in: tuple[int, ...] = ()
    window_out: int = 0
    window_in: int = 0


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a node's policy knows before it starts.

    Attributes:
        stages: the stages it hosts.
        neighbours: by topology.
        next_hop: {source rank: the neighbour on the shortest way there}.
        service_seconds: {stage: seconds per sample}, a first guess of Gamma, measured or profiled.
        own_slots: tasks of this node's own samples it holds at once (C1).
        hang_seconds: R5.
        source: None where no samples enter.
    """

    rank: int
    stages: tuple[int, ...]
    gates: ExitGates
    neighbours: tuple[NeighbourConfig, ...] = ()
    next_hop: Mapping[int, int] = field(default_factory=dict)
    service_seconds: Mapping[int, float] = field(default_factory=dict)
    max_batch: int = 1
    own_slots: int = 64
    offload: str = "local"
    order: str = "fifo"
    report_seconds: float = 0.1
    hang_seconds: float = 5.0
    source: SourceConfig | None = None


@dataclass(slots=True)
class Run:
    """A batch in the executor."""

    stage: int
    tasks: tuple[Task, ...]
    started_at: float


@dataclass(slots=True)
class NodeCounts:
    """Totals since the start, for reports and tests."""

    tasks_run: int = 0
    batches: int = 0
    sent: int = 0
    received: int = 0
    exited: int = 0
    relayed: int = 0
    unroutable: int = 0  #: answers with no live way to their source
    met_again: int = 0  #: attempts that met another here (S2)
    stale: int = 0  #: tasks nobody waits for (S5)
    wrong_epoch: int = 0
    bad_credit: int = 0
    stage_failures: int = 0
    blocked: int = 0
    resets: int = 0
    queue_histogram: dict[int, int] = field(default_factory=dict)  #: {|I| + |O|: times seen}, looked at when tasks come and go


@dataclass(slots=True)
class Neighbour:
    """A neighbour as it is now. Where neither side sends tasks, the lower rank still connects: answers pass there.

    Attributes:
        sends, receives: whether the connection we opened, and the one it opened, stands.
    """

    config: NeighbourConfig
    outgoing: OutgoingLink | None
    incoming: IncomingLink | None
    report: Report | None = None
    sent_since_report: int = 0
    heard_at: float = -math.inf
    sends: bool = False
    receives: bool = False

    @property
    def up(self) -> bool:
        """Whether any connection with it stands."""
        return self.sends or self.receives

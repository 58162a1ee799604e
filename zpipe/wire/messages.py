"""The messages of wire version 1 as plain values; what travels inside them are the shared types of `zpipe.model`.

Slots dataclasses and not frozen: they are made and dropped once per message on the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from zpipe.model import Credit, LostRow, Report, ResultRow, Task

#: The version that starts every header; a header with another one is refused.
WIRE_VERSION = 1

#: `sender` of an observer (`zpipe top`, `zpipe doctor`), which is no node of the topology.
NO_RANK = -1

Role = Literal["peer", "source", "observer"]
ROLES: frozenset[str] = frozenset(get_args(Role))


@dataclass(slots=True)
class Hello:
    """The first message on a new connection, and its answer.

    Attributes:
        sender: rank, or NO_RANK for role `observer`.
        session: drawn anew by every start of the process, so that a restarted node is known as another.
        epoch: this direction of the link, new on every connection; tasks of another epoch are dropped.
        wire_version: what the sender would like to speak. Hello itself always travels in version 1, so that a mismatch
            can be refused in words.
        bundle_digest, topology_digest: must equal the receiver's.
        topology: the canonical topology, so that a refusal can name the first differing key; empty when not told.
        memory: for the receiver's transport: an invitation to share memory, or the answer to one; "" where there is none.
    """

    sender: int
    role: Role
    session: int
    epoch: int
    bundle_digest: str
    topology_digest: str
    topology: dict[str, Any] = field(default_factory=dict)
    wire_version: int = WIRE_VERSION
    memory: str = ""


@dataclass(slots=True)
class Refused:
    """A Hello that was not accepted: the first differing key, its value at the receiver (`here`) and in the Hello (`there`)."""

    sender: int
    key: str
    here: str
    there: str


@dataclass(slots=True, eq=False)
class TaskBatch:
    """One or more tasks of one stage with their input tensors.

    Attributes:
        epoch: the connection these tasks are numbered in.
        codec: how `payload` was made from the stage's input; NO_CODEC is the input itself.
        stage: the stage every task waits for.
        tasks: one per row of `payload`, in its order.
        payload: `[len(tasks), *shape]` of the codec at that stage, C-contiguous; of a packed codec uint8 `[n]`. From decode it
            is a read-only or writable view of the received buffer, never a copy.
    """

    sender: int
    epoch: int
    codec: str
    stage: int
    tasks: list[Task]
    payload: NDArray[Any]


@dataclass(slots=True)
class CreditUpdate:
    """What the receiver of a link tells its sender (policy rules C3, C4)."""

    sender: int
    credit: Credit


@dataclass(slots=True)
class Blocked:
    """The sender ran out of credit.

    It follows the tasks on the data plane: every number below `next_number` that has not arrived when this does was lost.
    """

    sender: int
    epoch: int
    next_number: int


@dataclass(slots=True)
class ReportUpdate:
    """A node's load, every report interval and on a large change."""

    sender: int
    report: Report


@dataclass(slots=True)
class Lost:
    """Attempts that will not come to a result, on their way to their source."""

    sender: int
    rows: list[LostRow]


@dataclass(slots=True)
class Results:
    """Answers on their way to their source."""

    sender: int
    rows: list[ResultRow]


@dataclass(slots=True)
class Ping:
    """Round trip probe: the receiver sends `token` back with `echo` True, and without the padding.

    So the answer is never larger than the question, and a run of padded ones tells how fast bytes get there.
    """

    sender: int
    token: int
    echo: bool
    padding: bytes = b""


@dataclass(slots=True)
class StatsRequest:
    """Asks for Stats with the same token."""

    sender: int
    token: int


@dataclass(slots=True)
class Stats:
    """A node's counters for people and tools; `body` is opaque to the wire."""

    sender: int
    token: int
    body: dict[str, Any]


@dataclass(slots=True)
class Bye:
    """The sender leaves on purpose."""

    sender: int
    reason: str


Message = Hello | Refused | TaskBatch | CreditUpdate | Blocked | ReportUpdate | Lost | Results | Ping | StatsRequest | Stats | Bye

#: The kinds that travel on the data plane; every other one belongs to the control plane.
DATA_PLANE = (TaskBatch, Blocked)

"""Value types that every part of zpipe shares: plain data, standard library only.

*Stage* = a slice of layers; *exit head* = the small classifier that ends it; *sample* = one input; *task* = a sample that
waits for a stage; *rank* = a node's number in the topology; *source* = the node where samples enter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

#: Bytes of one element of each dtype a stage boundary may carry.
DTYPE_BYTES = {"uint8": 1, "int8": 1, "float16": 2, "float32": 4, "int32": 4, "int64": 8}

#: A threshold from here on means "never exit": confidences are probabilities, and 1.0 itself occurs in float32.
NEVER_EXIT = 1.0

#: Most students of one bundle: a set of parts is a mask in one byte.
MAX_PARTS = 8

#: A confidence may lie a rounding error outside 0..1.
CONFIDENCE_SLACK = 1e-3

#: How an activation may be packed for a link (`zpipe.codecs` says what each does), and the wish that the runtime chooses.
NO_CODEC = "none"
CODECS = (NO_CODEC, "fp16", "int8", "int8+zstd", "bottleneck")
AUTO_CODEC = "auto"

#: Where batches are small a frame may hold so many tasks of so many bytes: there a message costs more than a task.
FRAME_ROWS, FRAME_BYTES = 8, 512 * 1024

#: A public or secret key as text: 32 bytes in Z85 (RFC 32 of ZeroMQ).
KEY_CHARACTERS = 40
_Z85 = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")

GateRule = Literal["max-probability", "entropy", "margin"]
OutcomeKind = Literal["result", "rejected", "expired", "failed"]


# ---- the network -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape of one sample's tensor (no batch axis) and its dtype name."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of one sample in bytes."""
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ExitHead:
    """The classifier at the end of a stage: raw logits `[batch, classes]`, calibrated by one temperature.

    Source: calibrated exits (arXiv:2010.16335): confidence = max softmax(logits / temperature).
    """

    classes: int
    temperature: float


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One slice of the network as the bundle describes it.

    Attributes:
        index: position in the chain, from 0.
        file: ONNX file inside the bundle; outputs `activation` (absent in the last stage) and raw `logits`.
        input: one sample at the stage's entrance.
        output: one sample's activation, None for the last stage.
        exit_head: None where the stage has no exit.
        macs: multiply-adds per sample, exit head included.
    """

    index: int
    file: str
    input: TensorSpec
    output: TensorSpec | None
    exit_head: ExitHead | None
    macs: int


@dataclass(frozen=True, slots=True)
class PointMetrics:
    """What an operating point gave on one split: fractions 0..1, one exit share per stage, mean multiply-adds."""

    accuracy: float
    exit_shares: tuple[float, ...]
    mean_macs: float


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A named vector of exit thresholds (one per stage; the last is ignored) with what it costs and gives."""

    name: str
    thresholds: tuple[float, ...]
    calibration: PointMetrics
    test: PointMetrics


@dataclass(frozen=True, slots=True)
class Promise:
    """One row of the accuracy table: the cheapest thresholds that reached a target accuracy on the calibration split.

    Attributes:
        target: 0..1.
        thresholds: one per stage.
        calibration: what they gave there; its accuracy is at least `target` (`zpipe.calibrate.table` has the rules).
        test: what they gave on the test split, on which nothing was chosen; None where there was none.
        test_interval: of the accuracy there, 95 %, bootstrap over original images; None without a test split.
    """

    target: float
    thresholds: tuple[float, ...]
    calibration: PointMetrics
    test: PointMetrics | None
    test_interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class GateSpec:
    """What the executor's exit gate evaluates for one batch, in float32, the same formula on every device.

    Attributes:
        rule: the confidence measure; all three grow with certainty and lie in 0..1.
        temperature: logits are divided by it.
        thresholds: one per row `[batch]`; a row exits when confidence >= threshold and threshold < NEVER_EXIT.
        last: every row exits, whatever its confidence (the last stage).
        scores: the raw logits are wanted, too: what a student says is joined with the other parts.
    """

    rule: GateRule
    temperature: float
    thresholds: tuple[float, ...]
    last: bool = False
    scores: bool = False


# ---- samples and tasks -------------------------------------------------------------------------


class SampleKey(NamedTuple):
    """A sample's name anywhere in the network: its source's rank and session, and its number there."""

    source: int
    session: int
    sample: int


#: `new_key((source, session, sample))`: a NamedTuple's own constructor is a Python function, twice as dear.
new_key: Callable[[tuple[int, int, int]], SampleKey] = partial(tuple.__new__, SampleKey)


@dataclass(slots=True)
class Task:
    """A sample waiting for a stage. Mutable on purpose: one object follows the sample through a node.

    The first block travels (a Task message carries one row of it per sample); `budget` and `age` travel as durations, since
    clocks are not shared, and become `deadline` and `born` on this node's clock when the task arrives.

    Attributes:
        key: the sample.
        attempt: from 1; the source counts it up when it submits a sample again.
        stage: the stage this task waits for.
        thresholds: for the exits of stage, stage+1, ... last; `[]` means the last stage only.
        part: which student's part this is (failure-resilient students), 0 in a chain.
        priority: service class, 0 is the ordinary one.
        weight: the source's weight gamma (PA-MDI, arXiv:2412.12371).
        oldest: the source's lowest open sample number when the task was sent.
        queued_seconds, service_seconds: waited and computed so far, over all nodes.
        number: position on the link it came by (policy rule C2); -1 at its source.
        deadline, born: this node's clock, seconds.
        token: names the payload in this node's runtime; 0 = the source's own input.
        peer, epoch: the rank it came from (-1 at its source) and the epoch of that link.
        since: when it entered the queue it is in, this node's clock.
        alone: run it in a batch of one (its last batch failed).
        stale: another attempt replaced it while it ran; drop it on completion.
        yielded_seconds: of those queued, how long lower classes computed where it waited (A7); travels where it is not 0.
    """

    key: SampleKey
    attempt: int
    stage: int
    thresholds: tuple[float, ...]
    part: int = 0
    priority: int = 0
    weight: float = 1.0
    oldest: int = 0
    queued_seconds: float = 0.0
    service_seconds: float = 0.0
    number: int = -1

    deadline: float = math.inf
    born: float = 0.0
    token: int = 0
    peer: int = -1
    epoch: int = 0
    since: float = 0.0
    alone: bool = False
    stale: bool = False
    yielded_seconds: float = 0.0


# ---- what nodes tell each other ----------------------------------------------------------------


@dataclass(slots=True)
class Credit:
    """What a receiver tells a sender about one direction of their link (policy rules C3, C4): absolute, so repeats do no harm.

    Attributes:
        epoch: the connection it speaks of.
        expected: 1 + the highest number seen; every lower number not in `held` is released or was lost.
        held: numbers below `expected` that still occupy a slot.
        limit: the first number that may not be sent.
        carried: {stage: tasks of earlier epochs that still occupy a slot of this link}.
        holding_seconds: how long the receiver held number `expected - 1` when it wrote this; < 0 when it says nothing.
        missed: numbers below `expected` that never arrived, the latest of this epoch.
        clear: {class: tasks of it and of those below that may hold a slot}, clear to compute (C8); empty where nothing has classes.
    """

    epoch: int
    expected: int
    held: tuple[int, ...]
    limit: int
    carried: dict[int, int] = field(default_factory=dict)
    holding_seconds: float = -1.0
    missed: tuple[int, ...] = ()
    clear: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """A node's load, told to its neighbours (MDI-Exit's periodic I and Gamma).

    Attributes:
        input_length, output_length: tasks in I, what runs included, and in O.
        service_seconds: {stage: smoothed seconds per sample}.
        backlog_seconds: {stage: seconds of work for it there, whether queued, under way or waiting to be sent or taken back}.
        accepting: whether it takes tasks; not while it drains, or without an executor that works.
        ahead_seconds: {class: seconds of work for it there, all that is left of each sample}; told by nodes that look ahead (A6).
        usage: {class: share of its time that went into it of late, 0..1}, likewise.
        withheld: {class: stages that it hosts and does not serve for it, as bits} (A8).
        rates: {source: (multiply-adds a second from the source to this node, and from this node on)} along its chain (A9).
    """

    input_length: int
    output_length: int
    service_seconds: dict[int, float]
    backlog_seconds: dict[int, float]
    accepting: bool = True
    ahead_seconds: dict[int, float] = field(default_factory=dict)
    usage: dict[int, float] = field(default_factory=dict)
    withheld: dict[int, int] = field(default_factory=dict)
    rates: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass(slots=True)
class LostRow:
    """One attempt that will not come to a result: which, and why (`peer-lost`, `stage-failed: ...`).

    Attributes:
        shut_out_by: the session of its source that made a node drop it as old (policy rule S5); 0 where that was not the cause.
        part: whose attempt it was, where students share a sample; else 0.
    """

    key: SampleKey
    attempt: int
    cause: str
    shut_out_by: int = 0
    part: int = 0


@dataclass(slots=True)
class ResultRow:
    """One answer on its way to its source. Timings are durations summed over the nodes it passed.

    Attributes:
        exit_stage: the stage whose head answered.
        label: index into the bundle's classes.
        confidence: float32 value of the gate.
        queued_seconds, service_seconds: waited and computed, over all nodes.
        part: which student's answer it is, 0 in a chain.
        hops: nodes it passed on its way to the source; whoever passes it on adds one.
        scores: of a student: its raw logits `[classes] float32`, little-endian; empty in a chain.
        yielded_seconds: of those queued, how long lower classes computed where it waited (A7).
    """

    key: SampleKey
    attempt: int
    exit_stage: int
    label: int
    confidence: float
    queued_seconds: float
    service_seconds: float
    part: int = 0
    hops: int = 0
    scores: bytes = b""
    yielded_seconds: float = 0.0

    def passed_on(self) -> ResultRow:
        """The same, one hop later."""
        return ResultRow(
            self.key,
            self.attempt,
            self.exit_stage,
            self.label,
            self.confidence,
            self.queued_seconds,
            self.service_seconds,
            self.part,
            self.hops + 1,
            self.scores,
            self.yielded_seconds,
        )


# ---- what the caller gets ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one sample.

    Attributes:
        sample: its number at this source.
        label: index into the bundle's classes.
        class_name: the bundle's name for the label.
        confidence: calibrated, 0..1.
        exit_stage: the stage whose head answered, from 0; of students, the one that came in last.
        latency_seconds: from submit() to here.
        queued_seconds, service_seconds: of that, waited in queues and computed; of students, by the one that came in last.
        attempts: 1 unless the sample had to be submitted again; of students, the most copies that any part was sent in.
        missing: parts that were not in, rising; the confidence is calibrated for just those that were. Empty in a chain.
    """

    sample: int
    label: int
    class_name: str
    confidence: float
    exit_stage: int
    latency_seconds: float
    queued_seconds: float
    service_seconds: float
    attempts: int
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one sample ended: exactly one per submitted sample.

    Attributes:
        sample: its number at this source.
        kind: `result`, `rejected`, `expired` or `failed`.
        latency_seconds: from submit() to the outcome.
        attempts: how often it was submitted into the network (0: never admitted).
        result: the answer when kind is `result`, else None.
        cause: one line saying why when kind is not `result`.
    """

    sample: int
    kind: OutcomeKind
    latency_seconds: float
    attempts: int
    result: Result | None = None
    cause: str = ""


# ---- security ----------------------------------------------------------------------------------


def is_key(text: str) -> bool:
    """Whether the text has the form of a key."""
    return len(text) == KEY_CHARACTERS and _Z85.issuperset(text)

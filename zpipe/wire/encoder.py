"""Messages to frames. The format is stated in `zpipe.wire`; values are trusted here, since they are our own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from zpipe.errors import MAX_TEXT
from zpipe.model import Credit, Report, ResultRow, Task
from zpipe.wire.kinds import MAX_MICROSECONDS, MAX_RANK, MEMORY, NO_BUDGET, NO_HOLDING, Kind
from zpipe.wire.messages import (
    WIRE_VERSION,
    Blocked,
    Bye,
    CreditUpdate,
    Hello,
    Lost,
    Message,
    Ping,
    Refused,
    ReportUpdate,
    Results,
    Stats,
    StatsRequest,
    TaskBatch,
)

#: An IntEnum member costs msgpack a conversion; the hot kind is packed as the plain number.
_TASK = int(Kind.TASK)

_MAX_SECONDS = MAX_MICROSECONDS * 1e-6


def encode(message: Message, *, now: float = 0.0, transit_seconds: float = 0.0) -> list[bytes | memoryview]:
    """The frames to send for `message`: one, or two for TaskBatch, whose second is a view of its payload.

    A contiguous payload is not copied, so it must not change until the transport is done with the frame.

    Args:
        message: trusted; see its class for what each field means.
        now: this node's clock; turns a task's `deadline` and `born` into durations.
        transit_seconds: half the measured round trip, taken from each task's budget and added to its age.

    Raises:
        ValueError: a TaskBatch whose rows and payload do not belong together, or a document that holds a NaN or an infinity.
        TypeError: a value that msgpack or JSON has no form for, such as a NumPy scalar in a count.
    """
    if type(message) is TaskBatch:
        return _encode_tasks(message, now, transit_seconds)
    body: bytes = msgpack.packb(_header(message), unicode_errors="replace")
    return [body + xxh3_64_digest(body)]


def _encode_tasks(batch: TaskBatch, now: float, transit_seconds: float) -> list[bytes | memoryview]:
    tasks, payload = batch.tasks, batch.payload
    packed = payload.ndim == 1 and payload.dtype == np.uint8
    if not tasks or (len(tasks) != payload.shape[0] and not packed):
        raise ValueError(f"TaskBatch has {len(tasks)} tasks and a payload of shape {payload.shape}; expected one row per task")
    if not payload.flags.c_contiguous:
        payload = np.ascontiguousarray(payload)
    buffer = payload.data.cast("B")
    arrival = now + transit_seconds
    rows = [_task_row(task, arrival) for task in tasks]
    body: bytes = msgpack.packb((WIRE_VERSION, _TASK, batch.sender, batch.epoch, batch.codec, batch.stage, rows))
    return [body + xxh3_64_digest(buffer, xxh3_64_intdigest(body)), buffer]


def _task_row(task: Task, arrival: float) -> tuple[Any, ...]:
    """One row; `arrival` is when the receiver will have it, on this node's clock. Past deadlines travel as budget 0.

    Both durations end at what the wire can say: age grows on the way, and beyond it the receiver would refuse the whole frame.
    """
    source, session, sample = task.key
    budget = task.deadline - arrival
    age = arrival - task.born
    yielded = (float(min(task.yielded_seconds, task.queued_seconds)),) if task.yielded_seconds > 0.0 else ()
    return (
        task.number,
        source,
        session,
        sample,
        task.attempt,
        task.part,
        task.priority,
        task.oldest,
        NO_BUDGET if budget == math.inf else int(budget * 1e6) if 0.0 < budget < _MAX_SECONDS else _end(budget),
        int(age * 1e6) if 0.0 < age < _MAX_SECONDS else _end(age),
        float(task.weight),
        float(task.queued_seconds),
        float(task.service_seconds),
        task.thresholds,
        *yielded,
    )


def _end(seconds: float) -> int:
    """The nearer end of what the wire can say, in microseconds."""
    return MAX_MICROSECONDS if seconds > 0.0 else 0


def _header(message: Message) -> tuple[Any, ...]:
    match message:
        case CreditUpdate(sender, credit):
            return (WIRE_VERSION, Kind.CREDIT, sender, *_credit(credit))
        case Results(sender, rows):
            answers: list[tuple[Any, ...]] = [
                (
                    *row.key,
                    row.attempt,
                    row.part,
                    row.exit_stage,
                    row.label,
                    min(row.hops, MAX_RANK),
                    float(row.confidence),
                    float(row.queued_seconds),
                    float(row.service_seconds),
                )
                for row in rows
            ]
            if any(row.yielded_seconds or row.scores for row in rows):
                answers = [(*answer, *_rest(row)) for answer, row in zip(answers, rows, strict=True)]
            return (WIRE_VERSION, Kind.RESULT, sender, answers)
        case ReportUpdate(sender, report):
            service, backlog = (_flat(report.service_seconds), _flat(report.backlog_seconds))
            lengths = (report.input_length, report.output_length)
            return (WIRE_VERSION, Kind.REPORT, sender, *lengths, service, backlog, report.accepting, *_classes(report))
        case Blocked(sender, epoch, next_number):
            return (WIRE_VERSION, Kind.BLOCKED, sender, epoch, next_number)
        case Lost(sender, lost):
            attempts = [
                (*row.key, row.attempt, row.cause[:MAX_TEXT], row.shut_out_by, *((row.part,) if row.part else ())) for row in lost
            ]
            return (WIRE_VERSION, Kind.LOST, sender, attempts)
        case Ping(sender, token, echo, padding):
            return (WIRE_VERSION, Kind.PING, sender, token, echo, padding)
        case Hello():
            return (
                WIRE_VERSION,
                Kind.HELLO,
                message.sender,
                message.role,
                message.session,
                message.epoch,
                message.wire_version,
                message.bundle_digest,
                message.topology_digest,
                _document({**message.topology, MEMORY: message.memory} if message.memory else message.topology),
            )
        case Refused(sender, key, here, there):
            return (WIRE_VERSION, Kind.REFUSED, sender, key[:MAX_TEXT], here[:MAX_TEXT], there[:MAX_TEXT])
        case StatsRequest(sender, token):
            return (WIRE_VERSION, Kind.STATS_REQUEST, sender, token)
        case Stats(sender, token, body):
            return (WIRE_VERSION, Kind.STATS, sender, token, _document(body))
        case Bye(sender, reason):
            return (WIRE_VERSION, Kind.BYE, sender, reason[:MAX_TEXT])
        case TaskBatch():
            raise AssertionError("encode() handles TaskBatch before it comes here")


def _rest(row: ResultRow) -> tuple[Any, ...]:
    """What only some results say."""
    yielded = (float(min(row.yielded_seconds, row.queued_seconds)),) if row.yielded_seconds > 0.0 else ()
    return (*yielded, row.scores) if row.scores else yielded


def _credit(credit: Credit) -> tuple[Any, ...]:
    expected, holding = credit.expected, credit.holding_seconds
    # Distances below `expected` instead of numbers: one byte each, and never out of range by construction.
    held = [expected - number for number in credit.held]
    carried = [item for pair in credit.carried.items() for item in pair]
    missed = [expected - number for number in credit.missed]
    clear = ([item for pair in credit.clear.items() for item in pair],) if credit.clear else ()
    return (credit.epoch, expected, held, credit.limit, carried, float(holding) if holding >= 0.0 else NO_HOLDING, missed, *clear)


def _classes(report: Report) -> tuple[Any, ...]:
    """What nodes tell that look at classes, or at chains of nodes; nothing where there is nothing to tell."""
    if not (report.ahead_seconds or report.usage or report.withheld or report.rates):
        return ()
    withheld = [item for pair in report.withheld.items() for item in pair]
    rates = [item for source, pair in report.rates.items() for item in (source, *map(float, pair))]
    return (_flat(report.ahead_seconds), _flat(report.usage), withheld, rates)


def _flat(seconds: Mapping[int, float]) -> list[float]:
    """{stage or class: value} as [stage, value, stage, value ...]: the header holds no maps."""
    return [item for stage, value in seconds.items() for item in (stage, float(value))]


def _document(document: Mapping[str, Any]) -> bytes:
    """Compact JSON in ASCII; JSON because a decoder of it allocates by what is there, not by what is claimed."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")

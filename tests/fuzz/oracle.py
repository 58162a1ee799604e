"""What must be true of anything that `decode` lets through, written from the specification and not from the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zpipe.errors import WireError
from zpipe.model import Credit, LostRow, Report, ResultRow, Task
from zpipe.wire import (
    NO_RANK,
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
    WireLimits,
    decode,
    encode,
)

#: A refusal is one line of log.
MAX_REFUSAL_CHARACTERS = 600
#: Microseconds that a time may lose on its way through `encode` and `decode`, beside a float's own rounding.
TIME_SLACK_SECONDS = 3e-6


class Unsound(AssertionError):
    """The decoder did what it must not do."""


def judge(frames: Sequence[bytes], *, limits: WireLimits, now: float, damaged: bool) -> str:
    """Decodes and looks at what comes out.

    Returns:
        The refusal, or "" for a sound message.

    Raises:
        Unsound: another exception, an unreadable refusal, damage that went unseen, or a message that should not be.
    """
    try:
        message = decode(frames, limits=limits, now=now)
    except WireError as exc:
        text = str(exc)
        _claim("\n" not in text and len(text) <= MAX_REFUSAL_CHARACTERS, f"a refusal of {len(text)} characters: {text[:200]!r}")
        return text
    except Exception as exc:
        raise Unsound(f"{type(exc).__name__}: {exc}") from exc
    _claim(not damaged, f"damage went unseen: {message!r:.200}")
    _claim(len(frames) == (2 if isinstance(message, TaskBatch) else 1), f"{type(message).__name__} of {len(frames)} frames")
    check(message, limits=limits, now=now)
    _check_round_trip(message, limits=limits, now=now)
    return ""


def check(message: Message, *, limits: WireLimits, now: float) -> None:
    """Every range of the specification."""
    match message:
        case Hello():
            _claim(message.role in {"peer", "source", "observer"}, message)
            _claim(message.sender != NO_RANK or message.role == "observer", message)
            _counts(message.session, message.epoch, message.wire_version)
            _texts(limits, message.bundle_digest, message.topology_digest)
            _document(message.topology)
        case Refused():
            _texts(limits, message.key, message.here, message.there)
        case TaskBatch():
            _batch(message, limits, now)
        case CreditUpdate():
            _credit(message.credit, limits)
        case Blocked():
            _counts(message.epoch, message.next_number)
        case ReportUpdate():
            _report(message.report, limits)
        case Lost():
            _rows(message.rows, limits)
            for lost in message.rows:
                _lost(lost, limits)
        case Results():
            _rows(message.rows, limits)
            for row in message.rows:
                _result(row, limits)
        case Ping():
            _counts(message.token)
            _claim(type(message.padding) is bytes and len(message.padding) <= limits.max_document_bytes, message)
        case StatsRequest():
            _counts(message.token)
        case Stats():
            _counts(message.token)
            _document(message.body)
        case Bye():
            _texts(limits, message.reason)
    observer = NO_RANK if isinstance(message, (Hello, Ping, StatsRequest, Bye)) else 0
    _claim(type(message.sender) is int and observer <= message.sender <= 65535, message)


def _batch(batch: TaskBatch, limits: WireLimits, now: float) -> None:
    count = len(batch.tasks)
    _claim(1 <= count <= limits.max_rows, batch)
    _counts(batch.epoch, batch.stage)
    payload = batch.payload
    if batch.codec == "none":
        spec = limits.stage_inputs[batch.stage]
        _claim(payload.shape == (count, *spec.shape) and payload.dtype == np.dtype(spec.dtype), batch)
    elif (batch.codec, batch.stage) in limits.packed_bytes:
        _claim(payload.dtype == np.uint8 and 1 <= payload.nbytes <= count * limits.packed_bytes[batch.codec, batch.stage], batch)
    else:
        _claim(payload.nbytes == count * limits.codec_inputs[batch.codec, batch.stage].bytes, batch)
    for task in batch.tasks:
        _task(task, batch, limits, now)


def _task(task: Task, batch: TaskBatch, limits: WireLimits, now: float) -> None:
    _key(task.key, task.attempt)
    _counts(task.part, task.oldest, task.number)
    _claim(0 <= task.priority <= 255, task)
    _claim(0.0 <= task.yielded_seconds <= task.queued_seconds, task)
    _seconds(task.weight, task.queued_seconds, task.service_seconds, *task.thresholds)
    _claim(len(task.thresholds) <= len(limits.stage_inputs), task)
    _claim(task.stage == batch.stage and task.peer == batch.sender and task.epoch == batch.epoch, task)
    longest = 2**53 * 1e-6
    _claim(task.deadline == math.inf or now <= task.deadline <= now + longest, task)
    _claim(now - longest <= task.born <= now and task.since == now, task)


def _credit(credit: Credit, limits: WireLimits) -> None:
    _counts(credit.epoch, credit.expected, credit.limit)
    _claim(len(credit.held) <= limits.max_list, credit)
    _claim(all(type(number) is int and 0 <= number < credit.expected for number in credit.held), credit)
    _stages(credit.carried, limits)
    _counts(*credit.carried.values())
    _classes(credit.clear)
    _counts(*credit.clear.values())
    if credit.holding_seconds != -1.0:
        _seconds(credit.holding_seconds)


def _report(report: Report, limits: WireLimits) -> None:
    _counts(report.input_length, report.output_length)
    for seconds in (report.service_seconds, report.backlog_seconds):
        _stages(seconds, limits)
        _seconds(*seconds.values())
    for by_class in (report.ahead_seconds, report.usage):
        _classes(by_class)
        _seconds(*by_class.values())
    _classes(report.withheld)
    _counts(*report.withheld.values())
    for source, rates in report.rates.items():
        _claim(type(source) is int and 0 <= source <= 65535 and len(rates) == 2, report)
        _seconds(*rates)


def _lost(row: LostRow, limits: WireLimits) -> None:
    _key(row.key, row.attempt)
    _texts(limits, row.cause)
    _counts(row.shut_out_by)


def _result(row: ResultRow, limits: WireLimits) -> None:
    _key(row.key, row.attempt)
    _counts(row.part, row.label, row.hops)
    _claim(row.exit_stage in limits.stage_inputs and row.label < limits.classes, row)
    _claim(type(row.confidence) is float and -0.00101 <= row.confidence <= 1.00101, row)
    _seconds(row.queued_seconds, row.service_seconds)
    _claim(0.0 <= row.yielded_seconds <= row.queued_seconds, row)


# ---- parts -------------------------------------------------------------------------------------


def _claim(holds: bool, what: object) -> None:
    if not holds:
        raise Unsound(f"{what!r:.300}")


def _counts(*values: Any) -> None:
    for value in values:
        _claim(type(value) is int and 0 <= value < 2**63, f"count {value!r:.100}")


def _classes(values: Mapping[int, Any]) -> None:
    for each in values:
        _claim(type(each) is int and 0 <= each <= 255, f"class {each!r:.100}")


def _seconds(*values: Any) -> None:
    for value in values:
        _claim(type(value) is float and 0.0 <= value < math.inf, f"seconds {value!r:.100}")


def _texts(limits: WireLimits, *values: Any) -> None:
    for value in values:
        _claim(type(value) is str and len(value.encode()) <= limits.max_text_bytes, f"text {value!r:.100}")


def _key(key: tuple[int, int, int], attempt: int) -> None:
    _counts(*key, attempt)
    _claim(key[0] <= 65535 and attempt >= 1, key)


def _rows(rows: Sequence[object], limits: WireLimits) -> None:
    _claim(1 <= len(rows) <= limits.max_entries, f"{len(rows)} rows")


def _stages(by_stage: dict[int, Any], limits: WireLimits) -> None:
    _claim(all(type(stage) is int and stage in limits.stage_inputs for stage in by_stage), by_stage)


def _document(document: Any, depth: int = 0) -> None:
    """Finite, 16 levels at most; recursion is safe only because of the second."""
    _claim(depth <= 16, "a document too deep")
    _claim(depth > 0 or type(document) is dict, "a document that is no object")
    if isinstance(document, float):
        _claim(math.isfinite(document), "a document with a number out of range")
    for child in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        _document(child, depth + 1)


def _check_round_trip(message: Message, *, limits: WireLimits, now: float) -> None:
    """What was let through can be said again, and is understood the same."""
    if isinstance(message, Hello | Stats):
        return  # a document may be said in many ways, some of them longer than the limit
    try:
        again = decode([bytes(frame) for frame in encode(message, now=now)], limits=limits, now=now)
    except Exception as exc:
        raise Unsound(f"cannot be said again: {type(exc).__name__}: {exc}; {message!r:.200}") from exc
    if not isinstance(message, TaskBatch):
        # Senders cut texts to 240 characters.
        long = isinstance(message, Refused | Lost | Bye)
        _claim(long or again == message, f"comes back as {again!r:.100}, was {message!r:.100}")
        return
    assert isinstance(again, TaskBatch)
    _claim(again.payload.tobytes() == message.payload.tobytes(), "another buffer")
    for one, other in zip(message.tasks, again.tasks, strict=True):
        _claim(
            (one.key, one.attempt, one.thresholds, one.number) == (other.key, other.attempt, other.thresholds, other.number), one
        )
        _claim(one.deadline == other.deadline or abs(one.deadline - other.deadline) <= _slack(one.deadline), one)
        _claim(abs(one.born - other.born) <= _slack(one.born), one)


def _slack(value: float) -> float:
    return TIME_SLACK_SECONDS + abs(value) * 1e-12

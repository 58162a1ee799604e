"""Frames to messages, trusting nothing. The format is stated in `zpipe.wire`.

The order of the checks is the order of their cost: frame count and sizes, version, checksum, msgpack under limits, the
types of all top-level fields at once, then each kind's own ranges. A row's types are compared in one step
(`tuple(map(type, row)) == TYPES`, which also keeps bool out of int); integers are compared all together, by their bits, a NaN
among floats shows in their sum, and the thresholds of a frame are looked at in one go, so one valid row costs about 2 µs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgpack
import numpy as np
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from zpipe.errors import MAX_TEXT, WireError, one_line
from zpipe.model import CONFIDENCE_SLACK, Credit, LostRow, Report, ResultRow, SampleKey, Task, new_key
from zpipe.wire.kinds import (
    CLASS_TYPES,
    HEADER_TYPES,
    LOST_PART_TYPES,
    LOST_ROW_TYPES,
    MAX_CLASS,
    MAX_MICROSECONDS,
    MAX_RANK,
    MEMORY,
    NO_BUDGET,
    NO_HOLDING,
    RESULT_ROW_TYPES,
    SCORE_BYTES,
    SCORED_ROW_TYPES,
    TASK_ROW_TYPES,
    TRAILER_BYTES,
    YIELDED_RESULT_TYPES,
    YIELDED_SCORED_TYPES,
    YIELDED_TASK_TYPES,
    Kind,
)
from zpipe.wire.limits import WireLimits
from zpipe.wire.messages import (
    NO_RANK,
    ROLES,
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
    Role,
    Stats,
    StatsRequest,
    TaskBatch,
)

Buffer = bytes | memoryview

#: The shortest header is [version, kind, sender, token]: five bytes of msgpack.
MIN_HEADER_BYTES = 5 + TRAILER_BYTES

#: Upper end of every integer: fits int64, so nothing behind the decoder can overflow.
MAX_INT = 2**63 - 1

#: Nesting of the dict in a Hello or Stats. Deeper ones could exhaust the stack of whoever walks them.
MAX_DOCUMENT_DEPTH = 16

_TASK = int(Kind.TASK)
_INT = {int}
_FLOAT = {float}

#: What an observer may send (Bye costs it nothing and frees its place at once).
_OBSERVER_KINDS = frozenset((Kind.HELLO, Kind.PING, Kind.STATS_REQUEST, Kind.BYE))

Fields = tuple[Any, ...]


def decode(frames: Sequence[Buffer], *, limits: WireLimits, now: float) -> Message:
    """The message in `frames`, checked in full.

    Args:
        frames: one buffer of bytes per frame, as they came.
        limits: what this node accepts.
        now: this node's clock; tasks get `deadline`, `born` and `since` on it.

    Raises:
        WireError: anything that `zpipe.wire` does not describe. One line; the caller drops the frames and counts.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"message of {len(frames)} frames, expected 1 or 2")
    header = _header_bytes(frames[0], limits)
    body = header[:-TRAILER_BYTES]
    checksum = xxh3_64_digest(body) if len(frames) == 1 else xxh3_64_digest(frames[1], xxh3_64_intdigest(body))
    if checksum != header[-TRAILER_BYTES:]:
        raise WireError(f"checksum of a {len(header)} byte header and {len(frames) - 1} buffers does not match")
    fields = _fields(body, limits)
    kind = fields[1]
    if len(frames) != (2 if kind == _TASK else 1):
        raise WireError(f"{Kind(kind).name}: {len(frames)} frames, expected {2 if kind == _TASK else 1}")
    if kind == _TASK:
        return _task_batch(fields, frames[1], limits, now)
    return _BUILDERS[kind](fields, limits)


def _header_bytes(frame: Buffer, limits: WireLimits) -> bytes:
    """The header frame as bytes, its size and version checked."""
    size = len(frame)
    if not MIN_HEADER_BYTES <= size <= limits.max_header_bytes:
        raise WireError(f"header of {size} bytes, expected {MIN_HEADER_BYTES} to {limits.max_header_bytes}")
    header = bytes(frame)  # no copy where it is bytes already
    # The first byte opens an array of up to 15 fields, so the version is always the second.
    if header[1] != WIRE_VERSION:
        raise WireError(f"wire version {header[1]}, expected {WIRE_VERSION}")
    return header


def _fields(body: bytes, limits: WireLimits) -> Fields:
    """The header's fields, with the number and types its kind asks for."""
    fields = _unpack(body, limits)
    if type(fields) is not tuple or len(fields) < 3 or type(fields[1]) is not int:
        raise WireError("header is not an array of version, kind, sender ...")
    types = HEADER_TYPES.get(fields[1])
    if types is None:
        raise WireError(f"message kind {fields[1]}, expected 1 to {max(HEADER_TYPES)}")
    if tuple(map(type, fields)) != types and tuple(map(type, fields)) != (*types, *CLASS_TYPES.get(fields[1], ())):
        found = ", ".join(type(field).__name__ for field in fields[:12])
        raise WireError(f"{Kind(fields[1]).name}: header of ({found}), expected ({', '.join(each.__name__ for each in types)})")
    if not NO_RANK <= fields[2] <= MAX_RANK:
        raise WireError(f"{Kind(fields[1]).name}: sender {fields[2]}, expected a rank")
    if fields[2] == NO_RANK and fields[1] not in _OBSERVER_KINDS:
        raise WireError(f"{Kind(fields[1]).name}: from an observer, expected the rank of a node")
    return fields


def _unpack(body: bytes, limits: WireLimits) -> Any:
    """Plain values under limits: no maps, no extension types, no timestamps, UTF-8 checked, arrays as tuples.

    msgpack makes a tuple of the length an array claims before it reads the items, 1024 levels deep at most: with the default
    limits a hostile header costs 8 MiB for the moment until it is refused.
    """
    try:
        return msgpack.unpackb(
            body,
            use_list=False,
            raw=False,
            max_str_len=limits.max_text_bytes,
            max_bin_len=limits.max_document_bytes,
            max_array_len=limits.max_list,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise WireError(f"not msgpack within limits: {type(exc).__name__}: {exc}") from exc


# ---- data plane --------------------------------------------------------------------------------


def _task_batch(fields: Fields, payload: Buffer, limits: WireLimits, now: float) -> TaskBatch:
    _, _, sender, epoch, codec, stage, rows = fields
    frame = limits.frames.get((codec, stage))
    if frame is None:
        raise WireError(f"TASK: stage {stage} in codec {_short(codec)}, expected one of {len(limits.stage_inputs)} stages")
    count = len(rows)
    if not 1 <= count <= limits.max_rows:
        raise WireError(f"TASK: {count} rows, expected 1 to {limits.max_rows}")
    size, most = len(payload), count * frame.bytes
    if size != most and not (frame.packed and 1 <= size < most):
        at_most = "at most " if frame.packed else ""
        raise WireError(f"TASK: buffer of {size} bytes, expected {at_most}{count} x {frame.bytes} for stage {stage}")
    _check_count("TASK", "epoch", epoch)
    exits = len(limits.stage_inputs)
    tasks = [_task(row, stage, sender, epoch, exits, now) for row in rows]
    if not _are_thresholds([each for task in tasks for each in task.thresholds]):
        for task in tasks:  # many that are fine one by one may be too much together
            if not _are_thresholds(task.thresholds):
                raise WireError(f"TASK: thresholds {_short(task.thresholds)}, expected floats >= 0")
    # ndarray() instead of frombuffer().reshape(): one object, a third of the time.
    shape = (size,) if frame.packed else (count, *frame.shape)
    return TaskBatch(sender, epoch, codec, stage, tasks, np.ndarray(shape, frame.dtype, payload))


def _task(row: Any, stage: int, sender: int, epoch: int, exits: int, now: float) -> Task:
    """One row, checked but for the values of its thresholds."""
    types, yielded = tuple(map(type, row)) if type(row) is tuple else (), 0.0
    if types == YIELDED_TASK_TYPES:
        *row, yielded = row
    elif types != TASK_ROW_TYPES:
        raise WireError(f"TASK: row {_short(row)} has not the types of a row")
    number, source, session, sample, attempt, part, priority, oldest, budget, age, weight, queued, service, thresholds = row
    if (
        # One bit of any of them is one of theirs all together: negative where one is, too large where one is.
        not 0 <= number | source | session | sample | attempt | part | priority | oldest <= MAX_INT
        or source > MAX_RANK
        or priority > MAX_CLASS
        or attempt < 1
        or not NO_BUDGET <= budget <= MAX_MICROSECONDS
        or not 0 <= age <= MAX_MICROSECONDS
        or not (weight >= 0.0 and queued >= yielded >= 0.0 and service >= 0.0 and weight + queued + service < math.inf)
        or len(thresholds) > exits
    ):
        raise WireError(f"TASK: row {_short(row)} is out of range")
    task = Task(
        new_key((source, session, sample)),
        attempt,
        stage,
        thresholds,
        part,
        priority,
        weight,
        oldest,
        queued,
        service,
        number,
        math.inf if budget == NO_BUDGET else now + budget * 1e-6,  # deadline
        now - age * 1e-6,  # born
        0,  # token
        sender,
        epoch,
        now,  # since
    )
    if yielded:
        task.yielded_seconds = yielded
    return task


def _are_thresholds(values: Sequence[Any]) -> bool:
    """Floats >= 0. A NaN hides from min but not from sum."""
    return not values or (set(map(type, values)) == _FLOAT and min(values) >= 0.0 and sum(values) < math.inf)


def _blocked(fields: Fields, limits: WireLimits) -> Blocked:
    _, _, sender, epoch, next_number = fields
    _check_count("BLOCKED", "epoch", epoch)
    _check_count("BLOCKED", "next number", next_number)
    return Blocked(sender, epoch, next_number)


# ---- control plane -----------------------------------------------------------------------------


def _hello(fields: Fields, limits: WireLimits) -> Hello:
    _, _, sender, role, session, epoch, version, bundle_digest, topology_digest, topology = fields
    if role not in ROLES:
        raise WireError(f"HELLO: role {_short(role)}, expected one of {', '.join(sorted(ROLES))}")
    if sender == NO_RANK and role != "observer":
        raise WireError(f"HELLO: role {role!r} without a rank")
    for name, value in (("session", session), ("epoch", epoch), ("wire version", version)):
        _check_count("HELLO", name, value)
    document = _document("HELLO", topology)
    memory = document.pop(MEMORY, "")
    if type(memory) is not str or len(memory) > MAX_TEXT:
        raise WireError(f"HELLO: {MEMORY} {_short(memory)}, expected text of at most {MAX_TEXT} characters")
    return Hello(sender, cast("Role", role), session, epoch, bundle_digest, topology_digest, document, version, memory)


def _refused(fields: Fields, limits: WireLimits) -> Refused:
    return Refused(fields[2], *map(one_line, fields[3:]))


def _credit(fields: Fields, limits: WireLimits) -> CreditUpdate:
    _, _, sender, epoch, expected, distances, limit, carried, holding, missing, *clear = fields
    if not 0 <= epoch | expected | limit <= MAX_INT:  # any of them, as in a task's row
        for name, value in (("epoch", epoch), ("expected", expected), ("limit", limit)):
            _check_count("CREDIT", name, value)
    held = _below(expected, "held", distances) if distances else ()
    missed = _below(expected, "missed", missing) if missing else ()
    if not (holding == NO_HOLDING or 0.0 <= holding < math.inf):
        raise WireError(f"CREDIT: holding seconds {holding}, expected >= 0 or {NO_HOLDING}")
    carried_slots = _by_stage("CREDIT", carried, int, limits) if carried else {}
    clear_slots = _by_class("CREDIT", clear[0], int) if clear else {}
    return CreditUpdate(sender, Credit(epoch, expected, held, limit, carried_slots, holding, missed, clear_slots))


def _below(expected: int, name: str, distances: Fields) -> tuple[int, ...]:
    """Numbers told by their distance from `expected`."""
    if set(map(type, distances)) != _INT or min(distances) < 1 or max(distances) > expected:
        raise WireError(f"CREDIT: {name} {_short(distances)}, expected distances of 1 to {expected}")
    return tuple([expected - distance for distance in distances])


def _report(fields: Fields, limits: WireLimits) -> ReportUpdate:
    _, _, sender, input_length, output_length, service, backlog, accepting, *classes = fields
    _check_count("REPORT", "input length", input_length)
    _check_count("REPORT", "output length", output_length)
    service_seconds, backlog_seconds = (_by_stage("REPORT", service, float, limits), _by_stage("REPORT", backlog, float, limits))
    report = Report(input_length, output_length, service_seconds, backlog_seconds, accepting)
    if classes:
        ahead, usage, withheld, rates = classes
        report.ahead_seconds, report.usage = _by_class("REPORT", ahead, float), _by_class("REPORT", usage, float)
        report.withheld, report.rates = _by_class("REPORT", withheld, int), _rates(rates)
    return ReportUpdate(sender, report)


def _rates(flat: Fields) -> dict[int, tuple[float, float]]:
    """[source, rate, rate, ...] as {source: (rate, rate)}."""
    sources, rates = flat[::3], list(zip(flat[1::3], flat[2::3], strict=False))
    if any(type(value) is not float or not 0.0 <= value <= MAX_INT for pair in rates for value in pair):
        raise WireError(f"REPORT: {_short(flat)}, expected two floats >= 0 per source")
    if any(type(source) is not int or not 0 <= source <= MAX_RANK for source in sources):
        raise WireError(f"REPORT: {_short(flat)} names a source out of range")
    by_source = dict(zip(sources, rates, strict=False))
    if len(by_source) != len(sources) or 3 * len(sources) != len(flat):
        raise WireError(f"REPORT: {_short(flat)}, expected each source once with its two rates")
    return by_source


def _lost(fields: Fields, limits: WireLimits) -> Lost:
    rows = fields[3]
    _check_rows("LOST", rows, limits)
    lost = []
    for row in rows:
        types = tuple(map(type, row)) if type(row) is tuple else ()
        if types not in (LOST_ROW_TYPES, LOST_PART_TYPES):
            raise WireError(f"LOST: row {_short(row)} has not the types of a row")
        source, session, sample, attempt, cause, by, *parts = row
        if not 0 <= source | session | sample | attempt | by | sum(parts) <= MAX_INT or source > MAX_RANK or attempt < 1:
            raise WireError(f"LOST: row {_short(row)} is out of range")
        lost.append(LostRow(SampleKey(source, session, sample), attempt, one_line(cause), by, *parts))
    return Lost(fields[2], lost)


def _results(fields: Fields, limits: WireLimits) -> Results:
    rows = fields[3]
    _check_rows("RESULT", rows, limits)
    return Results(fields[2], [_result(row, limits) for row in rows])


def _result(row: Any, limits: WireLimits) -> ResultRow:
    types, scores, yielded = tuple(map(type, row)) if type(row) is tuple else (), b"", 0.0
    if types != RESULT_ROW_TYPES:
        if types not in (SCORED_ROW_TYPES, YIELDED_RESULT_TYPES, YIELDED_SCORED_TYPES):
            raise WireError(f"RESULT: row {_short(row)} has not the types of a row")
        if types[-1] is bytes:
            *row, scores = row
            if len(scores) != SCORE_BYTES * limits.classes:
                raise WireError(
                    f"RESULT: scores of {len(scores)} bytes, expected {SCORE_BYTES} for each of {limits.classes} classes"
                )
        if types != SCORED_ROW_TYPES:
            *row, yielded = row
    (source, session, sample, attempt, part, exit_stage, label, hops, confidence, queued, service) = row
    if (
        not 0 <= source | session | sample | attempt | part | exit_stage | label | hops <= MAX_INT  # as in a task's row
        or source > MAX_RANK
        or hops > MAX_RANK
        or attempt < 1
        or exit_stage not in limits.stage_inputs
        or label >= limits.classes
        or not -CONFIDENCE_SLACK <= confidence <= 1.0 + CONFIDENCE_SLACK
        or not (queued >= yielded >= 0.0 and service >= 0.0 and queued + service < math.inf)
    ):
        raise WireError(f"RESULT: row {_short(row)} is out of range")
    return ResultRow(
        new_key((source, session, sample)), attempt, exit_stage, label, confidence, queued, service, part, hops, scores, yielded
    )


def _ping(fields: Fields, limits: WireLimits) -> Ping:
    _check_count("PING", "token", fields[3])
    return Ping(fields[2], fields[3], fields[4], fields[5])


def _stats_request(fields: Fields, limits: WireLimits) -> StatsRequest:
    _check_count("STATS_REQUEST", "token", fields[3])
    return StatsRequest(fields[2], fields[3])


def _stats(fields: Fields, limits: WireLimits) -> Stats:
    _check_count("STATS", "token", fields[3])
    return Stats(fields[2], fields[3], _document("STATS", fields[4]))


def _bye(fields: Fields, limits: WireLimits) -> Bye:
    return Bye(fields[2], one_line(fields[3]))


_BUILDERS: dict[int, Callable[[Fields, WireLimits], Message]] = {
    Kind.HELLO: _hello,
    Kind.REFUSED: _refused,
    Kind.CREDIT: _credit,
    Kind.BLOCKED: _blocked,
    Kind.REPORT: _report,
    Kind.LOST: _lost,
    Kind.RESULT: _results,
    Kind.PING: _ping,
    Kind.STATS_REQUEST: _stats_request,
    Kind.STATS: _stats,
    Kind.BYE: _bye,
}


# ---- parts -------------------------------------------------------------------------------------


def _check_count(kind: str, name: str, value: int) -> None:
    if not 0 <= value <= MAX_INT:
        raise WireError(f"{kind}: {name} {value}, expected 0 to 2**63 - 1")


def _check_rows(kind: str, rows: Fields, limits: WireLimits) -> None:
    if not 1 <= len(rows) <= limits.max_entries:
        raise WireError(f"{kind}: {len(rows)} rows, expected 1 to {limits.max_entries}")


def _by_stage(kind: str, flat: Fields, value_type: type[int | float], limits: WireLimits) -> dict[int, Any]:
    """[stage, value, stage, value ...] as {stage: value}; values are finite and not negative."""
    stages, values = flat[::2], flat[1::2]
    if any(type(value) is not value_type or not 0 <= value <= MAX_INT for value in values):
        raise WireError(f"{kind}: {_short(flat)}, expected {value_type.__name__}s >= 0 per stage")
    if any(type(stage) is not int or stage not in limits.stage_inputs for stage in stages):
        raise WireError(f"{kind}: {_short(flat)} names a stage that the bundle has not")
    by_stage = dict(zip(stages, values, strict=False))
    if len(by_stage) != len(stages) or len(stages) != len(values):
        raise WireError(f"{kind}: {_short(flat)}, expected each stage once with its value")
    return by_stage


def _by_class(kind: str, flat: Fields, value_type: type[int | float]) -> dict[int, Any]:
    """[class, value, class, value ...] as {class: value}; values are finite and not negative."""
    classes, values = flat[::2], flat[1::2]
    if any(type(value) is not value_type or not 0 <= value <= MAX_INT for value in values):
        raise WireError(f"{kind}: {_short(flat)}, expected {value_type.__name__}s >= 0 per class")
    if any(type(each) is not int or not 0 <= each <= MAX_CLASS for each in classes):
        raise WireError(f"{kind}: {_short(flat)} names a class beyond {MAX_CLASS}")
    by_class = dict(zip(classes, values, strict=False))
    if len(by_class) != len(classes) or len(classes) != len(values):
        raise WireError(f"{kind}: {_short(flat)}, expected each class once with its value")
    return by_class


def _document(kind: str, data: bytes) -> dict[str, Any]:
    """The dict inside a Hello or Stats: UTF-8 and nothing that has no UTF-8, finite numbers, bounded depth."""
    try:
        text = data.decode()  # left to json, it would let surrogates pass
        document = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:  # the other way for a lone surrogate to come in
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        raise WireError(f"{kind}: document is not JSON: {type(exc).__name__}: {exc}") from exc
    if type(document) is not dict:
        raise WireError(f"{kind}: document of type {type(document).__name__}, expected an object")
    level: list[Any] = [document]
    for _ in range(MAX_DOCUMENT_DEPTH):
        level = [child for item in level for child in _children(item)]
        if math.inf in level or -math.inf in level:  # 1e999 is JSON
            raise WireError(f"{kind}: document holds a number out of range")
        if not level:
            return document
    raise WireError(f"{kind}: document nested deeper than {MAX_DOCUMENT_DEPTH}")


def _children(item: Any) -> Sequence[Any]:
    """What a JSON value contains."""
    if isinstance(item, dict):
        return list(item.values())
    return item if isinstance(item, list) else ()


def _no_constant(name: str) -> Any:
    """Refuses NaN and Infinity, which json would read."""
    raise ValueError(f"{name} is no JSON number")


def _short(value: object) -> str:
    """A peer's value for one line of log."""
    try:
        return repr(value)[:160]
    except RecursionError:  # msgpack nests deeper than repr goes
        return f"{type(value).__name__} nested too deep to print"

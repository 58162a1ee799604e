"""How many bytes a message has, without encoding it: the simulator sends nothing, but its links must be as busy as real ones.

Follows the format that `zpipe.wire` states, integer by integer; a test compares with what `encode` gives. Sessions, epochs and the
two durations of a task row count with the size they have on a live node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpipe.model import Credit, LostRow, Report, ResultRow, Task

#: Bytes of Ethernet, IPv4 and TCP (with timestamps) around each segment, and what a segment holds at an MTU of 1500.
PACKET_BYTES, SEGMENT_BYTES = 66, 1448
#: A live session or epoch is milliseconds of the wall clock: 8 bytes and a marker.
CLOCK_BYTES = 9
#: A budget or an age in microseconds, from 65.5 ms to 71 minutes.
DURATION_BYTES = 5
FLOAT_BYTES = 9
DIGEST_BYTES = 8
#: Array header, version and kind.
START_BYTES = 3
#: msgpack's unsigned integers: [bits of the value] -> bytes; looked up where a call for each number would be most of the cost.
INTEGER_BYTES = (1,) * 8 + (2,) + (3,) * 8 + (5,) * 16 + (9,) * 32


#: A row of a Task message but for its numbers and thresholds (its array header, attempt, part and priority are small numbers),
TASK_ROW_BYTES = 4 + CLOCK_BYTES + 2 * DURATION_BYTES + 3 * FLOAT_BYTES
#: ... and one of a Result message but for its source and sample (array header, attempt, part, exit stage, label, hops).
RESULT_ROW_BYTES = 6 + CLOCK_BYTES + 3 * FLOAT_BYTES


def on_link(header: int, payload: int = 0) -> int:
    """Bytes a message of one or two frames occupies on an Ethernet link: ZMTP's frame headers, and each packet's own."""
    size = header + (2 if header < 256 else 9)
    if payload:
        size += payload + (2 if payload < 256 else 9)
    segments = -(-size // SEGMENT_BYTES)
    return size + PACKET_BYTES * segments


def task_header(sender: int, codec: str, stage: int, tasks: Sequence[Task]) -> int:
    """The first frame of a Task message; the second is the payload."""
    size = START_BYTES + _integer(sender) + CLOCK_BYTES + 1 + len(codec) + _integer(stage) + _array(len(tasks)) + DIGEST_BYTES
    bytes_of = INTEGER_BYTES
    for task in tasks:
        source, _, sample = task.key
        thresholds = len(task.thresholds)
        size += TASK_ROW_BYTES + thresholds * FLOAT_BYTES + (1 if thresholds < 16 else 3)
        size += bytes_of[task.number.bit_length()] + bytes_of[source.bit_length()]
        size += bytes_of[sample.bit_length()] + bytes_of[task.oldest.bit_length()]
        if task.yielded_seconds:
            size += FLOAT_BYTES
    return size


def results(sender: int, rows: Sequence[ResultRow]) -> int:
    """A Result message."""
    size = START_BYTES + _integer(sender) + _array(len(rows)) + DIGEST_BYTES
    for row in rows:
        source, _, sample = row.key
        size += RESULT_ROW_BYTES + INTEGER_BYTES[source.bit_length()] + INTEGER_BYTES[sample.bit_length()]
        if row.scores:
            size += len(row.scores) + (2 if len(row.scores) < 256 else 3)
        if row.yielded_seconds:
            size += FLOAT_BYTES
    return size


def credit(sender: int, credit: Credit) -> int:
    """A Credit message."""
    numbers = CLOCK_BYTES + _integer(credit.expected) + _distances(credit.expected, credit.held) + _integer(credit.limit)
    carried = _array(2 * len(credit.carried)) + 2 * len(credit.carried)
    missed = _distances(credit.expected, credit.missed)
    clear = _pairs(credit.clear) if credit.clear else 0
    return START_BYTES + _integer(sender) + numbers + carried + FLOAT_BYTES + missed + clear + DIGEST_BYTES


def report(sender: int, report: Report) -> int:
    """A Report message."""
    maps = sum(
        _array(2 * len(seconds)) + (1 + FLOAT_BYTES) * len(seconds) for seconds in (report.service_seconds, report.backlog_seconds)
    )
    lengths = _integer(report.input_length) + _integer(report.output_length)
    classes = 0
    if report.ahead_seconds or report.usage or report.withheld or report.rates:
        classes = sum(_by_class(values) for values in (report.ahead_seconds, report.usage))
        classes += _pairs(report.withheld)
        classes += _array(3 * len(report.rates)) + sum(_integer(source) + 2 * FLOAT_BYTES for source in report.rates)
    return START_BYTES + _integer(sender) + lengths + maps + 1 + classes + DIGEST_BYTES  # 1: accepting


def _pairs(values: Mapping[int, int]) -> int:
    return _array(2 * len(values)) + sum(_integer(item) for pair in values.items() for item in pair)


def _by_class(values: Mapping[int, float]) -> int:
    return _array(2 * len(values)) + sum(_integer(each) + FLOAT_BYTES for each in values)


def blocked(sender: int, next_number: int) -> int:
    """A Blocked message."""
    return START_BYTES + _integer(sender) + CLOCK_BYTES + _integer(next_number) + DIGEST_BYTES


def lost(sender: int, rows: Sequence[LostRow]) -> int:
    """A Lost message."""
    size = START_BYTES + _integer(sender) + _array(len(rows)) + DIGEST_BYTES
    for row in rows:
        text = len(row.cause.encode())
        marker = 1 if text < 32 else 2 if text < 256 else 3
        size += 2 + _integer(row.key.source) + CLOCK_BYTES + _integer(row.key.sample) + marker + text + _integer(row.shut_out_by)
        size += _integer(row.part) if row.part else 0
    return size


def _integer(value: int) -> int:
    """msgpack's unsigned integers."""
    return INTEGER_BYTES[value.bit_length()]


def _distances(expected: int, numbers: Sequence[int]) -> int:
    """An array of how far each number lies below `expected`."""
    size = _array(len(numbers)) + len(numbers)
    if numbers and expected - min(numbers) >= 128:  # else each takes a byte
        size += sum(_integer(expected - number) - 1 for number in numbers)
    return size


def _array(items: int) -> int:
    """msgpack's array header."""
    return 1 if items < 16 else 3

"""Numbers and header layouts of the message kinds, shared by encoder and decoder."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """Second field of every header. A number is never reused for another meaning."""

    HELLO = 1
    REFUSED = 2
    TASK = 3
    CREDIT = 4
    BLOCKED = 5
    REPORT = 6
    LOST = 7
    RESULT = 8
    PING = 9
    STATS_REQUEST = 10
    STATS = 11
    BYE = 12


#: {kind: types of all header fields}, after the table in `zpipe.wire`; the first three are version, kind, sender.
HEADER_TYPES: dict[int, tuple[type, ...]] = {
    Kind.HELLO: (int, int, int, str, int, int, int, str, str, bytes),
    Kind.REFUSED: (int, int, int, str, str, str),
    Kind.TASK: (int, int, int, int, str, int, tuple),
    Kind.CREDIT: (int, int, int, int, int, tuple, int, tuple, float, tuple),
    Kind.BLOCKED: (int, int, int, int, int),
    Kind.REPORT: (int, int, int, int, int, tuple, tuple, bool),
    Kind.LOST: (int, int, int, tuple),
    Kind.RESULT: (int, int, int, tuple),
    Kind.PING: (int, int, int, int, bool, bytes),
    Kind.STATS_REQUEST: (int, int, int, int),
    Kind.STATS: (int, int, int, int, bytes),
    Kind.BYE: (int, int, int, str),
}

#: {kind: types of what may follow its fields}, all or none, where samples are of several classes.
CLASS_TYPES: dict[int, tuple[type, ...]] = {Kind.CREDIT: (tuple,), Kind.REPORT: (tuple, tuple, tuple, tuple)}

#: Ranks above this name no node of any topology, and no answer makes as many hops.
MAX_RANK = 65535
#: ... and of a class.
MAX_CLASS = 255

#: Types of one row of a Task, a Result, a Lost.
TASK_ROW_TYPES: tuple[type, ...] = (int,) * 10 + (float, float, float, tuple)
RESULT_ROW_TYPES: tuple[type, ...] = (int,) * 8 + (float, float, float)
LOST_ROW_TYPES: tuple[type, ...] = (int, int, int, int, str, int)

#: The same where students share a sample: a result with scores, a lost row with its part.
SCORED_ROW_TYPES: tuple[type, ...] = (*RESULT_ROW_TYPES, bytes)
LOST_PART_TYPES: tuple[type, ...] = (*LOST_ROW_TYPES, int)

#: The same of a sample that had to wait for lower classes: how long.
YIELDED_TASK_TYPES: tuple[type, ...] = (*TASK_ROW_TYPES, float)
YIELDED_RESULT_TYPES: tuple[type, ...] = (*RESULT_ROW_TYPES, float)
YIELDED_SCORED_TYPES: tuple[type, ...] = (*RESULT_ROW_TYPES, float, bytes)

#: Bytes of each class's score.
SCORE_BYTES = 4

#: The checksum that ends every header frame, in bytes.
TRAILER_BYTES = 8

#: `budget_us` of a task without deadline.
NO_BUDGET = -1

#: `holding_seconds` of a Credit that does not say.
NO_HOLDING = -1.0

#: Durations in microseconds stay exact in a float: 285 years. A longer one is told as that.
MAX_MICROSECONDS = 2**53

#: The key in a Hello's topology that is none of the topology's (see `zpipe.wire`): a node that does not know it passes over it.
MEMORY = "shared_memory"

"""One message of every kind, with the limits that admit it; shared by the wire's tests and its benchmark."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from zpipe.model import Credit, LostRow, Report, ResultRow, SampleKey, Task, TensorSpec
from zpipe.wire import (
    NO_CODEC,
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
)

LIMITS = WireLimits(
    stage_inputs={0: TensorSpec("uint8", (3, 2, 2)), 1: TensorSpec("float32", (2, 3)), 2: TensorSpec("float16", (5,))},
    codec_inputs={("int8", 1): TensorSpec("uint8", (14,))},
    packed_bytes={("int8+zstd", 1): 14},
    classes=10,
    max_rows=8,
)

#: The receiver's clock in these tests.
NOW = 1000.0


def task(sample: int = 7, *, deadline: float = NOW + 2.5, thresholds: tuple[float, ...] = (0.9, 0.8)) -> Task:
    """A task of stage 1 whose every travelling field differs from its default."""
    return Task(
        SampleKey(0, 123456789, sample),
        2,
        1,
        thresholds,
        part=1,
        priority=3,
        weight=2.5,
        oldest=5,
        queued_seconds=0.125,
        service_seconds=0.0625,
        number=11,
        deadline=deadline,
        born=NOW - 0.5,
        peer=1,
        epoch=4,
        since=NOW,
    )


def task_batch(rows: int = 2) -> TaskBatch:
    """`rows` tasks of stage 1."""
    payload = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
    return TaskBatch(1, 4, NO_CODEC, 1, [task(7 + row) for row in range(rows)], payload)


def packed_batch(size: int = 5) -> TaskBatch:
    """Two tasks of stage 1 in a buffer of any length."""
    return TaskBatch(1, 4, "int8+zstd", 1, [task(7), task(8)], np.arange(size, dtype=np.uint8))


SAMPLES: dict[str, Message] = {
    "Hello": Hello(2, "peer", 2**40 + 1, 3, "sha256:ab", "sha256:cd", {"name": "line4", "nodes": [{"rank": 0, "x": None}]}),
    "Hello, inviting": Hello(2, "peer", 2**40 + 1, 3, "sha256:ab", "sha256:cd", {"name": "line4"}, memory="1.2.3"),
    "Refused": Refused(2, "policy.window", "8", "16"),
    "TaskBatch": task_batch(),
    "TaskBatch, packed": packed_batch(),
    "TaskBatch, after lower classes": TaskBatch(
        1, 4, NO_CODEC, 1, [replace(task(7), yielded_seconds=0.0625), task(8)], np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    ),
    "CreditUpdate": CreditUpdate(3, Credit(4, 100, (90, 97, 99), 108, {1: 2, 2: 1}, 0.004, (80, 98))),
    "Blocked": Blocked(1, 4, 108),
    "CreditUpdate, by class": CreditUpdate(3, Credit(4, 100, (), 108, clear={0: 3, 2: 300})),
    "ReportUpdate": ReportUpdate(3, Report(5, 1, {1: 0.004, 2: 0.5}, {1: 0.02}, accepting=False)),
    "ReportUpdate, by class": ReportUpdate(
        3,
        Report(
            5, 1, {1: 0.004}, {1: 0.02}, True, {0: 0.3, 255: 0.01}, {0: 0.75}, {0: 2**18 - 1}, {0: (1e9, 2.5e10), 300: (0.0, 1.0)}
        ),
    ),
    "Lost": Lost(2, [LostRow(SampleKey(0, 123456789, 7), 1, "peer-lost"), LostRow(SampleKey(0, 123456789, 9), 2, "é", 2**40)]),
    "Lost, of parts": Lost(
        2, [LostRow(SampleKey(0, 123456789, 7), 1, "peer-lost", part=2), LostRow(SampleKey(0, 123456789, 7), 3, "x", 9)]
    ),
    "Results, with scores": Results(
        3, [ResultRow(SampleKey(0, 123456789, 7), 1, 2, 9, 0.5, 0.125, 0.0625, 1, 0, np.arange(10, dtype="<f4").tobytes())]
    ),
    "Results, after lower classes": Results(
        3,
        [
            ResultRow(SampleKey(0, 123456789, 7), 1, 2, 9, 0.5, 0.125, 0.0625, yielded_seconds=0.0625),
            ResultRow(SampleKey(0, 123456789, 8), 1, 2, 9, 0.5, 0.125, 0.0625, 1, 0, bytes(40), 0.125),
        ],
    ),
    "Results": Results(3, [ResultRow(SampleKey(0, 123456789, 7), 1, 2, 9, float(np.float32(0.93)), 0.125, 0.0625, 1, 3)]),
    "Ping": Ping(-1, 77, echo=False),
    "StatsRequest": StatsRequest(-1, 78),
    "Stats": Stats(3, 78, {"counts": {"submitted": 5}, "latency_ms": [1.5, 2.0], "up": True}),
    "Bye": Bye(3, "stopped"),
}

UNBOUNDED = task(deadline=math.inf)

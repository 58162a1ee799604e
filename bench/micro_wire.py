"""What encoding and decoding a message costs: `make bench-micro`, or `python -m bench.micro micro_wire`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zpipe.model import Credit, ResultRow, SampleKey, Task, TensorSpec
from zpipe.wire import CreditUpdate, Message, Results, TaskBatch, WireLimits, decode, encode

NOW = 1000.0
#: {size of an activation: its float32 numbers}
SIZES = {"4 KiB": 1024, "64 KiB": 16384, "1 MiB": 262144}


def task_batch(rows: int, floats: int) -> tuple[TaskBatch, WireLimits]:
    """A batch of `rows` tasks with `floats` float32 each, and limits that admit it."""
    tasks = [
        Task(SampleKey(0, 2**40, 1000 + row), 1, 1, (0.9, 0.8, 0.7), number=row, deadline=NOW + 30, born=NOW, oldest=990)
        for row in range(rows)
    ]
    limits = WireLimits({stage: TensorSpec("float32", (floats,)) for stage in range(5)})
    return TaskBatch(1, 3, "none", 1, tasks, np.zeros((rows, floats), np.float32)), limits


def cases() -> dict[str, tuple[Message, WireLimits]]:
    """{what: message and limits}."""
    _, limits = task_batch(1, 1024)
    key = SampleKey(0, 2**40, 1000)
    messages: dict[str, tuple[Message, WireLimits]] = {
        f"Task {name} x {rows}": task_batch(rows, floats) for name, floats in SIZES.items() for rows in (1, 8)
    }
    messages["Credit"] = CreditUpdate(1, Credit(3, 1000, (992, 995, 999), 1008, {1: 1}, 0.001)), limits
    messages["Result x 1"] = Results(1, [ResultRow(key, 1, 2, 7, 0.93, 0.01, 0.02)]), limits
    messages["Result x 8"] = Results(1, [ResultRow(key, 1, 2, 7, 0.93, 0.01, 0.02)] * 8), limits
    return messages


@pytest.mark.parametrize("what", cases())
def test_encode(benchmark: Any, what: str) -> None:
    message, _ = cases()[what]
    benchmark(lambda: encode(message, now=NOW, transit_seconds=0.0002))


@pytest.mark.parametrize("what", cases())
def test_decode(benchmark: Any, what: str) -> None:
    message, limits = cases()[what]
    frames = encode(message, now=NOW)
    benchmark(lambda: decode(frames, limits=limits, now=NOW))

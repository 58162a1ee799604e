"""What the codec costs per message: `pytest bench/micro_wire.py` or, for plain lines, `python bench/micro_wire.py`."""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zpipe.model import Credit, ResultRow, SampleKey, Task, TensorSpec
from zpipe.wire import CreditUpdate, Message, Results, TaskBatch, WireLimits, decode, encode

NOW = 1000.0
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
    return messages


def round_trip(message: Message, limits: WireLimits) -> Callable[[], Message]:
    """Encode and decode once per call."""
    return lambda: decode(encode(message, now=NOW, transit_seconds=0.0002), limits=limits, now=NOW)


@pytest.mark.parametrize("what", cases())
def test_encode_and_decode(benchmark: Any, what: str) -> None:
    message, limits = cases()[what]
    benchmark(round_trip(message, limits))


def best_microseconds(function: Callable[[], object]) -> float:
    """The least of five rounds."""
    number = timeit.Timer(function).autorange()[0]
    return min(timeit.repeat(function, number=number, repeat=5)) / number * 1e6


def main() -> None:
    """One line per case: microseconds to encode, to decode, together."""
    print(f"Python {sys.version.split()[0]}; microseconds, best of five")
    for what, (message, limits) in cases().items():
        frames = encode(message, now=NOW)
        encoding = best_microseconds(lambda message=message: encode(message, now=NOW, transit_seconds=0.0002))  # type: ignore[misc]
        decoding = best_microseconds(lambda frames=frames, limits=limits: decode(frames, limits=limits, now=NOW))  # type: ignore[misc]
        print(f"{what:18} encode {encoding:7.1f}  decode {decoding:7.1f}  both {encoding + decoding:7.1f}")


if __name__ == "__main__":
    main()

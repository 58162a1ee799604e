"""What has nothing of zpipe in it, so that `bench.micro` can tell a slower machine from slower code."""

from __future__ import annotations

import json
from typing import Any

DOCUMENT = json.dumps([{"rank": rank, "held": list(range(rank)), "stage": {"0": 0.001 * rank}} for rank in range(32)])


def test_plain_python(benchmark: Any) -> None:
    """Dictionaries, lists, calls and small garbage, as in the policy."""

    def work() -> int:
        total = 0
        for row in json.loads(DOCUMENT):
            total += sum(row["held"]) + len(row["stage"])
            row["again"] = {key: (value, total) for key, value in row["stage"].items()}
        return total

    benchmark(work)


def test_copy_of_a_mebibyte(benchmark: Any) -> None:
    source = bytes(range(256)) * 4096
    benchmark(bytearray, source)

"""The bench of the control loop: what it adds up, and that its dummy and its flood are what they are said to be."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bench import control_loop as bench
from zpipe.examples.last_known import PERIOD_SECONDS
from zpipe.topology import load_topology

SECONDS = 3 * PERIOD_SECONDS
RATE_HZ = 200.0


def one(late: list[float], *, busy: float = 0.2) -> dict[str, Any]:
    ends = {"result": len(late), "rejected": 0, "expired": 0, "failed": 0}
    ages = [None, *[0.05] * (len(late) - 2), 0.2]
    return {"late": late, "ages": ages, "ends": ends, "others": ends, "busy": busy, "machine_busy": 0.9, "fifo": True}


def test_what_the_pipeline_adds_is_the_difference_of_the_p99_over_all_rounds() -> None:
    rounds = {"dummy": [one([0.0] * 100), one([0.001] * 100)], "pipeline": [one([0.0] * 100), one([0.0025] * 100)]}
    found = bench.summed_up(rounds, RATE_HZ)
    assert found["added_p99_ms"] == pytest.approx(1.5)
    assert found["held"]
    assert found["pipeline"]["fresh_share"] == pytest.approx(0.98)
    assert found["pipeline"]["ticks"] == 200
    rounds["pipeline"] = [one([0.0] * 100), one([0.0031] * 100)]
    assert not bench.summed_up(rounds, RATE_HZ)["held"]
    rounds["pipeline"] = [one([0.0] * 100, busy=0.9)]
    assert not bench.summed_up(rounds, RATE_HZ)["held"]


@pytest.mark.parametrize("begin", [bench.asyncio_round, bench.sync_round])
def test_dummy_is_offered_what_the_pipeline_would_be(begin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.zeros(4, np.uint8)
    others, watch = bench.Others(RATE_HZ, lambda: image), bench.Watch()
    known, cpu_seconds = begin(False, "", others, lambda: image, watch, SECONDS)
    assert known.ends["result"] == len(watch.late) == len(watch.ages) >= 1
    assert watch.ages[0] is None
    assert others.known.ends["result"] >= 1
    assert cpu_seconds >= 0.0
    assert capsys.readouterr().out == "started\n"


def test_calm_means_that_nothing_else_offers() -> None:
    others = bench.Others(0.0, lambda: np.zeros(4, np.uint8))
    asyncio.run(others.feed(bench.Dummy()))
    assert sum(others.known.ends.values()) == 0


def test_written_topology_has_every_address(tmp_path: Any) -> None:
    written = load_topology(bench.written_topology(tmp_path))
    assert [node.executor for node in written.nodes] == ["emulated"] * 3
    assert len({node.port for node in written.nodes} | {node.port + 1 for node in written.nodes}) == 6

"""Loads against a pipeline that answers when the test says so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from zpipe.bench.drive import Watch, closed_loop, open_loop
from zpipe.load import Order, Span, poisson
from zpipe.model import Outcome
from zpipe.report import node_rows, quantile

IMAGES = np.zeros((7, 1), np.uint8)


class Answers:
    """A target that answers each sample one loop turn later, and notes how many were open at once."""

    def __init__(self, *, room: float = math.inf) -> None:
        self.offered = self.open = self.most_open = 0
        self.room = room

    @property
    def has_room(self) -> bool:
        return self.open < self.room

    def offer(self, x: npt.NDArray[Any], done: Callable[[Outcome], None]) -> int:
        sample = self.offered
        self.offered += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)

        def answer() -> None:
            self.open -= 1
            done(Outcome(sample, "failed", 0.0, 1))

        asyncio.get_running_loop().call_soon(answer)
        return sample


def _watch() -> tuple[Watch, list[int], list[int]]:
    offered: list[int] = []
    ended: list[int] = []
    return Watch(offered.append, lambda outcome, index: ended.append(index)), offered, ended


@pytest.mark.parametrize(("window", "room"), [(1, math.inf), (4, math.inf), (10, 3), (math.inf, 5)])
def test_closed_loop_keeps_its_window_and_never_offers_without_room(window: float, room: float) -> None:
    target = Answers(room=room)
    watch, offered, ended = _watch()
    asyncio.run(closed_loop(target, IMAGES, Order(7, seed=1), watch, window=window, span=Span(samples=100), patience_seconds=9))
    assert target.most_open == min(window, room)
    assert len(offered) == len(ended) == 100


def test_open_loop_offers_what_it_was_told_to_and_waits_for_all() -> None:
    target = Answers()
    watch, offered, ended = _watch()
    asyncio.run(
        open_loop(target, IMAGES, Order(7, seed=1), watch, times=Span(samples=200).of(poisson(1e6, seed=3)), patience_seconds=9)
    )
    assert sorted(offered) == sorted(ended)
    assert len(offered) == 200


def test_quantile_of_a_histogram_is_the_smallest_value_covering_it() -> None:
    assert quantile({0: 95, 7: 5}, 0.95) == 0
    assert quantile({0: 94, 7: 6}, 0.95) == 7
    assert quantile({}, 0.95) == 0


def test_node_rows_hold_only_what_happened_between_the_two_looks() -> None:
    def stats(tasks: int, batches: int, histogram: list[list[int]]) -> dict[str, Any]:
        return {
            "rank": 1,
            "stages": [1],
            "executor": "onnx",
            "tasks_run": tasks,
            "batches": batches,
            "busy_seconds": tasks / 100,
            "cpu_seconds": tasks / 50,
            "stage_cpu_seconds": tasks / 100,
            "rss_bytes": 5e6,
            "sent_bytes": 10 * tasks,
            "sent_inputs": tasks // 2,
            "queue_histogram": histogram,
        }

    (row,) = node_rows([stats(100, 100, [[0, 50], [9, 50]])], [stats(300, 150, [[0, 250], [9, 50]])], 10.0)
    assert (row["tasks"], row["batch_mean"], row["queue_max"], row["sent_bytes"], row["sent_inputs"]) == (200, 4.0, 0, 2000, 100)
    assert row["busy"] == pytest.approx(0.2)
    assert row["cpu_s"] == pytest.approx(4.0)


class Forgetful(Answers):
    """Loses one sample and answers another twice."""

    def offer(self, x: npt.NDArray[Any], done: Callable[[Outcome], None]) -> int:
        if self.offered == 3:
            self.offered += 1
            return 3
        sample = super().offer(x, done)
        if sample == 5:
            asyncio.get_running_loop().call_soon(done, Outcome(5, "failed", 0.0, 1))
        return sample


@pytest.mark.parametrize("window", [1, 4, math.inf])
def test_a_lost_sample_does_not_hold_up_a_closed_loop_and_a_doubled_one_does_not_end_it_early(window: float) -> None:
    watch, offered, ended = _watch()
    load = closed_loop(Forgetful(), IMAGES, Order(7, seed=1), watch, window=window, span=Span(samples=20), patience_seconds=0.01)
    asyncio.run(load)
    assert len(offered) == 20
    assert len(ended) == 20 - 1 + 1


def test_a_lost_sample_does_not_hold_up_an_open_loop() -> None:
    watch, offered, ended = _watch()
    times = Span(samples=20).of(poisson(1e6, seed=3))
    load = open_loop(Forgetful(), IMAGES, Order(7, seed=1), watch, times=times, patience_seconds=0.01)
    asyncio.run(load)
    assert len(offered) == 20
    assert len(ended) == 20 - 1 + 1

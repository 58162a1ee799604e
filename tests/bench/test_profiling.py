"""Stages measured here, and what is written of it."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from zpipe.bench.linking import measure_links, silent_links
from zpipe.bench.profiling import (
    LEAST_BATCHES,
    PACE_SECONDS,
    StageProfile,
    batch_sizes,
    measure_stage,
    profile_stages,
    quantiles,
    stage_inputs,
    to_document,
)
from zpipe.bench.run import BenchOptions
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import ConfigError, ExecutorError
from zpipe.service import load_links, load_service


@cache
def bundle() -> Bundle:
    return load_bundle("digits-mobilenetv2-half", verify=False)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_every_small_batch_is_measured_and_powers_of_two_beyond() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(5) == [1, 2, 3, 4, 5]
    assert batch_sizes(8) == list(range(1, 9))
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 32]


def test_inputs_are_what_real_samples_give() -> None:
    inputs = stage_inputs(bundle(), 3)
    assert [each.shape for each in inputs] == [(3, *spec.input.shape) for spec in bundle().stages]
    assert [each.dtype.name for each in inputs] == [spec.input.dtype for spec in bundle().stages]
    assert not np.array_equal(inputs[0][0], inputs[0][1])


def test_a_stage_is_paced_by_pauses_and_told_apart_from_a_tight_loop() -> None:
    time, inputs = Time(), stage_inputs(bundle(), 2)
    found = measure_stage(bundle(), "onnx", 1, inputs[1], [1, 2], 0.15, clock=time.clock, sleep=time.sleep)
    assert set(found.paced) == set(found.tight) == {1, 2}
    for rows in (1, 2):
        assert len(found.paced[rows]) == len(found.tight[rows]) >= LEAST_BATCHES
        assert found.paced[rows] == sorted(found.paced[rows])
        assert all(seconds > 0.0 for seconds in found.paced[rows])
    assert time.slept[0] == PACE_SECONDS
    assert all(slept > 0.0 for slept in time.slept)
    assert found.process_bytes > 0
    assert found.added_bytes >= 0


def test_what_is_written_is_what_planner_and_simulator_read(tmp_path: Path) -> None:
    times = {rows: [0.001 * rows * (1 + at / 10) for at in range(10)] for rows in (1, 8)}
    found = [StageProfile(stage, times, {1: [0.0005]}, 80_000_000, 5_000_000) for stage in range(5)]
    file = tmp_path / "board.json"
    file.write_text(json.dumps(to_document(bundle(), "onnx", found, [])))
    read = load_service(file, bundle())
    assert read.times[3][8].quantiles == tuple(quantiles(times[8]))
    assert (read.process_bytes, read.stage_bytes[4]) == (80e6, 5e6)
    assert read.macs_per_second == pytest.approx(bundle().full_macs / (5 * read.seconds(0, 1)))


def test_the_longest_of_twenty_is_left_out() -> None:
    assert quantiles([0.001] * 19 + [9.0]) == [0.001] * 21
    assert quantiles([0.002]) == [0.002] * 21
    assert quantiles([0.001, 0.002, 0.003])[-1] == 0.003


def test_an_executor_that_cannot_run_is_one_line() -> None:
    with pytest.raises(ExecutorError, match=r"stage 0: found .*nowhere.* expected it measured by executor nowhere:Engine"):
        profile_stages(bundle(), executor="nowhere:Engine", max_batch=1, seconds=0.01)


def test_an_emulated_executor_has_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="--executor: found emulated, expected one that computes"):
        profile_stages(bundle(), executor="emulated")


@pytest.mark.slow
def test_links_are_what_running_nodes_take_them_for() -> None:
    found = asyncio.run(measure_links(BenchOptions(topology="line2"), progress=lambda line, done: None))
    assert [row["between"] for row in found] == [[0, 1]]
    assert found[0]["tasks"] >= 600
    assert 0.0 < found[0]["latency"] < 1.0
    assert silent_links("line2", found) == []
    assert silent_links("line4", found) == ["1-2", "2-3"]


# ---- links, read again -------------------------------------------------------------------------


def test_of_two_directions_the_slower_counts(tmp_path: Path) -> None:
    ends = ["10.0.0.1:5800", "10.0.0.2:5800"]
    rows = [
        {"between": [0, 1], "addresses": ends, "latency": 0.001, "bandwidth": None},
        {"between": [1, 0], "addresses": ends[::-1], "latency": 0.003, "bandwidth": 5e6},
    ]
    file = tmp_path / "links.json"
    file.write_text(json.dumps({"schema": "zpipe.service/1", "links": rows}))
    assert load_links(file) == {frozenset(ends): (5e6, 0.003)}


@pytest.mark.parametrize(
    ("links", "complaint"),
    [
        (None, "links: found none, expected some; run `zpipe profile --topology"),
        ([{"between": [0, 1]}], r"links\[0\].addresses: found None"),
        ([{"addresses": ["a", "b"], "bandwidth": -1}], r"links\[0\].bandwidth: found -1"),
    ],
)
def test_links_that_are_none_are_refused(tmp_path: Path, links: object, complaint: str) -> None:
    file = tmp_path / "links.json"
    file.write_text(json.dumps({"schema": "zpipe.service/1", "links": links}))
    with pytest.raises(ConfigError, match=complaint):
        load_links(file)

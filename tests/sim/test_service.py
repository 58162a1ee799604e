"""Service times and recorded answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.worlds import bundle, topology
from zpipe.devices import load_device, service_seconds
from zpipe.errors import ConfigError
from zpipe.executors.gate import recorded_decision
from zpipe.model import NEVER_EXIT, GateSpec
from zpipe.service import Measured, Spread, load_service
from zpipe.sim.hop import HopProfile, load_hop_profile
from zpipe.sim.service import device_service, measured_service, replayed

ROWS = list(range(200))


@given(st.integers(0, 4), st.one_of(st.floats(0.0, 1.1, width=64), st.sampled_from([0.95, 1.0, NEVER_EXIT])), st.booleans())
def test_answers_are_those_of_the_executors_gate_on_the_replay(stage: int, threshold: float, on_a_confidence: bool) -> None:
    replay = bundle().replay()
    if on_a_confidence:
        threshold = float(replay.confidences[7, stage])
    gate = GateSpec("max-probability", 1.0, (threshold,) * len(ROWS), last=stage == 4)
    expected = recorded_decision(replay.labels[ROWS, stage], replay.confidences[ROWS, stage], gate)
    assert replayed(bundle(), "none")(stage, ROWS, gate) == (*expected, ())


def test_devices_are_the_topologys_and_the_callers_where_it_names_none() -> None:
    seconds = device_service(topology([[0], [1, 2, 3, 4]], node={"device": "raspberry-pi-3/4"}), bundle(), device="jetson-nano")
    assert seconds(1, 2, 3) == service_seconds(load_device("raspberry-pi-3/4"), bundle().stages[2], 3)
    seconds = device_service(topology([[0, 1, 2, 3, 4]]), bundle(), device="jetson-nano")
    assert seconds(0, 0, 8) == service_seconds(load_device("jetson-nano"), bundle().stages[0], 8)
    with pytest.raises(ConfigError, match=r"nodes\[0\].device: found 'abacus'"):
        device_service(topology([[0]], node={"device": "abacus"}), bundle(), device="jetson-nano")


def test_measured_times_are_drawn_within_their_quantiles_and_between_batch_sizes() -> None:
    times = {0: {1: Spread((0.01, 0.02)), 4: Spread((0.05,))}}
    measured = Measured(Path(), times)
    seconds = measured_service({0: measured}, rng=random.Random(0))
    drawn = [seconds(0, 0, 1) for _ in range(2000)]
    assert 0.01 <= min(drawn) < max(drawn) <= 0.02
    assert np.mean(drawn) == pytest.approx(0.015, rel=0.02)
    assert seconds(0, 0, 4) == 0.05
    assert np.mean([seconds(0, 0, 2) for _ in range(2000)]) == pytest.approx((2 * 0.015 + 0.05) / 3, rel=0.02)
    assert seconds(0, 0, 8) == pytest.approx(0.1)
    assert measured.seconds(0, 2) == pytest.approx((2 * 0.015 + 0.05) / 3)


def test_a_spreads_mean_is_that_of_its_draws() -> None:
    skewed, rng = Spread((0.0, 0.001, 0.002, 0.1)), random.Random(1)
    assert np.mean([skewed.draw(rng) for _ in range(50_000)]) == pytest.approx(skewed.mean, rel=0.02)
    assert Spread((0.25,)).mean == Spread((0.25,)).draw(rng) == 0.25


def test_profiles_are_read_as_written(tmp_path: Path) -> None:
    hop = tmp_path / "hop.json"
    hop.write_text(
        json.dumps({"schema": "zpipe.hop/1", "forward": [0.0, 0.1], "control": 0.2, "grace_seconds": 0.002, "commit": "x"})
    )
    assert load_hop_profile(hop) == HopProfile(forward=Spread((0.0, 0.1)), control=Spread((0.2,)), grace_seconds=0.002)
    service = tmp_path / "service.json"
    stages = {str(stage): {"1": [0.1, 0.2], "8": 0.5} for stage in range(5)}
    service.write_text(json.dumps({"schema": "zpipe.service/1", "stages": stages}))
    found = load_service(service, bundle())
    assert found.times[3] == {1: Spread((0.1, 0.2)), 8: Spread((0.5,))}
    assert (found.process_bytes, found.stage_bytes) == (None, {})
    memory = {"process": 1e8, "stages": {"0": 5e6}}
    macs = {str(stage): 3e6 for stage in range(5)}
    service.write_text(json.dumps({"schema": "zpipe.service/1", "stages": stages, "memory": memory, "macs": macs}))
    found = load_service(service, None)
    assert (found.process_bytes, found.stage_bytes) == (1e8, {0: 5e6})
    assert found.macs_per_second == pytest.approx(3e6 / 0.15)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "found no readable JSON"),
        ("[]", "schema: found"),
        ('{"schema": "zpipe.hop/2"}', "schema: found 'zpipe.hop/2', expected 'zpipe.hop/1'"),
        ('{"schema": "zpipe.hop/1", "start": [0.2, 0.1]}', "start: found quantiles that fall"),
        ('{"schema": "zpipe.hop/1", "start": []}', "start: found an empty list"),
        ('{"schema": "zpipe.hop/1", "start": ["soon"]}', r"start\[0\]: found 'soon'"),
        ('{"schema": "zpipe.hop/1", "forward_seconds_per_byte": -1}', "forward_seconds_per_byte: found -1"),
    ],
)
def test_a_hop_profile_that_is_none_is_refused_by_its_key(tmp_path: Path, document: str, complaint: str) -> None:
    file = tmp_path / "hop.json"
    file.write_text(document)
    with pytest.raises(ConfigError, match=complaint):
        load_hop_profile(file)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "found no readable JSON"),
        ('{"schema": "zpipe.service/2"}', "found another document"),
        ('{"schema": "zpipe.service/1"}', "stages: found None, expected an object"),
        ('{"schema": "zpipe.service/1", "stages": {"0": {"1": 0.1}}}', "stages.1: found None"),
        ('{"schema": "zpipe.service/1", "stages": {"0": {"none": 0.1}}}', "stages.0: found 'none' rows"),
        ('{"schema": "zpipe.service/1", "stages": {}, "bundle": "x", "digest": "abc"}', "found a profile of bundle 'x'"),
        ('{"schema": "zpipe.service/1", "stages": {"0": {"1": []}}}', "stages.0.1: found an empty list"),
        ('{"schema": "zpipe.service/1", "stages": {"0": {"1": [0.1, -0.1]}}}', r"stages.0.1\[1\]: found -0.1"),
    ],
)
def test_service_times_that_are_none_are_refused_by_their_key(tmp_path: Path, document: str, complaint: str) -> None:
    file = tmp_path / "service.json"
    file.write_text(document)
    with pytest.raises(ConfigError, match=complaint):
        load_service(file, bundle())

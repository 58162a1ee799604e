"""`codec: auto`: accuracy first, as far as the link keeps up."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.runtime.mesh import bundle
from zpipe.bundle import CodecMetrics
from zpipe.codecs import Candidate, accuracy_lost, choose_codec, measured_codecs

CANDIDATES = (
    Candidate("none", 1000.0, 0.0),
    Candidate("fp16", 500.0, 0.0),
    Candidate("int8", 260.0, 0.001),
    Candidate("int8+zstd", 240.0, 0.001),
    Candidate("bottleneck", 70.0, 0.01),
)
NAMES = [candidate.name for candidate in CANDIDATES]


def chosen(mbit_s: float, current: str = "none", seconds: float = 0.001) -> str:
    return choose_codec(CANDIDATES, bandwidth_bps=1e6 * mbit_s, seconds_per_task=seconds, current=current)


@pytest.mark.parametrize(
    ("mbit_s", "name"),
    [
        (math.inf, "none"),
        (10.0, "none"),
        (9.9, "fp16"),
        (4.9, "int8"),
        (2.5, "int8+zstd"),
        (2.3, "bottleneck"),
        (0.1, "bottleneck"),
    ],
)
def test_the_most_accurate_codec_that_leaves_a_fifth_of_the_time_is_taken(mbit_s: float, name: str) -> None:
    assert chosen(mbit_s) == name


def test_nothing_changes_before_a_service_time_is_known() -> None:
    assert chosen(0.1, "fp16", seconds=0.0) == "fp16"


def test_a_codec_that_keeps_up_is_left_only_for_one_that_needs_half_the_time() -> None:
    assert chosen(11.0, "fp16") == "fp16"
    assert chosen(15.9, "fp16") == "fp16"
    assert chosen(16.1, "fp16") == "none"
    assert chosen(8.1, "bottleneck") == "fp16"


def test_a_codec_that_gained_by_chance_is_not_preferred_for_it() -> None:
    lucky = [CANDIDATES[0], Candidate("int8", 260.0, -0.002)]
    assert choose_codec(lucky, bandwidth_bps=math.inf, seconds_per_task=0.001, current="none") == "none"


@example(4.0, "int8+zstd", [1.25])
@given(st.floats(0.01, 1000.0), st.sampled_from(NAMES), st.lists(st.floats(0.8, 1.25), min_size=1, max_size=20))
def test_a_bandwidth_measured_with_an_error_of_a_quarter_never_makes_it_go_back_and_forth(
    mbit_s: float, start: str, errors: list[float]
) -> None:
    names = [chosen(mbit_s, start)]
    for error in errors:
        names.append(chosen(mbit_s * error, names[-1]))
    # It may settle, from wherever it started, but within the error it never returns to a codec that it left.
    held = [name for name, _ in itertools.groupby(names)]
    assert len(held) == len(set(held))


@given(st.floats(0.01, 1000.0), st.floats(1e-5, 10.0), st.sampled_from(NAMES))
def test_what_was_chosen_is_chosen_again(mbit_s: float, seconds: float, start: str) -> None:
    first = chosen(mbit_s, start, seconds)
    assert chosen(mbit_s, first, seconds) == first


def test_only_measured_codecs_are_candidates_and_packing_costs_what_is_packed() -> None:
    measured = replace(bundle(), codecs={"fp16": CodecMetrics(0.95, 0.0, ()), "int8": CodecMetrics(0.949, 0.001, ())})
    assert measured_codecs(measured) == ("none", "fp16", "int8", "int8+zstd")
    assert [accuracy_lost(measured, name) for name in measured_codecs(measured)] == [0.0, 0.0, 0.001, 0.001]
    assert measured_codecs(replace(bundle(), codecs={})) == ("none",)

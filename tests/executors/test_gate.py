"""The gate against a float64 reference, and its edges."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zpipe.errors import ExecutorError
from zpipe.executors.gate import evaluate_gate, recorded_decision
from zpipe.model import NEVER_EXIT, GateRule, GateSpec

RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 12))

finite_logits = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(-60, 60, width=32)))
any_logits = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(width=32)))
rules = st.sampled_from(RULES)
temperatures = st.floats(0.25, 8.0)
thresholds = st.floats(-0.5, 1.5)


def reference(row: npt.NDArray[Any], rule: GateRule, temperature: float) -> float:
    """The definition, in float64 from the float32 logits."""
    scaled = row.astype(np.float64) / temperature
    probability = np.exp(scaled - scaled.max())
    probability = np.sort(probability / probability.sum())[::-1]
    if rule == "max-probability":
        return float(probability[0])
    if len(row) == 1:
        return 1.0
    if rule == "margin":
        return float(probability[0] - probability[1])
    present = probability[probability > 0]
    return float(1 + (present * np.log(present)).sum() / math.log(len(row)))


@given(finite_logits, rules, temperatures)
def test_confidence_equals_the_float64_definition(logits: npt.NDArray[Any], rule: GateRule, temperature: float) -> None:
    decision = evaluate_gate(logits, GateSpec(rule, temperature, (0.5,) * len(logits)))
    expected = [reference(row, rule, temperature) for row in logits]
    # Dividing logits up to 60 / 0.25 by T in float32 leaves 240 * 2^-24 = 1.4e-5 in the exponent.
    np.testing.assert_allclose(decision.confidences, expected, atol=5e-5)


@given(finite_logits, rules, temperatures, st.data())
def test_row_exits_exactly_when_confidence_reaches_a_threshold_below_never(
    logits: npt.NDArray[Any], rule: GateRule, temperature: float, data: st.DataObject
) -> None:
    row_thresholds = tuple(data.draw(st.lists(thresholds, min_size=len(logits), max_size=len(logits))))
    decision = evaluate_gate(logits, GateSpec(rule, temperature, row_thresholds))
    for exited, confidence, threshold in zip(decision.exited, decision.confidences, row_thresholds, strict=True):
        rounded = float(np.float32(threshold))
        assert exited == (confidence >= rounded and rounded < NEVER_EXIT)


@given(any_logits, rules, temperatures, st.data())
def test_row_is_the_same_to_the_last_bit_alone_and_in_any_batch(
    logits: npt.NDArray[Any], rule: GateRule, temperature: float, data: st.DataObject
) -> None:
    row_thresholds = tuple(data.draw(st.lists(thresholds, min_size=len(logits), max_size=len(logits))))
    whole = evaluate_gate(logits, GateSpec(rule, temperature, row_thresholds))
    for i, threshold in enumerate(row_thresholds):
        alone = evaluate_gate(logits[i : i + 1], GateSpec(rule, temperature, (threshold,)))
        assert (whole.exited[i], whole.labels[i], whole.confidences[i]) == (alone.exited[0], alone.labels[0], alone.confidences[0])


def test_row_is_the_same_alone_and_among_256_of_a_thousand_classes() -> None:
    logits = np.random.default_rng(1).normal(size=(256, 1000)).astype(np.float32) * 4
    for rule in RULES:
        whole = evaluate_gate(logits, GateSpec(rule, 0.7, (0.5,) * 256))
        alone = [evaluate_gate(row[None], GateSpec(rule, 0.7, (0.5,))).confidences[0] for row in logits]
        assert whole.confidences == alone


@given(any_logits, rules, temperatures)
def test_any_logits_give_plain_values_within_range(logits: npt.NDArray[Any], rule: GateRule, temperature: float) -> None:
    decision = evaluate_gate(logits, GateSpec(rule, temperature, (0.0,) * len(logits)))
    assert all(type(exited) is bool for exited in decision.exited)
    assert all(type(label) is int and 0 <= label < logits.shape[1] for label in decision.labels)
    assert all(type(confidence) is float and 0.0 <= confidence <= 1.0 for confidence in decision.confidences)
    json.dumps(decision, allow_nan=False)


@given(finite_logits, rules)
def test_last_stage_lets_every_row_leave(logits: npt.NDArray[Any], rule: GateRule) -> None:
    assert evaluate_gate(logits, GateSpec(rule, 1.0, (), last=True)).exited == [True] * len(logits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_with_a_bad_logit_stays_with_confidence_zero_and_leaves_its_neighbours_alone(rule: GateRule, bad: float) -> None:
    logits = np.array([[9, 0, 0], [1, bad, 5], [0, 9, 0]], np.float32)
    decision = evaluate_gate(logits, GateSpec(rule, 1.0, (0.0, 0.0, 0.0)))
    assert decision.exited == [True, False, True]
    assert decision.confidences[1] == 0.0
    assert min(decision.confidences[0], decision.confidences[2]) > 0.9


@pytest.mark.parametrize(
    ("row", "label"),
    [([math.nan, 1.0, 5.0], 2), ([math.inf, 1.0, math.nan], 0), ([math.nan] * 3, 0), ([-math.inf, -7.0, math.nan], 1)],
)
def test_label_of_a_bad_row_is_the_best_of_its_numbers(row: list[float], label: int) -> None:
    decision = evaluate_gate(np.array([row], np.float32), GateSpec("max-probability", 1.0, (0.0,)))
    assert decision == ([False], [label], [0.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_last_stage_does_not_answer_a_row_with_a_bad_logit(bad: float) -> None:
    logits = np.array([[9, 0, 0], [1, bad, 5]], np.float32)
    with pytest.raises(ExecutorError, match="found 2 of 3 logits finite in row 1, expected all"):
        evaluate_gate(logits, GateSpec("max-probability", 1.0, (), last=True))


@pytest.mark.parametrize("rule", RULES)
def test_certain_row_does_not_exit_at_never_exit(rule: GateRule) -> None:
    certain = np.array([[500, 0, 0]] * 3, np.float32)
    decision = evaluate_gate(certain, GateSpec(rule, 1.0, (NEVER_EXIT, math.inf, 0.9999)))
    assert decision.confidences == [1.0] * 3
    assert decision.exited == [False, False, True]


@pytest.mark.parametrize(("threshold", "exits"), [(1e308, False), (-1e308, True)])
def test_threshold_beyond_float32_is_an_infinity(threshold: float, exits: bool) -> None:
    gate = GateSpec("max-probability", 1.0, (threshold,))
    assert evaluate_gate(np.array([[9, 0]], np.float32), gate).exited == [exits]
    assert recorded_decision(np.array([0]), np.array([0.9], np.float32), gate).exited == [exits]


def test_nan_threshold_never_exits() -> None:
    assert evaluate_gate(np.array([[9, 0]], np.float32), GateSpec("max-probability", 1.0, (math.nan,))).exited == [False]


@pytest.mark.parametrize(("rule", "confidence"), [("max-probability", 0.25), ("entropy", 0.0), ("margin", 0.0)])
def test_equal_logits_are_the_least_certain_and_give_the_first_label(rule: GateRule, confidence: float) -> None:
    decision = evaluate_gate(np.full((1, 4), 3.0, np.float32), GateSpec(rule, 0.5, (0.9,)))
    assert decision.labels == [0]
    assert decision.confidences[0] == pytest.approx(confidence, abs=1e-6)


def test_temperature_changes_confidence_but_no_label() -> None:
    logits = np.array([[2.0, 1.0, 0.0]], np.float32)
    cold, hot = (evaluate_gate(logits, GateSpec("max-probability", t, (0.9,))) for t in (0.1, 10.0))
    assert cold.labels == hot.labels == [0]
    assert cold.confidences[0] > 0.99 > 0.5 > hot.confidences[0]


def test_threshold_equal_to_the_confidence_exits_though_float64_would_say_no() -> None:
    # 0.9 in float64 lies above float32's 0.9: compared in float64 this row would stay on one device and leave on another.
    logits = np.log(np.array([[0.9, 0.1]], np.float64)).astype(np.float32)
    confidence = evaluate_gate(logits, GateSpec("max-probability", 1.0, (0.5,))).confidences[0]
    just_above = math.nextafter(confidence, 1.0)
    assert evaluate_gate(logits, GateSpec("max-probability", 1.0, (just_above,))).exited == [True]


def test_float16_logits_are_taken() -> None:
    logits = np.array([[4, 1], [0, 2]], np.float16)
    gate = GateSpec("margin", 1.0, (0.5, 0.5))
    assert evaluate_gate(logits, gate) == evaluate_gate(logits.astype(np.float32), gate)


def test_input_is_not_written_to() -> None:
    logits = np.array([[4, 1], [0, math.nan]], np.float32)
    before = logits.copy()
    evaluate_gate(logits, GateSpec("entropy", 1.0, (0.5, 0.5)))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    ("shape", "gate", "found"),
    [
        ((2, 3), GateSpec("margin", 1.0, (0.5,)), "1 thresholds for 2 rows"),
        ((3,), GateSpec("margin", 1.0, (0.5,)), "shape [3]"),
        ((1, 0), GateSpec("margin", 1.0, (0.5,)), "shape [1, 0]"),
        ((1, 3), GateSpec("margin", 0.0, (0.5,)), "temperature 0.0"),
        ((1, 3), GateSpec("margin", math.nan, (0.5,)), "temperature nan"),
    ],
)
def test_gate_that_does_not_fit_is_refused_with_what_was_found(shape: tuple[int, ...], gate: GateSpec, found: str) -> None:
    with pytest.raises(ExecutorError) as info:
        evaluate_gate(np.zeros(shape, np.float32), gate)
    assert found in str(info.value)
    assert "expected" in str(info.value)

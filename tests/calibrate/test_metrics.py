"""Temperatures, gates and intervals, on logits made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.calibrate.metrics import (
    Answers,
    accuracy_interval,
    answers_of,
    bootstrap,
    expected_calibration_error,
    fit_temperature,
    max_probability,
    negative_log_likelihood,
    wilson_interval,
)
from zpipe.calibrate.points import NO_EXIT, accuracy_lost, choose_default, exit_of, measure_point, threshold_vectors
from zpipe.model import PointMetrics


def overconfident_logits(temperature: float, samples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose truth is drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (samples, 5)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fitted_temperature_is_the_one_that_made_the_labels(temperature: float) -> None:
    logits, truth = overconfident_logits(temperature)
    fitted = fit_temperature(logits, truth)
    assert fitted == pytest.approx(temperature, rel=0.1)
    least = negative_log_likelihood(logits, truth, fitted)
    assert all(least <= negative_log_likelihood(logits, truth, fitted * factor) for factor in (0.9, 0.99, 1.01, 1.1))


def test_temperature_lowers_the_calibration_error_and_moves_no_label() -> None:
    logits, truth = overconfident_logits(3.0)
    right = logits.argmax(1) == truth
    before = expected_calibration_error(max_probability(logits, 1.0), right)
    fitted = answers_of(logits[:, None], (fit_temperature(logits, truth),), truth)
    after = expected_calibration_error(fitted.confidences[:, 0], fitted.right[:, 0])
    assert before > 0.2
    assert after < 0.03
    assert (fitted.labels[:, 0] == logits.argmax(1)).all()


def test_confidence_is_float32_and_survives_large_logits() -> None:
    confidences = max_probability(np.array([[1e4, -1e4], [0.0, 0.0]], np.float32), 0.5)
    assert confidences.dtype == np.float32
    assert confidences.tolist() == [1.0, 0.5]


def test_sample_leaves_at_first_exit_that_reaches_its_threshold() -> None:
    confidences = np.array([[0.9, 0.1, 0.1], [0.5, 0.9, 0.1], [0.5, 0.5, 0.1]], np.float32)
    assert exit_of(confidences, (0.9, 0.9, 0.9)).tolist() == [0, 1, 2]


def test_threshold_one_never_exits_even_at_confidence_one() -> None:
    certain = np.ones((2, 3), np.float32)
    assert exit_of(certain, (1.0, 1.0, 1.0)).tolist() == [2, 2]
    assert exit_of(certain, (1.0, 0.99, 1.0)).tolist() == [1, 1]


def test_point_counts_all_stages_up_to_the_exit() -> None:
    answers = Answers(
        labels=np.zeros((2, 2), np.int64),
        confidences=np.array([[0.95, 0.5], [0.2, 0.5]], np.float32),
        right=np.array([[True, False], [False, True]]),
    )
    point = measure_point(answers, (0.9, 0.9), (10, 30))
    assert point == PointMetrics(accuracy=1.0, exit_shares=(0.5, 0.5), mean_macs=25.0)
    assert measure_point(answers, (1.0, 1.0), (10, 30)) == PointMetrics(0.5, (0.0, 1.0), 40.0)


def test_default_is_the_cheapest_point_above_the_floor_that_loses_nothing() -> None:
    vectors = threshold_vectors((True,) * 3)

    def metrics(better_from: float) -> dict[str, PointMetrics]:
        return {
            name: PointMetrics(0.95 if vector[0] >= better_from else 0.9, (0.0, 0.0, 1.0), 1.0) for name, vector in vectors.items()
        }

    assert choose_default(metrics(0.5), vectors, least=0.9) == "t0.90"
    assert choose_default(metrics(0.94), vectors, least=0.9) == "t0.95"
    assert choose_default(metrics(1.0), vectors, least=0.9) == NO_EXIT
    late = threshold_vectors((False, True, True))
    assert choose_default(dict.fromkeys(late, PointMetrics(0.9, (0.0, 0.0, 1.0), 1.0)), late, least=0.9) == "t0.90"


def test_interval_is_wider_when_samples_of_one_digit_agree() -> None:
    rng = np.random.default_rng(0)
    per_digit = rng.random(100) < 0.8
    digit = np.repeat(np.arange(100), 5)
    together = bootstrap(np.repeat(per_digit, 5), digit)
    alone = bootstrap(np.repeat(per_digit, 5), np.arange(500))
    assert together.value == alone.value == pytest.approx(per_digit.mean())
    assert together.low < alone.low < alone.value < alone.high < together.high


def test_accuracy_lost_is_paired_with_the_last_exit() -> None:
    right = np.array([[True, True], [False, True], [True, True], [True, False]])
    answers = Answers(np.zeros((4, 2), np.int64), np.ones((4, 2), np.float32), right)
    assert accuracy_lost(answers, (0.9, 0.9), np.arange(4)).value == 0.0
    lost = accuracy_lost(answers, (1.0, 1.0), np.arange(4))
    assert (lost.value, lost.low, lost.high) == (0.0, 0.0, 0.0)


# ---- what few samples prove --------------------------------------------------------------------


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson_interval(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson_interval(1.0, 1) == pytest.approx((0.2065, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 50) == pytest.approx((0.0, 0.0713), abs=1e-4)


@pytest.mark.parametrize("copies", [1, 15])
def test_answers_that_are_all_right_prove_no_more_than_their_originals_can(copies: int) -> None:
    lows = [accuracy_interval(np.ones(n * copies, np.bool_), np.repeat(np.arange(n), copies)).low for n in (1, 30, 200)]
    assert lows == pytest.approx([0.2065, 0.8865, 0.9812], abs=1e-4)


def test_few_independent_samples_cover_the_truth_as_often_as_said() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((300, 40)) < 0.95
    covered = {
        name: np.mean([made(row, np.arange(40)).low <= 0.95 for row in right])
        for name, made in (("bootstrap", bootstrap), ("ours", accuracy_interval))
    }
    assert covered["bootstrap"] < 0.9
    assert covered["ours"] > 0.94


def test_temperature_of_an_exit_that_is_always_right_is_left_alone() -> None:
    assert fit_temperature(np.array([[3.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 1])) == 1.0

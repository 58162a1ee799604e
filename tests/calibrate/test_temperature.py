"""The three variants, and stages without an exit head."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.calibrate.metrics import Answers, answers_of, area_under_curve, negative_log_likelihood, reliability
from zpipe.calibrate.points import exit_of
from zpipe.calibrate.temperature import by_stage, fit_variant, thresholds_by_stage
from zpipe.model import NEVER_EXIT


def two_exits(first: float, second: float, samples: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[samples, 2, 4]`; each exit's would be calibrated at its temperature."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, samples)
    exits = []
    for temperature in (first, second):
        calibrated = rng.normal(0, 1.5, (samples, 4))
        # Bayes: noise of this size around 2.25 for the true class has these log odds.
        calibrated[np.arange(samples), truth] += 2.25
        exits.append(calibrated * temperature)
    return np.stack(exits, 1).astype(np.float32), truth


def test_each_variant_finds_its_own_minimum() -> None:
    logits, truth = two_exits(0.5, 2.0)
    none, shared, own = (fit_variant(name, logits, truth) for name in ("none", "global", "per-exit"))
    assert none == (1.0, 1.0)
    assert own == pytest.approx((0.5, 2.0), rel=0.1)
    assert shared[0] == shared[1]
    assert own[0] < shared[0] < own[1]

    def loss(temperatures: tuple[float, ...]) -> float:
        return sum(negative_log_likelihood(logits[:, index], truth, temperature) for index, temperature in enumerate(temperatures))

    assert loss(own) < loss(shared) < loss(none)
    assert all(loss(shared) <= loss((shared[0] * factor,) * 2) for factor in (0.95, 1.05))


def test_nothing_leaves_at_a_stage_without_a_head() -> None:
    logits, truth = two_exits(1.0, 1.0, samples=20)
    heads = (False, True, False, True)
    answers = by_stage(answers_of(logits, (1.0, 1.0), truth), heads)
    assert answers.labels.shape == answers.confidences.shape == answers.right.shape == (20, 4)
    assert set(exit_of(answers.confidences, thresholds_by_stage(0.0, heads)).tolist()) == {1}
    assert set(exit_of(answers.confidences, thresholds_by_stage(0.5, heads)).tolist()) <= {1, 3}
    assert thresholds_by_stage(0.5, heads) == (NEVER_EXIT, 0.5, NEVER_EXIT, 0.5)


def test_every_stage_with_a_head_is_left_as_it_is() -> None:
    answers = Answers(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.bool_))
    assert by_stage(answers, (True, True)) is answers


# ---- how well it ranks and fits ----------------------------------------------------------------


def test_area_is_the_share_of_pairs_in_order_with_ties_counting_half() -> None:
    confidences = np.array([0.9, 0.8, 0.8, 0.3], np.float32)
    assert area_under_curve(confidences, np.array([True, True, False, False])) == pytest.approx(3.5 / 4)
    assert area_under_curve(confidences, np.array([False, False, True, True])) == pytest.approx(0.5 / 4)
    assert area_under_curve(confidences, np.array([True] * 4)) is None


def test_temperature_of_one_exit_cannot_change_its_labels_but_may_change_the_ranking() -> None:
    logits, truth = two_exits(1.0, 1.0)
    right = logits[:, 0].argmax(1) == truth
    areas = [area_under_curve(answers_of(logits[:, :1], (t,), truth).confidences[:, 0], right) for t in (1.0, 2.0)]
    assert areas[0] is not None
    assert areas[1] is not None
    assert areas[0] > 0.6
    assert areas[0] == pytest.approx(areas[1], abs=0.05)


def test_reliability_bins_hold_all_samples() -> None:
    confidences = np.array([0.02, 0.03, 0.99, 1.0], np.float32)
    counts, mean, accuracy = reliability(confidences, np.array([False, True, True, True]))
    assert counts.sum() == 4
    assert (counts[0], counts[-1]) == (2, 2)
    assert mean[0] == pytest.approx(0.025)
    assert accuracy[0] == 0.5
    assert np.isnan(mean[5])

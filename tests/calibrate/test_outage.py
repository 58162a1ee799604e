"""Windows, outage and missed deadlines, on answers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.calibrate.outage import in_outage, missed, windows


def test_windows_hold_every_sample_at_most_once_a_shuffle() -> None:
    cut = windows(10, 3, rounds=4)
    assert cut.shape == (12, 3)
    for shuffle in cut.reshape(4, 9):
        assert len(set(shuffle.tolist())) == 9
    assert windows(10, 3, rounds=4).tolist() == cut.tolist()
    assert windows(10, 3, rounds=4, seed=1).tolist() != cut.tolist()


def test_too_few_samples_are_one_window() -> None:
    assert windows(5, 32, rounds=2).shape == (2, 5)


def test_window_is_in_outage_when_its_early_answers_fall_under_the_target() -> None:
    right = np.array([True, True, True, True, False, True, True, True, True, True])
    early = np.ones(10, np.bool_)
    cut = np.arange(10)[None]
    assert in_outage(right, early, 0.9, cut).tolist() == [False]
    assert in_outage(right, early, 0.91, cut).tolist() == [True]


def test_late_answers_do_not_count() -> None:
    right = np.array([False, False, True, True])
    early = np.array([False, False, True, True])
    assert in_outage(right, early, 0.9, np.arange(4)[None]).tolist() == [False]


def test_window_that_nobody_left_early_cannot_be_in_outage() -> None:
    assert in_outage(np.zeros(4, np.bool_), np.zeros(4, np.bool_), 0.9, np.arange(4)[None]).tolist() == [False]


@pytest.mark.parametrize(("target", "size"), [(0.7, 10), (0.8, 35), (0.9, 10), (0.95, 20), (0.97, 100)])
def test_accuracy_equal_to_the_target_is_no_outage(target: float, size: int) -> None:
    """0.7 * 10 is more than 7 in binary."""
    right = np.arange(size) < round(target * size)
    assert not in_outage(right, np.ones(size, np.bool_), target, np.arange(size)[None]).any()


def test_deadline_is_missed_when_late_in_the_mean_or_in_outage() -> None:
    cut = np.array([[0, 1], [2, 3], [4, 5]])
    seconds = np.array([0.1, 0.3, 0.1, 0.1, 0.5, 0.5])
    outage = np.array([False, True, False])
    assert missed(outage, seconds, [0.05, 0.2, 0.4, 1.0], cut) == pytest.approx([1.0, 2 / 3, 2 / 3, 1 / 3])

"""The digits task: what is drawn, and that no digit crosses the split."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.errors import ConfigError
from zpipe.models.digits import GREY_STEP, SEVERITIES, digits_task, distort, load_glyphs
from zpipe.models.task import Task

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'zpipe[train]'")


@pytest.fixture(scope="module")
def task() -> Task:
    return digits_task()


def test_split_is_contiguous_and_every_digit_is_in_one_part(task: Task) -> None:
    _, labels = load_glyphs()
    assert sorted(set(task.calibration.digit.tolist())) == list(range(1000, 1200))
    assert sorted(set(task.test.digit.tolist())) == list(range(1200, 1797))
    assert (task.test.labels == labels[task.test.digit]).all()
    assert (task.calibration.labels == labels[task.calibration.digit]).all()


def test_test_split_shows_each_digit_once_in_each_severity(task: Task) -> None:
    test = task.test
    assert len(test) == 597 * 5
    assert test.images.shape == (2985, 3, 32, 32)
    assert test.images.dtype == np.uint8
    pairs = set(zip(test.digit.tolist(), test.severity.tolist(), strict=True))
    assert len(pairs) == len(test)
    # Any part of the set is a fair sample: a run over the first 500 images sees all severities alike.
    assert np.bincount(test.severity[:500]).min() >= 99


def test_epoch_draws_every_training_digit_once_with_other_distortions(task: Task) -> None:
    first, labels = task.draw_epoch(np.random.default_rng(1))
    again, _ = task.draw_epoch(np.random.default_rng(1))
    other, _ = task.draw_epoch(np.random.default_rng(2))
    assert (first == again).all()
    assert (first != other).any()
    assert (np.bincount(labels) == np.bincount(load_glyphs()[1][:1000])).all()


def test_larger_image_shows_the_same_scene() -> None:
    def draw(size: int) -> np.ndarray:
        pool = load_glyphs(size)[0][:100]
        return distort(pool, np.arange(100), np.arange(100) % len(SEVERITIES), np.random.default_rng(5)).astype(float)

    small, large = draw(32), draw(96)
    assert large.shape == (100, 3, 96, 96)
    # Averaged over 3x3 pixels it is the small one, but for the edges: what a coarser sensor sees between two pixels.
    averaged = large.reshape(100, 3, 32, 3, 32, 3).mean((3, 5))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, averaged, strict=True)]
    assert np.mean(correlations) > 0.98
    assert np.abs(small - averaged).mean() < 4


@pytest.mark.slow
def test_larger_test_split_shows_each_digit_once_and_all_severities_alike() -> None:
    large = digits_task(96)
    assert large.image_size == 96
    assert large.test.images.shape == (597, 3, 96, 96)
    assert len(set(large.test.digit.tolist())) == 597
    assert np.bincount(large.test.severity).min() >= 119
    assert len(large.calibration) == 3000


def test_size_that_is_no_multiple_of_the_drawing_is_refused() -> None:
    with pytest.raises(ConfigError, match="found images of 100 pixels, expected a multiple of 32"):
        digits_task(100)


def test_grey_levels_are_coarse_so_that_the_set_compresses(task: Task) -> None:
    assert not (task.test.images % GREY_STEP).any()


def test_distance_from_the_clean_image_grows_with_severity() -> None:
    glyphs, _ = load_glyphs()
    contrast = []
    for severity in range(len(SEVERITIES)):
        images = distort(glyphs[:200], np.arange(200), np.full(200, severity), np.random.default_rng(5)).astype(float)
        # Correlation of brightness with the undistorted ink, whatever the colours.
        ink = glyphs[:200].reshape(200, -1)
        grey = images.mean(1).reshape(200, -1)
        contrast.append(np.mean([abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(ink, grey, strict=True)]))
    assert contrast == sorted(contrast, reverse=True)
    assert contrast[0] > 0.999

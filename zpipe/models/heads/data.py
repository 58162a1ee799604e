"""What heads are trained, calibrated and tested on: three sets without an original image in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, Evaluation
from zpipe.datasets import is_cifar10, read_labelled, read_splits, read_unlabelled
from zpipe.datasets.cifar10 import find_batches, read_training
from zpipe.errors import ConfigError
from zpipe.model import TensorSpec
from zpipe.models.digits import digits_task

#: Every fifth original of a user's data calibrates, and another fifth tests where the bundle has no evaluation set.
PARTS = 5

#: Rounds over the thousand training digits, each distorted anew: the backbone runs once over all of it.
DIGITS_ROUNDS = 10


@dataclass(frozen=True, slots=True, eq=False)
class HeadData:
    """What to train, calibrate and test on.

    Attributes:
        note: where it comes from and how it was cut, for the manifest.
        images: to train with, `[samples, ...]` as stage 0 takes them.
        labels: of these, `[samples] int64`; None where nobody knows them.
        calibration, test: labels are -1 where nobody knows them.
        own_test: whether `test` is the bundle's evaluation set.
    """

    note: str
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    calibration: Evaluation
    test: Evaluation
    own_test: bool


def read_head_data(bundle: Bundle, data: Path | None, *, test: Path | None, seed: int) -> HeadData:
    """The data by its path; None = the digits, drawn anew.

    Args:
        bundle: says size and classes, and brings its evaluation set.
        data: for `zpipe.datasets`, with or without labels.
        test: more of it to test with, for a bundle without an evaluation set.
        seed: of the digits' distortions.

    Raises:
        ConfigError: it is not what the bundle takes; one line.
        BackendUnavailable: images in files without Pillow, the digits without scikit-learn.
    """
    own = None if bundle.evaluation_file is None or bundle.evaluation_generated else bundle.evaluation()
    if own is not None and test is not None:
        raise ConfigError(f"--test: found {test}, expected none: bundle {bundle.name} has its own evaluation set; leave it out")
    tested = None if test is None else _read(bundle, test)[0]
    if data is None:
        return _digits(bundle, own or tested, seed=seed, own_test=own is not None)
    if bundle.preprocessing is not None and is_cifar10(data):
        return _cifar10(bundle, data, own or tested, own_test=own is not None)
    everything, labelled = _read(bundle, data)
    if own is not None:
        everything = _apart(everything, own)
    return _cut(everything, own or tested, name=str(data), labelled=labelled, own_test=own is not None)


def _takes(bundle: Bundle) -> int | TensorSpec:
    """What one sample is to `zpipe.datasets`: the side of an image, or another tensor."""
    return bundle.stages[0].input if bundle.preprocessing is None else bundle.preprocessing.size


def _read(bundle: Bundle, path: Path) -> tuple[Evaluation, bool]:
    """What is there, and whether it has labels."""
    size = _takes(bundle)
    images = read_unlabelled(path, size=size)
    if images is None:
        return read_labelled(path, size=size, classes=bundle.classes).data, True
    count = len(images)
    return Evaluation(images, np.full(count, -1), np.zeros(count, np.int64), np.arange(count)), False


def _digits(bundle: Bundle, test: Evaluation | None, *, seed: int, own_test: bool) -> HeadData:
    task = digits_task(bundle.image_size)
    if task.classes != bundle.classes:
        raise ConfigError(f"--data digits: found bundle {bundle.name} with other classes, expected 0 to 9; give other data")
    rng = np.random.default_rng([seed, 17])
    images, labels = zip(*(task.draw_epoch(rng) for _ in range(DIGITS_ROUNDS)), strict=True)
    note = f"{task.note}; {DIGITS_ROUNDS} draws of the training digits"
    return HeadData(note, np.concatenate(images), np.concatenate(labels), task.calibration, test or task.test, own_test)


def _cifar10(bundle: Bundle, path: Path, test: Evaluation | None, *, own_test: bool) -> HeadData:
    calibration, official = read_splits(path, size=_takes(bundle), classes=bundle.classes)
    images, labels, kept = read_training(find_batches(path))
    note = f"CIFAR-10: the first {kept} training images train, the last {len(labels) - kept} calibrate"
    return HeadData(note, images[:kept], labels[:kept], calibration.data, test or official.data, own_test)


def _cut(data: Evaluation, test: Evaluation | None, *, name: str, labelled: bool, own_test: bool) -> HeadData:
    """Originals in turn, class by class: 4 or 3 of 5 train, 1 calibrates, 1 tests if nothing else does."""
    originals, first = np.unique(data.digit, return_index=True)
    turn = np.zeros(len(originals), np.int64)
    for label in np.unique(data.labels[first]):
        mine = np.flatnonzero(data.labels[first] == label)
        turn[mine] = np.arange(len(mine)) % PARTS
    part = turn[np.searchsorted(originals, data.digit)]
    calibrates, tests = part == 1, (part == 2) & (test is None)
    if not calibrates.any() or (test is None and not tests.any()):
        raise ConfigError(
            f"{name}: found {len(originals)} original images, expected at least three of one class: to train, calibrate and test "
            "with; give more"
        )
    trains = ~calibrates & ~tests
    labels = data.labels[trains] if labelled else None
    note = f"a fifth of the originals calibrates{'' if test is not None else ', another fifth tests'}"
    tested = _rows(data, tests) if test is None else test
    return HeadData(note, data.images[trains], labels, _rows(data, calibrates), tested, own_test)


def _apart(data: Evaluation, test: Evaluation) -> Evaluation:
    """Without what is tested on: `zpipe split --data` made a half of the very same data the bundle's evaluation set."""
    tested = {row.tobytes() for row in test.images}
    return _rows(data, np.array([row.tobytes() not in tested for row in data.images], np.bool_))


def _rows(data: Evaluation, rows: npt.NDArray[np.bool_]) -> Evaluation:
    return Evaluation(data.images[rows], data.labels[rows], data.severity[rows], data.digit[rows])

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
from zpipe.models.digits import IMAGE_UNITS, digits_task

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
    """

    note: str
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    calibration: Evaluation
    test: Evaluation


def read_head_data(bundle: Bundle, data: Path | None, *, test: Path | None, seed: int) -> HeadData:
    """The data by its path; None = the digits, drawn anew.

    Args:
        bundle: says size and classes, and brings its evaluation set.
        data: for `zpipe.datasets`, with or without labels.
        test: more of it to test with, for a bundle without an evaluation set; what is in both is not learnt from.
        seed: of the digits' distortions.

    Raises:
        ConfigError: it is not what the bundle takes; one line.
        BackendUnavailable: images in files without Pillow, the digits without scikit-learn.
    """
    own = None if bundle.evaluation_file is None or bundle.evaluation_generated else bundle.evaluation()
    if own is not None and test is not None:
        raise ConfigError(f"--test: found {test}, expected none: bundle {bundle.name} has its own evaluation set; leave it out")
    held = own if test is None else _read(bundle, test)[0]
    if data is None:
        return _digits(bundle, held, seed=seed)
    name = f"--test {test}" if own is None else f"the evaluation set of bundle {bundle.name}"
    if bundle.preprocessing is not None and is_cifar10(data):
        return _cifar10(bundle, data, held, tested_by=name)
    everything, labelled = _read(bundle, data)
    if held is not None:
        everything = _apart(everything, held, data=data, tested_by=name)
    return _cut(everything, held, name=str(data), labelled=labelled)


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


def _digits(bundle: Bundle, test: Evaluation | None, *, seed: int) -> HeadData:
    if bundle.preprocessing is None or bundle.preprocessing.size % IMAGE_UNITS:
        takes = bundle.stages[0].input.shape
        raise ConfigError(
            f"--data digits: found bundle {bundle.name} that takes {list(takes)}, expected RGB images of a multiple of "
            f"{IMAGE_UNITS} pixels a side; give other data"
        )
    task = digits_task(bundle.image_size)
    if task.classes != bundle.classes:
        raise ConfigError(f"--data digits: found bundle {bundle.name} with other classes, expected 0 to 9; give other data")
    rng = np.random.default_rng([seed, 17])
    images, labels = zip(*(task.draw_epoch(rng) for _ in range(DIGITS_ROUNDS)), strict=True)
    note = f"{task.note}; {DIGITS_ROUNDS} draws of the training digits"
    return HeadData(note, np.concatenate(images), np.concatenate(labels), task.calibration, test or task.test)


def _cifar10(bundle: Bundle, path: Path, test: Evaluation | None, *, tested_by: str) -> HeadData:
    calibration, official = read_splits(path, size=_takes(bundle), classes=bundle.classes)
    images, labels, kept = read_training(find_batches(path))
    note = f"CIFAR-10: the first {kept} training images train, the last {len(labels) - kept} calibrate"
    if test is None:
        return HeadData(note, images[:kept], labels[:kept], calibration.data, official.data)
    zeros = np.zeros(kept, np.int64)
    train = _apart(Evaluation(images[:kept], labels[:kept], zeros, np.arange(kept)), test, data=path, tested_by=tested_by)
    calibrates = _apart(calibration.data, test, data=path, tested_by=tested_by)
    return HeadData(note, train.images, train.labels, calibrates, test)


def _cut(data: Evaluation, test: Evaluation | None, *, name: str, labelled: bool) -> HeadData:
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
    return HeadData(note, data.images[trains], labels, _rows(data, calibrates), tested)


def _apart(samples: Evaluation, test: Evaluation, *, data: Path, tested_by: str) -> Evaluation:
    """Without what is tested on: `zpipe split --data` made a half of the very same data the bundle's evaluation set."""
    tested = {row.tobytes() for row in test.images}
    others = np.array([row.tobytes() not in tested for row in samples.images], np.bool_)
    if not others.any():
        raise ConfigError(
            f"--data {data}: found no sample that is not in {tested_by}, expected some to learn from alone; give more"
        )
    return _rows(samples, others)


def _rows(data: Evaluation, rows: npt.NDArray[np.bool_]) -> Evaluation:
    return Evaluation(data.images[rows], data.labels[rows], data.severity[rows], data.digit[rows])

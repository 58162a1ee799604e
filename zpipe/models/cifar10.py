"""The CIFAR-10 task: the official batches, and the usual augmentation. NumPy only; `zpipe.datasets.cifar10` reads the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation
from zpipe.datasets.cifar10 import CLASSES, TEST_FILE, WHERE, find_batches, read_batch, read_training
from zpipe.errors import ConfigError
from zpipe.models.task import Task

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

#: Pixels of reflection around an image before a random crop, the usual augmentation.
CROP_MARGIN = 4

#: Passes over 45,000 images; hours on a small CPU. Not tuned: our machines hold no CIFAR-10.
EPOCHS = 30


def cifar10_task(data_dir: Path | None) -> Task:
    """The task from `data_dir/cifar-10-batches-py/` (`data_dir` may also be that folder itself).

    Raises:
        ConfigError: no folder given, a file is absent, or one holds something else.
    """
    if data_dir is None:
        raise ConfigError(f"--data-dir: found none, expected a folder with the CIFAR-10 python batches; {WHERE}")
    folder = find_batches(data_dir)
    images, labels, kept = read_training(folder)

    def draw_epoch(rng: np.random.Generator) -> tuple[Bytes, Ints]:
        order = rng.permutation(kept)
        return crop_and_flip(images[order], rng), labels[order]

    return Task(
        name="cifar10",
        classes=CLASSES,
        note=(
            f"CIFAR-10: the first {kept} training images train, the last {len(labels) - kept} calibrate, the official test "
            "batch tests; no distortions, so every severity is 0"
        ),
        draw_epoch=draw_epoch,
        calibration=_clean(images[kept:], labels[kept:]),
        test=_clean(*read_batch(folder / TEST_FILE)),
        epochs=EPOCHS,
    )


def _clean(images: Bytes, labels: Ints) -> Evaluation:
    return Evaluation(images, labels, np.zeros(len(labels), np.int64), np.arange(len(labels)))


def crop_and_flip(images: Bytes, rng: np.random.Generator) -> Bytes:
    """The usual augmentation: reflect 4 pixels, crop 32x32 at random, mirror every other image on average."""
    count, _, height, width = images.shape
    sides = (CROP_MARGIN, CROP_MARGIN)
    padded = np.pad(images, ((0, 0), (0, 0), sides, sides), mode="reflect")
    down, across = rng.integers(0, 2 * CROP_MARGIN + 1, (2, count))
    rows = (down[:, None] + np.arange(height))[:, None, :, None]
    columns = across[:, None] + np.arange(width)
    columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)[:, None, None, :]
    samples, channels = np.arange(count)[:, None, None, None], np.arange(3)[None, :, None, None]
    return np.asarray(padded[samples, channels, rows, columns])

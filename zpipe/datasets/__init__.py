"""Labelled images of a user's own: a folder of images, an npz, or CIFAR-10's python batches.

Everything comes back as stage 0 takes it: uint8 0..255, RGB, channels first; for a network that takes other tensors, those, from
an npz. Needs NumPy; a folder of images needs Pillow too (the extra `images`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zpipe.bundle import Evaluation
from zpipe.datasets import cifar10
from zpipe.datasets.archive import read_archive, read_tensors
from zpipe.datasets.folder import read_folder
from zpipe.datasets.labelled import Labelled
from zpipe.datasets.unlabelled import read_unlabelled
from zpipe.errors import ConfigError
from zpipe.model import TensorSpec

__all__ = ["Labelled", "halves", "is_cifar10", "read_labelled", "read_splits", "read_unlabelled"]


def read_labelled(path: Path, *, size: int | TensorSpec, classes: Sequence[str] | None = None) -> Labelled:
    """Images with their labels.

    Args:
        path: a folder with one folder of images per class; an `.npz` with `images` and `labels`; or CIFAR-10's folder, of
            which the training images are read.
        size: height and width that the images must have, or (images in files) are scaled to; or what one sample is, where that
            is no image: an `.npz` must hold just that.
        classes: what the labels may be; None = as the data says.

    Raises:
        ConfigError: nothing is there, or it is something else; one line.
        BackendUnavailable: images in files, without Pillow.
    """
    if isinstance(size, TensorSpec):
        return read_tensors(path, size, classes=classes)
    if is_cifar10(path):
        images, labels, _ = cifar10.read_training(cifar10.find_batches(path))
        return _cifar10(images, labels, size=size, classes=classes, path=path)
    if path.is_dir():
        return read_folder(path, size=size, classes=classes)
    if path.is_file():
        return read_archive(path, size=size, classes=classes)
    raise ConfigError(f"{path}: found nothing there, expected a folder of images, an .npz, or CIFAR-10's folder; correct the path")


def read_splits(path: Path, *, size: int | TensorSpec, classes: Sequence[str] | None = None) -> tuple[Labelled, Labelled]:
    """As `read_labelled`, in two: (to calibrate with, to test with).

    CIFAR-10 has its own test batch, and its last training images calibrate; other data is cut by `halves`.

    Raises:
        ConfigError: as `read_labelled`, or there are too few images to cut.
        BackendUnavailable: as `read_labelled`.
    """
    if isinstance(size, TensorSpec) or not is_cifar10(path):
        return halves(read_labelled(path, size=size, classes=classes))
    folder = cifar10.find_batches(path)
    images, labels, kept = cifar10.read_training(folder)
    fitted = _cifar10(images[kept:], labels[kept:], size=size, classes=classes, path=path)
    return fitted, _cifar10(*cifar10.read_batch(folder / cifar10.TEST_FILE), size=size, classes=classes, path=path)


def halves(data: Labelled) -> tuple[Labelled, Labelled]:
    """Every other original of each class, so that no original is in both.

    Raises:
        ConfigError: fewer than two originals.
    """
    originals, first = np.unique(data.digit, return_index=True)
    turn = np.zeros(len(originals), np.int64)
    for label in np.unique(data.labels[first]):
        mine = np.flatnonzero(data.labels[first] == label)
        turn[mine] = np.arange(len(mine)) % 2
    tests = turn[np.searchsorted(originals, data.digit)] == 1
    if not tests.any() or tests.all():
        raise ConfigError(
            f"{data.name}: found {len(originals)} original images, expected at least two of one class: some to fit on and some "
            "to test on; give more"
        )
    return data.subset(~tests), data.subset(tests)


def is_cifar10(path: Path) -> bool:
    """Whether this looks like CIFAR-10's folder, or one that holds it."""
    return path.name == cifar10.FOLDER or (path / cifar10.FOLDER).is_dir()


def _cifar10(images: cifar10.Bytes, labels: cifar10.Ints, *, size: int, classes: Sequence[str] | None, path: Path) -> Labelled:
    if size != cifar10.IMAGE_SIZE:
        raise ConfigError(f"{path}: found images of {cifar10.IMAGE_SIZE} pixels, expected {size} for this network; give others")
    if classes is not None and tuple(classes) != cifar10.CLASSES:
        raise ConfigError(
            f"{path}: found classes {', '.join(cifar10.CLASSES)}, expected those of the bundle: {', '.join(classes)}; give others"
        )
    data = Evaluation(images, labels, np.zeros(len(labels), np.int64), np.arange(len(labels)))
    return Labelled(str(path), cifar10.CLASSES, data)

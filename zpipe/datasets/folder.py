"""Labelled images in folders, one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation
from zpipe.datasets.images import SUFFIXES, is_picture, read_image
from zpipe.datasets.labelled import Labelled
from zpipe.errors import ConfigError


def read_folder(path: Path, *, size: int, classes: Sequence[str] | None) -> Labelled:
    """`path/CLASS/*.png` and the like, in the order of their names, scaled to `size` x `size`.

    Raises:
        ConfigError: no folders, one that is no class, no images, or one that cannot be read.
        BackendUnavailable: Pillow is absent.
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ConfigError(f"{path}: found no folders in it, expected one for each class, such as {path / (classes or ['cat'])[0]}")
    names = tuple(classes) if classes is not None else tuple(folder.name for folder in folders)
    for folder in folders:
        if folder.name not in names:
            raise ConfigError(f"{folder}: found a folder of that name, expected one of the classes {_listed(names)}; rename it")
    files = [(file, names.index(folder.name)) for folder in folders for file in sorted(folder.iterdir()) if _is_image(file)]
    if not files:
        raise ConfigError(f"{path}: found no images in {len(folders)} folders, expected {', '.join(SUFFIXES)}; put some there")
    images = np.stack([read_image(file, size) for file, _ in files])
    labels = np.array([label for _, label in files], np.int64)
    return Labelled(str(path), names, Evaluation(images, labels, np.zeros(len(labels), np.int64), np.arange(len(labels))))


def read_flat_folder(path: Path, *, size: int) -> npt.NDArray[np.uint8] | None:
    """`path/*.png` and the like without labels, `[n, 3, size, size]` in the order of their names; None where folders lie in it.

    Raises:
        ConfigError: one cannot be read.
        BackendUnavailable: Pillow is absent.
    """
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if _is_image(entry)]
    if not files or any(entry.is_dir() for entry in entries):
        return None
    return np.stack([read_image(file, size) for file in files])


def _is_image(file: Path) -> bool:
    return is_picture(file.name) and file.is_file()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown}, ... ({len(names)})"

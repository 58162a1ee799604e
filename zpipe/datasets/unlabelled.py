"""Images without labels: for what can be learnt from a network's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from zpipe.datasets.archive import read_unlabelled_archive
from zpipe.datasets.folder import read_flat_folder
from zpipe.model import TensorSpec


def read_unlabelled(path: Path, *, size: int | TensorSpec) -> npt.NDArray[Any] | None:
    """What lies in a folder that holds images and no folders, or in an `.npz` with `images` and no `labels`, as stage 0 takes it.

    Args:
        path: the folder or file.
        size: as for `read_labelled`.

    Returns:
        None where it is something else: `read_labelled` then says what it is, or what is wrong with it.

    Raises:
        ConfigError: an image or the array cannot be read, or there are none; one line.
        BackendUnavailable: images in files, without Pillow.
    """
    if path.is_file():
        return read_unlabelled_archive(path, size=size)
    return read_flat_folder(path, size=size) if path.is_dir() and isinstance(size, int) else None

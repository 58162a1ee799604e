"""Labelled images, or other tensors, in an npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Evaluation
from zpipe.bundle.files import UNREADABLE
from zpipe.datasets.labelled import Labelled
from zpipe.errors import ConfigError
from zpipe.model import TensorSpec

KEYS = "images uint8 [n, 3, size, size] or [n, size, size, 3], labels whole numbers [n]; also severity and digit [n] if you like"

#: Samples that are looked at in one go.
ROWS = 256


def read_archive(path: Path, *, size: int, classes: Sequence[str] | None) -> Labelled:
    """An npz with `images` and `labels`; `severity` and `digit` (which original an image shows) may be there. Never unpickles.

    Raises:
        ConfigError: it cannot be read, lacks a key, or an array has another dtype or shape, or labels are out of range.
    """
    arrays = _arrays(path, KEYS)
    return _labelled(path, _images(path, arrays["images"], size), arrays, classes)


def read_tensors(path: Path, spec: TensorSpec, *, classes: Sequence[str] | None) -> Labelled:
    """The same for a network that takes no images: `images` holds samples of just this dtype and shape.

    Raises:
        ConfigError: as `read_archive`, or it is no file.
    """
    wanted = _wanted(spec)
    if not path.is_file():
        raise ConfigError(
            f"{path}: found no file, expected an .npz with labels and images {wanted}, as this network takes no RGB images; "
            "write one (numpy.savez), or let stage 0 normalise: `zpipe split --mean ... --std ...`"
        )
    arrays = _arrays(path, f"images {wanted}, labels whole numbers [n]")
    return _labelled(path, _tensors(path, arrays["images"], spec), arrays, classes)


def _wanted(spec: TensorSpec) -> str:
    return f"{spec.dtype} [n, {', '.join(map(str, spec.shape))}]"


def _tensors(path: Path, samples: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    if samples.dtype != np.dtype(spec.dtype) or samples.ndim < 1 or samples.shape[1:] != spec.shape:
        raise ConfigError(f"{path}: images: found {samples.dtype} {list(samples.shape)}, expected {_wanted(spec)}; convert them")
    for start in range(0, len(samples), ROWS):
        broken = ~np.isfinite(samples[start : start + ROWS]).reshape(len(samples[start : start + ROWS]), -1).all(1)
        if broken.any():
            raise ConfigError(
                f"{path}: images: found NaN or infinity in sample {start + int(broken.argmax())}, expected numbers; leave it out"
            )
    return samples


def _arrays(path: Path, keys: str) -> dict[str, npt.NDArray[Any]]:
    """What there is of the four arrays; images and labels at least."""
    try:
        # Our own stream: NumPy leaves one of its own open where the file is no archive after all.
        with path.open("rb") as stream:
            if not stream.peek(6).startswith((b"PK", b"\x93NUMPY")):
                raise ValueError("it is no zip archive")  # NumPy would say that it does not unpickle it
            archive = np.load(stream, allow_pickle=False)
            if not hasattr(archive, "files"):
                raise ValueError("one bare array")
            arrays = {key: archive[key] for key in ("images", "labels", "severity", "digit") if key in archive.files}
            have = ", ".join(archive.files) or "nothing"
    except UNREADABLE as exc:
        raise ConfigError(f"{path}: found no readable npz ({_short(exc)}), expected one with {keys}") from exc
    for key in ("images", "labels"):
        if key not in arrays:
            raise ConfigError(f"{path}: {key}: found {have}, expected an array of that name: {keys}; rename it")
    return arrays


def _labelled(path: Path, images: npt.NDArray[Any], arrays: dict[str, npt.NDArray[Any]], classes: Sequence[str] | None) -> Labelled:
    labels = _whole(path, "labels", arrays["labels"], len(images))
    if not len(images):
        raise ConfigError(f"{path}: images: found none, expected at least one; give more")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or (classes is not None and most >= len(classes)):
        limit = "" if classes is None else f"..{len(classes) - 1}, as the bundle has {len(classes)} classes"
        raise ConfigError(f"{path}: labels: found {least}..{most}, expected 0{limit}; correct the labels")
    names = tuple(classes) if classes is not None else tuple(str(label) for label in range(most + 1))
    severity = _whole(path, "severity", arrays.get("severity", np.zeros(len(images), np.int64)), len(images))
    digit = _whole(path, "digit", arrays.get("digit", np.arange(len(images))), len(images))
    return Labelled(str(path), names, Evaluation(images, labels, severity, digit))


def read_unlabelled_archive(path: Path, *, size: int | TensorSpec) -> npt.NDArray[Any] | None:
    """The `images` of an npz that has no `labels`, as `read_archive` or `read_tensors` take them; None of any other file.

    Raises:
        ConfigError: they have another dtype or shape, or there are none.
    """
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not hasattr(archive, "files") or "images" not in archive.files or "labels" in archive.files:
                return None
            array = archive["images"]
    except UNREADABLE:
        return None
    images = _tensors(path, array, size) if isinstance(size, TensorSpec) else _images(path, array, size)
    if not len(images):
        raise ConfigError(f"{path}: images: found none, expected at least one; give more")
    return images


def _images(path: Path, array: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    if array.ndim == 4 and array.shape[1:] == (size, size, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (3, size, size):
        found = f"{array.dtype} {list(array.shape)}"
        hint = "scale them and round to 0..255" if array.dtype != np.uint8 else f"resize them to {size} x {size}, RGB"
        raise ConfigError(f"{path}: images: found {found}, expected uint8 [n, 3, {size}, {size}] (or channels last); {hint}")
    return np.ascontiguousarray(array)


def _whole(path: Path, key: str, array: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    if not np.issubdtype(array.dtype, np.integer) or array.shape != (count,):
        found = f"{array.dtype} {list(array.shape)}"
        raise ConfigError(f"{path}: {key}: found {found}, expected whole numbers [{count}], one for each image; correct the array")
    return array.astype(np.int64)


def _short(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:80] or type(exc).__name__

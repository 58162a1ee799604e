"""A bundle's files: read under checks, compared with their digests."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import BundleError

MANIFEST = "manifest.json"
#: Bytes read at a time while hashing: a bundle must not need its own size in memory on a small board.
_HASH_CHUNK_BYTES = 1 << 20
#: What NumPy raises at a file that is no npz.
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)
REMEDY = "restore the bundle's files (git checkout, or copy the folder again) or make it anew with `zpipe train`"


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, as it stands in a manifest's `digests`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def read_npz(path: Path, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an npz, checked: {key: (dtype name, or `int` for any whole type; shape)}."""
    arrays = read_arrays(path, f"arrays {', '.join(wanted)}", keys=wanted)
    for key, (dtype, shape) in wanted.items():
        if key not in arrays:
            raise BundleError(f"{path}: {key}: found no such array, expected {dtype} {list(shape)}; {REMEDY}")
        array = arrays[key]
        fits = np.issubdtype(array.dtype, np.integer) if dtype == "int" else array.dtype == np.dtype(dtype)
        if not fits or array.shape != shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise BundleError(f"{path}: {key}: found {found}, expected {dtype} {list(shape)}; {REMEDY}")
    return arrays


def read_arrays(path: Path, expected: str, *, keys: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """What an npz holds of these keys, or all of it. Never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in (archive.files if keys is None else keys) if key in archive.files}
    except UNREADABLE as exc:
        raise BundleError(f"{path}: found no readable npz ({exc}), expected {expected}; {REMEDY}") from exc

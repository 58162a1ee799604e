"""The rows of an `.npz`, one at a time: an archive larger than memory is no trouble."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from zpipe.errors import ConfigError, one_line
from zpipe.infer.items import Entry, Item, Shaper, Skipped, Wanted

KEY = "images"

_DAMAGED = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, SyntaxError)


class Archive:
    """An `.npz` with an array `images` (or a single array of any name): pictures of any size, or the network's own tensors."""

    live = False

    def __init__(self, path: Path, shaper: Shaper) -> None:
        self._path = path
        self._shaper = shaper

    def count(self) -> int | None:
        try:
            with self._opened() as (_, shape, _):
                return shape[0]
        except ConfigError:
            return None

    def items(self, wanted: Wanted) -> Iterator[Item | Skipped]:
        row = 0
        try:
            with self._opened() as (stream, shape, dtype):
                kind = self._kind(shape[1:], dtype)
                if not shape[0]:
                    yield Skipped(f"{self._path}: {KEY}: found {dtype} {list(shape)}, expected at least one row; fill it")
                bytes_each = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
                for row in range(shape[0]):
                    content = stream.read(bytes_each)
                    if len(content) < bytes_each:
                        raise ValueError(f"it ends in row {row} of {shape[0]}")
                    if wanted(str(self._path), row):
                        yield self._item(np.frombuffer(content, dtype).reshape(shape[1:]), row, kind)
        except ConfigError as exc:
            yield Skipped(str(exc))
        except _DAMAGED as exc:
            yield Skipped(f"{self._path}: found damage from row {row} on ({_short(exc)}), expected an npz; write it again")

    def _item(self, tensor: npt.NDArray[Any], row: int, kind: str) -> Item | Skipped:
        if kind == "as it is" and not self._shaper.drawn and (self._shaper.size is None or self._shaper.fit != "ink"):
            return Item(Entry(str(self._path), row), tensor)
        return self._shaper.from_pixels(tensor if kind == "channels last" else tensor.transpose(1, 2, 0), str(self._path), row)

    def _kind(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """What a row is: just what stage 0 takes, or a picture with its channels first or last (or none)."""
        takes, pixels = self._shaper.takes, self._shaper.size is not None
        if shape == takes.shape and dtype == np.dtype(takes.dtype):
            return "as it is"
        if pixels and dtype == np.uint8 and 0 not in shape:
            if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4)):
                return "channels last"
            if len(shape) == 3 and shape[0] in (1, 3, 4):
                return "channels first"
        expected = "uint8 [n, height, width, 3]" if pixels else f"{takes.dtype} [n, {', '.join(map(str, takes.shape))}]"
        raise ConfigError(f"{self._path}: {KEY}: found {dtype} {['n', *shape]}, expected {expected}; convert them")

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The array's raw rows, its shape `[rows, ...]` and dtype."""
        try:
            archive = zipfile.ZipFile(self._path)
        except _DAMAGED as exc:
            raise ConfigError(f"{self._path}: found no readable npz ({_short(exc)}), expected one with an array {KEY}") from exc
        with archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            member = f"{KEY}.npy" if f"{KEY}.npy" in members else members[0] if len(members) == 1 else None
            if member is None:
                have = ", ".join(name.removesuffix(".npy") for name in members) or "no array"
                raise ConfigError(f"{self._path}: found {one_line(have)}, expected an array {KEY} in it; rename one")
            with archive.open(member) as stream:
                shape, by_columns, dtype = _header(self._path, stream)
                if by_columns or dtype.hasobject or not shape:
                    found = "no rows" if not shape else "Python objects" if dtype.hasobject else "columns before rows"
                    raise ConfigError(f"{self._path}: found {found}, expected plain numbers in C order [n, ...]; convert the array")
                yield stream, shape, dtype


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(stream)
    except _DAMAGED as exc:
        raise ConfigError(f"{path}: found an array that cannot be read ({_short(exc)}), expected one; write it again") from exc
    return shape, by_columns, dtype


def _short(exc: BaseException) -> str:
    return one_line(" ".join(str(exc).split()))[:80] or type(exc).__name__

"""Activations after their batch: as an array over pinned memory, or left on the device for the next stage.

Either goes back to where it came from when nobody refers to it any more, from whatever thread drops it last: it only posts to the
owner's thread, which alone changes an arena. An array over pinned memory is referred to by its views, by the memoryview that the
wire sends, and by ZeroMQ, whose zero-copy messages keep what they were given until their MessageTracker would say "done". So
nothing here has to ask a tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zpipe.executors.cuda.arena import Arena

if TYPE_CHECKING:
    from zpipe.executors.base import Batch

#: Has a thing done on the owner's thread, without waiting for it; may be called while garbage is collected.
Post = Callable[[Callable[[], object]], None]


class Lease:
    """A region of an arena, given back when this is collected.

    Attributes:
        begin: where it begins in its arena.
        nbytes: its size.
    """

    __slots__ = ("_arena", "_back", "begin", "nbytes")

    def __init__(self, arena: Arena, begin: int, nbytes: int, post: Post) -> None:
        self.begin, self.nbytes = begin, nbytes
        self._arena = arena
        self._back = partial(post, partial(arena.give, begin))

    def shrink(self, nbytes: int) -> None:
        """Keeps the first bytes alone; on the owner's thread."""
        self._arena.shrink(self.begin, nbytes)
        self.nbytes = nbytes

    def __del__(self) -> None:
        self._back()


class _Pinned:
    """What NumPy keeps as the base of an array over a lease, and of every view of it.

    A slice of the block would not do: of a view of a view NumPy keeps only the first owner, so the slice would go while others
    still look at its bytes.
    """

    __slots__ = ("__array_interface__", "lease")

    def __init__(self, lease: Lease, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.lease = lease
        self.__array_interface__ = {"shape": shape, "typestr": dtype.str, "data": (address, False), "version": 3}


def array_over(lease: Lease, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`shape` over the lease's bytes, which lie at `address` of the host; the lease lives as long as any view of it."""
    return np.asarray(_Pinned(lease, address, shape, dtype))


class Kept:
    """Rows that one batch left on the device.

    Attributes:
        lease: where in the device's arena.
        address: on the device.
        host: `[nbytes] uint8`, the same once somebody wanted them there.
    """

    __slots__ = ("_fetch", "address", "host", "lease")

    def __init__(self, lease: Lease, address: int, fetch: Callable[[Kept], npt.NDArray[np.uint8]]) -> None:
        self.lease, self.address = lease, address
        self.host: npt.NDArray[np.uint8] | None = None
        self._fetch = fetch

    def fetch(self) -> npt.NDArray[np.uint8]:
        """Its bytes on the host; copied at the first call.

        Raises:
            ExecutorError: the executor was closed or lost before.
        """
        return self._fetch(self) if self.host is None else self.host


class Part(NamedTuple):
    """`rows` consecutive rows from `first` on, on the device or on the host (`[..., *shape]`)."""

    source: Kept | npt.NDArray[Any]
    first: int
    rows: int


class DeviceRows:
    """Activations of a stage whose successor the same executor hosts (`ResidentRows`); its `run` copies them within the device.

    Attributes:
        home: the executor that takes them.
        parts: where the rows are, in their order.
        shape: `(rows, ...)`.
        dtype: of the elements.
    """

    __slots__ = ("_host", "dtype", "home", "parts", "shape")

    def __init__(self, home: object, parts: Sequence[Part], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.home = home
        self.parts = tuple(parts)
        self.shape: tuple[int, ...] = (sum(part.rows for part in self.parts), *shape)
        self.dtype: np.dtype[Any] = dtype
        self._host: npt.NDArray[Any] | None = None

    def __repr__(self) -> str:
        return f"<DeviceRows {self.dtype.name} {list(self.shape)} | parts {len(self.parts)}>"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The rows on the host. Waits for the device at the first call; runner.py says how long.

        Raises:
            ExecutorError: the executor was closed or lost before.
            ValueError: `copy` is False.
        """
        if copy is False:
            raise ValueError("rows of a device cannot be looked at without a copy")
        if self._host is None:
            arrays = [self._on_host(part) for part in self.parts]
            self._host = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        host = self._host if dtype is None else self._host.astype(dtype, copy=False)
        return host.copy() if copy else host

    def join(self, rows: Sequence[tuple[Batch, int]]) -> DeviceRows:
        """Rows of this executor's batches and of the host's as one batch, in this order; copies nothing."""
        parts: list[Part] = []
        for batch, index in rows:
            part = batch._part(index) if isinstance(batch, DeviceRows) and batch.home is self.home else _host_part(batch, index)
            if parts and _continues(parts[-1], part):
                parts[-1] = parts[-1]._replace(rows=parts[-1].rows + 1)
            else:
                parts.append(part)
        return DeviceRows(self.home, parts, self.shape[1:], self.dtype)

    def _part(self, index: int) -> Part:
        """Row `index` as a part of its own."""
        for source, first, rows in self.parts:
            if index < rows:
                return Part(source, first + index, 1)
            index -= rows
        raise IndexError(f"no row {index} beyond the last of {self.shape[0]}")

    def _on_host(self, part: Part) -> npt.NDArray[Any]:
        source = part.source
        if isinstance(source, Kept):
            source = source.fetch().view(self.dtype).reshape(-1, *self.shape[1:])
        return source[part.first : part.first + part.rows]


def _host_part(batch: Batch, index: int) -> Part:
    return Part(np.asarray(batch), index, 1)


def _continues(before: Part, part: Part) -> bool:
    return part.source is before.source and part.first == before.first + before.rows

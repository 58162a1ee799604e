"""What a codec is, the one that changes nothing, and the one that codes row by row."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zpipe.model import NO_CODEC, TensorSpec

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Codec(Protocol):
    """Packs the batches that enter one stage.

    Attributes:
        name: what the wire calls it; `none` where the codec asked for would change nothing.
        row_bytes: bytes per row on the wire: exactly, or at most where `packed`.
        typical_row_bytes: the mean of what is sent; equals `row_bytes` unless `packed`.
        packed: whether the coded batch is one run of bytes whose length varies.
    """

    @property
    def name(self) -> str: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def typical_row_bytes(self) -> int: ...
    @property
    def packed(self) -> bool: ...

    def encode(self, batch: Array) -> Array:
        """`[rows, *shape]` in the stage's dtype -> what the wire carries (module docstring of `zpipe.codecs`, rule 4)."""

    def decode(self, payload: Array, rows: int) -> Array:
        """The inverse; the answer may be a view of `payload` where nothing was coded.

        Raises:
            WireError: the payload is no coded batch of that many rows.
        """


class RawCodec:
    """Sends the stage's input itself: what goes in comes out, uncopied."""

    name = NO_CODEC
    packed = False

    def __init__(self, spec: TensorSpec, prefix_bytes: int = 0) -> None:
        #: `[rows, *shape]` of a batch, and its dtype.
        self.shape, self.dtype = spec.shape, np.dtype(spec.dtype)
        if prefix_bytes:
            self.shape, self.dtype = (prefix_bytes + spec.bytes,), np.dtype(np.uint8)
        self.row_bytes = self.typical_row_bytes = prefix_bytes + spec.bytes

    def encode(self, batch: Array) -> Array:
        return batch

    def decode(self, payload: Array, rows: int) -> Array:
        # The wire gives it in this form already, a packed codec as bytes.
        return payload.view(self.dtype).reshape(rows, *self.shape)


class Transform(Protocol):
    """Floats to bytes and back, each row by itself.

    Attributes:
        bytes: of one coded row.
    """

    @property
    def bytes(self) -> int: ...

    def encode(self, values: Floats, out: Bytes) -> None:
        """`[rows, *shape]` into `out` `[rows, bytes]`, whose rows may lie apart."""

    def decode(self, coded: Bytes) -> Floats:
        """`[rows, bytes]` -> a new `[rows, *shape]`."""


class RowCodec:
    """A transform applied to the rows' floats, past their prefix."""

    packed = False

    def __init__(self, name: str, spec: TensorSpec, transform: Transform, prefix_bytes: int = 0) -> None:
        self.name = name
        self._spec = spec
        self._dtype = np.dtype(spec.dtype)
        self._transform = transform
        self._prefix = prefix_bytes
        self.row_bytes = self.typical_row_bytes = prefix_bytes + transform.bytes

    def encode(self, batch: Array) -> Bytes:
        prefix = self._prefix
        out = np.empty((len(batch), self.row_bytes), np.uint8)
        values = batch
        if prefix:
            out[:, :prefix] = batch[:, :prefix]
            values = batch[:, prefix:].view(self._dtype).reshape(len(batch), *self._spec.shape)
        self._transform.encode(values.astype(np.float32, copy=False), out[:, prefix:])
        return out

    def decode(self, payload: Array, rows: int) -> Array:
        prefix = self._prefix
        values = self._transform.decode(payload[:, prefix:])
        if self._dtype != np.float32:
            with np.errstate(over="ignore"):  # what a peer sent may be beyond half precision: infinity, as arithmetic has it
                values = values.astype(self._dtype)
        if not prefix:
            return values
        out = np.empty((rows, prefix + self._spec.bytes), np.uint8)
        out[:, :prefix] = payload[:, :prefix]
        out[:, prefix:] = values.reshape(rows, -1).view(np.uint8)
        return out

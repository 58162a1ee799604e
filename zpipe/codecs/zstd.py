"""Lossless compression of a coded batch: one zstd frame (RFC 8878) per message.

A batch and not a row, since short inputs compress badly. Level 1: level 3 takes up to three times as long for 0-1 % fewer bytes.
Where compression does not pay, the batch goes as it is: a payload of exactly `rows * row_bytes` bytes is no zstd frame.

Library: `zstandard`. Against `backports.zstd` and `cramjam` (same libzstd 1.5.7, level 1, batches of 0.5 to 200 KB) it took 8 µs
less to compress and 8 µs less to decompress each, because it keeps its contexts and reads arrays without a copy.
"""

from __future__ import annotations

import numpy as np
import zstandard

from zpipe.codecs.base import Array, Codec
from zpipe.errors import WireError
from zpipe.model import NO_CODEC

_LEVEL = 1

#: Compressed / plain bytes, median over the cuts of both digits bundles at 8 rows a message: of int8 activations, of images.
TYPICAL_ACTIVATION, TYPICAL_IMAGE = 0.93, 0.60


class ZstdCodec:
    """Another codec's batches, compressed.

    Args:
        name: what the wire calls it.
        inner: gives rows of exact size.
        typical_row_bytes: as measured; a guess from other cuts if not given.
    """

    packed = True

    def __init__(self, name: str, inner: Codec, *, typical_row_bytes: int | None = None) -> None:
        self.name = name
        self.row_bytes = inner.row_bytes
        guess = round(inner.row_bytes * (TYPICAL_IMAGE if inner.name == NO_CODEC else TYPICAL_ACTIVATION))
        self.typical_row_bytes = guess if typical_row_bytes is None else typical_row_bytes
        self._inner = inner
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, batch: Array) -> Array:
        plain = np.ascontiguousarray(self._inner.encode(batch)).reshape(-1).view(np.uint8)
        packed = self._compressor.compress(plain.data)
        return np.frombuffer(packed, np.uint8) if len(packed) < len(plain) else plain

    def decode(self, payload: Array, rows: int) -> Array:
        size = rows * self.row_bytes
        plain = payload if len(payload) == size else self._unpack(payload, size)
        return self._inner.decode(plain.reshape(rows, self.row_bytes), rows)

    def _unpack(self, payload: Array, size: int) -> Array:
        """Exactly `size` bytes. The claim in the frame is read before anything is allocated for it."""
        try:
            claimed = zstandard.get_frame_parameters(payload.data).content_size
            if claimed != size:
                raise WireError(f"zstd frame of {len(payload)} bytes claims {claimed} bytes, expected {size}")
            plain = self._decompressor.decompress(payload.data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise WireError(f"zstd frame of {len(payload)} bytes: {exc}") from exc
        if len(plain) != size:
            raise WireError(f"zstd frame of {len(payload)} bytes gave {len(plain)} bytes, expected {size}")
        return np.frombuffer(plain, np.uint8)

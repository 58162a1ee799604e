"""IEEE half precision: half the bytes, a relative error of at most 2**-11 between 6e-5 and 65504."""

from __future__ import annotations

import math

import numpy as np

from zpipe.codecs.base import Bytes, Floats


class Fp16:
    """`float32 [rows, *shape]` as float16. What lies beyond 65504 becomes infinity, as IEEE conversion has it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self.bytes = 2 * math.prod(shape)

    def encode(self, values: Floats, out: Bytes) -> None:
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        out[:] = halves.reshape(len(values), -1).view(np.uint8)

    def decode(self, coded: Bytes) -> Floats:
        return coded.view("<f2").astype(np.float32).reshape(len(coded), *self._shape)

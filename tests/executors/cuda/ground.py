"""Runs the gate's kernels on arrays, on whatever driver: the compiled kernels' or a GPU's.

All device memory is fenced: what lies beside an array is NaN, so that reading past it shows in the result, and is looked at
afterwards, so that writing past it shows, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.executors.cuda.driver import Driver, Memory, Stream
from zpipe.executors.cuda.gate import Encoding, Gate, decisions_bytes, encoded_row_bytes
from zpipe.model import GateSpec

_FENCE_BYTES = 256
_FENCE = 0xFF  # as float32 and float16: NaN

Bytes = npt.NDArray[np.uint8]


class Fenced:
    """An array on the device. Its address is a multiple of 256, plus `offset`."""

    def __init__(self, driver: Driver, stream: Stream, content: npt.NDArray[Any], *, offset: int = 0) -> None:
        self._driver, self._stream = driver, stream
        self._begin = _FENCE_BYTES + offset
        self.nbytes = content.nbytes
        whole = self._begin + self.nbytes + _FENCE_BYTES
        self._memory: Memory = driver.allocate(whole)
        self._pinned = driver.pinned(whole)
        self._pinned.array[:] = _FENCE
        self._inside[:] = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        driver.copy_in(self._memory.address, self._pinned, whole, self._stream)
        self._stream.synchronize()
        self.address = self._memory.address + self._begin

    @property
    def _inside(self) -> Bytes:
        return self._pinned.array[self._begin : self._begin + self.nbytes]

    def read(self) -> Bytes:
        """A copy of what is there now, after a look at the fences."""
        self._pinned.array[:] = 0
        self._driver.copy_out(self._pinned, self._memory.address, self._pinned.nbytes, self._stream)
        self._stream.synchronize()
        around = np.delete(self._pinned.array, np.s_[self._begin : self._begin + self.nbytes])
        assert (around == _FENCE).all(), "something was written beside the array"
        return self._inside.copy()

    def free(self) -> None:
        self._memory.free()
        self._pinned.free()


class Ground:
    """One gate and the memory that a test's calls take."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._gate, self._stream = Gate(driver), driver.stream()

    def decide(self, logits: npt.NDArray[Any], gate: GateSpec) -> Bytes:
        """The record of decisions."""
        rows, classes = logits.shape
        with np.errstate(over="ignore"):
            thresholds = np.array(gate.thresholds, np.float32)
        given = self._put(logits), self._put(thresholds)
        record = self._put(np.full(decisions_bytes(rows), 0x5A, np.uint8))
        self._gate.decide(
            rule=gate.rule,
            temperature=gate.temperature,
            logits=given[0].address,
            dtype=logits.dtype.name,
            rows=rows,
            classes=classes,
            thresholds=given[1].address,
            last=gate.last,
            decisions=record.address,
            stream=self._stream,
        )
        return self._taken(record, *given)

    def gather(
        self,
        activation: npt.NDArray[Any],
        record: Bytes,
        *,
        encoding: Encoding = "none",
        channels: int = 1,
        offsets: tuple[int, int] = (0, 0),
    ) -> Bytes:
        """`[rows, encoded bytes]`: the survivors' rows, then what stays untouched: 0x5A.

        Args:
            activation: `[rows, ...]`.
            record: of the decisions.
            offsets: of the activation's address and of the result's.
        """
        rows, row_bytes = len(activation), activation[0].nbytes
        given = self._put(activation, offset=offsets[0]), self._put(record)
        coded = encoded_row_bytes(encoding, row_bytes, channels=channels)
        out = self._put(np.full(rows * coded, 0x5A, np.uint8), offset=offsets[1])
        self._gate.gather(
            activation=given[0].address,
            row_bytes=row_bytes,
            rows=rows,
            decisions=given[1].address,
            out=out.address,
            stream=self._stream,
            encoding=encoding,
            channels=channels,
        )
        return self._taken(out, *given).reshape(rows, coded)

    def _put(self, content: npt.NDArray[Any], *, offset: int = 0) -> Fenced:
        return Fenced(self._driver, self._stream, content, offset=offset)

    def _taken(self, result: Fenced, *given: Fenced) -> Bytes:
        self._stream.synchronize()
        content = result.read()
        for each in (result, *given):
            each.free()
        return content


def record_of(exited: npt.NDArray[np.bool_]) -> Bytes:
    """Decisions as `decide` would write them for rows that leave or stay like this."""
    numbers = np.zeros((len(exited) + 1, 4), np.int32)
    numbers[0] = (~exited).sum(), -1, 0, 1
    numbers[1:, 0] = exited
    numbers[1:, 3] = np.where(exited, -1, np.cumsum(~exited) - 1)
    return numbers.reshape(-1).view(np.uint8)

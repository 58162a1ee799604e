"""The exit gate on the device: queues the kernels of `gate.cu` and reads what they decided.

    gate = Gate(driver)
    gate.decide(rule="entropy", temperature=1.0, logits=..., dtype="float32", rows=8, classes=10,
                thresholds=..., last=False, decisions=..., stream=stream)
    gate.gather(activation=..., row_bytes=4096, rows=8, decisions=..., out=..., stream=stream)
    ...                                        # the decisions cross to the host, then exactly the survivors' bytes
    exited, labels, confidences = read_decisions(record, 8, last=False)

The decisions of a batch are `decisions_bytes(rows)` bytes, a header and a record per row:

    survivors int32, first_bad int32 (row with logits that are not finite; -1: none), finite int32 (of its logits), classes int32
    exited int32, label int32, confidence float32, position int32 (place among the survivors, in the order of the input; -1: exited)

Both calls only queue work, and every parameter but the thresholds goes by value: a graph that captured them serves any thresholds.
The formula is that of `zpipe/executors/gate.py`; against it confidences differ by about 1e-6 at most (the device's exp and log,
another order of the sum), so a row that near its threshold may be decided differently.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.images import load_kernels
from zpipe.executors.gate import GateDecision, check_temperature, not_finite
from zpipe.model import GateRule

HEADER_BYTES = 16
ROW_BYTES = 16

#: Rows of a batch: what one block numbers (`gate.cu`).
MAX_ROWS = 1024

Encoding = Literal["none", "fp16", "int8"]

KERNELS = (
    "zpipe_decide_float32",
    "zpipe_decide_float16",
    "zpipe_gather_16",
    "zpipe_gather_4",
    "zpipe_gather_2",
    "zpipe_gather_1",
    "zpipe_gather_fp16_2",
    "zpipe_gather_fp16",
    "zpipe_gather_int8",
)

#: As `Rule` in gate.cu.
_RULES: dict[GateRule, int] = {"max-probability": 0, "entropy": 1, "margin": 2}
_LOGITS = {"float32": 4, "float16": 2}
#: So that the kernel can count past the last of them.
_MAX_CLASSES = 2**30
_WARP = 32
_MOST_WARPS = 32

#: Threads of a block that moves bytes, and words that each of them moves: enough in flight, and few blocks where none is needed.
_THREADS = 256
_WORDS_A_THREAD = 4

#: Values of a channel from which on a whole block quantises it and not one warp: few long channels would leave the device idle.
_LONG_CHANNEL = 2048

_Arguments = Sequence["ctypes._SimpleCData[Any]"]


def decisions_bytes(rows: int) -> int:
    """Of the record that `decide` writes for so many rows."""
    return HEADER_BYTES + ROW_BYTES * rows


def encoded_row_bytes(encoding: Encoding, row_bytes: int, *, channels: int = 1) -> int:
    """What a row of `row_bytes` takes after `Gate.gather`."""
    match encoding:
        case "none":
            return row_bytes
        case "fp16":
            return row_bytes // 2
        case "int8":
            return 2 * channels + row_bytes // 4


class Gate:
    """The gate's kernels on one device.

    Raises:
        ExecutorError: the driver takes none of the images shipped here.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._kernels = load_kernels(driver, KERNELS)

    def decide(
        self,
        *,
        rule: GateRule,
        temperature: float,
        logits: int,
        dtype: str,
        rows: int,
        classes: int,
        thresholds: int,
        last: bool,
        decisions: int,
        stream: Stream,
    ) -> None:
        """Queue the decisions for one batch.

        Args:
            rule: the confidence measure.
            temperature: the logits are divided by it.
            logits: address of `[rows, classes]`, contiguous.
            dtype: of the logits: float32 or float16.
            rows: 1..MAX_ROWS.
            classes: >= 1.
            thresholds: address of `[rows] float32`; not read at the last stage.
            last: whether every row exits.
            decisions: address of `decisions_bytes(rows)` bytes, written; a multiple of 16.
            stream: where it runs.

        Raises:
            ExecutorError: an argument is none of these.
        """
        check_temperature(temperature)
        _check_rows(rows)
        if dtype not in _LOGITS:
            raise ExecutorError(f"gate: found logits of {dtype}, expected float32 or float16; check the stage's engine")
        if not 1 <= classes <= _MAX_CLASSES:
            raise ExecutorError(f"gate: found {classes} classes, expected 1..{_MAX_CLASSES}; check the stage's exit head")
        _check_aligned("logits", logits, _LOGITS[dtype])
        _check_aligned("thresholds", thresholds, 4)
        _check_aligned("decisions", decisions, 16)
        self._launch(
            f"zpipe_decide_{dtype}",
            (1, 1),
            (_WARP * min(rows, _MOST_WARPS), 1),
            (
                ctypes.c_uint64(logits),
                ctypes.c_uint64(thresholds),
                ctypes.c_int32(rows),
                ctypes.c_int32(classes),
                ctypes.c_int32(_RULES[rule]),
                ctypes.c_float(temperature),
                ctypes.c_float(math.log(classes)),
                ctypes.c_int32(last),
                ctypes.c_uint64(decisions),
            ),
            stream,
        )

    def gather(
        self,
        *,
        activation: int,
        row_bytes: int,
        rows: int,
        decisions: int,
        out: int,
        stream: Stream,
        encoding: Encoding = "none",
        channels: int = 1,
    ) -> None:
        """Queue the copy of the survivors' rows into one run of bytes, in the order of the input.

        Args:
            activation: address of `rows` rows, one after the other; float32 if they are to be encoded.
            row_bytes: of one of them, >= 1.
            rows: of the batch, as `decide` was told.
            decisions: address of what `decide` wrote.
            out: address of room for `rows` rows of `encoded_row_bytes`; only the survivors' is written.
            stream: where it runs; the decisions are made on it or waited for.
            encoding: `fp16` and `int8` give the bytes that the codec of that name gives for these rows, bit for bit; but in `fp16`
                a signalling NaN stays one, while NumPy makes it quiet on processors that convert by themselves.
            channels: of a row, for `int8`: its shape's first number, 1 for a vector.

        Raises:
            ExecutorError: an argument is none of these.
        """
        _check_rows(rows)
        _check_aligned("decisions", decisions, 16)
        if row_bytes < 1:
            raise ExecutorError(f"gate: found rows of {row_bytes} bytes, expected 1 or more; check the stage's output")
        addresses = (ctypes.c_uint64(activation), ctypes.c_uint64(decisions), ctypes.c_uint64(out))
        if encoding == "none":
            word = next(size for size in (16, 4, 2, 1) if not (activation | out | row_bytes) % size)
            self._launch_words(f"zpipe_gather_{word}", addresses, row_bytes // word, rows, stream)
            return
        if row_bytes % 4:
            raise ExecutorError(f"gate: found rows of {row_bytes} bytes to encode, expected whole float32; leave them as they are")
        _check_aligned("activation", activation, 4)
        values = row_bytes // 4
        if encoding == "fp16":
            _check_aligned("out", out, 2)
            if (activation | row_bytes) % 8 or out % 4:
                self._launch_words("zpipe_gather_fp16", addresses, values, rows, stream)
            else:
                self._launch_words("zpipe_gather_fp16_2", addresses, values // 2, rows, stream)
            return
        if channels < 1 or values % channels or values >= 2**31:
            raise ExecutorError(
                f"gate: found {values} values in {channels} channels, expected as many in each; check the output's shape"
            )
        each = values // channels
        width = _THREADS if each >= _LONG_CHANNEL else _WARP
        height = min(_THREADS // width, channels)
        sizes = (ctypes.c_int32(channels), ctypes.c_int32(each))
        self._launch("zpipe_gather_int8", (-(-channels // height), rows), (width, height), (*addresses, *sizes), stream)

    def _launch_words(self, kernel: str, addresses: _Arguments, words: int, rows: int, stream: Stream) -> None:
        threads = min(_THREADS, -(-words // _WARP) * _WARP)
        blocks = -(-words // (threads * _WORDS_A_THREAD))
        self._launch(kernel, (blocks, rows), (threads, 1), (*addresses, ctypes.c_uint64(words)), stream)

    def _launch(self, kernel: str, grid: tuple[int, int], block: tuple[int, int], arguments: _Arguments, stream: Stream) -> None:
        self._driver.launch(self._kernels[kernel], grid=(*grid, 1), block=(*block, 1), arguments=arguments, stream=stream)


def read_decisions(record: bytes | npt.NDArray[np.uint8], rows: int, *, last: bool, first_row: int = 0) -> GateDecision:
    """What `decide` wrote, as plain values.

    Args:
        record: `decisions_bytes(rows)` bytes or more, on the host.
        rows: of the batch.
        last: as `decide` was told.
        first_row: where they begin in the caller's batch; an error counts from its first row.

    Raises:
        ExecutorError: at the last stage a row has logits that are not finite, as `evaluate_gate` raises it; or the record is not
            what the kernel writes.
    """
    numbers = np.frombuffer(record, np.int32, count=4 * (rows + 1)).reshape(rows + 1, 4)
    survivors, first_bad, finite, classes = numbers[0].tolist()
    exited = (numbers[1:, 0] != 0).tolist()
    if survivors != exited.count(False):
        found = f"{survivors} survivors in the header and {exited.count(False)} among {rows} rows"
        raise ExecutorError(f"gate: found {found}, expected as many; the record was read before the device had written it")
    if last and first_bad >= 0:
        raise ExecutorError(not_finite(first_row + first_bad, finite, classes))
    confidences = numbers.view(np.float32)[1:, 2].tolist()
    return GateDecision(exited, numbers[1:, 1].tolist(), confidences)


def _check_rows(rows: int) -> None:
    if not 1 <= rows <= MAX_ROWS:
        raise ExecutorError(f"gate: found {rows} rows, expected 1..{MAX_ROWS}; lower max_batch")


def _check_aligned(name: str, address: int, nbytes: int) -> None:
    if address % nbytes:
        raise ExecutorError(f"gate: found {name} at {address:#x}, expected a multiple of {nbytes}; allocate it by itself")

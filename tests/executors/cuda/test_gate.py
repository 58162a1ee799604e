"""The gate's host side: what it launches, what it refuses, and how it reads the decisions. No compiler and no GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.codecs.fp16 import Fp16
from zpipe.codecs.int8 import Int8
from zpipe.errors import ExecutorError
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.gate import (
    HEADER_BYTES,
    KERNELS,
    MAX_ROWS,
    ROW_BYTES,
    Gate,
    decisions_bytes,
    encoded_row_bytes,
    read_decisions,
)
from zpipe.executors.cuda.images import shipped_images

Arguments = Sequence["ctypes._SimpleCData[Any]"]


class Recorder:
    """A driver that launches nothing and remembers what it was asked to."""

    name, capability, version = "a recorder", (8, 6), 13000

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, int, int], tuple[int, int, int], Arguments]] = []

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, str]:
        return {name: name for name in kernels}

    def launch(
        self, function: str, *, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Arguments, stream: object
    ) -> None:
        self.launches.append((function, grid, block, arguments))


STREAM = cast("Stream", None)
DECIDE = {
    "rule": "margin",
    "temperature": 1.5,
    "logits": 0x1000,
    "dtype": "float32",
    "rows": 8,
    "classes": 10,
    "thresholds": 0x2000,
    "last": False,
    "decisions": 0x3000,
}
GATHER = {"activation": 0x1000, "row_bytes": 64, "rows": 8, "decisions": 0x2000, "out": 0x3000}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def gate(recorder: Recorder) -> Gate:
    return Gate(cast("Driver", recorder))


def decide(gate: Gate, **changed: Any) -> None:
    gate.decide(**{**DECIDE, **changed}, stream=STREAM)


def gather(gate: Gate, **changed: Any) -> None:
    gate.gather(**{**GATHER, **changed}, stream=STREAM)


# ---- what is launched ------------------------------------------------------------------------------


def test_one_block_decides_with_a_warp_for_each_row_up_to_32(gate: Gate, recorder: Recorder) -> None:
    for rows, threads in ((1, 32), (7, 224), (32, 1024), (33, 1024), (MAX_ROWS, 1024)):
        decide(gate, rows=rows)
        assert recorder.launches[-1][1:3] == ((1, 1, 1), (threads, 1, 1))


def test_parameters_go_by_value_and_thresholds_by_address(gate: Gate, recorder: Recorder) -> None:
    decide(gate, dtype="float16", last=True)
    function, _, _, arguments = recorder.launches[0]
    assert function == "zpipe_decide_float16"
    log_classes = float(np.float32(np.log(10)))
    assert [each.value for each in arguments] == [0x1000, 0x2000, 8, 10, 2, 1.5, log_classes, 1, 0x3000]


@given(st.integers(0, 64), st.integers(0, 64), st.integers(1, 300), st.integers(1, 9))
def test_bytes_move_in_the_largest_words_that_fit_everywhere(activation: int, out: int, row_bytes: int, rows: int) -> None:
    recorder = Recorder()
    gather(Gate(cast("Driver", recorder)), activation=activation, out=out, row_bytes=row_bytes, rows=rows)
    ((function, grid, block, arguments),) = recorder.launches
    word = int(function.rpartition("_")[2])
    fits = [size for size in (1, 2, 4, 16) if activation % size == out % size == row_bytes % size == 0]
    assert word == max(fits)
    assert arguments[3].value * word == row_bytes
    assert grid[1:] == (rows, 1)
    assert block[0] % 32 == 0
    assert block[1:] == (1, 1)


@pytest.mark.parametrize(
    ("row_bytes", "grid", "block"),
    [(16, 1, 32), (16 * 33, 1, 64), (16 * 256, 1, 256), (16 * 1024, 1, 256), (16 * 1025, 2, 256), (1 << 20, 64, 256)],
)
def test_a_long_row_takes_several_blocks(gate: Gate, recorder: Recorder, row_bytes: int, grid: int, block: int) -> None:
    gather(gate, row_bytes=row_bytes)
    assert recorder.launches[0][1:3] == ((grid, 8, 1), (block, 1, 1))


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [((10,), 1, (32, 1)), ((4, 16), 1, (32, 4)), ((9, 16), 2, (32, 8)), ((3, 2047), 1, (32, 3)), ((3, 2048), 3, (256, 1))],
)
def test_int8_gives_short_channels_a_warp_and_long_ones_a_block(
    gate: Gate, recorder: Recorder, shape: tuple[int, ...], grid: int, block: tuple[int, int]
) -> None:
    channels = shape[0] if len(shape) > 1 else 1
    gather(gate, encoding="int8", row_bytes=4 * int(np.prod(shape)), channels=channels)
    function, *sizes, arguments = recorder.launches[0]
    assert function == "zpipe_gather_int8"
    assert sizes == [(grid, 8, 1), (*block, 1)]
    assert [each.value for each in arguments[3:]] == [channels, int(np.prod(shape)) // channels]


def test_every_kernel_is_launched_with_the_parameters_that_its_code_declares(gate: Gate, recorder: Recorder) -> None:
    decide(gate)
    decide(gate, dtype="float16")
    for address in (0, 4, 2, 1):
        gather(gate, activation=address)
    gather(gate, encoding="fp16")
    gather(gate, encoding="fp16", row_bytes=12)
    gather(gate, encoding="int8")
    (text,) = (image.code().decode() for image in shipped_images() if image.ptx)
    declared = {
        kernel: [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", parameters)]
        for kernel, parameters in re.findall(r"\.entry (\w+)\((.*?)\)", text, re.DOTALL)
    }
    launched = {function: [ctypes.sizeof(each) for each in arguments] for function, _, _, arguments in recorder.launches}
    assert launched == declared
    assert set(launched) == set(KERNELS)


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"rows": 0}, "found 0 rows, expected 1..1024"),
        ({"rows": MAX_ROWS + 1}, "found 1025 rows, expected 1..1024"),
        ({"classes": 0}, "found 0 classes, expected 1..1073741824"),
        ({"classes": 2**31}, "found 2147483648 classes"),
        ({"dtype": "int8"}, "found logits of int8, expected float32 or float16"),
        ({"temperature": 0.0}, "found temperature 0.0"),
        ({"temperature": float("nan")}, "found temperature nan"),
        ({"logits": 0x1002}, "found logits at 0x1002, expected a multiple of 4"),
        ({"thresholds": 0x1002}, "found thresholds at 0x1002, expected a multiple of 4"),
        ({"decisions": 0x1008}, "found decisions at 0x1008, expected a multiple of 16"),
    ],
)
def test_what_decide_cannot_do_is_refused_before_the_launch(
    gate: Gate, recorder: Recorder, changed: dict[str, Any], found: str
) -> None:
    with pytest.raises(ExecutorError, match=re.escape(found)):
        decide(gate, **changed)
    assert recorder.launches == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"rows": 0}, "found 0 rows"),
        ({"rows": MAX_ROWS + 1}, "found 1025 rows"),
        ({"row_bytes": 0}, "found rows of 0 bytes"),
        ({"decisions": 8}, "found decisions at 0x8"),
        ({"encoding": "fp16", "row_bytes": 6}, "found rows of 6 bytes to encode"),
        ({"encoding": "int8", "row_bytes": 6}, "found rows of 6 bytes to encode"),
        ({"encoding": "fp16", "activation": 2}, "found activation at 0x2"),
        ({"encoding": "int8", "activation": 2}, "found activation at 0x2"),
        ({"encoding": "fp16", "out": 1}, "found out at 0x1"),
        ({"encoding": "int8", "channels": 3}, "found 16 values in 3 channels"),
        ({"encoding": "int8", "channels": 0}, "found 16 values in 0 channels"),
    ],
)
def test_what_gather_cannot_do_is_refused_before_the_launch(
    gate: Gate, recorder: Recorder, changed: dict[str, Any], found: str
) -> None:
    with pytest.raises(ExecutorError, match=re.escape(found)):
        gather(gate, **changed)
    assert recorder.launches == []


# ---- sizes and reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (6, 4, 4), (1, 5)])
def test_encoded_rows_are_as_long_as_the_codecs(shape: tuple[int, ...]) -> None:
    nbytes, channels = 4 * int(np.prod(shape)), shape[0] if len(shape) > 1 else 1
    assert encoded_row_bytes("none", nbytes) == nbytes
    assert encoded_row_bytes("fp16", nbytes) == Fp16(shape).bytes
    assert encoded_row_bytes("int8", nbytes, channels=channels) == Int8(shape).bytes


def record(header: tuple[int, int, int, int], *rows: tuple[int, int, float, int]) -> bytes:
    numbers = np.array([header, *rows], np.int32)
    numbers.view(np.float32)[1:, 2] = [row[2] for row in rows]
    return numbers.tobytes()


def test_decisions_are_plain_values() -> None:
    read = read_decisions(record((1, -1, 0, 9), (1, 3, 0.75, -1), (0, 8, 0.25, 0)), 2, last=False)
    assert read == ([True, False], [3, 8], [0.75, 0.25])
    assert {type(value) for values in read for value in values} == {bool, int, float}


def test_a_larger_buffer_is_read_as_far_as_the_batch_goes() -> None:
    said = record((1, -1, 0, 9), (1, 3, 0.75, -1), (0, 8, 0.25, 0))
    assert len(said) == decisions_bytes(2) == HEADER_BYTES + 2 * ROW_BYTES
    pinned = np.frombuffer(said + b"\xff" * 64, np.uint8)
    assert read_decisions(pinned, 2, last=False) == read_decisions(said, 2, last=False)


def test_a_bad_row_is_an_error_at_the_last_stage_only() -> None:
    middle = record((2, 1, 4, 9), (0, 3, 0.75, 0), (0, 8, 0.0, 1))
    assert read_decisions(middle, 2, last=False).confidences == [0.75, 0.0]
    last = record((0, 1, 4, 9), (1, 3, 0.75, -1), (1, 8, 0.0, -1))
    with pytest.raises(ExecutorError, match="gate: found 4 of 9 logits finite in row 1, expected all"):
        read_decisions(last, 2, last=True)


def test_a_record_that_was_never_written_is_noticed() -> None:
    with pytest.raises(ExecutorError, match="found 1515870810 survivors in the header and 0 among 3 rows"):
        read_decisions(b"\x5a" * decisions_bytes(3), 3, last=False)

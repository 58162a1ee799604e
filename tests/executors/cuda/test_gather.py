"""The gather kernels against NumPy's indexing, and their encodings against the codecs, bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.cuda.ground import Bytes, Ground, record_of
from zpipe.codecs.fp16 import Fp16
from zpipe.codecs.int8 import Int8
from zpipe.executors.cuda.gate import MAX_ROWS, Encoding

UNTOUCHED = 0x5A

#: Bytes of a row that take every word, one block and several, whole words and what remains of them.
ROW_BYTES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 48, 130, 1000, 4096, 5008, 70_000)

Floats = npt.NDArray[np.float32]


def some_exits(rng: np.random.Generator, rows: int) -> npt.NDArray[np.bool_]:
    """Of some rows, never all."""
    exited: npt.NDArray[np.bool_] = rng.random(rows) < rng.choice([0.1, 0.5, 0.9])
    exited[rng.integers(rows)] = False
    return exited


def check(got: Bytes, expected: Bytes) -> None:
    """The survivors' rows, and nothing written behind them."""
    np.testing.assert_array_equal(got[: len(expected)], expected)
    assert (got[len(expected) :] == UNTOUCHED).all()


@pytest.mark.parametrize("row_bytes", ROW_BYTES)
def test_survivors_lie_one_after_the_other_in_the_order_of_the_input(ground: Ground, row_bytes: int) -> None:
    rng = np.random.default_rng(row_bytes)
    for rows in (1, 5, 33):
        exited = some_exits(rng, rows)
        activation = rng.integers(0, 256, size=(rows, row_bytes), dtype=np.uint8)
        check(ground.gather(activation, record_of(exited)), activation[~exited])


@pytest.mark.parametrize("row_bytes", [3, 16, 64])
@pytest.mark.parametrize("offset", [0, 1, 2, 4, 8, 12])
def test_any_address_will_do(ground: Ground, offset: int, row_bytes: int) -> None:
    rng = np.random.default_rng(offset)
    activation, exited = rng.integers(0, 256, size=(9, row_bytes), dtype=np.uint8), some_exits(rng, 9)
    for offsets in ((offset, 0), (0, offset)):
        check(ground.gather(activation, record_of(exited), offsets=offsets), activation[~exited])


@pytest.mark.parametrize("encoding", ["none", "fp16", "int8"])
def test_all_rows_may_leave_or_none(ground: Ground, encoding: Encoding) -> None:
    activation = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    assert (ground.gather(activation, record_of(np.ones(6, np.bool_)), encoding=encoding) == UNTOUCHED).all()
    assert (ground.gather(activation, record_of(np.zeros(6, np.bool_)), encoding=encoding) != UNTOUCHED).any(axis=1).all()


def test_the_largest_batch_is_gathered(ground: Ground) -> None:
    rng = np.random.default_rng(2)
    activation, exited = rng.integers(0, 256, size=(MAX_ROWS, 20), dtype=np.uint8), some_exits(rng, MAX_ROWS)
    check(ground.gather(activation, record_of(exited)), activation[~exited])


# ---- fp16 ------------------------------------------------------------------------------------------


def halved(values: Floats) -> Bytes:
    out = np.empty((len(values), 2 * values[0].size), np.uint8)
    Fp16(values.shape[1:]).encode(values, out)
    return out


def around_every_half() -> Floats:
    """Every half's value, the middle to the next one, and the floats beside both: wherever rounding can turn."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves + np.append(halves[1:], np.float32(65536))) / 2
    points = np.concatenate((halves, middles))
    return np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))])


@pytest.mark.parametrize("row_values", [96, 93])
def test_fp16_rounds_like_the_codec_wherever_rounding_can_turn(ground: Ground, row_values: int) -> None:
    points = around_every_half()
    both = np.concatenate((points, -points))
    values = np.resize(both, (-(-len(both) // row_values), row_values))
    for batch in np.array_split(values, -(-len(values) // MAX_ROWS)):
        got = ground.gather(batch, record_of(np.zeros(len(batch), np.bool_)), encoding="fp16")
        np.testing.assert_array_equal(got, halved(batch))


def test_fp16_gives_the_codecs_bytes_for_any_bits(ground: Ground) -> None:
    rng = np.random.default_rng(4)
    bits = rng.integers(0, 2**32, size=(60, 500), dtype=np.uint32)
    bits[0, :6] = 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x80000001
    is_nan = bits & 0x7FFFFFFF > 0x7F800000
    bits[is_nan] |= 0x00400000  # a signalling NaN becomes a quiet one on some processors
    values, exited = bits.view(np.float32), some_exits(rng, 60)
    exited[0] = False
    check(ground.gather(values, record_of(exited), encoding="fp16"), halved(values[~exited]))


@pytest.mark.parametrize(
    ("row_values", "offsets"), [(1, (0, 0)), (7, (0, 0)), (8, (4, 0)), (8, (0, 2)), (8, (0, 0)), (5000, (0, 0))]
)
def test_fp16_of_any_row_at_any_address(ground: Ground, row_values: int, offsets: tuple[int, int]) -> None:
    rng = np.random.default_rng(row_values)
    values, exited = rng.normal(size=(11, row_values)).astype(np.float32), some_exits(rng, 11)
    check(ground.gather(values, record_of(exited), encoding="fp16", offsets=offsets), halved(values[~exited]))


# ---- int8 ------------------------------------------------------------------------------------------

#: (channels, values of each): a vector, one warp a channel, a block a channel; channels that fill their last block, or do not.
SHAPES = ((1, 1), (1, 7), (1, 500), (1, 2048), (1, 5000), (3, 2500), (5, 33), (8, 16), (9, 16), (40, 9), (320, 16), (2, 4097))


def quantised(values: Floats) -> Bytes:
    transform = Int8(values.shape[1:])
    out = np.empty((len(values), transform.bytes), np.uint8)
    transform.encode(values, out)
    return out


def int8(ground: Ground, values: Floats, exited: npt.NDArray[np.bool_], *, offsets: tuple[int, int] = (0, 0)) -> None:
    got = ground.gather(values, record_of(exited), encoding="int8", channels=values.shape[1], offsets=offsets)
    check(got, quantised(values[~exited]))


@pytest.mark.parametrize(("channels", "each"), SHAPES)
def test_int8_gives_the_codecs_bytes(ground: Ground, channels: int, each: int) -> None:
    rng = np.random.default_rng([channels, each])
    magnitudes = 10.0 ** rng.uniform(-44, 38, size=(7, channels, 1))
    values = (rng.normal(size=(7, channels, each)) * magnitudes).astype(np.float32)
    values[1] = np.maximum(values[1], 0)
    values[2, ::2] = 0.0
    values[3, ::3] = -0.0
    int8(ground, values, some_exits(rng, 7))
    int8(ground, values, np.zeros(7, np.bool_), offsets=(4, 1))


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("each", [16, 3000])
def test_int8_of_what_is_not_finite_is_the_codecs(ground: Ground, bits: int, each: int) -> None:
    values = np.random.default_rng(1).normal(size=(3, 4, each)).astype(np.float32)
    for place in (0, each // 2, each - 1):
        values.view(np.uint32)[1, place % 4, place] = bits
    int8(ground, values, np.zeros(3, np.bool_))


def test_int8_peaks_are_found_at_either_end_and_of_either_sign(ground: Ground) -> None:
    for each in (5, 64, 2049):
        values = np.full((4, 1, each), 0.5, np.float32)
        values[0, 0, 0], values[1, 0, -1], values[2, 0, 0], values[3, 0, -1] = 3.0, 3.0, -3.0, -3.0
        int8(ground, values, np.zeros(4, np.bool_))


def test_int8_rounds_halves_to_even(ground: Ground) -> None:
    # A peak of 127 makes the scale 1, so these are the steps themselves.
    values = np.array([[[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.0, 0.49999997]]], np.float32)
    got = ground.gather(values, record_of(np.zeros(1, np.bool_)), encoding="int8")
    assert got[0, 2:].view(np.int8).tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -127, 0]


def test_int8_takes_a_vector_as_one_channel(ground: Ground) -> None:
    values = np.random.default_rng(8).normal(size=(5, 300)).astype(np.float32)
    got = ground.gather(values, record_of(np.zeros(5, np.bool_)), encoding="int8")
    np.testing.assert_array_equal(got, quantised(values))

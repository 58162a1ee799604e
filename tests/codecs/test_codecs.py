"""The rules of `zpipe.codecs`, for every codec."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.codecs.build import CUT, IMAGE, batch, weights
from tests.executors.tiny import tiny_bundle
from tests.properties import examples
from zpipe.codecs import Codec, make_codec, make_codecs
from zpipe.errors import ConfigError, WireError
from zpipe.model import CODECS, TensorSpec

LOSSY = ("fp16", "int8", "int8+zstd", "bottleneck")
SPECS = (CUT, TensorSpec("float16", (6, 4, 4)), TensorSpec("float32", (6, 16)), TensorSpec("float32", (40,)), IMAGE)


def codec_for(name: str, spec: TensorSpec = CUT, prefix: int = 0) -> Codec:
    return make_codec(name, spec, weights=weights(spec.shape[0]) if len(spec.shape) > 1 else None, prefix_bytes=prefix)


def through(codec: Codec, values: Any) -> Any:
    return codec.decode(codec.encode(values), len(values))


@pytest.mark.parametrize("name", CODECS)
def test_what_enters_stage_0_is_never_coded_with_loss_though_it_be_floats(name: str) -> None:
    bundle = tiny_bundle()
    first = replace(bundle.stages[0], input=TensorSpec("float32", (6, 4, 4)))
    codec = make_codecs(replace(bundle, stages=(first, *bundle.stages[1:])), [name])[name, 0] if name != "bottleneck" else None
    codec = codec or make_codec(name, first.input, weights=weights(6), lossless=True)
    sent = batch(first.input, 3)
    np.testing.assert_array_equal(through(codec, sent), sent)
    assert codec.name == ("int8+zstd" if name == "int8+zstd" else "none")


# ---- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 4, 5])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.dtype}{list(spec.shape)}")
@pytest.mark.parametrize("name", CODECS)
def test_a_batch_comes_back_in_form_with_its_prefix_and_its_size_on_the_wire_is_known(
    name: str, spec: TensorSpec, prefix: int
) -> None:
    codec, sent = codec_for(name, spec, prefix), batch(spec, 3, prefix=prefix)
    coded = codec.encode(sent)
    got = codec.decode(coded, 3)
    assert (got.shape, got.dtype) == (sent.shape, sent.dtype)
    if prefix:
        np.testing.assert_array_equal(got[:, :prefix], sent[:, :prefix])
    if codec.packed:
        assert coded.ndim == 1
        assert 0 < coded.nbytes <= 3 * codec.row_bytes
        assert codec.typical_row_bytes < codec.row_bytes
    else:
        assert coded.nbytes == 3 * codec.row_bytes == 3 * codec.typical_row_bytes
    if codec.name != "none":
        assert coded.dtype == np.uint8


@examples(40)
@given(st.sampled_from(LOSSY), st.lists(st.integers(0, 11), min_size=1, max_size=12), st.sampled_from([0, 4]))
def test_what_a_row_decodes_to_does_not_depend_on_its_batch(name: str, rows: list[int], prefix: int) -> None:
    codec, samples = codec_for(name, prefix=prefix), batch(CUT, 12, prefix=prefix)
    alone = np.concatenate([through(codec, samples[row : row + 1]) for row in range(12)])
    np.testing.assert_array_equal(through(codec, samples[rows]), alone[rows])


@pytest.mark.parametrize("name", CODECS)
def test_an_image_is_never_coded_with_loss(name: str) -> None:
    image = batch(IMAGE, 2)
    codec = codec_for(name, IMAGE)
    np.testing.assert_array_equal(through(codec, image), image)
    assert codec.name == ("int8+zstd" if name == "int8+zstd" else "none")


def test_without_a_codec_nothing_is_copied() -> None:
    codec, values = codec_for("none"), batch(CUT, 2)
    assert codec.encode(values) is values
    assert np.shares_memory(codec.decode(values, 2), values)


def test_half_precision_of_half_precision_is_no_codec() -> None:
    assert codec_for("fp16", TensorSpec("float16", (4, 2, 2))).name == "none"


def test_a_cut_without_an_autoencoder_goes_as_int8() -> None:
    values = batch(CUT, 2)
    np.testing.assert_array_equal(through(make_codec("bottleneck", CUT), values), through(codec_for("int8"), values))


@pytest.mark.parametrize("name", LOSSY)
def test_rows_that_lie_apart_in_memory_are_coded_alike(name: str) -> None:
    codec, values = codec_for(name), batch(CUT, 6)
    apart = values[::2]
    assert not apart.flags.c_contiguous
    np.testing.assert_array_equal(through(codec, apart), through(codec, apart.copy()))


@pytest.mark.parametrize("name", LOSSY)
def test_a_read_only_payload_is_decoded(name: str) -> None:
    codec, values = codec_for(name, prefix=4), batch(CUT, 2, prefix=4)
    payload = codec.encode(values)
    frozen = np.frombuffer(payload.tobytes(), np.uint8).reshape(payload.shape)
    np.testing.assert_array_equal(codec.decode(frozen, 2), codec.decode(payload, 2))


# ---- how exact ---------------------------------------------------------------------------------


def test_half_precision_is_exact_to_eleven_bits_and_overflows_to_infinity() -> None:
    values = np.array([[1.0, 1.0 + 2**-11, -3.14159, 65504.0, 1e6, -1e6]], np.float32).reshape(1, 6, 1, 1)
    got = through(codec_for("fp16", TensorSpec("float32", (6, 1, 1))), values).ravel()
    np.testing.assert_allclose(got[:4], values.ravel()[:4], rtol=2**-11)
    assert got[4:].tolist() == [np.inf, -np.inf]


@examples(60)
@given(st.integers(0, 2**31), st.floats(-30.0, 30.0))
def test_int8_errs_by_at_most_half_a_step_of_its_channel(seed: int, magnitude: float) -> None:
    values = batch(CUT, 3, seed=seed) * np.float32(10.0**magnitude)
    error = np.abs(through(codec_for("int8"), values) - values)
    # A step is the channel's peak / 127, and up to 1/128 more: a bfloat16 has 8 bits.
    steps = np.abs(values).max((2, 3), keepdims=True) / 127 * (1 + 1 / 128)
    assert (error <= steps * 0.5001).all()


def test_int8_keeps_zeros_and_both_ends_of_a_channel() -> None:
    values = np.zeros((1, 6, 4, 4), np.float32)
    values[0, 1, 0, :2] = 127.0, -127.0
    np.testing.assert_array_equal(through(codec_for("int8"), values), values)


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_not_a_number_stays_so_and_harms_no_other_row(name: str) -> None:
    values = batch(CUT, 3)
    values[1, 2, 0, 0] = np.nan
    codec = codec_for(name)
    got = through(codec, values)
    assert np.isnan(got[1]).any()
    np.testing.assert_array_equal(got[[0, 2]], through(codec, values[[0, 2]]))


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@pytest.mark.parametrize("place", [0, 15])
def test_int8_codes_every_nan_as_the_same_one(bits: int, place: int) -> None:
    # 0x7fffffff is what a GPU's arithmetic gives.
    values = np.ones((1, 6, 16), np.float32)
    values.view(np.uint32)[0, 2, place] = bits
    codec = codec_for("int8", TensorSpec("float32", (6, 16)))
    payload = codec.encode(values)
    assert payload[0, 4:6].tolist() == [0xC0, 0x7F]
    assert np.isnan(codec.decode(payload, 1)[0, 2]).all()


def test_int8_gives_channels_of_zeros_the_scale_zero() -> None:
    values = np.zeros((1, 6, 4, 4), np.float32)
    values[0, ::2] = -0.0
    assert not codec_for("int8").encode(values).any()


def test_the_bottleneck_is_two_matrix_products_around_int8() -> None:
    parts, values = weights(), batch(CUT, 4)
    small = (
        np.einsum("sc,rchw->rshw", parts.encode.astype(np.float64), values)  # float64: a reference of its own
        + parts.encode_bias[:, None, None]
    )
    steps = np.abs(small).max((2, 3), keepdims=True) / 127 * (1 + 1 / 128)
    exact = np.einsum("cs,rshw->rchw", parts.decode, small) + parts.decode_bias[:, None, None]
    worst = np.einsum("cs,rshw->rchw", np.abs(parts.decode), np.broadcast_to(steps / 2, small.shape))
    assert (np.abs(through(codec_for("bottleneck"), values) - exact) <= worst * 1.001 + 1e-5).all()
    assert codec_for("bottleneck").row_bytes == 2 * (16 + 2)


# ---- compression, and what a peer may send -----------------------------------------------------


def test_zstd_changes_no_value_of_int8() -> None:
    values = batch(CUT, 5)
    np.testing.assert_array_equal(through(codec_for("int8+zstd"), values), through(codec_for("int8"), values))


def test_what_compresses_is_sent_compressed_and_what_does_not_as_it_is() -> None:
    codec = codec_for("int8+zstd", IMAGE)
    flat, noise = np.zeros((8, *IMAGE.shape), np.uint8), np.random.default_rng(1).integers(0, 256, (8, *IMAGE.shape))
    assert codec.encode(flat).nbytes < 100
    assert codec.encode(noise.astype(np.uint8)).nbytes == 8 * codec.row_bytes
    np.testing.assert_array_equal(through(codec, noise.astype(np.uint8)), noise)


def refuse(payload: Any, rows: int = 8) -> str:
    with pytest.raises(WireError) as caught:
        codec_for("int8+zstd", IMAGE).decode(np.frombuffer(bytes(payload), np.uint8), rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed() -> bytes:
    return bytes(codec_for("int8+zstd", IMAGE).encode(batch(IMAGE, 8)).tobytes())


def test_every_truncated_or_extended_frame_is_refused() -> None:
    whole = packed()
    for size in range(1, len(whole)):
        refuse(whole[:size])
    refuse(whole + b"\0")
    refuse(whole + whole)


def test_a_frame_with_any_bit_flipped_is_refused_or_gives_a_batch() -> None:
    whole, codec = packed(), codec_for("int8+zstd", IMAGE)
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert codec.decode(np.frombuffer(bytes(damaged), np.uint8), 8).shape == (8, *IMAGE.shape)
        except WireError:
            pass
    np.testing.assert_array_equal(codec.decode(np.frombuffer(whole, np.uint8), 8), batch(IMAGE, 8))  # none the worse for it


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    refuse(noise)


def test_a_frame_that_claims_more_or_less_than_its_batch_is_refused_before_it_is_unpacked() -> None:
    size = 8 * IMAGE.bytes
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    assert len(bomb) < size * 4
    assert f"claims {2**26} bytes, expected {size}" in refuse(bomb)
    assert "expected" in refuse(zstandard.ZstdCompressor().compress(bytes(size - 1)))
    unsaid = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26))
    assert re.search("claims -?[0-9]+ bytes", refuse(unsaid))


def test_a_frame_that_holds_more_than_it_claims_is_refused() -> None:
    size = 8 * IMAGE.bytes
    honest = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(bytes(2 * size)))
    claim = (2 * size - 256).to_bytes(2, "little")  # a content size of two bytes is stored less 256
    at = bytes(honest).index(claim)
    honest[at : at + 2] = (size - 256).to_bytes(2, "little")
    assert zstandard.get_frame_parameters(bytes(honest)).content_size == size
    refuse(honest)


def test_a_skippable_frame_is_refused() -> None:
    size = 8 * IMAGE.bytes
    refuse(b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(20))


@examples(60)
@given(st.sampled_from(["fp16", "int8", "bottleneck"]), st.sampled_from(SPECS[:3]), st.data())
def test_any_bytes_of_the_right_size_decode_without_a_complaint(name: str, spec: TensorSpec, data: st.DataObject) -> None:
    codec = codec_for(name, spec)
    noise = data.draw(st.randoms(use_true_random=False)).randbytes(2 * codec.row_bytes)
    payload = np.frombuffer(noise, np.uint8).reshape(2, codec.row_bytes)
    if codec.name == "none":
        payload = payload.view(spec.dtype).reshape(2, *spec.shape)
    got = codec.decode(payload, 2)
    assert got.shape == (2, *spec.shape)
    assert got.dtype == np.dtype(spec.dtype)


def test_an_unknown_name_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="found 'zip', expected one of none, fp16, int8, int8\\+zstd, bottleneck"):
        make_codec("zip", CUT)

"""Whatever else arrives is refused by a WireError of one line, and by nothing else."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from tests.properties import examples
from tests.wire.samples import LIMITS, NOW, SAMPLES, packed_batch, task_batch
from zpipe.errors import WireError
from zpipe.model import TensorSpec
from zpipe.wire import Stats, TaskBatch, WireLimits, decode, encode

NAN = math.nan


def seal(body: bytes, payload: bytes | None = None) -> list[bytes]:
    """Frames with a right checksum around any body: a peer that knows the format and means harm."""
    if payload is None:
        return [body + xxh3_64_digest(body)]
    return [body + xxh3_64_digest(payload, xxh3_64_intdigest(body)), payload]


def fields_of(name: str) -> list[Any]:
    """The header of a sample message, free to change."""
    header: list[Any] = msgpack.unpackb(bytes(encode(SAMPLES[name], now=NOW)[0])[:-8])
    return header


def refuse(frames: list[Any], match: str | None = None) -> None:
    with pytest.raises(WireError, match=match) as caught:
        decode(frames, limits=LIMITS, now=NOW)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def changed(name: str, path: tuple[int, ...], value: object) -> list[bytes]:
    """The frames of a sample with one header field replaced, sealed anew."""
    header = fields_of(name)
    place = header
    for index in path[:-1]:
        place = place[index]
    place[path[-1]] = value
    payload = bytes(encode(SAMPLES[name], now=NOW)[1]) if type(SAMPLES[name]) is TaskBatch else None
    return seal(msgpack.packb(header), payload)


# ---- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_bit_is_found(name: str) -> None:
    frames = [bytes(frame) for frame in encode(SAMPLES[name], now=NOW)]
    for index, frame in enumerate(frames):
        for bit in range(len(frame) * 8):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            refuse([*frames[:index], bytes(damaged), *frames[index + 1 :]])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_and_extension_is_found(name: str) -> None:
    frames = [bytes(frame) for frame in encode(SAMPLES[name], now=NOW)]
    for index, frame in enumerate(frames):
        for other in [frame[:size] for size in range(len(frame))] + [frame + b"\0", b"\0" + frame]:
            refuse([*frames[:index], other, *frames[index + 1 :]])


def test_frames_of_two_messages_do_not_mix() -> None:
    first, second = encode(task_batch(1), now=NOW), encode(task_batch(1), now=NOW)
    other = bytes(24)
    assert type(decode([first[0], bytes(second[1])], limits=LIMITS, now=NOW)) is TaskBatch
    refuse([first[0], other], "checksum")


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_noise_is_refused(frames: list[bytes]) -> None:
    refuse(frames)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda children: st.lists(children, max_size=16) | st.dictionaries(st.integers(0, 9), children, max_size=3),
    max_leaves=20,
)


@examples(300)
@given(st.integers(0, 14), st.lists(values, max_size=12), st.none() | st.binary(max_size=40))
@example(7, [0, []], None)
def test_well_sealed_nonsense_is_refused_or_is_a_message(kind: int, rest: list[Any], payload: bytes | None) -> None:
    try:
        message = decode(seal(msgpack.packb([1, kind, *rest]), payload), limits=LIMITS, now=NOW)
    except WireError:
        return
    assert type(message) in map(type, SAMPLES.values())


@examples(300)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_sample_with_any_field_replaced_is_refused_or_is_a_message(name: str, data: st.DataObject) -> None:
    header = fields_of(name)
    path = [data.draw(st.integers(1, len(header) - 1))]
    place = header[path[0]]
    while isinstance(place, list) and place and data.draw(st.booleans()):
        path.append(data.draw(st.integers(0, len(place) - 1)))
        place = place[path[-1]]
    try:
        message = decode(changed(name, tuple(path), data.draw(values)), limits=LIMITS, now=NOW)
    except WireError:
        return
    assert type(message) in map(type, SAMPLES.values())


@pytest.mark.parametrize("depth", [1, 300, 900, 1000, 1020, 5000])
def test_arrays_nested_deeper_than_python_prints_are_refused(depth: int) -> None:
    marker = msgpack.packb(0xFEED)
    body = msgpack.packb([1, 4, 3, 4, 100, [0xFEED], 108, [], 0.0, []])
    refuse(seal(body.replace(marker, b"\x91" * depth + b"\x90")))


# ---- each rule by name -------------------------------------------------------------------------

BIG = 2**63
#: A sample with rows that waited for lower classes.
AFTER = "TaskBatch, after lower classes"

CASES: dict[str, tuple[str, tuple[int, ...], object, str]] = {
    "another version": ("Bye", (0,), 2, "wire version 2, expected 1"),
    "unknown kind": ("Bye", (1,), 13, "message kind 13"),
    "negative kind": ("Bye", (1,), -1, "message kind -1"),
    "kind of the wrong type": ("Bye", (1,), True, "not an array of"),
    "negative sender": ("Lost", (2,), -2, "sender -2"),
    "sender beyond any rank": ("Lost", (2,), 65536, "sender 65536"),
    "observer that sends credit": ("CreditUpdate", (2,), -1, "from an observer"),
    "observer's rank without its role": ("Hello", (2,), -1, "without a rank"),
    "role too long to print": ("Hello", (3,), "\0" * 1024, "role '"),
    "codec too long to print": ("TaskBatch", (4,), "\0" * 1024, "stage 1 in codec '"),
    "unknown role": ("Hello", (3,), "boss", "role 'boss'"),
    "invitation that is no text": ("Hello", (9,), b'{"shared_memory":1}', "shared_memory 1, expected text"),
    "invitation too long": ("Hello", (9,), b'{"shared_memory":"%s"}' % (b"1" * 241), "expected text of at most 240"),
    "session of the wrong type": ("Hello", (4,), 1.0, r"HELLO: header of \(int, int, int, str, float"),
    "bool for an int": ("Hello", (5,), True, "HELLO: header of"),
    "document of the wrong type": ("Stats", (4,), b"[]", "expected an object"),
    "document that is no JSON": ("Stats", (4,), b"{'a'}", "not JSON"),
    "document that is no UTF-8": ("Stats", (4,), b'{"\xff":1}', "not JSON"),
    "document with NaN": ("Stats", (4,), b'{"a":NaN}', "NaN"),
    "document with infinity": ("Stats", (4,), b'{"a":[1e999]}', "out of range"),
    "document too deep": ("Stats", (4,), b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", "deeper than 16"),
    "document as a nested bomb": ("Stats", (4,), b'{"a":' + b"[" * 49000, "not JSON"),
    "document too long": ("Stats", (4,), b'{"a":"' + b"x" * 49152 + b'"}', "max_bin_len"),
    "text too long": ("Bye", (3,), "x" * 1025, "max_str_len"),
    "unknown stage": ("TaskBatch", (5,), 9, "stage 9 in codec 'none'"),
    "unknown codec": ("TaskBatch", (4,), "zip", "stage 1 in codec 'zip'"),
    "no rows": ("TaskBatch", (6,), [], "0 rows, expected 1 to 8"),
    "too many rows": ("TaskBatch", (6,), [[]] * 9, "9 rows, expected 1 to 8"),
    "rows that do not fit the buffer": ("TaskBatch", (6,), [[]], "buffer of 48 bytes, expected 1 x 24"),
    "stage that does not fit the buffer": ("TaskBatch", (5,), 0, "buffer of 48 bytes, expected 2 x 12"),
    "unpacked codec for a buffer of another size": ("TaskBatch, packed", (4,), "int8", "buffer of 5 bytes, expected 2 x 14"),
    "packed codec of another stage": ("TaskBatch, packed", (5,), 2, r"stage 2 in codec 'int8\+zstd'"),
    "negative epoch": ("TaskBatch", (3,), -1, "epoch -1"),
    "row of the wrong type": ("TaskBatch", (6, 0), 5, "row 5 has not the types"),
    "row of the wrong arity": ("TaskBatch", (6, 0), [1, 2], "has not the types"),
    "negative link number": ("TaskBatch", (6, 0, 0), -1, "out of range"),
    "source beyond any rank": ("TaskBatch", (6, 0, 1), 65536, "out of range"),
    "session beyond int64": ("TaskBatch", (6, 0, 2), BIG, "out of range"),
    "sample number as float": ("TaskBatch", (6, 0, 3), 7.0, "has not the types"),
    "attempt 0": ("TaskBatch", (6, 0, 4), 0, "out of range"),
    "negative part": ("TaskBatch", (6, 1, 5), -1, "out of range"),
    "budget below the sign for none": ("TaskBatch", (6, 0, 8), -2, "out of range"),
    "budget of centuries": ("TaskBatch", (6, 0, 8), 2**53 + 1, "out of range"),
    "negative age": ("TaskBatch", (6, 0, 9), -1, "out of range"),
    "NaN weight": ("TaskBatch", (6, 0, 10), NAN, "out of range"),
    "infinite weight": ("TaskBatch", (6, 0, 10), math.inf, "out of range"),
    "negative queueing time": ("TaskBatch", (6, 0, 11), -0.5, "out of range"),
    "NaN service time": ("TaskBatch", (6, 0, 12), NAN, "out of range"),
    "NaN threshold": ("TaskBatch", (6, 0, 13), [0.5, NAN], "thresholds"),
    "negative threshold": ("TaskBatch", (6, 0, 13), [-0.1], "thresholds"),
    "threshold as int": ("TaskBatch", (6, 0, 13), [1], "thresholds"),
    "threshold of a later row as int": ("TaskBatch", (6, 1, 13), [1], "thresholds"),
    "more thresholds than stages": ("TaskBatch", (6, 0, 13), [0.1] * 4, "out of range"),
    "held number at or above expected": ("CreditUpdate", (5,), [0], "expected distances"),
    "held number below zero": ("CreditUpdate", (5,), [101], "expected distances"),
    "held number as bool": ("CreditUpdate", (5,), [True], "expected distances"),
    "negative limit": ("CreditUpdate", (6,), -1, "limit -1"),
    "carried for an unknown stage": ("CreditUpdate", (7,), [9, 1], "names a stage"),
    "carried twice for a stage": ("CreditUpdate", (7,), [1, 1, 1, 2], "each stage once"),
    "carried without a value": ("CreditUpdate", (7,), [1], "each stage once"),
    "carried as float": ("CreditUpdate", (7,), [1, 1.0], "expected ints"),
    "NaN holding time": ("CreditUpdate", (8,), NAN, "holding"),
    "negative holding time": ("CreditUpdate", (8,), -0.5, "holding"),
    "missed number at or above expected": ("CreditUpdate", (9,), [0], "missed"),
    "missed number below zero": ("CreditUpdate", (9,), [101], "missed"),
    "accepting as a number": ("ReportUpdate", (7,), 1, "header of"),
    "too many held numbers": ("CreditUpdate", (5,), [1] * 1025, "max_array_len"),
    "NaN backlog": ("ReportUpdate", (6,), [1, NAN], "expected floats"),
    "negative queue length": ("ReportUpdate", (3,), -1, "input length"),
    "negative next number": ("Blocked", (4,), -1, "next number"),
    "result after more hops than ranks": ("Results", (3, 0, 7), 65536, "out of range"),
    "no lost rows": ("Lost", (3,), [], "0 rows"),
    "lost row without cause": ("Lost", (3, 0), [0, 1, 2, 1], "has not the types"),
    "lost row shut out by a negative session": ("Lost", (3, 0, 5), -1, "out of range"),
    "lost attempt 0": ("Lost", (3, 0, 3), 0, "out of range"),
    "lost row of a negative part": ("Lost, of parts", (3, 0, 6), -1, "out of range"),
    "lost row with a part that is no number": ("Lost, of parts", (3, 0, 6), "1", "has not the types"),
    "scores of other classes": ("Results, with scores", (3, 0, 11), bytes(36), "scores of 36 bytes, expected 4 for each of 10"),
    "task that waited for lower classes longer than it waited": (AFTER, (6, 0, 14), 0.126, "out of range"),
    "task that waited for lower classes for no time": (AFTER, (6, 0, 14), NAN, "out of range"),
    "task whose wait for lower classes is a count": (AFTER, (6, 0, 14), 0, "has not the types"),
    "result that waited for lower classes longer than at all": (
        "Results, after lower classes",
        (3, 1, 11),
        0.126,
        "out of range",
    ),
    "result whose wait for lower classes is negative": ("Results, after lower classes", (3, 0, 11), -0.001, "out of range"),
    "result with scores before its wait for lower classes": ("Results, after lower classes", (3, 1, 11), b"", "has not the types"),
    "scores that are text": ("Results, with scores", (3, 0, 11), "x" * 40, "has not the types"),
    "scores of none": ("Results, with scores", (3, 0, 11), b"", "scores of 0 bytes"),
    "result of an unknown stage": ("Results", (3, 0, 5), 3, "out of range"),
    "result with a negative label": ("Results", (3, 0, 6), -1, "out of range"),
    "result with a label that is no class": ("Results", (3, 0, 6), 10, "out of range"),
    "result with a confidence above 1": ("Results", (3, 0, 8), 1.5, "out of range"),
    "result with NaN confidence": ("Results", (3, 0, 8), NAN, "out of range"),
    "result with infinite time": ("Results", (3, 0, 10), math.inf, "out of range"),
    "ping echo as int": ("Ping", (4,), 1, "PING: header of"),
    "ping padded with text": ("Ping", (5,), "x", "PING: header of"),
    "ping padded beyond a document": ("Ping", (5,), bytes(49153), "max_bin_len"),
    "map in a header": ("Ping", (4,), {1: 2}, "max_map_len"),
    "bytes for text": ("Bye", (3,), b"x", "BYE: header of"),
}


@pytest.mark.parametrize(("name", "path", "value", "match"), CASES.values(), ids=CASES)
def test_refused(name: str, path: tuple[int, ...], value: object, match: str) -> None:
    refuse(changed(name, path, value), match)


@pytest.mark.parametrize("size", [0, 29, 1000])
def test_a_packed_buffer_beyond_its_bound_is_refused_unread(size: int) -> None:
    refuse([bytes(frame) for frame in encode(packed_batch(size), now=NOW)], f"buffer of {size} bytes, expected at most 2 x 14")


def test_number_of_frames() -> None:
    header, buffer = encode(task_batch(), now=NOW)
    refuse([], "0 frames")
    refuse([header, buffer, b""], "3 frames")
    refuse(seal(bytes(header)[:-8]), "TASK: 1 frames, expected 2")
    refuse(seal(bytes(encode(SAMPLES["Bye"])[0])[:-8], b"x"), "BYE: 2 frames, expected 1")


def test_arity() -> None:
    header = fields_of("Bye")
    refuse(seal(msgpack.packb([*header, 1])), "BYE: header of")
    refuse(seal(msgpack.packb(header[:2]) + bytes(5)), "within limits")
    refuse(seal(msgpack.packb({1: 1, 2: 2, 3: 3})), "max_map_len")


def test_trailing_bytes_under_a_right_checksum() -> None:
    refuse(seal(msgpack.packb(fields_of("Bye")) + b"\0"), "ExtraData")


def test_text_that_is_no_utf8() -> None:
    refuse(seal(msgpack.packb([1, 12, 0, "aaaa"]).replace(b"aaaa", b"\xff\xff\xff\xff")), "UnicodeDecodeError")


@pytest.mark.parametrize("raw", [b"\xed\xa0\x80", b"\\ud800", b"\\uDFFF\\ud83d"], ids=["raw", "escaped", "pair turned round"])
@pytest.mark.parametrize("place", [b'{"a":"%s"}', b'{"%s":1}', b'{"a":[{"b":{"%s":[]}}]}'])
def test_documents_with_a_lone_surrogate(raw: bytes, place: bytes) -> None:
    header = fields_of("Hello")
    refuse(seal(msgpack.packb([*header[:-1], place % raw])), "HELLO: document is not JSON: Unicode(De|En)codeError")
    refuse(seal(msgpack.packb([1, 11, 0, 5, place % raw])), "STATS: document is not JSON: Unicode(De|En)codeError")


def test_strings_with_a_lone_surrogate() -> None:
    refuse(seal(msgpack.packb([1, 12, 0, "aaa"]).replace(b"aaa", b"\xed\xa0\x80")), "UnicodeDecodeError")


def test_documents_in_another_encoding() -> None:
    refuse(seal(msgpack.packb([*fields_of("Hello")[:-1], '{"a":1}'.encode("utf-16")])), "document is not JSON")


@pytest.mark.parametrize("text", ['{"\\ud83d\\ude00":"\\u00e4"}', '{"😀":"ä"}'], ids=["escaped", "as it is"])
def test_documents_may_hold_any_text(text: str) -> None:
    message = decode(seal(msgpack.packb([1, 11, 0, 5, text.encode()])), limits=LIMITS, now=NOW)
    assert isinstance(message, Stats)
    assert message.body == {"😀": "ä"}


@pytest.mark.parametrize("code", [-1, 0, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 8, 12, 16])
def test_extension_types_and_timestamps(code: int, size: int) -> None:
    head = {1: b"\xd4", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}.get(size, b"\xc7" + bytes([size]))
    extension = head + code.to_bytes(1, "big", signed=True) + bytes(size)
    refuse(seal(b"\x95\x01\x09\x00\x05" + extension))


def test_nested_bomb_costs_little_and_is_refused() -> None:
    claim = b"\xdd" + (1024).to_bytes(4, "big")  # an array that claims 1024 items, each of which does the same
    bomb = seal(b"\x94\x01\x07\x00" + claim * 12000)
    tracemalloc.start()
    refuse(bomb, "within limits")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


def test_claimed_lengths_allocate_nothing() -> None:
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        tracemalloc.start()
        refuse(seal(b"\x95\x01\x0b\x00\x05" + claim), "within limits")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6


def test_oversize_header_is_refused_before_it_is_read() -> None:
    refuse([bytes(LIMITS.max_header_bytes + 1)], "header of 65537 bytes, expected 13 to 65536")


def test_message_bound_follows_from_the_largest_stage() -> None:
    limits = WireLimits({0: TensorSpec("uint8", (3, 32, 32)), 1: TensorSpec("float32", (16, 32, 32))}, max_rows=8)
    assert limits.max_message_bytes == 16 * 32 * 32 * 4 * 8 + 4096
    assert WireLimits({}).max_message_bytes == 65536 + 4096


def test_more_rows_than_a_batch_are_bounded_by_their_bytes() -> None:
    stages = {0: TensorSpec("uint8", (3, 32, 32)), 1: TensorSpec("float32", (16, 32, 32))}
    assert WireLimits(stages, max_rows=8, max_batch=1, frame_bytes=100_000).max_message_bytes == 100_000 + 4096
    assert WireLimits(stages, max_rows=8, max_batch=2, frame_bytes=100_000).max_message_bytes == 16 * 32 * 32 * 4 * 2 + 4096


def test_payload_of_another_dtype_is_refused_by_its_size() -> None:
    batch = task_batch(1)
    batch.payload = batch.payload.astype(np.float64)
    refuse([bytes(frame) for frame in encode(batch, now=NOW)], "buffer of 48 bytes")

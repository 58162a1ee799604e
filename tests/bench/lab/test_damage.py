"""Bits flipped in ZMTP streams: where they may fall, how often, and what stays as it is however the stream is cut into pieces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.bench.lab import damage as module
from zpipe.bench.lab.damage import GREETING_BYTES, Damage, Stream

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL".ljust(GREETING_BYTES - 9, b"\0")
READY = b"\x04\x05ready"
PING = b"\x04\x04ping"


def frame(body: bytes, *, more: bool = False) -> bytes:
    """One ZMTP frame of a message."""
    if len(body) < 256:
        return bytes((int(more), len(body))) + body
    return bytes((2 | int(more),)) + len(body).to_bytes(8, "big") + body


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at some of their places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def through(stream: Stream, parts: list[bytes]) -> bytes:
    return b"".join(map(stream.feed, parts)) + stream.flush()


def changed_bits(before: bytes, after: bytes) -> list[int]:
    """Bit numbers, rising."""
    assert len(before) == len(after)
    return [8 * at + bit for at, (a, b) in enumerate(zip(before, after, strict=True)) for bit in range(8) if (a ^ b) >> bit & 1]


def damage(share: float, *, seed: int = 1) -> Damage:
    made = Damage(random.Random(seed))
    made.share = share
    return made


BODIES = st.lists(st.lists(st.binary(min_size=1, max_size=600), min_size=1, max_size=2), max_size=5)


@given(bodies=BODIES, cuts=st.lists(st.integers(0, 10_000), max_size=8), seed=st.integers(0, 99))
def test_each_message_loses_one_bit_of_a_body_and_nothing_else_however_the_stream_is_cut(
    bodies: list[list[bytes]], cuts: list[int], seed: int
) -> None:
    data, allowed = bytearray(GREETING + READY), []
    for message in bodies:
        places: list[int] = []
        for index, body in enumerate(message):
            whole = frame(body, more=index < len(message) - 1)
            places += range(8 * (len(data) + len(whole) - len(body)), 8 * (len(data) + len(whole)))
            data += whole
        allowed.append(set(places))
        data += PING
    link = damage(1.0, seed=seed)
    flipped = changed_bits(bytes(data), through(Stream(link), pieces(bytes(data), cuts)))
    assert len(flipped) == len(bodies)
    assert all(bit in places for bit, places in zip(flipped, allowed, strict=True))
    assert link.counts() == {"messages": len(bodies), "corrupted": len(bodies), "flipped": 0}


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 10_000), max_size=8))
def test_whatever_bytes_pass_as_they_came_while_nothing_is_asked_for(data: bytes, cuts: list[int]) -> None:
    assert through(Stream(damage(0.0)), pieces(data, cuts)) == data
    assert through(Stream(damage(0.0)), pieces(GREETING + data, cuts)) == GREETING + data


def test_undamaged_bytes_are_not_kept_back() -> None:
    stream = Stream(damage(0.0))
    data = GREETING + READY + frame(b"x" * 1000)[:500]
    assert stream.feed(data) == data


def test_stream_of_something_else_is_not_looked_into() -> None:
    link = damage(1.0)
    data = bytes(GREETING_BYTES) + frame(b"abc")
    assert through(Stream(link), [data]) == data
    assert link.messages == 0


def test_share_is_of_messages_and_each_is_counted() -> None:
    link = damage(0.1)
    data = GREETING + 5000 * (frame(b"header", more=True) + frame(b"payload"))
    flipped = changed_bits(data, Stream(link).feed(data))
    assert link.messages == 5000
    assert link.corrupted == len(flipped)
    assert 400 < link.corrupted < 600  # seeded


def test_message_without_a_body_is_let_alone_and_not_counted_as_corrupted() -> None:
    link = damage(1.0)
    data = GREETING + frame(b"")
    assert Stream(link).feed(data) == data
    assert (link.messages, link.corrupted) == (1, 0)


def test_stream_that_ends_within_a_chosen_message_hands_on_what_came() -> None:
    link = damage(1.0)
    stream = Stream(link)
    begun = GREETING + frame(b"x" * 100)[:50]
    assert stream.feed(begun) + stream.flush() == begun
    assert link.corrupted == 0


def test_message_too_long_to_be_kept_back_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD_BYTES", 100)
    link = damage(1.0)
    stream = Stream(link)
    data = GREETING + frame(b"x" * 1000) + frame(b"y")
    flipped = changed_bits(data, through(stream, [data[:700], data[700:]]))
    assert [bit // 8 for bit in flipped] == [len(data) - 1]


def test_flip_takes_one_bit_of_what_passes_next_wherever_it_is() -> None:
    link = damage(0.0)
    stream = Stream(link)
    assert stream.feed(GREETING) == GREETING
    link.flips = 1
    data = 20 * frame(b"abc")
    assert stream.feed(b"") == b""
    (first,) = changed_bits(data, stream.feed(data))
    assert stream.feed(data) == data
    assert (link.flips, link.flipped, link.corrupted) == (0, 1, 0)
    assert 0 <= first < 8 * len(data)


def test_flips_reach_framing_and_bodies_alike_and_leave_the_parser_in_step() -> None:
    link = damage(0.0)
    stream = Stream(link)
    stream.feed(GREETING)
    places = set()
    for _ in range(300):
        link.flips = 1
        data = frame(b"abc")
        places.add(changed_bits(data, stream.feed(data))[0] // 8)
    assert places == {0, 1, 2, 3, 4}
    assert link.messages == 300

"""Texts that come from elsewhere, as people are shown them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.errors import MAX_TEXT, one_line

HOSTILE = {
    "clears the screen": ("\x1b[2Jfake", r"\x1b[2Jfake"),
    "begins a line": ("a\nnode 1 bans node 2", r"a\nnode 1 bans node 2"),
    "returns to its start": ("a\rb", r"a\rb"),
    "control of the upper half": ("\x9b2J", r"\x9b2J"),
    "line separator": ("a\u2028b", r"a\u2028b"),
    "turns the direction": ("a\u202eb", r"a\u202eb"),
    "lone surrogate": ("\ud800", r"\ud800"),
    "NUL": ("\0", r"\x00"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown


@pytest.mark.parametrize("text", ["", "sources[0].deadline", "naïve 😀 7 µs", "x" * MAX_TEXT])
def test_what_prints_stays(text: str) -> None:
    assert one_line(text) is text


@given(st.text(max_size=3 * MAX_TEXT) | st.text("\x1b\n", min_size=MAX_TEXT // 4, max_size=2 * MAX_TEXT))
def test_any_text_becomes_one_line_that_can_be_printed_and_is_left_as_it_is_then(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MAX_TEXT
    assert line.isprintable()
    assert line.encode().decode() == line
    assert one_line(line) == line

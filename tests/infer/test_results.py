"""The file of the answers: what a later run finds in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zpipe.errors import ConfigError
from zpipe.infer import Answer, Results, to_line
from zpipe.infer.items import Entry
from zpipe.model import Outcome, Result

LINES: list[dict[str, Any]] = [{"input": "a.png", "outcome": "result"}, {"input": "clip.avi", "frame": 3, "outcome": "expired"}]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with Results(tmp_path / "r.jsonl", resume=False) as results:
        for line in LINES:
            results.write(line)
        assert results.count == 2
    return tmp_path / "r.jsonl"


def test_a_later_run_knows_what_is_there_and_adds_to_it(file: Path) -> None:
    before = file.read_bytes()
    with Results(file, resume=True) as results:
        assert results.count == 2
        assert results.holds("a.png", None)
        assert results.holds("clip.avi", 3)
        assert not results.holds("clip.avi", 4)
        assert not results.holds("b.png", None)
        results.write({"input": "b.png"})
    assert file.read_bytes() == before + b'{"input": "b.png"}\n'


@pytest.mark.parametrize(("missing", "said"), [((), None), ((0, 2), [0, 2])])
def test_a_line_names_the_parts_of_students_that_were_missing(missing: tuple[int, ...], said: list[int] | None) -> None:
    result = Result(7, 3, "three", 0.5, 1, 0.01, 0.0, 0.0, 1, missing)
    line = to_line(Answer(Entry("a.png"), Outcome(7, "result", 0.01, 1, result)))
    assert line.get("missing") == said
    assert line["label"] == "three"


@pytest.mark.parametrize("kept", range(1, 44))
def test_a_torn_last_line_is_done_again(file: Path, kept: int) -> None:
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    file.write_bytes(whole[: first + kept])
    with Results(file, resume=True) as results:
        assert results.holds("a.png", None)
        assert not results.holds("clip.avi", 3)
        results.write(LINES[1])
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"hello\n", b"hello", b"{}\n", b'{"input": 3}\n', b"[]\n", b'{"input": "a"}\nhello', b"\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"r\.jsonl: line \d: found no answer of `zpipe infer`"):
        Results(file, resume=True)
    assert file.read_bytes() == content


def test_earlier_results_are_not_overwritten(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="add --resume to go on"):
        Results(file, resume=False)
    assert file.read_bytes() == before


def test_a_new_file_may_be_resumed(tmp_path: Path) -> None:
    with Results(tmp_path / "r.jsonl", resume=True) as results:
        assert not results.holds("a.png", None)

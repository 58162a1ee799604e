"""`zpipe profile` as a person calls it, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zpipe import cli
from zpipe.bundle import load_bundle
from zpipe.service import load_service

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `zpipe profile ...`; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zpipe", "profile", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err  # type: ignore[return-value]

    return run


@pytest.mark.slow
def test_a_profile_is_shown_written_and_keeps_links_measured_before(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "board.json"
    links = [{"between": [0, 1], "addresses": ["a:1", "b:1"], "latency": 0.001, "bandwidth": None, "tasks": 9}]
    file.write_text(json.dumps({"schema": "zpipe.service/1", "links": links}))
    code, said, _ = call("--bundle", "digits-mobilenetv2-half", "--max-batch", 2, "--seconds", 0.02, "--json", file)
    assert code == 0
    assert "planner and simulator use the paced times" in said
    assert json.loads(file.read_text())["links"] == links
    found = load_service(file, load_bundle("digits-mobilenetv2-half", verify=False))
    assert set(found.times[4]) == {1, 2}
    assert found.process_bytes is not None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--attach",), "--attach: found it without --topology"),
        (("--insecure",), "--insecure: found it without --topology"),
        (("--bundle", "nowhere"), "bundle 'nowhere': found no manifest.json"),
        (("--executor", "emulated"), "--executor: found emulated"),
        (("--topology", "nowhere"), "topology 'nowhere': found no such file"),
        (("--seconds", "0"), "Invalid value for '--seconds'"),
    ],
)
def test_a_mistake_is_one_line(call: Call, arguments: tuple[str, ...], complaint: str) -> None:
    code, said, error = call(*arguments)
    assert code == 2
    assert said == ""
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_another_file_is_not_overwritten(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text('{"schema": "zpipe.report/1"}')
    code, _, error = call("--json", file)
    assert code == 2
    assert "found another file, expected a profile or none" in error
    assert file.read_text() == '{"schema": "zpipe.report/1"}'

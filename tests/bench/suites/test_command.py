"""`zpipe bench --suite`: what it writes, prints and ends with. (Its refusals: tests/test_cli.py.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.suites.results import results
from zpipe import cli


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command in an empty folder, the evaluation itself done already; its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")

    def call(found: dict[str, Any], *arguments: str) -> int:
        async def run_suite(name: str, **options: Any) -> dict[str, Any]:
            assert (name, options["quick"]) == ("mdi-exit", "--quick" in arguments)
            options["progress"]("data rate at a given accuracy", 0.2)
            return found

        monkeypatch.setattr("zpipe.bench.suites.run_suite", run_suite)
        monkeypatch.setattr(sys, "argv", ["zpipe", "bench", "--suite", "mdi-exit", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


def test_page_and_figures_are_written_and_claims_printed(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = results()
    assert suite(found, "--quick") == 0, "claims that fail are said, and are no failure of the run"
    assert json.loads((tmp_path / "mdi-exit.json").read_text()) == found
    assert "<!doctype html>" in (tmp_path / "mdi-exit.html").read_text()
    said = capsys.readouterr()
    assert "data rate at a given accuracy 20 %" in said.err
    assert "does not hold: mdi answers more of the offered samples right and in time than local" not in said.out
    for claim in found["claims"]:
        if not claim["holds"]:
            assert f"does not hold: {claim['text']}" in " ".join(said.out.split())
    assert "mdi-exit.html and mdi-exit.json written" in said.out


@pytest.mark.usefixtures("without_figures")
def test_json_goes_beside_the_page(suite: Any, tmp_path: Path) -> None:
    assert suite(results(), "--html", "figures.html") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"figures.html", "figures.json"}


@pytest.mark.usefixtures("without_figures")
def test_a_broken_promise_ends_with_1_after_all_is_written(suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = "32px-20, mesh3, mdi: 1 samples lost, answered twice or hanging"
    assert suite(results(broken=[broken]), "--html", "a.html", "--json", "b.json") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.json"}
    assert f"broken: {broken}" in capsys.readouterr().out

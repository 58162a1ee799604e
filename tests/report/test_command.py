"""`zpipe bench --html`: what it writes and ends with. (Its refusals: tests/test_cli.py.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.report.reports import Report, line
from zpipe import cli
from zpipe.report import RunLog


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command in an empty folder, the run itself done already; its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def call(report: Report, *arguments: str) -> int:
        async def run_bench(options: Any, **more: Any) -> tuple[Report, RunLog]:
            return report, RunLog()

        async def compare_bench(options: Any, names: Any, **more: Any) -> list[Report]:
            return [report, *[{**report, "topology": f"{report['topology']}/{name}"} for name in names]]

        monkeypatch.setattr("zpipe.bench.run.run_bench", run_bench)
        monkeypatch.setattr("zpipe.bench.run.compare_bench", compare_bench)
        monkeypatch.setattr(sys, "argv", ["zpipe", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0  # type: ignore[return-value]

    return call


def test_page_is_written_beside_the_json(bench: Any, tmp_path: Path) -> None:
    assert bench(line(), "--html", "a.html", "--json", "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text()) == line()
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "zpipe bench --html a.html --json a.json" in page
    assert f"All {line()['counts']['submitted']:,} samples were answered" in page


def test_page_of_a_broken_promise_is_written_before_it_ends_with_1(bench: Any, tmp_path: Path) -> None:
    report = line()
    report["counts"]["lost"] = 1
    assert bench(report, "--html", "a.html") == 1
    assert 'class="verdict bad"' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_compared_runs_are_one_page(bench: Any, tmp_path: Path) -> None:
    assert bench(line(), "--compare", "local,no-exit", "--html", "a.html") == 0
    assert "line4 against local, no-exit" in (tmp_path / "a.html").read_text(encoding="utf-8")

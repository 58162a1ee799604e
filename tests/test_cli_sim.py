"""`zpipe sim` as a person calls it, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest

from zpipe import cli, simulate
from zpipe.report import check_schema

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `zpipe sim ...`; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zpipe", "sim", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err  # type: ignore[return-value]

    return run


def test_sim_prints_a_table_and_writes_the_report_that_the_library_gives(call: Call, tmp_path: Path) -> None:
    file, samples = tmp_path / "report.json", tmp_path / "samples.jsonl"
    code, out, _ = call(
        "--topology", "line4", "--rate", "60", "--count", "300", "--seed", "7", "--json", file, "--samples", samples
    )
    report = json.loads(file.read_text())
    check_schema(report)
    assert code == 0
    assert "line4" in out
    assert "simulated:" in out
    assert "CPU s" not in out
    assert report == json.loads(json.dumps(simulate("line4", rate_hz=60.0, count=300, seed=7)))
    assert len(samples.read_text().splitlines()) == report["counts"]["submitted"] == 300


def test_page_is_written_with_the_command_that_made_it(call: Call, tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    code, _, _ = call("--topology", "mesh3", "--count", "100", "--html", page)
    assert code == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert escape(f"zpipe sim --topology mesh3 --count 100 --html '{page}'") in text


def test_page_of_a_comparison_has_every_run(call: Call, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call("--topology", "mesh3", "--count", "100", "--compare", "local,no-exit", "--html", page)[0] == 0
    assert "mesh3 against local, no-exit" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", ["grid", "line", "random"])
def test_sim_makes_large_meshes_and_says_how_many_nodes_ran(call: Call, tmp_path: Path, shape: str) -> None:
    file = tmp_path / "report.json"
    code, out, _ = call("--nodes", 60, "--sources", 6, "--shape", shape, "--rate", "max", "--count", 900, "--json", file)
    report = json.loads(file.read_text())
    assert code == 0
    assert report["topology"] == f"{shape}-60"
    assert len(report["sources"]) == 6
    assert len(report["nodes"]) == 60
    assert report["nodes_running_share"] == sum(1 for node in report["nodes"] if node["tasks"]) / 60 > 0.1
    assert f"{100 * report['nodes_running_share']:.1f} % of the nodes ran a stage" in " ".join(out.split())
    assert "60 nodes" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--topology", "nowhere"), "nowhere"),
        (("--nodes", "4", "--topology", "line4"), "--nodes: found it beside --topology, expected one of the two"),
        (("--sources", "2"), "--sources: found it without --nodes, expected --nodes N beside it"),
        (("--shape", "grid"), "--shape: found it without --nodes"),
        (("--nodes", "2", "--sources", "3"), "sources: found 3, expected 1 to 2, the number of nodes"),
        (("--nodes", "2", "--shape", "star"), "Invalid value for '--shape'"),
        (("--nodes", "2", "--bundle", "nowhere"), "bundle 'nowhere': found no manifest.json"),
        (("--device", "abacus"), "--device: found 'abacus', expected one of"),
        (("--rate", "fast"), "--rate: found 'fast'"),
        (("--arrivals", "constant"), "--arrivals: found constant without a rate, expected --rate HZ beside it"),
        (("--arrivals", "nowhere.txt"), "--arrivals: found 'nowhere.txt', which cannot be read"),
        (("--service", "a.json", "--service", "b.json"), "--service: found 'a.json' beside another, expected RANK=FILE for each"),
        (("--service", "1=a.json", "--service", "1=b.json"), "--service: found rank 1 twice"),
        (("--service", "9=a.json"), "service: found rank 9, expected one of 0 to 3 of line4"),
        (("--service", "nowhere.json"), "nowhere.json: found no readable JSON"),
        (("--hop", "nowhere.json"), "nowhere.json: found no readable JSON"),
        (("--offload", "far"), "Invalid value for '--offload': 'far' is not one of 'local', 'cheapest', 'ddi', "),
        (
            ("--source-rate", "camera"),
            "--source-rate: found 'camera', expected a source and its samples per second",
        ),
        (("--source-rate", "0=fast"), "--source-rate: found '0=fast', expected from 0.001 to 1e+06 samples a second"),
        (("--source-rate", "0=1e9"), "--source-rate: found '0=1e9', expected from 0.001 to 1e+06 samples a second"),
        (("--rate", "2e6"), "--rate: found '2e6', expected from 0.001 to 1e+06 samples a second, or `max`"),
        (("--source-rate", "0=5", "--source-rate", "0=6"), "--source-rate: found source 0 twice, expected each once"),
        (("--source-rate", "camera=5"), "--source-rate: found 'camera', expected one of source-0 (rank 0)"),
        (("--source-rate", "0=5", "--rate", "9"), "--source-rate: found --rate 9 beside it, which is for all sources together"),
        (("--policy", "t0.95", "--accuracy", "0.93"), "--accuracy: found 0.93 beside --policy t0.95, expected one of the two"),
    ],
)
def test_a_mistake_is_one_line(call: Call, arguments: tuple[str, ...], complaint: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert complaint in line

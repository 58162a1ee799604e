"""`zpipe doctor` as a whole, and its list on a terminal."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from zpipe.doctor import Finding, diagnose, render_findings

ROOT = Path(__file__).parents[2]


def test_everything_that_is_required_works_in_this_environment() -> None:
    findings = diagnose(loopback=lambda: "a round trip")
    assert [finding for finding in findings if finding.required and finding.status != "ok"] == []
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert {"python", "onnxruntime", "digits bundle", "its stages", "ZeroMQ loopback", "CPU", "memory", "clock"} <= set(names)
    for finding in findings:
        assert finding.found
        assert bool(finding.remedy) == (finding.status != "ok"), finding
        assert "\n" not in finding.remedy + finding.found


def test_loopback_can_be_left_out() -> None:
    assert "ZeroMQ loopback" not in [finding.name for finding in diagnose(loopback=None)]


def test_the_command_runs_where_onnxruntime_and_zeromq_cannot_be_imported() -> None:
    absent = "import sys; sys.modules['onnxruntime'] = sys.modules['zmq'] = None"
    code = f"{absent}; from zpipe.cli import main; sys.argv = ['zpipe', 'doctor']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "pip install 'onnxruntime>=1.17'" in done.stdout
    assert "pip install 'pyzmq>=26'" in done.stdout
    assert "this does not run until these are mended" in done.stdout
    assert "zpipe runs here" not in done.stdout


# ---- the table ---------------------------------------------------------------------------------


def rendered(findings: list[Finding], *, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_findings(findings))
    return console.export_text()


MIXED = [
    Finding("python", "ok", "3.11.7", required=True),
    Finding("pyzmq", "missing", "not installed [at all]", "pip install 'pyzmq>=26'", required=True),
    Finding("CPU governor", "warning", "powersave", "sudo cpupower frequency-set -g performance"),
    Finding("torch", "missing", "not installed (for `zpipe train`)", "pip install 'zpipe[train]'"),
]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_remedies_stand_under_what_they_mend_with_nothing_cut(width: int) -> None:
    text = rendered(MIXED, width=width)
    assert "…" not in text
    assert "not installed [at all]" in text
    order = [
        "✗ missing  pyzmq",
        "until these are mended",
        "pip install 'pyzmq>=26'",
        "better after",
        "cpupower",
        "not needed",
        "'zpipe[train]'",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "zpipe runs here" not in text


def test_working_machine_is_told_what_to_do_next() -> None:
    text = rendered([MIXED[0], MIXED[3]])
    assert "zpipe runs here: zpipe bench --topology line4.yaml" in text
    assert "until these are mended" not in text

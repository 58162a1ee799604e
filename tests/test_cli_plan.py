"""`zpipe plan` as a person calls it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zpipe import cli, simulate
from zpipe.topology import load_topology

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `zpipe plan ...`; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zpipe", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        return ended.value.code or 0, said.out, said.err  # type: ignore[return-value]

    return run


def test_a_plan_is_explained_drawn_and_what_sim_confirms(call: Call, tmp_path: Path) -> None:
    out, drawing = tmp_path / "mine.yaml", tmp_path / "mine.svg"
    code, said, _ = call("--devices", "mixed", "--shape", "line", "--out", out, "--draw", drawing)
    lines = said.splitlines()
    assert code == 0
    assert [line.split(":")[0] for line in lines[:5]] == ["plan", "bottleneck", "bound", "device", "link"]
    assert lines[5].endswith(f"zpipe sim --topology {out} --rate max --admission fixed")
    assert drawing.read_text().startswith("<svg")
    head = out.read_text().splitlines()
    assert head[0].startswith("# Made by `zpipe plan --devices mixed --shape line --out ")
    assert any(line.startswith("# ranks: 0 ") for line in head)
    topology = load_topology(out)
    assert topology.name == "mine"
    predicted = float(lines[0].split(": ")[2].split(" results/s")[0])
    found = simulate(out, rate_hz=float("inf"), admission="fixed", count=1500)
    assert found["throughput_hz"] == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing option '--devices'"),
        (("--devices", "nowhere"), "devices 'nowhere': found no such file"),
        (("--devices", "mixed", "--draw", "plan.gif"), "--draw: found plan.gif, expected a file that ends in .svg"),
        (("--devices", "mixed", "--out", "plan.json"), "--out: found plan.json, expected a file that ends in .yaml"),
        (("--devices", "mixed", "--bundle", "nowhere"), "bundle 'nowhere': found no manifest.json"),
        (("--devices", "mixed", "--goal", "accuracy-at-rate"), "--rate: found none, expected a rate"),
        (("--devices", "mixed", "--policy", "fast"), "fast"),
        (("--devices", "mixed", "--out", "nowhere/plan.yaml"), "found no folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    call: Call, arguments: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, error = call(*arguments)
    assert code == 2
    assert said == ""
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

"""`zpipe plan` as a person calls it, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.students import write_students
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


# ---- students ----------------------------------------------------------------------------------


def test_a_plan_of_groups_is_explained_drawn_and_loads(call: Call, tmp_path: Path) -> None:
    bundle, out, drawing = write_students(tmp_path / "three"), tmp_path / "mine.yaml", tmp_path / "mine.svg"
    shape = ("--shape", "groups", "--redundancy", "failover", "--goal", "latency")
    chances = ("--failure", "0.1", "--failure", "brain=0.3", "--missing", "0.3")
    code, said, _ = call("--devices", "robot", "--bundle", bundle, *shape, *chances, "--out", out, "--draw", drawing)
    lines = said.splitlines()
    assert code == 0
    assert [line.split(":")[0] for line in lines[:6]] == ["plan", "part 0", "part 1", "part 2", "missing", "bottleneck"]
    assert lines[-1].startswith(f"{out} and {drawing} written; try it: zpipe sim --topology {out} ")
    assert drawing.read_text().startswith("<svg")
    topology = load_topology(out)
    assert topology.bundle == "three"
    assert topology.students == (1, 1, 2)
    assert topology.policy.redundancy == "failover"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--failure", "often"), "--failure: found often, expected P or NAME=P with P from 0 to below 1, such as 0.1 or arm=0.2"),
        (("--failure", "1"), "--failure: found 1, expected P or NAME=P"),
        (("--failure", "nan"), "--failure: found nan, expected P or NAME=P"),
        (("--failure", "=0.1"), "--failure: found =0.1, expected P or NAME=P"),
        (("--failure", "camera=0.1"), "--failure: found the source camera, expected others: where it fails nobody waits"),
        (("--failure", "0.1", "--missing", "nan"), "--missing: found nan, expected P(a part is missing), a number from 0 to 1"),
        (
            ("--failure", "0.1", "--on-paper"),
            "--on-paper: found it for bundle three-students, expected none for a bundle of students",
        ),
        (("--failure", "0.1", "--failure", "0.2"), "--failure: found 0.2 beside another, expected one"),
        (("--failure", "brain=0.1", "--failure", "brain=0.2"), "--failure: found brain=0.2 beside another for brain, expected one"),
        (("--failure", "leg=0.1"), "--failure: found leg, expected a device of"),
        ((), "--failure: found none for arm-1, arm-2, brain, expected P(it does not answer)"),
        (("--failure", "0.1", "--missing", "2"), "2.0 is not in the range"),
        (
            ("--failure", "0.1", "--missing", "0.001"),
            "--missing: found 0.001, expected 0.1 or more, the best that these devices can do",
        ),
        (
            ("--failure", "0.1", "--shape", "line"),
            "--shape: found line for bundle three-students, a bundle of students, expected groups",
        ),
        (
            ("--failure", "0.1", "--rate", "5"),
            "--rate: found 5.0 for bundle three-students, expected none for a bundle of students",
        ),
        (("--failure", "0.1", "--goal", "throughput"), "--goal: found throughput for bundle three-students, expected none"),
    ],
)
def test_a_mistake_about_groups_is_one_line(call: Call, arguments: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    bundle, out = write_students(tmp_path / "three"), tmp_path / "plan.yaml"
    code, said, error = call("--devices", "robot", "--bundle", bundle, "--out", out, *arguments)
    assert code == 2
    assert said == ""
    assert complaint in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("--missing", "0.1"),
            "--missing: found 0.1 for bundle digits-mobilenetv2, expected none for one chain, which has no groups",
        ),
        (("--failure", "0.1"), "--failure: found 0.1 for bundle digits-mobilenetv2, expected none for one chain"),
        (
            ("--shape", "groups"),
            "--shape: found groups for bundle digits-mobilenetv2, which is one chain, expected a bundle of students",
        ),
    ],
)
def test_a_chain_has_no_groups(call: Call, arguments: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    code, _, error = call("--devices", "robot", "--out", tmp_path / "plan.yaml", *arguments)
    assert code == 2
    assert complaint in error

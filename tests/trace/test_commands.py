"""Traces as people make and use them: `zpipe bench --trace`, `zpipe node --trace`, `zpipe replay`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import Refused, refused
from tests.trace.test_recorder import Recorded
from tests.trace.test_replay import tampered
from zpipe import cli

__all__ = ["refused"]  # a fixture

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


def zpipe(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zpipe", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("topology", ["line2.yaml", "mesh3.yaml"])
def test_a_bench_over_zeromq_replays_equal_on_every_rank(tmp_path: Path, topology: str) -> None:
    """Strings hash otherwise in each of these processes, so an order that hangs on a set of them would show.

    The run is long enough for a rank of the mesh that a busy machine starts late to get its share.
    """
    folder = tmp_path / "traces"
    bench = zpipe("bench", "--topology", topology, "--count", "300", "--warm-up", "0", "--seed", "5", "--trace", folder)
    assert bench.returncode == 0, bench.stderr
    files = sorted(folder.iterdir())
    ranks = range(int(re.findall(r"\d", topology)[0]))
    assert [file.name for file in files] == [f"node-{rank}.trace" for rank in ranks]
    replayed = zpipe("replay", *files)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    lines = replayed.stdout.splitlines()
    for rank, file, line in zip(ranks, files, lines, strict=True):
        equal = re.fullmatch(
            r"(.*): node (\d): (\d+) rounds, (\d+) events, (\d+) commands equal; it ends when the node was closed", line
        )
        assert equal is not None, line
        assert equal[1] == str(file)
        assert int(equal[2]) == rank
        assert min(map(int, equal.groups()[2:])) > 5


def test_a_folder_holds_the_traces_of_one_run(refused: Refused, tmp_path: Path) -> None:
    earlier = tmp_path / "node-1.trace"
    earlier.write_text("kept")
    line = refused("bench", "--topology", "line2.yaml", "--count", "1", "--trace", tmp_path)
    assert line.startswith(f"trace: found {earlier} of an earlier run, expected a folder without traces")
    assert earlier.read_text() == "kept"


def test_a_difference_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name in ("a", "b"):
        recorded = Recorded(tmp_path / name)
        recorded.serve(3)
        recorded.recorder.close()
        files.append(recorded.path)
    tampered(files[0], 4, lambda line: line[1][0].__setitem__(3, [4]))  # StageCompleted.labels
    monkeypatch.setattr(sys, "argv", ["zpipe", "replay", *map(str, files)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    replayed = capsys.readouterr()
    assert (ended.value.code, replayed.err) == (1, "")
    first, second = replayed.out.splitlines()
    assert first.startswith(f"{files[0]}: node 1: 2 rounds, 2 events, ")
    assert "commands equal, then round 2 at 0.375000 s (1 StageCompleted): command " in first
    assert "SendResults.rows[0].label: expected 3, found 4 (recorded by zpipe " in first
    assert second.endswith("it ends when the node was closed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("replay", "none"),
            r"none: found that it cannot be read \(No such file or directory\)",
        ),
        (("replay", "README.md"), r"README.md: found no header of a trace, expected trace version 2; "),
        (
            ("bench", "--topology", "line2.yaml", "--trace", "none/traces"),
            r"trace: found none/traces, which cannot be ",
        ),
        (
            ("node", "--rank", "1", "--topology", "line2.yaml", "--trace", "none/trace"),
            r"none/trace: found that it cannot be written \(No such file or directory\), expected a file for the trace",
        ),
    ],
    ids=["no-file", "no-trace", "no-folder", "node"],
)
def test_bad_paths_are_one_line_and_exit_code_2(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    line = refused(*arguments)
    assert re.match(message, line), line

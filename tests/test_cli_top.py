"""`zpipe top` as people run it: on a pipeline of this machine, on nodes by hand, on nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import FEW, PATIENCE_SECONDS, Refused, Running, completed, free_ports, line2, only_line, refused, write
from zpipe import cli

__all__ = ["refused"]  # a fixture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes of other tests' pipelines are elsewhere; 80 columns, whatever runs the tests."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")


def bench(file: Path) -> Running:
    """A run that goes on until it is stopped."""
    return Running("bench", "--topology", file, "--duration", "600", "--rate", "20", "--warm-up", "0")


def test_a_running_pipeline_of_this_machine_is_found_and_shown(tmp_path: Path) -> None:
    file = line2(tmp_path / "line.yaml")
    with bench(file) as running:
        running.line("classifying")
        once = completed("top", "--topology", file)  # no terminal: one table
        assert (once.process.returncode, once.err) == (0, [])
        assert once.out[0].startswith("boards · 2 of 2 nodes up · ")
        assert {("0", "up", "0"), ("1", "up", "1-4")} <= {tuple(line.split()[:3]) for line in once.out}
        assert max(map(len, once.out)) <= 80

        found = completed("top", "--topology", file, "--once", "--json", "--every", "0.5")
        assert (found.process.returncode, found.err) == (0, [])
        snapshot = json.loads(only(found.out))
        assert snapshot["schema"] == "zpipe.top/1"
        assert [node["state"] for node in snapshot["nodes"]] == ["up", "up"]
        assert snapshot["sources"][0]["outcomes"]["result"] > 0
        assert snapshot["sources"][0]["goodput_hz"] > 0.0
        assert snapshot["notes"] == []

        other = completed("top", "--topology", line2(tmp_path / "other.yaml"), "--once")
        assert other.process.returncode == 1
        assert f"`zpipe top --topology {file}`" in only_line("\n".join(other.err))
        running.process.send_signal(signal.SIGINT)
        running.ended()
    after = completed("top", "--topology", file)
    assert after.process.returncode == 1
    assert "found no node that answers (rank 0 at 127.0.0.1:" in only_line("\n".join(after.err))


def only(lines: list[str]) -> str:
    (line,) = lines
    return line


def test_a_line_of_json_per_look_follows_a_node_that_dies(tmp_path: Path) -> None:
    ports = free_ports(2)
    file = write(tmp_path / "boards.yaml", [[0], [1, 2, 3, 4]], ports=ports)
    attached = ("bench", "--attach", "--duration", "600", "--rate", "20", "--warm-up", "0")
    with Running("node", "--rank", "1", "--topology", file) as node, Running(*attached, "--topology", file) as source:
        source.line("classifying")
        with Running("top", "--topology", file, "--json", "--every", "0.1") as top:
            assert states(top)[1] == "up"
            node.process.kill()
            while states(top)[1] != "gone":
                pass
            with Running("node", "--rank", "1", "--topology", file):
                while states(top)[1] != "back":
                    pass
            top.process.send_signal(signal.SIGINT)
            assert top.ended() == 0
            assert top.err == []
            assert all(line.startswith("{") for line in top.out)  # no word about the end among them


def states(top: Running) -> list[str]:
    """Of each node, in the next line."""
    return [node["state"] for node in json.loads(top.line("{"))["nodes"]]


def test_who_has_read_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    file = line2(tmp_path / "line.yaml")
    with bench(file) as running:
        running.line("classifying")
        read, write_end = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "zpipe", "top", "--topology", str(file), "--json", "--every", "0.1"],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(write_end)
        with os.fdopen(read) as lines:
            assert json.loads(lines.readline())["topology"] == "boards"
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, said) == (0, "")


def test_on_a_terminal_q_ends_it(tmp_path: Path) -> None:
    file = line2(tmp_path / "line.yaml")
    with bench(file) as running:
        running.line("classifying")
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "zpipe", "top", "--topology", str(file), "--every", "0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "LINES": "24"},
        )
        os.close(theirs)
        shown = b""
        while b"q ends" not in shown:
            shown += read_or_end(ours) or pytest.fail(f"it ended: {shown!r}")
        assert b"2 of 2 nodes up" in shown
        os.write(ours, b"q")
        while chunk := read_or_end(ours):
            shown += chunk
            assert len(shown) < 1_000_000, "it goes on"
        os.close(ours)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert b"Traceback" not in shown
        assert shown.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")  # cursor and screen are back, and nothing was said after it


def read_or_end(descriptor: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], PATIENCE_SECONDS)
    assert ready, "nothing came"
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux's way to say that the other end of a terminal was closed
        return b""


@pytest.mark.parametrize("arguments", [("--once",), ("--json",), ()])
def test_where_nobody_answers_that_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "boards.yaml", [[0], [1, 2, 3, 4]], ports=free_ports(2))
    monkeypatch.setattr(sys, "argv", ["zpipe", "top", "--topology", str(file), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    line = only_line(said.err)
    assert line.startswith(f"{file}: found no node that answers (rank 0 at 127.0.0.1:")
    assert "connection refused" in line
    assert line.endswith(f"`zpipe bench --topology {file}`, or start its nodes with `zpipe node`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--topology", "nowhere.yaml"), "nowhere.yaml"),
        (("--every", "0"), "--every"),
        (("--every", "nan"), "--every"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(refused: Refused, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("top", *arguments)


def test_a_board_looks_with_its_own_key_and_without_one_it_is_told_which(tmp_path: Path) -> None:
    file = write(tmp_path / "boards.yaml", [[0], [1, 2, 3, 4]], ports=free_ports(2), security={"keys": "keys"})
    assert completed("keygen", "--topology", file).process.returncode == 0
    with Running("node", "--rank", "1", "--topology", file) as node:
        node.line("node 1 serves")
        secret = tmp_path / "keys" / "node0.secret"
        secret.unlink()
        top = completed("top", "--topology", file, "--every", "0.2")
        assert (top.process.returncode, top.err) == (0, [])
        assert "boards · 1 of 2 nodes up" in top.out[0]
        assert "source 0: nobody submits samples there now" in top.out
        (tmp_path / "keys" / "node1.secret").unlink()
        top = completed("top", "--topology", file)
        assert top.process.returncode == 2
        assert "found the secret of no rank" in only_line("\n".join(top.err))


def test_few_samples_are_still_counted_by_a_pipeline_that_leaves_a_note(tmp_path: Path) -> None:
    """A note that cannot be left keeps nobody from running."""
    (tmp_path / "zpipe").write_text("a file where the folder shall be")
    ran = completed("bench", "--topology", line2(tmp_path / "line.yaml"), *FEW)
    assert ran.process.returncode == 0

"""`zpipe infer` as people run it: photos of digits, bad files, resuming, pipes, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.infer.drawing import STROKES, photo
from tests.test_cli import HALF, PATIENCE_SECONDS, ROOT, Refused, Running, all_gone, completed, refused
from zpipe import cli, load_bundle

__all__ = ["refused"]

LOCAL = ("infer", "--topology", "local.yaml")


@pytest.fixture
def pillow() -> Any:
    return pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")


@pytest.fixture
def photos(tmp_path: Path, pillow: Any) -> Path:
    """One photo of each digit, in a folder, in turns dark on light and light on dark."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for digit in STROKES:
        pillow.fromarray(photo(digit, dark=digit % 2 == 0)).save(folder / f"{digit}.jpg")
    return folder


class Called:
    """A command run in this process: exit code, JSON lines, lines on standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["zpipe", *map(str, arguments)])
        monkeypatch.setenv("ZPIPE_LOG", "ERROR")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        self.code = ended.value.code
        self.lines = [json.loads(line) for line in said.out.splitlines()]
        self.err = said.err.splitlines()


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: Called(capsys, monkeypatch, *arguments)


# ---- pictures ----------------------------------------------------------------------------------


def test_digits_that_a_hand_drew_are_recognised(called: Any, photos: Path) -> None:
    done = called(*LOCAL, "--fit", "ink", photos)
    assert done.code == 0
    assert [Path(line["input"]).name for line in done.lines] == [f"{digit}.jpg" for digit in STROKES]
    assert [line["label"] for line in done.lines] == [str(digit) for digit in STROKES]
    for line in done.lines:
        assert list(line) == ["input", "outcome", "label", "confidence", "exit_stage", "latency_ms"]
        assert line["outcome"] == "result"
        assert 0.5 < line["confidence"] <= 1.0
        assert line["latency_ms"] > 0.0
    assert len(done.err) == 1
    assert done.err[0].startswith(f"{len(STROKES)} classified in ")


def test_a_thick_digit_that_fills_the_picture_needs_no_ink(called: Any, pillow: Any, tmp_path: Path) -> None:
    names = []
    for digit in STROKES:
        names.append(tmp_path / f"{digit}.png")
        pillow.fromarray(photo(digit, pen=32, tall=240, size=(320, 320))).save(names[-1])
    assert [line["label"] for line in called(*LOCAL, *names).lines] == [str(digit) for digit in STROKES]


def test_one_picture_is_one_line_and_nothing_else(called: Any, photos: Path) -> None:
    done = called(*LOCAL, "--fit", "ink", photos / "5.jpg")
    assert (done.code, len(done.lines), done.err) == (0, 1, [])


def test_evaluation_samples_get_the_labels_that_the_bundle_gives_them(called: Any) -> None:
    done = called(*LOCAL, "--bundle", HALF, "--policy", "no-exit", "--count", "60", HALF / "evaluation.npz")
    replayed = load_bundle(HALF).replay().labels[:60, -1]
    assert [line["frame"] for line in done.lines] == list(range(60))
    assert [line["label"] for line in done.lines] == [str(label) for label in replayed]
    assert {line["exit_stage"] for line in done.lines} == {4}


def test_bad_files_are_reported_in_a_line_each_and_skipped(called: Any, photos: Path) -> None:
    (photos / "0.jpg").write_bytes(b"no picture")
    (photos / "3.jpg").write_bytes((photos / "3.jpg").read_bytes()[:2000])
    (photos / "4.jpg").unlink()
    (photos / "4.jpg").symlink_to(photos / "nowhere")
    done = called(*LOCAL, "--fit", "ink", photos)
    assert done.code == 1
    assert [line["label"] for line in done.lines] == ["1", "2", "5", "7"]
    *skipped, summary = done.err
    assert [line.split(":")[1].strip().removeprefix("skipped ") for line in skipped] == [
        str(photos / name) for name in ("0.jpg", "3.jpg", "4.jpg")
    ]
    assert "4 classified" in summary
    assert "3 skipped" in summary


def test_labelled_pictures_are_saved(called: Any, photos: Path, tmp_path: Path, pillow: Any) -> None:
    done = called(*LOCAL, "--fit", "ink", "--save", tmp_path / "labelled", photos)
    saved = sorted((tmp_path / "labelled").iterdir())
    assert [file.name for file in saved] == [f"{number:06d}-{digit}.jpg" for number, digit in enumerate(STROKES, 1)]
    with pillow.open(saved[0]) as picture:
        assert picture.width == 400
        assert picture.height > 300  # the bar beneath
    assert done.code == 0


# ---- resuming ----------------------------------------------------------------------------------


def test_a_run_that_was_torn_goes_on_where_it_ended(called: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert called(*LOCAL, "--fit", "ink", "--out", out, photos).lines == []
    whole = out.read_text().splitlines()
    out.write_text("\n".join(whole[:3]) + "\n" + whole[3][:25])
    done = called(*LOCAL, "--fit", "ink", "--out", out, "--resume", photos)
    assert done.code == 0
    assert "3 done earlier" in done.err[-1]
    again = out.read_text().splitlines()
    assert again[:3] == whole[:3]
    assert [(json.loads(line)["input"], json.loads(line)["label"]) for line in again] == [
        (str(photos / f"{digit}.jpg"), str(digit)) for digit in STROKES
    ]


def test_wrong_input_is_one_line(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text("mine\n")
    evaluation = HALF / "evaluation.npz"
    assert "--resume: found it without --out" in refused(*LOCAL, "--resume", evaluation)
    assert "add --resume to go on" in refused(*LOCAL, "--out", file, evaluation)
    assert "line 1: found no answer" in refused(*LOCAL, "--out", file, "--resume", evaluation)
    assert "cannot be written" in refused(*LOCAL, "--out", tmp_path / "absent" / "r.jsonl", evaluation)
    assert "--size: found '3x'" in refused(*LOCAL, "--size", "3x", "-")
    assert "--size: found '99999x99999', 30.0 GB a frame" in refused(*LOCAL, "--size", "99999x99999", "-")
    assert "Missing argument" in refused(*LOCAL)
    assert file.read_text() == "mine\n"


# ---- pipes and signals -------------------------------------------------------------------------


def piped(content: bytes, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "zpipe", *map(str, arguments)]
    return subprocess.run(command, input=content, capture_output=True, cwd=ROOT, timeout=PATIENCE_SECONDS, check=False)


def test_raw_frames_from_a_pipe_are_classified(tmp_path: Path) -> None:
    evaluation = load_bundle(HALF).evaluation()
    frames = evaluation.images[:12].transpose(0, 2, 3, 1)
    arguments = (*LOCAL, "--bundle", HALF, "--policy", "no-exit", "--size", "32x32", "--pixel", "bgr24")
    done = piped(frames[..., ::-1].tobytes() + b"torn", *arguments, "--when-full", "block", "-")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["label"] for line in lines] == [str(label) for label in load_bundle(HALF).replay().labels[:12, -1]]
    assert [line["frame"] for line in lines] == list(range(12))
    assert b"found 4 bytes after 12 frames" in done.stderr
    assert done.returncode == 1


def test_a_busy_network_drops_live_frames_and_answers_the_newest(tmp_path: Path) -> None:
    plain = yaml.safe_load((ROOT / "topologies" / "local.yaml").read_text())
    plain["sources"] = [{"rank": 0, "admission": {"name": "fixed", "rate_hz": 1.0}}]
    plain["bundle"] = str(HALF)
    topology = tmp_path / "slow.yaml"
    topology.write_text(yaml.safe_dump(plain))
    done = piped(bytes(40 * 3072), "infer", "--topology", topology, "--size", "32x32", "-")
    kinds = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert len(kinds) == 40
    assert (kinds[0], kinds[-1]) == ("result", "result")
    assert kinds.count("rejected") > 30
    assert done.returncode == 0  # what `latest` drops is no fault


def test_a_line_of_nodes_does_the_same_and_leaves_no_process(photos: Path) -> None:
    with Running("infer", "--topology", "line4.yaml", "--fit", "ink", photos) as running:
        first = json.loads(running.line("{"))
        children = running.children()
        assert running.ended() == 0
    assert first["label"] == "0"
    assert [json.loads(line)["label"] for line in running.out] == [str(digit) for digit in STROKES]
    assert all_gone(children)


def test_ctrl_c_ends_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    np.savez(tmp_path / "many.npz", images=np.zeros((60_000, 3, 32, 32), np.uint8))
    with Running(*LOCAL, "--bundle", HALF, "--out", out, tmp_path / "many.npz") as running:
        running.line("classifying")
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 1
    assert running.out == []
    assert "stopped before the end; go on with --resume" in running.err[-1]
    done = len(out.read_text().splitlines())
    assert 0 < done < 60_000
    again = completed(*LOCAL, "--bundle", HALF, "--out", out, "--resume", "--count", "50", tmp_path / "many.npz")
    assert "50 classified in" in again.err[-1]
    assert [json.loads(line)["frame"] for line in out.read_text().splitlines()] == list(range(done + 50))


def test_a_live_source_is_ended_by_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zpipe", *LOCAL, "--bundle", str(HALF), "--size", "32x32", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(bytes(3072))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["frame"] == 0
        process.send_signal(signal.SIGINT)  # while it waits for the next frame
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_has_enough_ends_it_in_silence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zpipe", *LOCAL, "--bundle", str(HALF), str(HALF / "evaluation.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr is not None
        assert b"Broken" not in process.stderr.read()

"""`zpipe build` as people see it, on a stand-in for TensorRT; tests/executors/tensorrt has what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.executors.tensorrt.device import networks
from tests.executors.tensorrt.fake import RTX, FakeTrt, installed
from tests.executors.tiny import tiny_emulation
from zpipe import bundle as bundles
from zpipe.bundle import Bundle, StudentSpec
from zpipe.cli import main
from zpipe.executors.cuda import presence
from zpipe.executors.tensorrt import build, check
from zpipe.executors.tensorrt.convert import Converted
from zpipe.executors.tensorrt.flavour import load_flavour

#: (exit code, lines on standard output, lines on standard error).
Said = tuple[int, list[str], list[str]]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    """Tiny, on a machine without a GPU where TensorRT for RTX seems to be installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "tiny").mkdir()
    made = tiny_emulation(tmp_path / "tiny").real
    monkeypatch.setattr(bundles, "load_bundle", lambda name: made)
    monkeypatch.setattr(presence, "gpus", lambda **_: presence.Missing("no NVIDIA GPU", "one with its driver", "buy one"))
    with installed(rtx=FakeTrt(RTX, networks(made))):
        yield made


@pytest.fixture
def zpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["zpipe", "build", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.splitlines(), err.splitlines()

    return run


def row(lines: list[str], stage: int) -> list[str]:
    """Of the table."""
    return next(cells for line in lines if (cells := [cell.strip() for cell in line.split("│")[1:-1]]) and cells[0] == str(stage))


def test_table_says_what_was_built_and_where(bundle: Bundle, zpipe: Callable[..., Said]) -> None:
    code, out, err = zpipe("--target", "8.6", "--max-batch", "16")
    assert code == 0
    assert out[0] == f"tiny: fp32 up to batch 16 by rtx{RTX} for capability 8.6"
    assert [row(out, stage)[3] for stage in range(3)] == ["-"] * 3
    assert out[-1] == f"engines are in {bundle.path / 'trt'}"
    assert err[-1] == f"3 engines written to {bundle.path / 'trt'} 100 %"


def test_second_build_says_that_all_is_there(bundle: Bundle, zpipe: Callable[..., Said]) -> None:
    zpipe("--target", "8.6")
    code, out, err = zpipe("--target", "8.6")
    assert (code, err) == (0, ["engines are there already 100 %"])
    assert [row(out, stage)[2] for stage in range(3)] == ["there"] * 3


def convert_badly(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first exit then answers something else for nearly every sample."""
    monkeypatch.setattr(build, "convert", lambda path, precision, rows: Converted(path.read_bytes(), path.read_bytes()))
    real = check.answers
    monkeypatch.setattr(check, "answers", lambda *args: _off_by_one(real(*args)))
    truth = bundle.evaluation()
    labels = bundle.replay().labels[:, 0].astype(np.int64)
    monkeypatch.setattr(Bundle, "evaluation", lambda self: type(truth)(truth.images, labels, truth.severity, truth.digit))


def _off_by_one(labels: Any) -> Any:
    labels[:, 0] = (labels[:, 0] + 1) % 3
    return labels


def test_precision_that_loses_too_much_ends_with_1_and_one_line(
    bundle: Bundle, zpipe: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_badly(bundle, monkeypatch)
    code, out, err = zpipe("--target", "8.6", "--precision", "int8")
    assert (code, out) == (1, [])
    assert err[-1].startswith("zpipe: --precision int8: found an accuracy that falls by 100.0 points at stage 0")
    assert not list((bundle.path / "trt").glob("*.plan"))


def test_forced_precision_shows_what_it_loses(bundle: Bundle, zpipe: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    convert_badly(bundle, monkeypatch)
    code, out, _ = zpipe("--target", "8.6", "--precision", "int8", "--force")
    assert code == 0
    assert row(out, 0)[3] == "-100.00 points"
    assert row(out, 1)[3] == "-"
    assert "accuracy on 56 evaluation samples in ONNX Runtime, no GPU took part" in out


def test_interrupted_build_ends_with_130_and_leaves_no_engine(
    bundle: Bundle, zpipe: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_flavour("rtx").module.interrupted = True
    code, out, _ = zpipe("--target", "8.6")
    assert (code, out) == (130, ["stopped"])
    assert not list((bundle.path / "trt").glob("*.plan"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "zpipe: --target current: found no NVIDIA GPU, expected one with its driver; name the capability"),
        (["--target", "9.0"], "zpipe: --target: found 9.0, expected one of: 7.5, 8.0, 8.6, 8.9, 12.0 by TensorRT-RTX"),
        (["--target", "8.6", "--flavour", "trt"], "zpipe: TensorRT: found no no_such_module_trt that loads"),
        (["--target", "8.6", "--max-batch", "0"], "zpipe: Invalid value for '--max-batch'"),
        (["--precision", "fp8"], "zpipe: Invalid value for '--precision'"),
    ],
)
def test_what_cannot_be_built_ends_with_2_and_one_line(
    arguments: list[str], message: str, bundle: Bundle, zpipe: Callable[..., Said]
) -> None:
    code, out, err = zpipe(*arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(message)


def test_students_are_refused_and_told_where_they_run(
    bundle: Bundle, zpipe: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    students = replace(bundle, students=(StudentSpec(0, (0, 1, 2), (), 1, 1),))
    monkeypatch.setattr(bundles, "load_bundle", lambda name: students)
    code, out, (line,) = zpipe("--bundle", "three", "--target", "8.6")
    assert (code, out) == (2, [])
    assert line == (
        "zpipe: --bundle three: found students, expected one chain of stages, as engines do not give the scores that are joined; "
        "run students on executor onnx"
    )

"""`zpipe calibrate` as a person calls it, in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.calibrate.small import SAMPLES, small_bundle, without_evaluation
from tests.runtime.mesh import HALF
from zpipe import cli
from zpipe.bundle import load_bundle
from zpipe.calibrate import plots
from zpipe.calibrate.points import exit_of
from zpipe.calibrate.run import CalibrateOptions, calibrate
from zpipe.model import NEVER_EXIT

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `zpipe calibrate ...`; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("ZPIPE_LOG", "ERROR")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zpipe", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err  # type: ignore[return-value]

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_images(path: Path, *, samples: int = 160, **change: Any) -> Path:
    """Images of the digits bundle's size with labels, as a user might bring them."""
    bundle = load_bundle("digits-mobilenetv2-half", verify=False).evaluation()
    arrays: dict[str, Any] = {"images": bundle.images[:samples], "labels": bundle.labels[:samples], "digit": bundle.digit[:samples]}
    np.savez(path, **{key: array for key, array in {**arrays, **change}.items() if array is not None})
    return path


def test_study_is_printed_and_nothing_is_written(call: Call, tmp_path: Path) -> None:
    folder, file = small_bundle(tmp_path / "small"), tmp_path / "report.json"
    before = snapshot(folder)
    code, out, _ = call("--bundle", folder, "--json", file, "--targets", "0.8,0.9,0.9999")
    report = json.loads(file.read_text())
    assert code == 0
    assert report["schema"] == "zpipe.calibration/1"
    assert [row["target"] for row in report["accuracy_table"]["rows"]][:2] == [0.8, 0.9]
    assert "not reached on calibration: 99.99 %" in " ".join(out.split())
    assert list(report["variants"]) == ["none", "global", "per-exit"]
    assert {row["severity"] for row in report["severities"]} == {0, 1, 2, 3, 4}
    assert snapshot(folder) == before


def test_relative_drop_stands_beside_the_published_one(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, out, _ = call("--bundle", small_bundle(tmp_path / "small"), "--json", file)
    report = json.loads(file.read_text())
    assert code == 0
    assert report["published_relative_drop"] == {"global": -0.60, "per-exit": -0.39}
    assert [row["target"] for row in report["outage"]] == [0.8, 0.9]
    assert "-60%" in out
    assert "-39%" in out
    for row in report["outage"]:
        plain = row["variants"]["none"]["outage"]
        for name, drop in row["relative_drop"].items():
            assert drop is None if plain == 0 else drop == pytest.approx(row["variants"][name]["outage"] / plain - 1)


def test_topology_brings_missed_deadlines_which_fall_with_the_deadline(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'zpipe[suite]'")
    file, plots = tmp_path / "report.json", tmp_path / "plots"
    code, _, _ = call(
        *("--bundle", small_bundle(tmp_path / "small"), "--topology", "line4", "--bandwidth", "20 Mbit/s", "--latency", "5 ms"),
        *("--json", file, "--plots", plots),
    )
    assert code == 0
    missed = json.loads(file.read_text())["missed_deadlines"]
    assert missed["topology"] == "line4"
    assert missed["exit_seconds"] == sorted(missed["exit_seconds"])
    for curve in missed["curves"]:
        for shares in curve["variants"].values():
            assert shares[0] == 1.0
            assert shares == sorted(shares, reverse=True)
    assert sorted(path.name for path in plots.iterdir()) == ["missed.png", "outage.png", "reliability.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.iterdir())


def test_legend_of_reliability_hides_no_point(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'zpipe[suite]'")
    figure = plots._reliability(calibrate(CalibrateOptions(small_bundle(tmp_path / "small"))).report)
    bare = small_bundle(tmp_path / "bare", without_evaluation)
    few = own_images(tmp_path / "few.npz", samples=20)  # fills no bin
    assert plots._reliability(calibrate(CalibrateOptions(bare, data=few)).report).axes
    figure.canvas.draw()
    for axes in figure.axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


# ---- writing -----------------------------------------------------------------------------------


def test_other_temperatures_bring_their_own_points_and_replay(call: Call, tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small")
    before, replay = load_bundle(folder), load_bundle(folder).replay()
    code, out, _ = call("--bundle", folder, "--variant", "none", "--write")
    bundle = load_bundle(folder)  # verifies every digest
    assert code == 0
    assert "every node must have the same files" in out
    assert bundle.digest != before.digest
    assert [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head] == [1.0] * 5
    assert (bundle.replay().confidences != replay.confidences).any()
    assert (bundle.replay().labels == replay.labels).all()
    assert bundle.replay_codecs() == ("none", "fp16", "int8", "int8+zstd") == tuple(bundle.codecs)
    shares = np.bincount(exit_of(bundle.replay().confidences, bundle.default_point.thresholds), minlength=5) / SAMPLES
    assert bundle.default_point.test.exit_shares == pytest.approx(shares.tolist())
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_same_temperatures_leave_points_and_replay_alone(call: Call, tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small")
    call("--bundle", folder, "--write")
    first = snapshot(folder)
    code, _, _ = call("--bundle", folder, "--write", "--targets", "0.77")
    second = snapshot(folder)
    assert code == 0
    assert {name for name in first if first[name] != second[name]} == {"manifest.json"}
    targets = [row.target for row in load_bundle(folder).accuracy_table]
    assert {0.5, 0.77, 0.8} <= set(targets)
    call("--bundle", folder, "--write")
    assert [row.target for row in load_bundle(folder).accuracy_table] == targets


def test_bundle_without_any_data_gets_all_of_it_from_the_users_images(call: Call, tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small", without_evaluation)
    for file in ("evaluation.npz", "replay.npz", "calibration.npz"):
        (folder / file).unlink()
    code, _, _ = call("--bundle", folder, "--data", own_images(tmp_path / "mine.npz"), "--write")
    bundle = load_bundle(folder)
    assert code == 0
    assert len(bundle.calibration()) + len(bundle.evaluation()) == 160
    assert len(bundle.evaluation()) >= 70
    assert not set(bundle.calibration().digit.tolist()) & set(bundle.evaluation().digit.tolist())
    assert bundle.replay().labels.shape == (len(bundle.evaluation()), 5)
    assert bundle.accuracy_table
    assert bundle.promise(0.5).thresholds[0] < NEVER_EXIT


def test_stage_without_an_exit_head_lets_nobody_out(call: Call, tmp_path: Path) -> None:
    def behead(manifest: dict[str, Any]) -> None:
        without_evaluation(manifest)
        for stage in (1, 3):
            manifest["stages"][stage]["exit"] = None

    folder = small_bundle(tmp_path / "small", behead)
    code, _, _ = call("--bundle", folder, "--data", own_images(tmp_path / "mine.npz"), "--targets", "0.5", "--write")
    bundle = load_bundle(folder)
    assert code == 0
    assert bundle.calibration().logits.shape[1] == 3
    assert bundle.promise(0.5).thresholds[1] == bundle.promise(0.5).thresholds[3] == NEVER_EXIT
    for point in bundle.operating_points:
        assert (point.test.exit_shares[1], point.test.exit_shares[3]) == (0.0, 0.0)
    assert point.test.exit_shares[4] == 1.0  # no-exit
    assert bundle.replay("int8").confidences[:, [1, 3]].max() == 0.0


def test_failed_write_leaves_the_bundle_as_it_was(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_bundle(tmp_path / "small")
    before = snapshot(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zpipe.calibrate.write._write_replay", full)
    code, _, err = call("--bundle", folder, "--variant", "none", "--write")
    assert code == 2
    assert "cannot be written (No space left on device), expected a folder of yours with room" in err.splitlines()[-1]
    assert snapshot(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


# ---- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": None}, "labels: found images, digit, expected an array of that name"),
        ({"labels": np.full(160, 10)}, "labels: found 10..10, expected 0..9, as the bundle has 10 classes"),
        ({"images": np.zeros((160, 3, 28, 28), np.uint8)}, "images: found uint8 [160, 3, 28, 28], expected uint8 [n, 3, 32, 32]"),
        ({"images": np.zeros((160, 3, 32, 32), np.float32)}, "images: found float32 [160, 3, 32, 32], expected uint8"),
    ],
)
def test_wrong_images_are_one_line(call: Call, tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    code, out, err = call("--bundle", small_bundle(tmp_path / "small"), "--data", own_images(tmp_path / "mine.npz", **change))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert complaint in line


def test_wrong_arguments_are_one_line(call: Call, tmp_path: Path) -> None:
    folder, bare = small_bundle(tmp_path / "small"), small_bundle(tmp_path / "bare", without_evaluation)
    (tmp_path / "empty").mkdir()
    for arguments, complaint in (
        (("--bundle", "nowhere"), "bundle 'nowhere': found no manifest.json"),
        (("--bundle", folder, "--targets", "0.9,1.5"), "--targets: found '0.9,1.5', expected accuracies above 0 and up to 1"),
        (("--bundle", folder, "--targets", "nan"), "--targets: found 'nan'"),
        (("--bundle", folder, "--data", tmp_path / "empty"), "empty: found no folders in it"),
        (("--bundle", folder, "--data", folder / "manifest.json"), "found no readable npz (it is no zip archive)"),
        (("--bundle", folder, "--window", "100000000"), "100000000 is not in the range 2<=x<=10000"),
        (("--bundle", folder, "--data", tmp_path / "absent"), "absent: found nothing there"),
        (
            ("--bundle", folder, "--test", tmp_path / "absent"),
            "expected none: bundle digits-mobilenetv2-half has its own",
        ),
        (("--bundle", folder, "--topology", "nowhere"), "topology 'nowhere': found no such file"),
        (("--bundle", folder, "--bandwidth", "1 Mbit/s"), "found no --topology, expected one"),
        (("--bundle", folder, "--topology", "line4", "--device", "toaster"), "device: found 'toaster'"),
        (("--bundle", folder, "--json", tmp_path / "no" / "x.json"), "found no folder"),
        (("--bundle", folder, "--write", "--plots", "/proc/plots"), "/proc/plots: found that it cannot be written"),
        (("--bundle", bare), "--data: found none, expected labelled images"),
    ):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert complaint in line


# ---- too little to say anything ----------------------------------------------------------------


def one_image(path: Path) -> Path:
    return own_images(path, samples=1)


def test_one_image_proves_nothing_and_is_not_written(call: Call, tmp_path: Path) -> None:
    folder, file = small_bundle(tmp_path / "small"), tmp_path / "report.json"
    before = snapshot(folder)
    code, out, err = call("--bundle", folder, "--data", one_image(tmp_path / "one.npz"), "--write")
    assert (code, out) == (2, "")
    assert "--write: found 1 original image to calibrate with, expected at least 30: all of them right would prove only 21 %" in err
    assert snapshot(folder) == before
    code, out, _ = call("--bundle", folder, "--data", one_image(tmp_path / "one.npz"), "--json", file)
    report, said = json.loads(file.read_text()), " ".join(out.split())
    assert code == 0
    assert report["accuracy_table"]["best"] < 0.21
    assert report["variants"]["per-exit"]["temperatures"] == [1.0] * 5
    assert "warning: only 1 original image to calibrate with" in said
    assert "warning: no calibration sample of 9 of 10 classes:" in said
    assert "exits 0, 1, 2, 3, 4: right on all 1 calibration samples, so no temperature can be fitted" in said


def test_absent_class_is_named(call: Call, tmp_path: Path) -> None:
    evaluation = load_bundle("digits-mobilenetv2-half", verify=False).evaluation()
    rows = np.flatnonzero(evaluation.labels != 5)[:200]
    arrays = {key: getattr(evaluation, key)[rows] for key in ("images", "labels", "digit")}
    code, out, _ = call("--bundle", small_bundle(tmp_path / "small"), "--data", own_images(tmp_path / "mine.npz", **arrays))
    assert code == 0
    assert "no calibration sample of 1 of 10 classes: 5; nothing is promised for them" in " ".join(out.split())


def test_rise_of_outage_comes_with_its_reason(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    code, out, _ = call("--bundle", HALF, "--json", file, "--targets", "0.9")
    report = json.loads(file.read_text())
    rows = [(row["target"], *(row["variants"][name]["outage"] for name in ("none", "per-exit"))) for row in report["outage"]]
    risen = [(target, before) for target, before, after in rows if round(after, 3) > round(before, 3)]
    said = " ".join(out.split())
    assert code == 0
    assert risen
    assert said.count("outage rose from") == len(risen)
    for target, before in risen:
        assert f"target {target:g}: outage rose from {before:.3f}" in said
    assert "was under-confident (" in said
    assert "is so little that a ratio to it says little" in said

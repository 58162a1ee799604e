"""Heads onto a bundle that a split left without: from labels, from nothing but images, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript", "sklearn"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

from bench.models.stripped import stripped
from tests.models.test_cifar10 import write_archive
from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.cli import cli
from zpipe.datasets.cifar10 import CLASSES, find_batches, read_training
from zpipe.errors import ConfigError
from zpipe.executors.base import make_executor
from zpipe.executors.smoke import smoke
from zpipe.models import attach_heads, head_notes
from zpipe.models.digits import digits_task
from zpipe.models.heads import features
from zpipe.models.heads.build import DEFAULT_LEAST
from zpipe.models.heads.data import read_head_data
from zpipe.models.heads.features import look
from zpipe.models.heads.fit import fit_head
from zpipe.models.heads.graph import Front
from zpipe.models.heads.shape import HeadShape, grid_shape
from zpipe.models.training import torch_settings

HALF = Path(__file__).parents[3] / "engines" / "digits-mobilenetv2-half"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As `zpipe split` leaves a network: no early heads, no evaluation set."""
    return stripped(load_bundle(HALF), tmp_path_factory.mktemp("bare"), evaluation=False)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """600 calibration images, with and without labels."""
    folder, data = tmp_path_factory.mktemp("data"), digits_task().calibration
    arrays: dict[str, Any] = {"images": data.images[:600], "digit": data.digit[:600]}
    np.savez(folder / "labels.npz", **arrays, labels=data.labels[:600])
    np.savez(folder / "images.npz", **arrays)
    return {"labels": folder / "labels.npz", "images": folder / "images.npz"}


def test_heads_learn_from_labels_and_the_backbone_stays(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "with-heads"
    told: list[tuple[str, float, str]] = []
    made = attach_heads(bare.path, out=out, data=archives["labels"], at=(0, 2), progress=lambda *line: told.append(line))
    assert made == load_bundle(out)
    assert [stage.exit_head is not None for stage in made.stages] == [True, False, True, False, True]
    images = made.evaluation().images[:32]
    before, after = (StageChain([each.stage_path(stage.index) for stage in each.stages]) for each in (bare, made))
    x: Any = images
    for stage in bare.stages:
        old, new = before.run_stage(stage.index, x), after.run_stage(stage.index, x)
        chosen = 1 if stage.output is None else 0
        assert np.array_equal(np.asarray(old[chosen]), np.asarray(new[chosen]))
        x = old[0]
    manifest = json.loads((out / "manifest.json").read_text())
    accuracies = [row["accuracy"]["value"] for row in manifest["test"]["exits"]]
    # Chance is 0.1; 0.75, 0.93 and 0.97 with these 400 or so images to learn from.
    assert accuracies[0] > 0.5
    assert accuracies[1] > 0.8
    assert manifest["heads"]["trained_on"] == "labels"
    assert manifest["heads"]["agreement_only"] == []
    # What lies around the heads fits together: digests, replay, calibration split, an executor that answers as the replay says.
    assert len(made.calibration().logits) + len(made.evaluation()) + manifest["heads"]["samples"] == 600
    assert smoke(make_executor("onnx", made, range(5)), made) is None
    fractions = [fraction for _, fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_heads_learn_from_images_alone(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    made = attach_heads(bare.path, out=tmp_path / "out", data=archives["images"], distill=True)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["heads"]["agreement_only"] == ["calibration", "test"]
    exits = [row["accuracy"]["value"] for row in manifest["test"]["exits"]]
    # Its answers are the labels, so it is always right.
    assert exits[-1] == 1.0
    assert exits[0] > 0.5
    first, last = made.stages[0].exit_head, made.stages[-1].exit_head
    assert last == bare.stages[-1].exit_head
    assert first is not None
    # The truth, which nobody told: heads that agree with a network which is mostly right are mostly right.
    truth = dict(zip(map(bytes, digits_task().calibration.images), digits_task().calibration.labels, strict=True))
    evaluation, replay = made.evaluation(), made.replay()
    right = [truth[bytes(image)] == label for image, label in zip(evaluation.images, replay.labels[:, 1], strict=True)]
    assert np.mean(right) > 0.7


def test_heads_replace_the_old_ones_in_place_and_keep_the_others(archives: dict[str, Path], tmp_path: Path) -> None:
    first = attach_heads(
        stripped(load_bundle(HALF), made_dir(tmp_path / "bare"), evaluation=False).path,
        out=tmp_path / "it",
        data=archives["labels"],
        at=(0, 1),
        epochs=1,
    )
    with pytest.raises(ConfigError, match=r"found bundle .* there already, .* or add --replace"):
        attach_heads(first.path, out=tmp_path / "it", data=archives["labels"], at=(1,), epochs=2)
    assert load_bundle(tmp_path / "it").digest == first.digest
    second = attach_heads(first.path, out=tmp_path / "it", data=archives["labels"], at=(1,), epochs=2, replace=True)
    assert second.path == first.path
    assert second.digest != first.digest
    assert [stage.macs for stage in second.stages] == [stage.macs for stage in first.stages]
    assert [stage.exit_head is not None for stage in second.stages] == [True, True, False, False, True]


def test_default_point_of_heads_that_begin_later_keeps_its_floor(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    made = attach_heads(bare.path, out=tmp_path / "out", data=archives["images"], distill=True, at=(3,), epochs=2)
    assert min(made.default_point.thresholds) >= DEFAULT_LEAST


def test_classes_without_samples_and_the_accuracy_they_cost_are_noted(archives: dict[str, Path], tmp_path: Path) -> None:
    with np.load(archives["labels"]) as archive:
        chosen = archive["labels"] < 8
        np.savez(tmp_path / "some.npz", images=archive["images"][chosen], labels=archive["labels"][chosen])
    # With its own evaluation set, of all ten digits.
    bundle = stripped(load_bundle(HALF), made_dir(tmp_path / "bare"))
    options = ["--bundle", str(bundle.path), "--data", str(tmp_path / "some.npz"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, ["heads", *options, "--at", "2"])
    assert result.exit_code == 0, result.output
    made = load_bundle(tmp_path / "out")
    absent, lost = head_notes(made)
    assert "shows class 8, 9: the new heads will not give that answer" in absent
    points = 100 * (made.point("no-exit").test.accuracy - made.default_point.test.accuracy)
    assert f"point {made.default_point.name} answers {points:.1f} points fewer right on test" in lost
    assert result.stderr.count("zpipe: note: ") == 2


def test_what_is_tested_on_is_not_learnt_from(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    with np.load(archives["labels"]) as archive:
        half = {key: archive[key][::2] for key in archive.files}
        np.savez(tmp_path / "half.npz", **half)
    everything = read_head_data(bare, archives["labels"], test=None, seed=0)
    data = read_head_data(bare, archives["labels"], test=tmp_path / "half.npz", seed=0)
    tested = {bytes(image) for image in data.test.images}
    assert len(data.test) == 300
    assert not tested & {bytes(image) for image in (*data.images, *data.calibration.images)}
    assert len(data.images) + len(data.calibration) == 300
    assert len(everything.images) + len(everything.calibration) + len(everything.test) == 600


def test_cifar10_that_is_tested_on_is_not_learnt_from(bare: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path)
    images, labels, kept = read_training(find_batches(tmp_path))
    np.savez(tmp_path / "test.npz", images=images[::2], labels=labels[::2])
    named = dataclasses.replace(bare, classes=CLASSES)
    data = read_head_data(named, tmp_path, test=tmp_path / "test.npz", seed=0)
    assert len(data.images) == len(data.labels if data.labels is not None else ()) == kept // 2
    assert not {bytes(image) for image in images[::2]} & {bytes(image) for image in (*data.images, *data.calibration.images)}


def made_dir(path: Path) -> Path:
    path.mkdir()
    return path


def test_features_in_a_file_are_those_in_memory(bare: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    images = digits_task().calibration.images[:40]
    shapes = {1: grid_shape(16, 8, 8, 4)}
    with look(bare, shapes, images, tell=lambda done: None) as seen:
        features_in_memory, teacher = seen.features[1].copy(), seen.teacher.copy()
    monkeypatch.setattr(features, "MOST_BYTES_IN_MEMORY", 0)
    with look(bare, shapes, images, tell=lambda done: None) as seen:
        assert isinstance(seen.features[1], np.memmap)
        assert np.array_equal(seen.features[1], features_in_memory)
        assert np.array_equal(seen.teacher, teacher)


def test_fitting_is_repeatable_and_soft_targets_teach() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    seen = (rng.normal(size=(300, 8)) + 3 * np.eye(8)[truth]).astype(np.float32)
    seen[:, 7] = 5.0  # a feature that never varies
    front = Front(HeadShape("none", 4), np.zeros(4, np.float32), np.ones(4, np.float32))
    soft = (0.8 * np.eye(3)[truth] + 0.2 / 3).astype(np.float32)

    def right(target: np.ndarray) -> tuple[float, np.ndarray]:
        with torch_settings(threads=1, seed=0):
            head = fit_head(front, seen, target, classes=3, epochs=10, seed=0, on_epoch=lambda *_: None)
        logits = np.maximum(seen @ head.hidden.T + head.hidden_bias, 0) @ head.weight.T + head.bias
        assert np.isfinite(logits).all()
        return float((logits.argmax(1) == truth).mean()), head.weight

    (by_labels, first), (again, second), (by_teacher, _) = right(truth), right(truth), right(soft)
    assert np.array_equal(first, second)
    assert by_labels == again > 0.9
    assert by_teacher > 0.9


# ---- refusals ----------------------------------------------------------------------------------


def refused(bundle: Bundle, out: Path, *options: str) -> str:
    """What the command says in one line; nothing is left behind."""
    result = CliRunner().invoke(cli, ["heads", "--bundle", str(bundle.path), "--out", str(out), *options])
    assert isinstance(result.exception, ConfigError), result.output
    assert not out.exists()
    message = str(result.exception)
    assert "\n" not in message
    assert "expected" in message
    return message


def test_wrong_use_is_refused_in_one_line(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    out, images, labels = tmp_path / "out", str(archives["images"]), str(archives["labels"])
    assert "--at: found stage 4, expected 0..3" in refused(bare, out, "--data", labels, "--at", "0,4")
    assert "--at: found 'first'" in refused(bare, out, "--data", labels, "--at", "first")
    assert "found images without labels" in refused(bare, out, "--data", images)
    assert "found nothing there" in refused(bare, out, "--data", str(tmp_path / "nowhere"))
    with np.load(archives["labels"]) as archive:
        np.savez(tmp_path / "few.npz", images=archive["images"][:2], labels=archive["labels"][:2])
    assert "found 2 original images, expected at least three" in refused(bare, out, "--data", str(tmp_path / "few.npz"))
    (tmp_path / "empty").mkdir()
    with np.load(archives["labels"]) as archive:
        np.savez(tmp_path / "one.npz", images=archive["images"], labels=np.full(600, 2))
    assert "found samples of class 2 alone to learn from" in refused(bare, out, "--data", str(tmp_path / "one.npz"))
    same = refused(bare, out, "--data", labels, "--test", labels)
    assert f"found no sample that is not in --test {labels}, expected some" in same
    assert "found no folders in it" in refused(bare, out, "--data", str(tmp_path / "empty"), "--distill")
    whole = load_bundle(HALF)
    assert bare.preprocessing is not None
    small = dataclasses.replace(bare, preprocessing=dataclasses.replace(bare.preprocessing, size=16))
    with pytest.raises(ConfigError, match="a multiple of 32 pixels a side; give other data"):
        read_head_data(small, None, test=None, seed=0)
    assert "has its own evaluation set" in refused(whole, out, "--data", labels, "--test", labels)


def test_seed_out_of_range_is_refused_before_any_work(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    options = ["--bundle", str(bare.path), "--data", str(archives["labels"]), "--out", str(tmp_path / "out")]
    for command in (["heads", *options], ["train", "--random", "--out", str(tmp_path / "out")]):
        for seed in ("-1", str(2**32)):
            result = CliRunner().invoke(cli, [*command, "--seed", seed])
            assert result.exit_code == 2
            assert "Invalid value for '--seed'" in result.output
    with pytest.raises(ConfigError, match=r"--seed: found -1, expected a whole number in 0\.\.4294967295"):
        attach_heads(bare.path, out=tmp_path / "out", data=archives["labels"], seed=-1)
    assert not (tmp_path / "out").exists()


def test_folder_that_is_no_bundle_is_left_alone(bare: Bundle, archives: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="no bundle"):
        attach_heads(bare.path, out=tmp_path, data=archives["labels"])
    assert (tmp_path / "thesis.tex").exists()

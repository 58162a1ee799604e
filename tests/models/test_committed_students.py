"""The built-in bundle of students: what it promises, recomputed from its own files. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpipe.bundle import Bundle, Join, load_bundle, parts_of
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.metrics import Floats, fit_temperature, max_probability

ENGINES = Path(__file__).parents[2] / "engines"
TEACHER = "digits-mobilenetv2"

#: What all its files may weigh: it is in the wheel.
MOST_BYTES = 3.2e6

#: Another CPU sums in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(ENGINES / "digits-rocoin")


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_text())
    return found


def join_of(bundle: Bundle) -> Join:
    assert bundle.join is not None
    return bundle.join


def ends_of(bundle: Bundle, mask: int) -> list[int]:
    return [bundle.chains[part][-1] for part in parts_of(mask)]


def masks(bundle: Bundle) -> range:
    return range(1, 2 ** len(bundle.students))


def scores_of(bundle: Bundle, images: np.ndarray, *, batch: int) -> Floats:
    files = [bundle.stage_path(stage.index) for stage in bundle.stages]
    parts = [StageChain(files[chain[0] : chain[-1] + 1]).logits(images, batch=batch) for chain in bundle.chains]
    return np.concatenate(parts, 1)


def test_bundle_is_small_and_lists_its_files(bundle: Bundle, manifest: dict[str, Any]) -> None:
    sizes = {path.name: path.stat().st_size for path in bundle.path.iterdir() if path.is_file()}
    assert sum(sizes.values()) < MOST_BYTES
    assert set(sizes) == {*manifest["digests"], "manifest.json"}
    assert [student.bytes for student in bundle.students] == [sizes[f"stage{stage}.onnx"] for stage in range(len(bundle.stages))]


def test_students_share_out_all_filters_and_together_are_less_than_two_fifths_of_the_teacher(
    bundle: Bundle, manifest: dict[str, Any]
) -> None:
    teacher = json.loads((ENGINES / TEACHER / "manifest.json").read_text())
    assert sorted(index for student in bundle.students for index in student.filters) == list(range(1280))
    assert manifest["training"]["teacher"]["filters"] == 1280
    parameters = sum(stage["parameters"] for stage in teacher["stages"])
    assert sum(student.parameters for student in bundle.students) <= 0.4 * parameters
    assert bundle.full_macs < 0.4 * sum(stage["macs"] for stage in teacher["stages"])


def test_losing_any_one_part_costs_at_most_three_points(bundle: Bundle, manifest: dict[str, Any]) -> None:
    join = join_of(bundle)
    everything = 2**join.parts - 1
    for split in (join.calibration, join.test):
        assert min(split[everything ^ 1 << part] for part in range(join.parts)) >= split[everything] - 0.03
    rows = {sum(1 << part for part in row["parts"]): row for row in manifest["test"]["sets"]}
    assert [rows[mask]["accuracy"]["value"] for mask in masks(bundle)] == pytest.approx(join.test[1:])
    assert [rows[mask]["lost"]["value"] for mask in masks(bundle)] == pytest.approx([join.test[-1] - x for x in join.test[1:]])


def test_each_set_of_parts_has_its_own_temperature_from_calibration(bundle: Bundle) -> None:
    join, calibration = join_of(bundle), bundle.calibration()
    for mask in masks(bundle):
        present = calibration.logits[:, ends_of(bundle, mask)]
        labels, _ = join.answers(present, parts_of(mask))
        assert float((labels == calibration.labels).mean()) == pytest.approx(join.calibration[mask])
        logits = present.sum(1) + np.array(join.bias, np.float32)
        assert join.temperatures[mask] == pytest.approx(fit_temperature(logits, calibration.labels), rel=1e-3)
    assert len(set(join.temperatures)) == len(join.temperatures)


def test_evaluation_set_is_the_first_round_of_the_teachers_and_as_good_as_all_of_it(bundle: Bundle) -> None:
    own, whole = bundle.evaluation(), load_bundle(ENGINES / TEACHER, verify=False).evaluation()
    assert len(np.unique(own.digit)) == len(own) == 597
    assert (own.images == whole.images[: len(own)]).all()
    assert (own.labels == whole.labels[: len(own)]).all()
    scores, join = bundle.replay().scores, join_of(bundle)
    assert scores is not None
    for mask in masks(bundle):
        labels, _ = join.answers(scores[:, ends_of(bundle, mask)], parts_of(mask))
        # 597 of the 2,985 that were measured: two standard deviations are about 1.8 points at 95 %.
        assert float((labels == own.labels).mean()) == pytest.approx(join.test[mask], abs=0.025)


@pytest.mark.parametrize("batch", [1, 7])
def test_students_reproduce_the_replay(bundle: Bundle, batch: int) -> None:
    replay, images = bundle.replay(), bundle.evaluation().images[:70]
    scores = scores_of(bundle, images, batch=batch)
    assert replay.scores is not None
    assert np.abs(scores - replay.scores[:70]).max() < TOLERANCE
    for stage in bundle.stages:
        assert stage.exit_head is not None
        confidences = max_probability(scores[:, stage.index], stage.exit_head.temperature)
        assert np.abs(confidences - replay.confidences[:70, stage.index]).max() < TOLERANCE


@pytest.mark.slow
def test_accuracy_on_all_test_images_is_what_the_manifest_says(bundle: Bundle) -> None:
    join, whole = join_of(bundle), load_bundle(ENGINES / TEACHER, verify=False).evaluation()
    scores = scores_of(bundle, whole.images, batch=1)
    for mask in masks(bundle):
        labels, _ = join.answers(scores[:, ends_of(bundle, mask)], parts_of(mask))
        assert float((labels == whole.labels).mean()) == pytest.approx(join.test[mask], abs=1e-3)

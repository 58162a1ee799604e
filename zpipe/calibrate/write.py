"""Writing a study into its bundle: temperatures, accuracy table and what follows from them. All of it, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zpipe.bundle import MANIFEST, Bundle, Evaluation, load_bundle
from zpipe.bundle.write import replaced_when_done, save_manifest
from zpipe.calibrate.codec_tables import codec_rows, codec_tables, replay_arrays
from zpipe.calibrate.rows import (
    CALIBRATION_FILE,
    calibration_arrays,
    calibration_rows,
    default_rule,
    label_dtype,
    point_rows,
    test_rows,
    with_temperatures,
)
from zpipe.calibrate.study import Spoken, Stages, Study
from zpipe.calibrate.table import Split

#: Called as work goes on: (a line for people, fraction done).
Tell = Callable[[str, float], None]

EVALUATION_FILE, REPLAY_FILE = "evaluation.npz", "replay.npz"

#: Floor of the default operating point's threshold where the bundle's recipe says nothing.
DEFAULT_LEAST = 0.9


def write_study(bundle: Bundle, study: Study, calibration: Spoken, test: Spoken, evaluation: Evaluation, tell: Tell) -> Bundle:
    """Put the study's variant into the bundle's folder, in one step at the end.

    `calibration.npz` and the accuracy table always. Where temperatures change, or the bundle had no evaluation set, also its
    operating points, evaluation set, replay and what codecs cost: all of them follow from the temperatures.

    Args:
        bundle: as it is now.
        study: what is to be in it.
        calibration, test: what the study rests on.
        evaluation: the images of `test`.
        tell: progress.

    Returns:
        The bundle, loaded and verified; its digest is another.

    Raises:
        ConfigError: the bundle's folder cannot be written; it is as it was.
    """
    _write(bundle, study, calibration, test, evaluation, tell)
    tell(f"written to {bundle.path}", 1.0)
    return load_bundle(bundle.path)


def _write(bundle: Bundle, study: Study, calibration: Spoken, test: Spoken, evaluation: Evaluation, tell: Tell) -> None:
    temperatures = study.temperatures[study.variant]
    stored = tuple(stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None)
    with replaced_when_done(bundle.path, remedy="copy the bundle and name the copy with --bundle") as folder:
        shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        arrays = calibration_arrays(calibration.logits, calibration.labels, calibration.severity, calibration.digit)
        np.savez_compressed(folder / CALIBRATION_FILE, **arrays)
        rows = calibration_rows(calibration.logits, calibration.labels, temperatures, variant=study.variant)
        manifest |= {"calibration": rows, "accuracy_table": _table(study)}
        save_manifest(folder, manifest)
        own = bundle.evaluation_file is not None and not bundle.evaluation_generated
        if temperatures != stored or not own:
            manifest["stages"] = with_temperatures(manifest["stages"], temperatures)
            manifest |= _points(bundle, study, calibration, test, least=_least(manifest))
            if not own:
                write_evaluation(folder / EVALUATION_FILE, evaluation)
                manifest["evaluation"] = {"file": EVALUATION_FILE, "samples": len(evaluation)}
            save_manifest(folder, manifest)
            manifest |= _write_replay(load_bundle(folder), test, tell)
            save_manifest(folder, manifest)


def _table(study: Study) -> dict[str, Any]:
    """Without what only people want to know of it."""
    table: dict[str, Any] = study.report["accuracy_table"]
    return {key: table[key] for key in ("variant", "rule", "interval", "rows")}


def _least(manifest: dict[str, Any]) -> float:
    recipe = manifest.get("training", {}).get("recipe", {})
    return float(recipe.get("default_threshold_least", DEFAULT_LEAST))


def _points(bundle: Bundle, study: Study, calibration: Spoken, test: Spoken, *, least: float) -> dict[str, Any]:
    stages, temperatures = Stages.of(bundle), study.temperatures[study.variant]
    answers = stages.answers(test, temperatures)
    fitted = Split(stages.answers(calibration, temperatures), calibration.digit)
    points, default = point_rows(fitted, Split(answers, test.digit), heads=stages.heads, stage_macs=stages.macs, least=least)
    return {
        "operating_points": points,
        "default_operating_point": default,
        "default_operating_point_rule": default_rule(least),
        "test": test_rows(answers, test.digit, test.severity, stages=stages.exits),
    }


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """An evaluation set as a bundle keeps it; whole numbers as narrow as they fit."""
    arrays: dict[str, Any] = {
        "images": evaluation.images,
        "labels": evaluation.labels.astype(label_dtype(evaluation.labels)),
        "severity": evaluation.severity.astype(np.int8),
        "digit": evaluation.digit.astype(np.int32),
    }
    np.savez_compressed(path, **arrays)


def _write_replay(bundle: Bundle, test: Spoken, tell: Tell) -> dict[str, Any]:
    """The replay under the new temperatures, for every codec, and the manifest's rows about it."""
    stages = Stages.of(bundle)
    temperatures = [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None]

    def on_codec(done: int, total: int, codec: str) -> None:
        tell(f"test samples through {codec}", done / total)

    tables = codec_tables(bundle, stages.answers(test, temperatures), on_codec)
    np.savez_compressed(bundle.path / REPLAY_FILE, **replay_arrays(tables))
    return {
        "replay": {"file": REPLAY_FILE},
        "codecs": codec_rows(tables, bundle.default_point.thresholds, bundle.evaluation()),
    }

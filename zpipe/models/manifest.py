"""What a bundle says about itself: fits the exits on calibration, measures on test, writes `manifest.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import MANIFEST, SCHEMA, Evaluation, file_digest
from zpipe.calibrate.metrics import (
    Answers,
    answers_of,
    bootstrap,
    expected_calibration_error,
    fit_temperature,
    max_probability,
    negative_log_likelihood,
)
from zpipe.calibrate.points import NO_EXIT, accuracy_lost, choose_default, measure_point, threshold_vectors
from zpipe.model import PointMetrics, TensorSpec
from zpipe.models.export import stage_tensors
from zpipe.models.network import MultiExitNet, stage_costs
from zpipe.models.recipes import Recipe
from zpipe.models.task import Task

Json = dict[str, Any]

PREPROCESSING_NOTE = "Resize to size x size, RGB, channels first, uint8 0..255. Stage 0 normalises: never do it before."

#: Libraries whose version may change the result.
_VERSIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network and how it came about; `seconds` is wall time of the training alone."""

    network: MultiExitNet
    recipe: Recipe
    task: Task
    epochs: int
    seed: int
    threads: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Exits:
    """What was fitted on calibration: one temperature per exit, the answers with them, and the manifest's rows about it."""

    temperatures: tuple[float, ...]
    answers: Answers
    rows: list[Json]


@dataclass(frozen=True, slots=True)
class Measured:
    """What ONNX Runtime said about the test split at batch 1, and its largest distance from torch."""

    test: Answers
    parity_error: float


def fit_exits(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> Exits:
    """One temperature per exit from calibration logits `[samples, exits, classes]`."""
    exits = range(logits.shape[1])
    temperatures = tuple(fit_temperature(logits[:, index], truth) for index in exits)
    answers = answers_of(logits, temperatures, truth)
    rows = []
    for index in exits:
        before = max_probability(logits[:, index], 1.0)
        right = answers.right[:, index]
        rows.append(
            {
                "accuracy": float(right.mean()),
                "ece_before": expected_calibration_error(before, right),
                "ece_after": expected_calibration_error(answers.confidences[:, index], right),
                "nll_before": negative_log_likelihood(logits[:, index], truth, 1.0),
                "nll_after": negative_log_likelihood(logits[:, index], truth, temperatures[index]),
            }
        )
    return Exits(temperatures, answers, rows)


def write_manifest(
    folder: Path, trained: Trained, exits: Exits, measured: Measured, evaluation_file: str, replay_file: str
) -> None:
    """Write `manifest.json` for the files that lie in `folder`."""
    task = trained.task
    stages = stage_rows(trained, exits.temperatures)
    points, default = point_rows([stage["macs"] for stage in stages], exits.answers, measured.test, task, trained.recipe)
    manifest = {
        "schema": SCHEMA,
        "name": trained.recipe.name if task.name == "digits" else f"{task.name}-{trained.recipe.name.partition('-')[2]}",
        "classes": list(task.classes),
        "preprocessing": {
            "size": task.image_size,
            "channels": "RGB",
            "layout": "CHW",
            "dtype": "uint8",
            "note": PREPROCESSING_NOTE,
        },
        "stages": stages,
        "operating_points": points,
        "default_operating_point": default,
        "evaluation": {"file": evaluation_file, "samples": len(task.test)},
        "replay": {"file": replay_file},
        "calibration": {"samples": len(task.calibration), "exits": exits.rows},
        "test": test_rows(measured.test, task.test),
        "training": training_rows(trained, measured.parity_error),
    }
    _write(folder / MANIFEST, manifest)


def extend_manifest(folder: Path, keys: Json) -> None:
    """Add keys to the manifest of the bundle in `folder`, or replace them, and take the digests of all its files anew."""
    path = folder / MANIFEST
    manifest = {**json.loads(path.read_text(encoding="utf-8")), **keys}
    del manifest["digests"]
    _write(path, manifest)


def _write(path: Path, manifest: Json) -> None:
    digests = {file.name: file_digest(file) for file in sorted(path.parent.iterdir()) if file.is_file() and file.name != MANIFEST}
    path.write_text(json.dumps({**manifest, "digests": digests}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def stage_rows(trained: Trained, temperatures: Sequence[float]) -> list[Json]:
    """The chain as the manifest lists it."""
    example = trained.task.test.images[:2]
    costs = stage_costs(trained.network, example)
    tensors = stage_tensors(trained.network, example)
    return [
        {
            "file": f"stage{index}.onnx",
            "input": _tensor(before),
            "output": None if after is None else _tensor(after),
            "activation_bytes": 0 if after is None else after.bytes,
            "macs": macs,
            "parameters": parameters,
            "exit": {"classes": len(trained.task.classes), "temperature": temperature},
        }
        for index, ((before, after), (macs, parameters), temperature) in enumerate(zip(tensors, costs, temperatures, strict=True))
    ]


def _tensor(spec: TensorSpec) -> Json:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def point_rows(
    stage_macs: Sequence[int], calibration: Answers, test: Answers, task: Task, recipe: Recipe
) -> tuple[list[Json], str]:
    """The operating points and the name of the default, which is chosen from the calibration column alone."""
    vectors = threshold_vectors(len(stage_macs))
    on_calibration = {name: measure_point(calibration, vector, stage_macs) for name, vector in vectors.items()}
    default = choose_default(on_calibration, vectors, least=recipe.default_threshold_least)
    rows = [
        {
            "name": name,
            "thresholds": list(vector),
            "calibration": _column(on_calibration[name], calibration, vector, task.calibration),
            "test": _column(measure_point(test, vector, stage_macs), test, vector, task.test),
        }
        for name, vector in vectors.items()
    ]
    return rows, default


def _column(metrics: PointMetrics, answers: Answers, vector: Sequence[float], split: Evaluation) -> Json:
    lost = accuracy_lost(answers, vector, split.digit)
    return {**asdict(metrics), "accuracy_lost": asdict(lost)}


def test_rows(answers: Answers, split: Evaluation) -> Json:
    """Accuracy per exit with its interval over digits, the paired gain over the exit before, and accuracy per severity."""
    right = answers.right
    exits = []
    for index in range(right.shape[1]):
        row: Json = {
            "accuracy": asdict(bootstrap(right[:, index], split.digit)),
            "ece": expected_calibration_error(answers.confidences[:, index], right[:, index]),
        }
        if index > 0:
            gain = right[:, index].astype(np.float64) - right[:, index - 1]
            row["gain_over_exit_before"] = asdict(bootstrap(gain, split.digit))
        exits.append(row)
    severities = [
        {
            "severity": int(level),
            "samples": int((split.severity == level).sum()),
            "accuracy": [float(value) for value in right[split.severity == level].mean(0)],
        }
        for level in np.unique(split.severity)
    ]
    return {
        "samples": len(split),
        "originals": len(np.unique(split.digit)),
        "interval": "95 %, bootstrap over original images; differences are paired by sample",
        "exits": exits,
        "severities": severities,
    }


def training_rows(trained: Trained, parity_error: float) -> Json:
    """How it was made, without any trace of the machine but its kind."""
    recipe = asdict(trained.recipe)
    return {
        "recipe": recipe,
        "data": trained.task.name,
        "split": trained.task.note,
        "epochs": trained.epochs,
        "seed": trained.seed,
        "threads": trained.threads,
        "seconds": round(trained.seconds, 1),
        "onnx_parity_error": parity_error,
        "default_operating_point_rule": (
            f"the cheapest threshold >= {trained.recipe.default_threshold_least:g} that loses nothing against {NO_EXIT} on "
            "calibration"
        ),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "machine": platform.machine(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

"""What a bundle says about itself: fits the exits on calibration, measures on test, writes `manifest.json`."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import SCHEMA
from zpipe.bundle.write import save_manifest
from zpipe.calibrate.metrics import Answers, answers_of
from zpipe.calibrate.rows import calibration_rows, default_rule, point_rows, table_row, test_rows
from zpipe.calibrate.table import Split
from zpipe.calibrate.temperature import fit_variant
from zpipe.model import TensorSpec
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
    """What was fitted on calibration: its raw logits `[samples, exits, classes]`, one temperature per exit, and the answers."""

    logits: npt.NDArray[np.float32]
    temperatures: tuple[float, ...]
    answers: Answers


@dataclass(frozen=True, slots=True)
class Measured:
    """What ONNX Runtime said about the test split at batch 1, and its largest distance from torch."""

    test: Answers
    parity_error: float


def fit_exits(logits: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> Exits:
    """One temperature per exit from calibration logits `[samples, exits, classes]`."""
    temperatures = fit_variant("per-exit", logits, truth)
    return Exits(logits, temperatures, answers_of(logits, temperatures, truth))


def write_manifest(
    folder: Path, trained: Trained, exits: Exits, measured: Measured, evaluation_file: str, replay_file: str
) -> None:
    """Write `manifest.json` for the files that lie in `folder`."""
    task = trained.task
    stages = stage_rows(trained, exits.temperatures)
    heads, macs = (True,) * len(stages), [stage["macs"] for stage in stages]
    splits = Split(exits.answers, task.calibration.digit), Split(measured.test, task.test.digit)
    points, default = point_rows(*splits, heads=heads, stage_macs=macs, least=trained.recipe.default_threshold_least)
    manifest = {
        "schema": SCHEMA,
        "name": bundle_name(trained.recipe.name, task.name),
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
        "calibration": calibration_rows(exits.logits, task.calibration.labels, exits.temperatures),
        "accuracy_table": table_row(*splits, heads=heads, stage_macs=macs, variant="per-exit"),
        "test": test_rows(measured.test, task.test.digit, task.test.severity, stages=range(len(stages))),
        "training": training_rows(trained, measured.parity_error),
    }
    save_manifest(folder, manifest)


def bundle_name(recipe: str, data: str) -> str:
    """The data and the network; recipes that were made for the digits are named after them."""
    network = recipe.partition("-")[2] if recipe.startswith("digits") else recipe
    return recipe if data == "digits" and network != recipe else f"{data}-{network}"


def stage_rows(trained: Trained, temperatures: Sequence[float]) -> list[Json]:
    """The chain as the manifest lists it."""
    return chain_rows(trained.network, trained.task.test.images[:2], classes=len(trained.task.classes), temperatures=temperatures)


def chain_rows(
    network: MultiExitNet, example: npt.NDArray[Any], *, classes: int, temperatures: Sequence[float], first: int = 0
) -> list[Json]:
    """The manifest's `stages` of a network whose files are `stageK.onnx`, from K = `first`; `example`: at least two samples."""
    costs, tensors = stage_costs(network, example), stage_tensors(network, example)
    return [
        {
            "file": f"stage{index}.onnx",
            "input": _tensor(before),
            "output": None if after is None else _tensor(after),
            "activation_bytes": 0 if after is None else after.bytes,
            "macs": macs,
            "parameters": parameters,
            "exit": {"classes": classes, "temperature": temperature},
        }
        for index, ((before, after), (macs, parameters), temperature) in enumerate(
            zip(tensors, costs, temperatures, strict=True), first
        )
    ]


def _tensor(spec: TensorSpec) -> Json:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


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
        "default_operating_point_rule": default_rule(trained.recipe.default_threshold_least),
        **versions(),
    }


def versions() -> Json:
    """What may change the result: libraries and the kind of machine."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
        "machine": platform.machine(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"

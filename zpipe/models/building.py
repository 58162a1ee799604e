"""The whole recipe in order: train, calibrate, export, replay, write. Each step is one function."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zpipe.bundle import MANIFEST, Bundle, Evaluation, load_bundle
from zpipe.errors import ConfigError
from zpipe.models.calibration import Answers, answers_of
from zpipe.models.cifar10 import IMAGE_SIZE as CIFAR10_SIZE
from zpipe.models.cifar10 import cifar10_task
from zpipe.models.digits import digits_task
from zpipe.models.export import StageChain, export_stages, parity_error
from zpipe.models.manifest import Measured, Trained, fit_exits, write_manifest
from zpipe.models.network import MultiExitNet
from zpipe.models.recipes import Recipe, find_recipe
from zpipe.models.task import Task
from zpipe.models.training import all_logits, torch_settings, train_network

#: Share of all work that each step is, for the progress bar (measured on the digits).
TRAIN_SHARE, REPLAY_START = 0.95, 0.97

#: Test images on which torch and ONNX Runtime are compared.
PARITY_SAMPLES = 256

EVALUATION_FILE, REPLAY_FILE = "evaluation.npz", "replay.npz"


def build_bundle(
    recipe: str,
    *,
    out: Path,
    data: str,
    data_dir: Path | None,
    epochs: int | None,
    seed: int,
    threads: int,
    progress: Callable[[str, float, str], None] | None,
) -> Bundle:
    """See `zpipe.models.train_bundle`."""
    tell = progress or (lambda step, fraction, line: None)
    plan = find_recipe(recipe)
    for option, value in (("--epochs", epochs), ("--threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: found {value}, expected a whole number >= 1; give one or leave the option out")
    refuse_strangers(out)
    task = find_task(plan, data, data_dir)
    passes = epochs or task.epochs or plan.epochs  # none of them may be 0

    def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
        line = f"epoch {done}/{total}: loss {loss:.3f}, last exit {100 * accuracy:.1f} % while training"
        tell("train", TRAIN_SHARE * done / total, line)

    start = time.monotonic()
    with torch_settings(threads=threads, seed=seed):
        network = train_network(plan, task, epochs=passes, seed=seed, on_epoch=on_epoch)
        trained = Trained(network, plan, task, passes, seed, threads, time.monotonic() - start)
        return package(trained, out, tell)


def find_task(recipe: Recipe, data: str, data_dir: Path | None) -> Task:
    """The data set by name, in images of the recipe's size.

    Raises:
        ConfigError: there is no such data set or none of this size, or its files are absent.
    """
    if data == "digits":
        return digits_task(recipe.image_size)
    if data == "cifar10":
        if recipe.image_size != CIFAR10_SIZE:
            raise ConfigError(
                f"--data cifar10: found images of {CIFAR10_SIZE} pixels, expected {recipe.image_size} for {recipe.name}; "
                f"choose another recipe"
            )
        return cifar10_task(data_dir)
    raise ConfigError(f"--data: found {data!r}, expected digits or cifar10; choose one of these")


def refuse_strangers(out: Path) -> None:
    """Only a bundle, an empty folder or nothing may be replaced.

    Raises:
        ConfigError: something else is there.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise ConfigError(f"--out {out}: found something that is no bundle, expected a free name; choose another folder")


def package(trained: Trained, out: Path, tell: Callable[[str, float, str], None]) -> Bundle:
    """Calibrate, export, replay and write a trained network as a bundle."""
    task, network = trained.task, trained.network
    tell("calibrate", TRAIN_SHARE, "fitting one temperature per exit")
    exits = fit_exits(all_logits(network, task.calibration.images), task.calibration.labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        chain, error = export_checked(network, task, folder)
        tell("export", REPLAY_START, f"{len(network.stages)} stages, at most {error:.1g} away from torch")
        test = answers_of(chain.logits(task.test.images), exits.temperatures, task.test.labels)
        tell("replay", 0.99, f"{len(task.test)} test samples through ONNX Runtime")
        write_arrays(folder, task.test, test)
        write_manifest(folder, trained, exits, Measured(test, error), EVALUATION_FILE, REPLAY_FILE)
        # What was there goes with the scratch folder, and only once the new one is whole.
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        folder.rename(out)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


def export_checked(network: MultiExitNet, task: Task, folder: Path) -> tuple[StageChain, float]:
    """Write the ONNX stages and compare them with torch on test images.

    Raises:
        ExecutorError: they disagree.
    """
    chain = StageChain(export_stages(network, task.test.images[:2], folder))
    return chain, parity_error(network, chain, task.test.images[:PARITY_SAMPLES])


def write_arrays(folder: Path, test: Evaluation, answers: Answers) -> None:
    """The evaluation set, and what each exit says about it; whole numbers as narrow as they fit."""
    evaluation: dict[str, Any] = {
        "images": test.images,
        "labels": test.labels.astype(np.int16),
        "severity": test.severity.astype(np.int8),
        "digit": test.digit.astype(np.int32),
    }
    replay: dict[str, Any] = {"label.none": answers.labels.astype(np.int16), "confidence.none": answers.confidences}
    np.savez_compressed(folder / EVALUATION_FILE, **evaluation)
    np.savez_compressed(folder / REPLAY_FILE, **replay)

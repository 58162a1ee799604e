"""The whole recipe in order: train, calibrate, export, replay, bottleneck, codecs, write. Each step is one function.

The last two need nothing but a bundle's own files, so that they can be done again to a bundle whose stages must stay as they are.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zpipe.bundle import Bundle, load_bundle
from zpipe.bundle.write import check_free, extend_manifest, replaced_when_done
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.codec_tables import codec_rows, codec_tables, replay_arrays, replayed
from zpipe.calibrate.metrics import Answers, answers_of
from zpipe.calibrate.rows import CALIBRATION_FILE, calibration_arrays
from zpipe.datasets.cifar10 import IMAGE_SIZE as CIFAR10_SIZE
from zpipe.errors import ConfigError
from zpipe.models.bottleneck import EPOCHS as BOTTLENECK_EPOCHS
from zpipe.models.bottleneck import train_bottleneck
from zpipe.models.checkpoint import load_into, read_checkpoint, sizes_of
from zpipe.models.cifar10 import cifar10_task
from zpipe.models.digits import digits_task
from zpipe.models.export import export_stages, parity_error
from zpipe.models.frozen import FrozenStage
from zpipe.models.manifest import Exits, Measured, Trained, fit_exits, write_manifest
from zpipe.models.network import MultiExitNet
from zpipe.models.networks import build_network
from zpipe.models.recipes import Gpt2, Recipe, find_recipe
from zpipe.models.task import Task
from zpipe.models.training import torch_settings, train_network
from zpipe.models.untrained import NOTE, STATISTICS, Made, samples_for, settle, write_untrained

#: How much of all work is done when a step ends, for the progress bar (measured on the digits).
TRAIN_END, EXPORT_END, CALIBRATE_END, REPLAY_END, BOTTLENECK_END = 0.65, 0.66, 0.67, 0.68, 0.95

#: Classes of a random network whose recipe names none: those of the data it would be trained on.
RANDOM_CLASSES = 10

#: Torch's and NumPy's generators both take this much.
MOST_SEED = 2**32 - 1

#: Test images on which torch and ONNX Runtime are compared.
PARITY_SAMPLES = 256

EVALUATION_FILE, REPLAY_FILE, BOTTLENECK_FILE = "evaluation.npz", "replay.npz", "bottleneck.npz"

#: Called as work goes on: see `zpipe.models.Progress`.
Tell = Callable[[str, float, str], None]


def build_bundle(
    recipe: str,
    *,
    out: Path,
    data: str,
    data_dir: Path | None,
    epochs: int | None,
    seed: int,
    threads: int,
    stages: int | None,
    replace: bool,
    tell: Tell,
) -> Bundle:
    """See `zpipe.models.train_bundle`."""
    plan = planned(recipe, stages)
    if plan.classes is not None or isinstance(plan.network, Gpt2):
        raise ConfigError(
            f"--recipe {recipe}: found a network that none of our data sets fits, expected weights from elsewhere; add --random, "
            f"{'--checkpoint DIR, ' if isinstance(plan.network, Gpt2) else ''}or choose another recipe"
        )
    check_numbers(epochs=epochs, threads=threads, seed=seed)
    check_free(out, replace=replace, read=(data_dir,))
    task = find_task(plan.image_size, data, data_dir)
    passes = epochs or task.epochs or plan.epochs  # none of them may be 0

    def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
        line = f"epoch {done}/{total}: loss {loss:.3f}, last exit {100 * accuracy:.1f} % while training"
        tell("train", TRAIN_END * done / total, line)

    start = time.monotonic()
    with torch_settings(threads=threads, seed=seed):
        network = train_network(plan, task, epochs=passes, seed=seed, on_epoch=on_epoch)
        trained = Trained(network, plan, task, passes, seed, threads, time.monotonic() - start)
        return package(trained, out, tell)


def planned(recipe: str, stages: int | None) -> Recipe:
    """The recipe by name, cut into so many stages; None = as it is.

    Raises:
        ConfigError: unknown, or not cut so.
    """
    plan = find_recipe(recipe)
    return plan if stages is None else plan.cut_into(stages)


def build_untrained(
    recipe: str, *, out: Path, stages: int | None, checkpoint: Path | None, seed: int, threads: int, replace: bool, tell: Tell
) -> Bundle:
    """See `zpipe.models.make_untrained`."""
    plan = planned(recipe, stages)
    check_numbers(threads=threads, seed=seed)
    check_free(out, replace=replace, read=(checkpoint,))
    with torch_settings(threads=threads, seed=seed), replaced_when_done(out) as folder:
        tell("network", 0.0, f"{plan.name}, {plan.stages} stages")
        made = random_network(plan, seed=seed) if checkpoint is None else network_of(plan, checkpoint, seed=seed)
        write_untrained(made, folder, tell=tell)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


def random_network(plan: Recipe, *, seed: int) -> Made:
    """Fresh weights from torch's global generator, settled on made-up samples."""
    count = plan.network.vocabulary if isinstance(plan.network, Gpt2) else plan.classes or RANDOM_CLASSES
    network = build_network(plan, classes=count)
    settle(network, torch.from_numpy(samples_for(plan, STATISTICS, seed=seed)))
    classes = tuple(str(index) for index in range(count))
    return Made(network, plan, classes, f"{plan.name}-random", NOTE, seed)


def network_of(plan: Recipe, folder: Path, *, seed: int) -> Made:
    """A checkpoint's network, of its own sizes.

    Raises:
        ConfigError: the recipe is not GPT-2's, or the checkpoint no such checkpoint.
    """
    if not isinstance(plan.network, Gpt2):
        raise ConfigError(f"--checkpoint: found it with recipe {plan.name}, expected it with gpt2-small alone; leave it out")
    checkpoint = read_checkpoint(folder)
    plan = dataclasses.replace(plan, network=sizes_of(checkpoint, plan))
    assert isinstance(plan.network, Gpt2)
    network = build_network(plan, classes=plan.network.vocabulary).eval()
    load_into(network, plan.network, checkpoint)
    return Made(network, plan, checkpoint.tokens, folder.resolve().name, f"weights of the checkpoint {folder.resolve().name}", seed)


def rebuild_codecs(out: Path, *, data: str, data_dir: Path | None, seed: int, threads: int, tell: Tell) -> Bundle:
    """See `zpipe.models.retrain_codecs`."""
    check_numbers(threads=threads, seed=seed)
    bundle = load_bundle(out.resolve())
    if bundle.students:
        raise ConfigError(f"--out: found students in {out}, expected one network, whose cuts codecs are for; name another bundle")
    task = find_task(bundle.image_size, data, data_dir)
    if task.classes != bundle.classes:
        found, expected = ", ".join(task.classes), ", ".join(bundle.classes)
        raise ConfigError(f"--data {data}: found classes {found}, expected those of {out}: {expected}; name what it was trained on")
    with torch_settings(threads=threads, seed=seed), replaced_when_done(out) as folder:
        shutil.copytree(out, folder, dirs_exist_ok=True)
        add_codecs(folder, task, seed, tell)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


def check_numbers(*, epochs: int | None = None, threads: int, seed: int) -> None:
    """What every way to a bundle has in common; `epochs`: None is no value.

    Raises:
        ConfigError: one is out of range.
    """
    for option, value in (("--epochs", epochs), ("--threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{option}: found {value}, expected a whole number >= 1; give one or leave the option out")
    if not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"--seed: found {seed}, expected a whole number in 0..{MOST_SEED}; choose another")


def find_task(image_size: int, data: str, data_dir: Path | None) -> Task:
    """The data set by name, in images of that many pixels a side.

    Raises:
        ConfigError: there is no such data set or none of this size, or its files are absent.
    """
    if data == "digits":
        return digits_task(image_size)
    if data == "cifar10":
        if image_size != CIFAR10_SIZE:
            raise ConfigError(
                f"--data cifar10: found images of {CIFAR10_SIZE} pixels, expected {image_size} for this network; "
                "choose another recipe"
            )
        return cifar10_task(data_dir)
    raise ConfigError(f"--data: found {data!r}, expected digits or cifar10; choose one of these")


def package(trained: Trained, out: Path, tell: Tell) -> Bundle:
    """Calibrate, export, replay and write a trained network as a bundle."""
    task, network = trained.task, trained.network
    with replaced_when_done(out) as folder:
        chain, error = export_checked(network, task, folder)
        tell("export", EXPORT_END, f"{len(network.stages)} stages, at most {error:.1g} away from torch")
        # From the exported stages, which is what will answer: `zpipe calibrate` finds the same temperatures again.
        exits = fit_exits(chain.logits(task.calibration.images), task.calibration.labels)
        tell("calibrate", CALIBRATE_END, f"one temperature per exit, from {len(task.calibration)} samples")
        test = answers_of(chain.logits(task.test.images), exits.temperatures, task.test.labels)
        tell("replay", REPLAY_END, f"{len(task.test)} test samples through ONNX Runtime")
        write_arrays(folder, task, exits, test)
        write_manifest(folder, trained, exits, Measured(test, error), EVALUATION_FILE, REPLAY_FILE)
        add_codecs(folder, task, trained.seed, tell)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


def add_codecs(folder: Path, task: Task, seed: int, tell: Tell) -> None:
    """Train the bottleneck of the bundle in `folder`, then measure every codec; call it within `torch_settings`."""
    bundle = load_bundle(folder)

    def on_epoch(done: int, total: int, divergence: float) -> None:
        share = REPLAY_END + (BOTTLENECK_END - REPLAY_END) * done / total
        tell("bottleneck", share, f"epoch {done}/{total}: the exits differ by {divergence:.4f} nats")

    def on_codec(done: int, total: int, codec: str) -> None:
        tell("codecs", BOTTLENECK_END + (1 - BOTTLENECK_END) * done / total, f"all test samples through {codec}")

    start = time.monotonic()
    stages = [FrozenStage(bundle.stage_path(stage.index)) for stage in bundle.stages]
    weights: dict[str, Any] = dict(train_bottleneck(stages, task, epochs=BOTTLENECK_EPOCHS, seed=seed, on_epoch=on_epoch))
    seconds = round(time.monotonic() - start, 1)
    np.savez_compressed(folder / BOTTLENECK_FILE, **weights)
    row = {"file": BOTTLENECK_FILE, "epochs": BOTTLENECK_EPOCHS, "seed": seed, "seconds": seconds}
    extend_manifest(folder, {"bottleneck": row})
    bundle = load_bundle(folder)
    tables = codec_tables(bundle, replayed(bundle), on_codec)
    np.savez_compressed(folder / REPLAY_FILE, **replay_arrays(tables))
    extend_manifest(folder, {"codecs": codec_rows(tables, bundle.default_point.thresholds, bundle.evaluation())})


def export_checked(network: MultiExitNet, task: Task, folder: Path) -> tuple[StageChain, float]:
    """Write the ONNX stages and compare them with torch on test images.

    Raises:
        ExecutorError: they disagree.
    """
    chain = StageChain(export_stages(network, task.test.images[:2], folder))
    return chain, parity_error(network, chain, task.test.images[:PARITY_SAMPLES])


def write_arrays(folder: Path, task: Task, exits: Exits, answers: Answers) -> None:
    """The evaluation set, and what each exit says about it and about the calibration split; integers as narrow as they fit."""
    test, fitted = task.test, task.calibration
    evaluation: dict[str, Any] = {
        "images": test.images,
        "labels": test.labels.astype(np.int16),
        "severity": test.severity.astype(np.int8),
        "digit": test.digit.astype(np.int32),
    }
    replay: dict[str, Any] = {"label.none": answers.labels.astype(np.int16), "confidence.none": answers.confidences}
    np.savez_compressed(folder / EVALUATION_FILE, **evaluation)
    np.savez_compressed(folder / REPLAY_FILE, **replay)
    calibration = calibration_arrays(exits.logits, fitted.labels, fitted.severity, fitted.digit)
    np.savez_compressed(folder / CALIBRATION_FILE, **calibration)

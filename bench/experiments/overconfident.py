"""Outage on an over-confident network: what calibration is for, which our bundles, being under-confident, cannot show.

    python -m bench.experiments.overconfident [--epochs N] [--seeds N]

Needs the extra `train`; about a minute a seed on an idle core; writes bench/results/calibrate-overconfident.json.

The half-width network of `digits-mobilenetv2-half`, trained wrongly on purpose: on clean digits only, without weight decay. It then
meets all five severities, and is surer than right. Temperatures are fitted on the usual calibration split and outage is measured on
the usual test split, as `zpipe calibrate` does (window 32, threshold = target).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.made import commit
from zpipe.bundle import Evaluation, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.study import Spoken, study_bundle
from zpipe.calibrate.table import TARGETS
from zpipe.models.digits import TRAIN_DIGITS, digits_task, distort, load_glyphs
from zpipe.models.export import export_stages
from zpipe.models.recipes import RECIPES
from zpipe.models.task import Task
from zpipe.models.training import torch_settings, train_network
from zpipe.report import machine

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "calibrate-overconfident.json"
RECIPE = "digits-mobilenetv2-half"


def clean_task() -> Task:
    """The digits, with nothing but clean images to train on."""
    glyphs, labels = load_glyphs()
    train = slice(0, TRAIN_DIGITS)

    def draw_epoch(rng: np.random.Generator) -> tuple[Any, Any]:
        digits = rng.permutation(TRAIN_DIGITS)
        return distort(glyphs[train], digits, np.zeros(TRAIN_DIGITS, np.int64), rng), labels[train][digits]

    return replace(digits_task(), draw_epoch=draw_epoch)


def ask(chain: StageChain, name: str, split: Evaluation) -> Spoken:
    return Spoken(name, chain.logits(split.images), split.labels, split.severity, split.digit)


def study(task: Task, *, epochs: int, seed: int) -> dict[str, Any]:
    recipe = replace(RECIPES[RECIPE], weight_decay=0.0)

    def tell(done: int, total: int, loss: float, accuracy: float) -> None:
        if done % 10 == 0:
            print(
                f"seed {seed}: epoch {done}/{total}, loss {loss:.3f}, last exit {100 * accuracy:.1f} % while training", flush=True
            )

    with torch_settings(threads=1, seed=seed), tempfile.TemporaryDirectory() as folder:
        network = train_network(recipe, task, epochs=epochs, seed=seed, on_epoch=tell)
        chain = StageChain(export_stages(network, task.test.images[:2], Path(folder)))
        spoken = [ask(chain, name, split) for name, split in (("calibration", task.calibration), ("test", task.test))]
    # Only its multiply-adds and exit heads are looked at, which are the same.
    return study_bundle(load_bundle(RECIPE), *spoken, variant="per-exit", targets=TARGETS).report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    task, runs = clean_task(), []
    for seed in range(options.seeds):
        report = study(task, epochs=options.epochs, seed=seed)
        exits = {name: found["exits"] for name, found in report["variants"].items()}
        runs.append({"seed": seed, "temperatures": {name: [row["temperature"] for row in rows] for name, rows in exits.items()}})
        runs[-1]["exits"] = {name: [row["test"] for row in rows] for name, rows in exits.items()}
        runs[-1]["outage"] = report["outage_by_window"]
        for row in report["outage_by_window"]:
            outage = ", ".join(f"{name} {found['outage']:.3f}" for name, found in row["variants"].items())
            drops = ", ".join("–" if drop is None else f"{name} {drop:+.0%}" for name, drop in row["relative_drop"].items())
            print(
                f"seed {seed}: target {row['target']:g}, windows of {row['window']}: outage {outage}; relative {drops}", flush=True
            )
    found = {"commit": commit(), "machine": machine(), "epochs": options.epochs, "runs": runs}
    RESULTS.write_text(json.dumps({**found, "published_relative_drop": report["published_relative_drop"]}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Exit heads on a frozen backbone against heads that were trained with it: accuracy per exit on the digits.

    python -m bench.heads                    writes bench/results/heads.json; seven minutes on two busy cores
    python -m bench.heads --no-backbone      without training a backbone; two minutes, writes nothing

Two backbones, both the half-width MobileNetV2: that of the committed bundle, which was trained together with its exits, has them
taken off and forgotten; and one that never knew an exit (same recipe and epochs, all weight on the last), as a user's network is.
Heads go on either, once from labels and once from nothing but what the last exit says to images without labels. Every accuracy is
on the 2,985 test images, intervals by bootstrap over digits. `bits_kept`: each activation and the last logits are the same, bit for
bit, before and after. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.models.stripped import stripped
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.models import RECIPES, attach_heads, building
from zpipe.models.digits import digits_task
from zpipe.models.manifest import Trained
from zpipe.models.training import torch_settings, train_network
from zpipe.report.machine import machine

RESULTS = Path(__file__).parent / "results" / "heads.json"
RECIPE = "digits-mobilenetv2-half"
#: Images whose bits are compared.
COMPARED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-backbone", action="store_true", help="leave out the backbone that has to be trained")
    parser.add_argument("--epochs", type=int, default=RECIPES[RECIPE].epochs, help="of that backbone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        joint = load_bundle(RECIPE)
        rows = {"joint": row(joint)}
        rows |= measure("of-joint", joint, scratch)
        if not arguments.no_backbone:
            rows |= measure("alone", train_alone(scratch / "alone", arguments.epochs), scratch)
    for key, found in rows.items():
        print(f"{key:24}", *(f"{100 * value:5.1f}" for value in found["exits"]), f" {found['point']} {found['lost']:+.2f} points")
    if arguments.no_backbone:
        return
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measure(name: str, bundle: Bundle, scratch: Path) -> dict[str, Any]:
    """Its exits taken off, and put on again in two ways."""
    folder = scratch / f"{name}-stripped"
    folder.mkdir()
    bare, rows = stripped(bundle, folder), {}
    for way, distill in (("labels", False), ("distilled", True)):
        start = time.monotonic()
        made = attach_heads(bare.path, out=scratch / f"{name}-{way}", distill=distill)
        rows[f"{name}-{way}"] = {**row(made), "seconds": round(time.monotonic() - start, 1), "bits_kept": same_bits(bare, made)}
    return rows


def row(bundle: Bundle) -> dict[str, Any]:
    """Accuracy of every exit, and what the default operating point loses and costs on test."""
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    point = next(item for item in manifest["operating_points"] if item["name"] == bundle.default_point.name)
    exits = [item["accuracy"] for item in manifest["test"]["exits"]]
    return {
        "exits": [item["value"] for item in exits],
        "intervals": [[item["low"], item["high"]] for item in exits],
        "temperatures": [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None],
        "point": point["name"],
        "accuracy": point["test"]["accuracy"],
        "lost": 100 * point["test"]["accuracy_lost"]["value"],
        "compute": point["test"]["mean_macs"] / bundle.full_macs,
        "macs": bundle.full_macs,
        "trained_on": manifest.get("heads", {}).get("trained_on", "labels, with the backbone"),
    }


def same_bits(bare: Bundle, made: Bundle) -> bool:
    """Whether the frozen stages give what they gave."""
    chains = [StageChain([bundle.stage_path(stage.index) for stage in bundle.stages]) for bundle in (bare, made)]
    for image in bare.evaluation().images[:COMPARED]:
        x: Any = image[None]
        for stage in bare.stages:
            values = [chain.run_stage(stage.index, x)[0 if stage.output else 1] for chain in chains]
            if not np.array_equal(*values):
                return False
            x = values[0]
    return True


def train_alone(out: Path, epochs: int) -> Bundle:
    """A bundle of the same recipe whose loss is that of the last exit; its early heads are noise, and are taken off."""
    recipe, task = RECIPES[RECIPE], digits_task()
    recipe = replace(recipe, exit_weights=(0.0,) * (len(recipe.exit_weights) - 1) + (1.0,))

    def tell(done: int, total: int, loss: float, accuracy: float) -> None:
        print(f"backbone: epoch {done}/{total}, loss {loss:.3f}, {100 * accuracy:.1f} % while training", flush=True)

    start = time.monotonic()
    building.BOTTLENECK_EPOCHS = 1  # not what is measured here
    with torch_settings(threads=1, seed=0):
        network = train_network(recipe, task, epochs=epochs, seed=0, on_epoch=tell)
        trained = Trained(network, recipe, task, epochs, 0, 1, time.monotonic() - start)
        return building.package(trained, out, lambda step, done, line: None)


if __name__ == "__main__":
    main()

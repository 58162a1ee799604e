"""The half-width digits with few samples, so that a study takes a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.mesh import HALF
from zpipe.bundle.write import save_manifest

#: Every so many-th sample is taken. The splits go through their digits again and again; a divisor of 200 would meet the same few.
STRIDE = 19
SAMPLES = 150


def small_bundle(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """A copy with `SAMPLES` evaluation and calibration samples and no bottleneck; `change` alters the manifest."""
    shutil.copytree(HALF, folder, ignore=shutil.ignore_patterns("trt", "bottleneck.npz"))
    for file in ("evaluation.npz", "replay.npz", "calibration.npz"):
        with np.load(folder / file) as archive:
            arrays: dict[str, Any] = {key: archive[key][::STRIDE][:SAMPLES] for key in archive.files}
        kept = {key: array for key, array in arrays.items() if not key.endswith("bottleneck")}
        np.savez_compressed(folder / file, **kept)
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("bottleneck", "codecs", "test"):
        del manifest[key]
    manifest["evaluation"]["samples"] = manifest["calibration"]["samples"] = SAMPLES
    change(manifest)
    save_manifest(folder, manifest)
    return folder


def without_evaluation(manifest: dict[str, Any]) -> None:
    """As a bundle of a user's own network comes: stages, and no data at all."""
    manifest["evaluation"] = manifest["replay"] = None
    for key in ("calibration", "accuracy_table"):
        del manifest[key]

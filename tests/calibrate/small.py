"""The half-width digits with few samples, so that a study takes a moment."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
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
    shutil.copytree(HALF, folder, ignore=shutil.ignore_patterns("trt", "*.npz"))
    for file in ("evaluation.npz", "replay.npz", "calibration.npz"):
        (folder / file).write_bytes(_few(file))
    manifest = json.loads((folder / "manifest.json").read_text())
    for key in ("bottleneck", "codecs", "test"):
        del manifest[key]
    manifest["evaluation"]["samples"] = manifest["calibration"]["samples"] = SAMPLES
    change(manifest)
    save_manifest(folder, manifest)
    return folder


@cache
def _few(file: str) -> bytes:
    with np.load(HALF / file) as archive:
        arrays: dict[str, Any] = {key: archive[key][::STRIDE][:SAMPLES] for key in archive.files if not key.endswith("bottleneck")}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


def without_evaluation(manifest: dict[str, Any]) -> None:
    """As a bundle of a user's own network comes: stages, and no data at all."""
    manifest["evaluation"] = manifest["replay"] = None
    for key in ("calibration", "accuracy_table"):
        del manifest[key]

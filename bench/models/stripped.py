"""A bundle as a split leaves it: no exit heads but the last. Needs `onnx` (extra `train`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx

from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.bundle.write import save_manifest
from zpipe.model import NEVER_EXIT
from zpipe.models.heads.graph import head_cost, without_head


def stripped(bundle: Bundle, folder: Path, *, evaluation: bool = True) -> Bundle:
    """The same network without its early exit heads, and without all that was found with them.

    Args:
        bundle: a real one.
        folder: exists, and is empty.
        evaluation: whether it keeps its evaluation set.
    """
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    for spec, row in zip(bundle.stages, manifest["stages"], strict=True):
        if spec.output is None:
            shutil.copy(bundle.stage_path(spec.index), folder)
            continue
        model = onnx.load(bundle.stage_path(spec.index))
        macs, parameters = head_cost(model)
        onnx.save_model(without_head(model), folder / spec.file)
        row.update(exit=None, macs=row["macs"] - macs, parameters=row["parameters"] - parameters)
    kept = ("schema", "classes", "preprocessing", "stages", "training")
    last = len(bundle.stages) - 1
    metrics = {
        "accuracy": bundle.point("no-exit").test.accuracy,
        "exit_shares": [0.0] * last + [1.0],
        "mean_macs": sum(row["macs"] for row in manifest["stages"]),
    }
    point = {"name": "no-exit", "thresholds": [NEVER_EXIT] * (last + 1), "calibration": metrics, "test": metrics}
    plain = {key: manifest[key] for key in kept if key in manifest} | {
        "name": f"{bundle.name}-stripped",
        "operating_points": [point],
        "default_operating_point": "no-exit",
        "evaluation": None,
        "replay": None,
    }
    if evaluation and bundle.evaluation_file is not None:
        shutil.copy(bundle.path / bundle.evaluation_file, folder)
        plain["evaluation"] = manifest["evaluation"]
    save_manifest(folder, plain)
    return load_bundle(folder)

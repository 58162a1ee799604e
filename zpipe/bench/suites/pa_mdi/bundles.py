"""Profiles as bundles that only cost (`Bundle.costs_only`): no stage files, every sample leaves at the last stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zpipe.bench.suites.pa_mdi.profiles import Profile
from zpipe.bundle import SCHEMA, Bundle, load_bundle
from zpipe.bundle.write import save_manifest
from zpipe.model import NEVER_EXIT, TensorSpec

#: Samples differ in nothing but their number: a few, so that raw inputs of emulated runs are not one buffer.
SAMPLES = 4
#: What links may be told to pack activations with; answers are the same whatever they do, as nothing is computed.
REPLAYED = ("none", "int8")
NOTE = "made up: costs alone, nothing is computed"
EVALUATION_FILE, REPLAY_FILE = "evaluation.npz", "replay.npz"


def write_bundle(profile: Profile, folder: Path) -> Bundle:
    """Writes the profile as a bundle into `folder`, which is made."""
    folder.mkdir(parents=True)
    known: dict[str, Any] = dict.fromkeys(("labels", "severity", "digit"), np.zeros(SAMPLES, np.int64))
    inputs = np.zeros((SAMPLES, *profile.input.shape), profile.input.dtype)
    np.savez_compressed(folder / EVALUATION_FILE, images=inputs, **known)
    shape = (SAMPLES, len(profile.stages))
    labels, confidences = np.zeros(shape, np.int16), np.ones(shape, np.float32)
    tables: dict[str, Any] = {f"label.{codec}": labels for codec in REPLAYED} | {
        f"confidence.{codec}": confidences for codec in REPLAYED
    }
    np.savez_compressed(folder / REPLAY_FILE, **tables)
    save_manifest(folder, _manifest(profile))
    return load_bundle(folder)


def _manifest(profile: Profile) -> dict[str, Any]:
    last = len(profile.stages) - 1
    entering = (profile.input, *(stage.output for stage in profile.stages[:-1]))
    stages = [
        {
            "file": f"stage{index}.onnx",
            "input": _tensor(entering[index]),
            "output": None if index == last else _tensor(stage.output),
            "activation_bytes": 0 if index == last else stage.output.bytes,
            "exit": {"classes": profile.classes, "temperature": 1.0} if index == last else None,
            "macs": stage.macs,
        }
        for index, stage in enumerate(profile.stages)
    ]
    metrics = {"accuracy": 1.0, "exit_shares": [*[0.0] * last, 1.0], "mean_macs": profile.macs}
    point = {"name": "whole", "thresholds": [*[NEVER_EXIT] * last, 0.0], "calibration": metrics, "test": metrics}
    return {
        "schema": SCHEMA,
        "name": profile.name,
        "costs_only": NOTE,
        "classes": [str(label) for label in range(profile.classes)],
        "preprocessing": None,
        "stages": stages,
        "operating_points": [point],
        "default_operating_point": "whole",
        "evaluation": {"file": EVALUATION_FILE, "samples": SAMPLES, "generated": NOTE},
        "replay": {"file": REPLAY_FILE},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}

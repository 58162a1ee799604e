"""A bundle of three small students that only costs: the third has two stages and an early exit.

Its scores are drawn once: of each sample every part says its class and some noise, the early exit with more noise than the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import SCHEMA, Bundle, Join, load_bundle, parts_of
from zpipe.bundle.write import save_manifest
from zpipe.model import NEVER_EXIT, TensorSpec
from zpipe.topology import Topology, from_dict

#: Stages of each student, as a topology says it.
SIZES = (1, 1, 2)
PARTS, STAGES = len(SIZES), sum(SIZES)
FIRSTS, ENDS = (0, 1, 2), (0, 1, 3)
#: The third student's early exit.
EARLY, THRESHOLD = 2, 0.7
CLASSES, SAMPLES = 4, 48
INPUT, INNER = TensorSpec("uint8", (3, 4, 4)), TensorSpec("float32", (4, 2, 2))
#: A stage takes a Raspberry Pi 3 between 10 and 21 ms.
MACS = (20_000_000, 30_000_000, 20_000_000, 40_000_000)
DEVICE = "raspberry-pi-3"
TEMPERATURE = 1.0


def write_students(folder: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """Writes the bundle into `folder`, which is made; `change` alters the manifest before."""
    folder.mkdir(parents=True)
    whole = np.arange(SAMPLES)
    images = np.zeros((SAMPLES, *INPUT.shape), np.uint8)
    np.savez_compressed(folder / "evaluation.npz", images=images, labels=classes(), severity=whole * 0, digit=whole)
    tables: dict[str, Any] = {
        "label.none": scores().argmax(axis=2).astype(np.int16),
        "confidence.none": confidences(),
        "scores.none": scores(),
    }
    np.savez_compressed(folder / "replay.npz", **tables)
    manifest = students_manifest()
    change(manifest)
    save_manifest(folder, manifest)
    return folder


def students(folder: Path) -> Bundle:
    """The bundle, written and read."""
    return load_bundle(write_students(folder))


def classes() -> npt.NDArray[np.int64]:
    """`[samples]`, what they are."""
    return np.arange(SAMPLES) % CLASSES


@cache
def scores() -> npt.NDArray[np.float32]:
    """`[samples, stages, classes]`."""
    noise = np.random.default_rng(10).standard_normal((SAMPLES, STAGES, CLASSES))
    noise[:, EARLY] *= 2.0
    return (noise + 2.5 * np.eye(CLASSES)[classes()][:, None, :]).astype(np.float32)


def confidences() -> npt.NDArray[np.float32]:
    """`[samples, stages]`."""
    exponential = np.exp(scores() / np.float32(TEMPERATURE))
    return np.asarray(exponential.max(axis=2) / exponential.sum(axis=2), np.float32)


def join(*, temperatures: tuple[float, ...] | None = None) -> Join:
    """How their scores make one answer; by default each set of parts has a temperature of its own."""
    sets = 2**PARTS
    chosen = temperatures or (1.0, *[0.5 + 0.125 * index for index in range(1, sets)])
    return Join((0.25, 0.0, -0.125, 0.0), chosen, (0.25,) * sets, (0.25,) * sets)


def accuracies() -> list[float]:
    """Per set of parts, without early exits."""
    found = [1.0 / CLASSES]
    for mask in range(1, 2**PARTS):
        labels, _ = join().answers(scores()[:, [ENDS[part] for part in parts_of(mask)]], parts_of(mask))
        found.append(float((labels == classes()).mean()))
    return found


def students_manifest() -> dict[str, Any]:
    """What `write_students` writes."""
    head = {"classes": CLASSES, "temperature": TEMPERATURE}
    entering, leaving = (INPUT, INPUT, INPUT, INNER), (None, None, INNER, None)
    stages = [
        {
            "file": f"stage{index}.onnx",
            "input": _tensor(entering[index]),
            "output": None if (output := leaving[index]) is None else _tensor(output),
            "activation_bytes": 0 if output is None else output.bytes,
            "exit": dict(head),
            "macs": MACS[index],
        }
        for index in range(STAGES)
    ]
    share = float((confidences()[:, EARLY] >= THRESHOLD).mean())
    joined = accuracies()
    return {
        "schema": SCHEMA,
        "name": "three-students",
        "costs_only": "made up",
        "classes": [f"class {index}" for index in range(CLASSES)],
        "preprocessing": None,
        "stages": stages,
        "students": [
            {"part": 0, "stages": [0], "filters": [0, 3], "parameters": 100, "bytes": 1000},
            {"part": 1, "stages": [1], "filters": [1], "parameters": 150, "bytes": 1500},
            {"part": 2, "stages": [2, 3], "filters": [2, 4, 5], "parameters": 300, "bytes": 3000},
        ],
        "join": {
            "bias": list(join().bias),
            "temperatures": list(join().temperatures),
            "accuracy": {"calibration": joined, "test": list(joined)},
        },
        "operating_points": [
            _point("early", THRESHOLD, [1.0, 1.0, share, 1.0 - share], sum(MACS) - share * MACS[3]),
            _point("no-exit", NEVER_EXIT, [1.0, 1.0, 0.0, 1.0], sum(MACS)),
        ],
        "default_operating_point": "early",
        "evaluation": {"file": "evaluation.npz", "samples": SAMPLES, "generated": "made up"},
        "replay": {"file": "replay.npz"},
    }


def _point(name: str, threshold: float, shares: list[float], macs: float) -> dict[str, Any]:
    metrics = {"accuracy": 0.9, "exit_shares": shares, "mean_macs": macs}
    thresholds = [NEVER_EXIT, NEVER_EXIT, threshold, NEVER_EXIT]
    return {"name": name, "thresholds": thresholds, "calibration": metrics, "test": metrics}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def star(folder: Path, *, replicas: int = 2, executor: str = "emulated", **keys: Any) -> Topology:
    """A source without stages, and so many replicas of each student around it: 1, 4, 7 ... of part 0, 2, 5, 8 ... of part 1."""
    hosted = [[0], [1], [2, 3]] * replicas
    nodes = [{"rank": 0, "stages": []}]
    nodes += [
        {"rank": 1 + index, "stages": stages, "executor": executor, "device": DEVICE, "max_batch": 4}
        for index, stages in enumerate(hosted)
    ]
    plain = {"name": "boards", "bundle": str(folder), "students": list(SIZES), "nodes": nodes, "links": "star"}
    return from_dict({**plain, "source": {"rank": 0, "admission": "fixed"}, **keys})

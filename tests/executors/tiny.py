"""A bundle of three tiny stages (data/README.md) for tests that run real ONNX in microseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, Preprocessing
from zpipe.model import ExitHead, GateSpec, OperatingPoint, PointMetrics, StageSpec, TensorSpec

DATA = Path(__file__).parent / "data"

STAGES = (
    StageSpec(0, "stage0.onnx", TensorSpec("uint8", (3, 8, 8)), TensorSpec("float32", (4, 4, 4)), ExitHead(3, 0.7), 2000),
    StageSpec(1, "stage1.onnx", TensorSpec("float32", (4, 4, 4)), TensorSpec("float32", (8, 2, 2)), None, 1200),
    StageSpec(2, "stage2.onnx", TensorSpec("float32", (8, 2, 2)), None, ExitHead(3, 1.0), 96),
)


def tiny_bundle(*, path: Path = DATA, stages: tuple[StageSpec, ...] = STAGES) -> Bundle:
    metrics = PointMetrics(0.5, (0.5, 0.0, 0.5), 2648.0)
    point = OperatingPoint("default", (0.9, 1.0, 0.0), metrics, metrics)
    return Bundle(
        name="tiny",
        path=path,
        classes=("a", "b", "c"),
        preprocessing=Preprocessing(8, "RGB", "CHW", "uint8", "none"),
        stages=stages,
        operating_points=(point,),
        default_point=point,
        digest="0" * 64,
        full_macs=sum(stage.macs for stage in stages),
        evaluation_file=None,
        evaluation_samples=0,
        replay_file=None,
    )


def images(batch: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, size=(batch, 3, 8, 8)).astype(np.uint8)


def gate(batch: int, threshold: float = 0.6, *, last: bool = False) -> GateSpec:
    return GateSpec("max-probability", 0.7, (threshold,) * batch, last=last)

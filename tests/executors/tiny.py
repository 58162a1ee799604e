"""A bundle of three tiny stages (data/README.md) for tests that run real ONNX in microseconds, and its emulation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, Preprocessing
from zpipe.executors import StageOutput, make_executor
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


def gate(batch: int, threshold: float = 0.6, *, stage: int = 0, last: bool = False) -> GateSpec:
    head = STAGES[stage].exit_head
    return GateSpec("max-probability", head.temperature if head else 1.0, (threshold,) * batch, last=last)


def host_rows(output: StageOutput) -> npt.NDArray[Any]:
    """The activation on the host, wherever it lies."""
    assert output.activation is not None
    return np.asarray(output.activation)


def stay(rows: npt.NDArray[Any], exited: list[bool]) -> npt.NDArray[Any]:
    """Of an activation, all rows or those that do not exit: those that do not."""
    return rows if len(rows) == exited.count(False) else rows[~np.array(exited)]


#: Evaluation samples of the tiny emulation: `images(EVALUATION)`.
EVALUATION = 64


def tiny_emulation(folder: Path) -> Bundle:
    """The tiny bundle with what an emulation needs: evaluation set and replay, as its stages answer one by one."""
    for spec in STAGES:
        shutil.copy(DATA / spec.file, folder)
    whole, answers = np.arange(EVALUATION), _answers(images(EVALUATION))
    np.savez(folder / "evaluation.npz", images=images(EVALUATION), labels=whole % 3, severity=whole % 5, digit=whole)
    replay: dict[str, Any] = {"label.none": answers[0].astype(np.int16), "confidence.none": answers[1]}
    np.savez(folder / "replay.npz", **replay)
    bundle = tiny_bundle(path=folder)
    return replace(bundle, evaluation_file="evaluation.npz", evaluation_samples=EVALUATION, replay_file="replay.npz").emulated()


def _answers(inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What each stage says of each input, `[samples, stages]`: labels and confidences."""
    labels = np.full((len(inputs), len(STAGES)), -1)
    confidences = np.zeros((len(inputs), len(STAGES)), np.float32)
    executor = make_executor("onnx", tiny_bundle(), range(len(STAGES)))
    for sample, one in enumerate(inputs):
        x: Any = one[None]
        for stage, spec in enumerate(STAGES):
            output = executor.run(stage, x, gate(1, stage=stage, last=spec.output is None))
            labels[sample, stage], confidences[sample, stage], x = output.labels[0], output.confidences[0], output.activation
    executor.close()
    return labels, confidences


class FakeClock:
    """Stands still but for sleepers, who take it to when they want to wake, and `late` seconds further."""

    def __init__(self, *, late: float = 0.0) -> None:
        self.time, self.late = 0.0, late
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep_until(self, when: float) -> None:
        self.sleeps.append(when)
        self.time = max(self.time, when + self.late)

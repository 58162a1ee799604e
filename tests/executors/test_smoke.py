"""An executor that is right passes, whichever stages it hosts; each way of being wrong is named in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.tiny import host_rows, tiny_bundle, tiny_emulation
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors import StageOutput, make_executor
from zpipe.executors.onnx import OnnxExecutor
from zpipe.executors.smoke import smoke
from zpipe.model import GateSpec

ENGINES = Path(__file__).parents[2] / "engines"

Change = Callable[[StageOutput], StageOutput]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Three stages, the second without an exit head, with evaluation set and replay."""
    return tiny_emulation(tmp_path).real


class Changed(OnnxExecutor):
    """Right, but for what `change` does to the outputs of one stage."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], stage: int, change: Change) -> None:
        super().__init__(bundle, stages)
        self._changed, self._change = stage, change

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        output = super().run(stage, inputs, gate)
        return self._change(output) if stage == self._changed else output


@pytest.mark.parametrize("stages", [(0,), (1,), (2,), (0, 1, 2), (0, 2)])
def test_right_executor_passes_whichever_stages_it_hosts(bundle: Bundle, stages: tuple[int, ...]) -> None:
    assert smoke(make_executor("onnx", bundle, stages), bundle) is None


@pytest.mark.parametrize("stages", [(2,), (0, 1, 2, 3, 4)])
def test_real_bundle_passes(stages: tuple[int, ...]) -> None:
    bundle = load_bundle(ENGINES / "digits-mobilenetv2", verify=False)
    assert smoke(make_executor("onnx", bundle, stages), bundle, tolerance=1e-4) is None


def test_bundle_without_evaluation_set_or_replay_is_compared_with_onnx_runtime() -> None:
    bundle = tiny_bundle()
    assert smoke(make_executor("onnx", bundle, [0, 2]), bundle) is None
    less = lambda output: replace(output, confidences=[each - 0.1 for each in output.confidences])  # noqa: E731
    assert "found confidence" in str(smoke(Changed(bundle, [2], 2, less), bundle))


def test_small_engines_get_small_batches(bundle: Bundle) -> None:
    seen = set()

    def note(output: StageOutput) -> StageOutput:
        seen.add(len(output.labels))
        return output

    assert smoke(Changed(bundle, [0], 0, note), bundle, samples=7, batch=3) is None
    assert seen == {3, 1}


def test_activation_may_hold_the_survivors_alone(bundle: Bundle) -> None:
    def compact(output: StageOutput) -> StageOutput:
        return replace(output, activation=host_rows(output)[~np.array(output.exited)])

    assert smoke(Changed(bundle, [0, 1, 2], 0, compact), bundle) is None


def wrong_rows(output: StageOutput) -> StageOutput:
    return replace(output, activation=host_rows(output)[np.array(output.exited)])  # as many, but those that leave


def holed(output: StageOutput) -> StageOutput:
    activation = host_rows(output).copy()
    activation[3] = np.nan
    return replace(output, activation=activation)


def cut_off(output: StageOutput) -> StageOutput:
    return replace(output, activation=host_rows(output)[:-1])


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (0, lambda out: replace(out, exited=[False] * 8), "stage 0: found exits --------, expected x-x-x-x-"),
        (2, lambda out: replace(out, exited=[True] * 7 + [False]), "stage 2: found exits xxxxxxx-, expected xxxxxxxx"),
        (0, lambda out: replace(out, confidences=out.confidences[::-1]), "stage 0: found confidence .* in row 0, expected 0"),
        (2, lambda out: replace(out, confidences=[float("nan")] * 8), "stage 2: found confidence nan in row 0, expected 0"),
        (0, lambda out: replace(out, labels=[(label + 1) % 3 for label in out.labels]), "stage 0: found label"),
        (0, wrong_rows, "stage 0: found row 0 of the activation off by"),
        (1, holed, "stage 1: found row 3 of the activation off by nan"),
        (1, cut_off, r"stage 1: found activation float32 \[7, 8, 2, 2\], expected float32 \[8, 8, 2, 2\]"),
    ],
)
def test_wrong_output_is_named(bundle: Bundle, stage: int, change: Change, message: str) -> None:
    differs = smoke(Changed(bundle, [0, 1, 2], stage, change), bundle)
    assert differs is not None
    assert re.match(message, differs), differs


@pytest.mark.parametrize(("precision", "off"), [("fp32", 0.005), ("fp16", 0.02), ("bf16", 0.05), ("int8", 0.1)])
def test_each_precision_has_its_tolerance(bundle: Bundle, precision: str, off: float) -> None:
    """An int8 engine as good as it can be passes; one of float32 that is as far off does not."""

    def looked_at(off: float) -> str | None:
        less = lambda output: replace(output, confidences=[each - off for each in output.confidences])  # noqa: E731
        executor = Changed(bundle, [0], 0, less)
        executor.precision = precision  # type: ignore[attr-defined]
        return smoke(executor, bundle)

    assert looked_at(off) is None
    assert re.match(r"stage 0: found confidence", str(looked_at(2.5 * off)))


def test_what_the_executor_raises_passes_through(bundle: Bundle) -> None:
    def lose(output: StageOutput) -> StageOutput:
        raise ExecutorLost("device: found it gone, expected it there; look at the cable")

    with pytest.raises(ExecutorLost):
        smoke(Changed(bundle, [0], 0, lose), bundle)
    closed = make_executor("onnx", bundle, [0])
    closed.close()
    with pytest.raises(ExecutorError, match="closed"):
        smoke(closed, bundle)

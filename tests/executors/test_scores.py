"""Bundles of students: what a gate that asks for scores gets, and who cannot give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import students
from tests.executors.tiny import FakeClock, gate, images, tiny_bundle
from zpipe.bundle import Bundle, StudentSpec
from zpipe.errors import ConfigError
from zpipe.executors import StageOutput, make_executor, wanted_scores
from zpipe.executors.emulated import EmulatedExecutor
from zpipe.model import GateSpec


def test_onnx_gives_the_raw_logits_and_only_where_they_are_asked_for() -> None:
    executor = make_executor("onnx", tiny_bundle(), [0, 1])
    plain = executor.run(0, images(3), gate(3))
    assert plain.scores is None
    asked = executor.run(0, images(3), replace(gate(3), scores=True))
    assert asked.scores is not None
    assert (asked.scores.shape, asked.scores.dtype.name) == ((3, 3), "float32")
    assert asked.scores.argmax(axis=1).tolist() == plain.labels == asked.labels
    powers = np.exp(asked.scores / np.float32(0.7))
    assert plain.confidences == pytest.approx((powers.max(axis=1) / powers.sum(axis=1)).tolist(), rel=1e-5)
    inner = executor.run(1, np.asarray(plain.activation), replace(gate(3, stage=1), scores=True))
    assert inner.scores is None  # without an exit head


def test_emulated_gives_the_recorded_scores_of_students(tmp_path: Path) -> None:
    bundle = students.students(tmp_path / "three").emulated()
    executor = EmulatedExecutor(bundle, [2, 3], students.DEVICE, clock=FakeClock())
    executor.warm_up(2)
    rows = bundle.evaluation().images[[5, 40]]
    asked = GateSpec("max-probability", students.TEMPERATURE, (students.THRESHOLD,) * 2, scores=True)
    early = executor.run(2, rows, asked)
    assert np.array_equal(early.scores, students.scores()[[5, 40], 2])  # type: ignore[arg-type]
    end = executor.run(3, np.asarray(early.activation), replace(asked, last=True))
    assert np.array_equal(end.scores, students.scores()[[5, 40], 3])  # type: ignore[arg-type]
    assert end.labels == students.scores()[[5, 40], 3].argmax(axis=1).tolist()


def test_a_gate_that_asks_for_none_gets_none() -> None:
    assert wanted_scores(np.ones((1, 2)), gate(1)) is None
    found = wanted_scores(np.ones((1, 2), np.float16), replace(gate(1), scores=True))
    assert found is not None
    assert found.dtype == np.float32


class Silent:
    """An executor that gives no scores."""

    inline = True

    def __init__(self, bundle: Bundle, stages: Any) -> None:
        raise AssertionError("refused before it is made")


class Speaking:
    """One that says it gives them."""

    inline, scores = True, True

    def __init__(self, bundle: Bundle, stages: Any) -> None:
        self.stages = tuple(stages)

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return {}

    def run(self, stage: int, inputs: Any, gate: GateSpec) -> StageOutput:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture
def bundle() -> Bundle:
    """The tiny bundle as one student."""
    return replace(tiny_bundle(), students=(StudentSpec(0, (0, 1, 2), (), 1, 1),))


@pytest.mark.parametrize("name", ["trt", "torch-cuda", f"{__name__}:Silent"])
def test_executors_without_scores_refuse_students_in_one_line(name: str, bundle: Bundle) -> None:
    with pytest.raises(ConfigError) as caught:
        make_executor(name, bundle, [0])
    assert str(caught.value) == (
        f"executor {name}: found bundle tiny of 1 students, expected one chain: it does not give the scores that are joined; "
        "take executor onnx"
    )


@pytest.mark.parametrize("name", ["onnx", "auto", f"{__name__}:Speaking"])
def test_executors_with_scores_take_students(name: str, bundle: Bundle) -> None:
    assert make_executor(name, bundle, [0, 1]).stages == (0, 1)

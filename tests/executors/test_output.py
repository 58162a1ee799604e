"""What an executor may not give: found before it goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.executors.tiny import STAGES
from zpipe.errors import ExecutorError
from zpipe.executors.base import StageOutput, check_output, sample_inputs
from zpipe.model import TensorSpec


def output(stage: int = 0, **changes: Any) -> StageOutput:
    """A good one of two rows, with changes."""
    spec = STAGES[stage]
    activation = None if spec.output is None else np.zeros((2, *spec.output.shape), np.float32)
    head = spec.exit_head is not None
    good = StageOutput(activation, [head, False], [2, 0] if head else [-1, -1], [1.0005, 0.0], 1e-3, 0)
    return replace(good, **changes)


@pytest.mark.parametrize("stage", range(3))
def test_good_output_passes(stage: int) -> None:
    check_output(STAGES[stage], 2, output(stage))


@pytest.mark.parametrize("exited", [[True, False], [True, True], [False, False]])
def test_activation_may_hold_the_rows_alone_that_stay(exited: list[bool]) -> None:
    check_output(STAGES[0], 2, output(exited=exited))
    check_output(STAGES[0], 2, output(exited=exited, activation=np.zeros((exited.count(False), 4, 4, 4), np.float32)))


WRONG: list[tuple[int, dict[str, Any], str]] = [
    (0, {"exited": None}, "exited of type NoneType, expected a list of bool"),
    (0, {"exited": [True]}, "exited of 1 rows, expected 2"),
    (0, {"exited": [True, 1]}, "exited with bool and int, expected a list of bool"),
    (0, {"labels": np.array([0, 1])}, "labels of type ndarray, expected a list of int"),
    (0, {"labels": list(np.array([0, 1]))}, "labels with int64, expected a list of int"),
    (0, {"labels": [0, 3]}, "label 3, expected 0..2"),
    (0, {"labels": [-1, 0]}, "label -1, expected 0..2"),
    (0, {"confidences": [0.5, 0.5, 0.5]}, "confidences of 3 rows, expected 2"),
    (0, {"confidences": [0.5, np.float32(0.5)]}, "confidences with float and float32, expected a list of float"),
    (0, {"confidences": [0.5, math.nan]}, "confidence nan in row 1, expected 0..1"),
    (0, {"confidences": [math.inf, 0.5]}, "confidence inf in row 0, expected 0..1"),
    (0, {"confidences": [0.5, 1.01]}, "confidence 1.01 in row 1, expected 0..1"),
    (0, {"confidences": [0.5, -0.01]}, "confidence -0.01 in row 1, expected 0..1"),
    (0, {"wall_seconds": math.nan}, "wall_seconds nan, expected seconds"),
    (0, {"wall_seconds": -1e-9}, "wall_seconds -1e-09, expected seconds"),
    (0, {"cpu_seconds": None}, "cpu_seconds None, expected seconds"),
    (0, {"cpu_seconds": np.float32(1.0)}, "cpu_seconds np.float32(1.0), expected seconds"),
    (0, {"activation": None}, "NoneType as activation, expected float32 [2, 4, 4, 4]"),
    (
        0,
        {"activation": np.zeros((0, 4, 4, 4), np.float32)},
        "activation float32 [0, 4, 4, 4], expected float32 [2, 4, 4, 4], or 1 rows",
    ),
    (
        0,
        {"activation": np.zeros((1, 4, 4, 2), np.float32)},
        "activation float32 [1, 4, 4, 2], expected float32 [2, 4, 4, 4], or 1 rows",
    ),
    (0, {"activation": np.zeros((2, 4, 4, 4))}, "activation float64 [2, 4, 4, 4], expected float32 [2, 4, 4, 4], or 1 rows"),
    (0, {"exited": [False] * 2, "activation": np.zeros((1, 4, 4, 4), np.float32)}, "activation float32 [1, 4, 4, 4], expected"),
    (1, {"exited": [False, True]}, "that lets row 1 exit, expected none to at a stage without an exit head"),
    (2, {"activation": np.zeros((2, 1), np.float32)}, "with an activation, expected none from the last stage"),
]


@pytest.mark.parametrize(("stage", "changes", "message"), WRONG, ids=[message.split(",")[0] for _, _, message in WRONG])
def test_wrong_output_is_refused_with_what_was_found(stage: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExecutorError) as info:
        check_output(STAGES[stage], 2, output(stage, **changes))
    assert str(info.value).startswith(f"stage {stage}: found output {message}")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "NoneType as scores, expected float32 [2, 3], as its gate asks for them"),
        (np.zeros((2, 4), np.float32), "float32 [2, 4] as scores, expected float32 [2, 3]"),
        (np.zeros((2, 3)), "float64 [2, 3] as scores, expected float32 [2, 3]"),
        (np.full((2, 3), np.nan, np.float32), "scores that are not finite of a row that leaves"),
    ],
)
def test_scores_are_looked_at_where_a_gate_asks_for_them(scores: Any, message: str) -> None:
    check_output(STAGES[0], 2, output(scores=scores))
    with pytest.raises(ExecutorError) as info:
        check_output(STAGES[0], 2, output(scores=scores), scores=True)
    assert str(info.value).startswith(f"stage 0: found output {message}")


def test_scores_of_a_row_that_stays_may_be_anything_and_a_stage_without_exits_has_none() -> None:
    check_output(STAGES[0], 2, output(scores=np.array([[0, 1, 2], [np.nan, 0, 0]], np.float32)), scores=True)
    check_output(STAGES[1], 2, output(1), scores=True)


@pytest.mark.parametrize("given", [None, (), "exited"])
def test_anything_but_an_output_is_refused(given: Any) -> None:
    with pytest.raises(ExecutorError, match=f"found output of type {type(given).__name__}, expected a StageOutput"):
        check_output(STAGES[0], 2, given)


@pytest.mark.parametrize(("dtype", "least", "most"), [("uint8", 0, 255), ("int8", 0, 127), ("int32", 0, 1), ("int64", 0, 1)])
def test_warm_up_inputs_are_no_token_that_a_network_might_not_know(dtype: str, least: int, most: int) -> None:
    spec = replace(STAGES[0], input=TensorSpec(dtype, (3, 16, 16)))
    found = sample_inputs(spec, 8)
    assert found.dtype.name == dtype
    assert (found.min(), found.max()) == (least, most)

"""The gate kernel's decisions against the NumPy gate's, over whatever logits, thresholds and batches.

On a GPU: `pytest -m gpu tests/executors/cuda`, and the same under `compute-sanitizer --tool racecheck` and `--tool memcheck`,
which see what no run on a CPU can.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.cuda.ground import Bytes, Ground
from zpipe.errors import ExecutorError
from zpipe.executors.cuda.gate import MAX_ROWS, read_decisions
from zpipe.executors.gate import GateDecision, evaluate_gate
from zpipe.model import NEVER_EXIT, GateRule, GateSpec

RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")
DTYPES = ("float32", "float16")
CLASSES = (1, 2, 3, 10, 31, 32, 33, 64, 100, 1000)

#: What exp, log and the order of the sum may change.
CLOSE = 1e-6

Logits = npt.NDArray[Any]


def numbers(record: Bytes) -> npt.NDArray[np.int32]:
    return record.view(np.int32).reshape(-1, 4)


def check(record: Bytes, logits: Logits, gate: GateSpec) -> GateDecision:
    """The record holds what NumPy's gate says, and the survivors are numbered in their order."""
    rows, classes = logits.shape
    got, expected = read_decisions(record, rows, last=gate.last), evaluate_gate(logits, gate)
    assert got.labels == expected.labels
    assert all(0.0 <= confidence <= 1.0 for confidence in got.confidences)
    np.testing.assert_allclose(got.confidences, expected.confidences, rtol=0, atol=CLOSE)
    with np.errstate(all="ignore"):
        thresholds = np.array(gate.thresholds or [0.0] * rows, np.float32)
        bad = ~np.isfinite(logits.astype(np.float32) / np.float32(gate.temperature)).all(axis=1)
        near = np.abs(np.array(expected.confidences) - thresholds) <= CLOSE
        # Exactly by its own confidence, and so as NumPy's unless that lies as near as the two may differ.
        own = gate.last | ((np.array(got.confidences, np.float32) >= thresholds) & (thresholds < NEVER_EXIT) & ~bad)
    assert got.exited == own.tolist()
    assert (near | (np.array(got.exited) == expected.exited)).all()
    stays = ~np.array(got.exited)
    assert numbers(record)[1:, 3].tolist() == np.where(stays, np.cumsum(stays) - 1, -1).tolist()
    first_bad = int(bad.argmax()) if bad.any() else -1
    finite = int(np.isfinite(logits[first_bad]).sum()) if bad.any() else 0
    assert numbers(record)[0].tolist() == [stays.sum(), first_bad, finite, classes]
    return got


def some_logits(rng: np.random.Generator, rows: int, classes: int, dtype: str) -> Logits:
    """Of any certainty; some rows with ties, some with values that are not finite, some far from zero."""
    spread = rng.choice([0.1, 1.0, 4.0, 30.0], size=(rows, 1))
    with np.errstate(over="ignore"):
        logits: Logits = (rng.normal(size=(rows, classes)) * spread + rng.choice([0.0, 100.0], size=(rows, 1))).astype(dtype)
    for row in range(rows):
        match int(rng.integers(8)):
            case 0:  # ties, the largest among them
                logits[row] = np.round(logits[row])
                logits[row, rng.integers(classes, size=2)] = logits[row].max()
            case 1:
                logits[row] = logits[row, 0]
            case 2:
                bad = rng.choice([math.nan, math.inf, -math.inf], size=rng.integers(1, 4))
                logits[row, rng.integers(classes, size=len(bad))] = bad
            case 3:
                logits[row] = rng.choice([math.nan, math.inf, -math.inf, 1.0], size=classes)
            case _:
                pass  # as it is
    return logits


def some_thresholds(rng: np.random.Generator, rows: int) -> tuple[float, ...]:
    edges = [0.0, NEVER_EXIT, math.nextafter(NEVER_EXIT, 0.0), 1.5, -0.5, math.inf, -math.inf, math.nan, 1e308]
    return tuple(float(rng.random() if rng.random() < 0.7 else rng.choice(edges)) for _ in range(rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_any_batch_is_decided_as_numpy_decides_it(ground: Ground, rule: GateRule, dtype: str) -> None:
    rng = np.random.default_rng([RULES.index(rule), DTYPES.index(dtype)])
    for rows in (1, 2, 7, 31, 32, 33, 64, 200, 256, *rng.integers(1, 257, size=6).tolist()):
        classes = int(rng.choice(CLASSES))
        logits = some_logits(rng, rows, classes, dtype)
        gate = GateSpec(rule, float(rng.choice([0.3, 1.0, 1.7, 8.0])), some_thresholds(rng, rows))
        check(ground.decide(logits, gate), logits, gate)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rule", RULES)
def test_any_number_of_classes(ground: Ground, rule: GateRule, classes: int) -> None:
    logits = some_logits(np.random.default_rng(classes), 9, classes, "float32")
    gate = GateSpec(rule, 1.3, (0.5,) * 9)
    check(ground.decide(logits, gate), logits, gate)


@pytest.mark.parametrize("rule", RULES)
def test_a_million_classes_lose_no_accuracy(ground: Ground, rule: GateRule) -> None:
    logits = np.random.default_rng(7).normal(size=(3, 1_000_003)).astype(np.float32)
    logits[1, 777_777] = 14.3  # about as much as all others together
    logits[2] = 1.0
    gate = GateSpec(rule, 1.0, (0.5,) * 3)
    check(ground.decide(logits, gate), logits, gate)


@pytest.mark.parametrize("rows", [1, 32, 1000, MAX_ROWS])
def test_the_largest_batches_keep_their_order(ground: Ground, rows: int) -> None:
    rng = np.random.default_rng(rows)
    logits = some_logits(rng, rows, 2, "float32")
    gate = GateSpec("margin", 1.0, tuple(rng.random(rows).tolist()))
    check(ground.decide(logits, gate), logits, gate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_row_exits_at_its_own_confidence_and_not_just_above_it(ground: Ground, rule: GateRule, dtype: str) -> None:
    logits = np.random.default_rng(3).normal(size=(40, 10)).astype(dtype)
    gate = GateSpec(rule, 1.0, (0.5,) * 40)
    confidences = check(ground.decide(logits, gate), logits, gate).confidences
    above = np.nextafter(np.array(confidences, np.float32), np.float32(2)).tolist()
    at, over = (replace(gate, thresholds=tuple(each)) for each in (confidences, above))
    assert read_decisions(ground.decide(logits, at), 40, last=False).exited == [True] * 40
    assert read_decisions(ground.decide(logits, over), 40, last=False).exited == [False] * 40


@pytest.mark.parametrize("rule", RULES)
def test_certain_rows_stay_at_never_exit(ground: Ground, rule: GateRule) -> None:
    logits = np.array([[500, 0, 0]] * 4, np.float32)
    gate = GateSpec(rule, 1.0, (NEVER_EXIT, math.inf, 0.9999, math.nan))
    decision = check(ground.decide(logits, gate), logits, gate)
    assert decision.exited == [False, False, True, False]
    assert decision.confidences == [1.0] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_row_leaves_at_the_last_stage(ground: Ground, rule: GateRule, dtype: str) -> None:
    logits = np.random.default_rng(5).normal(size=(67, 10)).astype(dtype)
    gate = GateSpec(rule, 2.0, (), last=True)
    assert all(check(ground.decide(logits, gate), logits, gate).exited)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first_bad", [0, 31, 32, 70])
@pytest.mark.parametrize("bad", [[math.nan], [math.inf, -math.inf], [math.nan] * 10])
def test_a_bad_row_at_the_last_stage_fails_the_batch_in_numpys_words(
    ground: Ground, bad: list[float], first_bad: int, dtype: str
) -> None:
    logits = np.random.default_rng(5).normal(size=(90, 10)).astype(dtype)
    logits[first_bad, : len(bad)] = bad
    logits[80, 4] = math.nan
    gate = GateSpec("entropy", 1.0, (), last=True)
    with pytest.raises(ExecutorError) as expected:
        evaluate_gate(logits, gate)
    record = ground.decide(logits, gate)
    with pytest.raises(ExecutorError) as got:
        read_decisions(record, 90, last=True)
    assert str(got.value) == str(expected.value)
    assert numbers(record)[0, 0] == 0
    assert numbers(record)[1:, [0, 3]].tolist() == [[1, -1]] * 90


def test_logits_that_only_the_temperature_takes_to_infinity_are_bad(ground: Ground) -> None:
    logits = np.array([[3e38, 1, 2], [1, 2, 3], [1, -3e38, 2]], np.float32)
    gate = GateSpec("max-probability", 0.5, (0.0, 0.0, 0.0))
    assert check(ground.decide(logits, gate), logits, gate).exited == [False, True, False]
    with pytest.raises(ExecutorError, match="found 3 of 3 logits finite in row 0"):
        read_decisions(ground.decide(logits, replace(gate, last=True)), 3, last=True)


@pytest.mark.parametrize("rule", RULES)
def test_logits_further_apart_than_float32_reaches_are_certain(ground: Ground, rule: GateRule) -> None:
    logits = np.array([[3e38, -3e38, -3e38], [-3e38, 3e38, 3e38]], np.float32)
    gate = GateSpec(rule, 1.0, (0.9, 0.9))
    assert check(ground.decide(logits, gate), logits, gate).exited == [True, False]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [1, 3, 7, 10, 33, 1000])
def test_equal_logits_do_not_take_a_confidence_below_0(ground: Ground, rule: GateRule, classes: int) -> None:
    logits = np.repeat(np.linspace(-9, 9, 40, dtype=np.float32)[:, np.newaxis], classes, axis=1)
    logits[20:] += np.random.default_rng(classes).normal(size=(20, classes)).astype(np.float32) * 1e-5  # or nearly equal
    gate = GateSpec(rule, 0.7, (0.0,) * 40)
    assert all(check(ground.decide(logits, gate), logits, gate).exited)


@pytest.mark.parametrize("temperature", [1e-50, 1e-40, 1e38, 1e300])
def test_temperatures_beyond_float32_do_as_numpys(ground: Ground, temperature: float) -> None:
    logits = np.array([[4, 1, 2], [0, 0, 0]], np.float32)
    gate = GateSpec("entropy", temperature, (0.5, 0.5))
    check(ground.decide(logits, gate), logits, gate)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([math.nan, 1.0, 5.0], 2),
        ([math.inf, 1.0, math.nan], 0),
        ([math.nan] * 3, 0),
        ([-math.inf, -7.0, math.nan], 1),
        ([-math.inf] * 3, 0),
    ],
)
def test_label_of_a_bad_row_is_the_best_of_its_numbers(ground: Ground, row: list[float], label: int) -> None:
    record = ground.decide(np.array([row], np.float32), GateSpec("max-probability", 1.0, (0.0,)))
    assert read_decisions(record, 1, last=False) == ([False], [label], [0.0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_of_equal_logits_is_the_label_wherever_they_lie(ground: Ground, dtype: str) -> None:
    logits = np.zeros((70, 70), dtype)
    for row in range(70):
        logits[row, row:] = 3.0
    gate = GateSpec("margin", 1.0, (0.5,) * 70)
    assert check(ground.decide(logits, gate), logits, gate).labels == list(range(70))


def test_a_row_is_decided_to_the_last_bit_as_if_it_were_alone(ground: Ground) -> None:
    logits = some_logits(np.random.default_rng(11), 66, 10, "float32")
    gate = GateSpec("entropy", 1.3, (0.5,) * 66)
    whole = numbers(ground.decide(logits, gate))
    for row in (0, 31, 32, 65):
        alone = numbers(ground.decide(logits[row : row + 1], replace(gate, thresholds=(0.5,))))
        assert alone[1, :3].tolist() == whole[1 + row, :3].tolist()


def test_half_precision_logits_are_read_exactly(ground: Ground) -> None:
    # Every finite half, subnormals and both zeros among them, as logits of a single class: bad where it is not finite.
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 64)
    gate = GateSpec("max-probability", 1.0, (0.5,) * MAX_ROWS)
    assert len(halves) == MAX_ROWS
    check(ground.decide(halves, gate), halves, gate)

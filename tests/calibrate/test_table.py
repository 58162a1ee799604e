"""The accuracy table: chosen on calibration alone, the cheapest that will do."""

from __future__ import annotations

import numpy as np
import pytest

from zpipe.calibrate.metrics import Answers, bootstrap
from zpipe.calibrate.points import measure_point, right_at
from zpipe.calibrate.table import RULES, TABLE_LADDER, Split, accuracy_table
from zpipe.calibrate.temperature import by_stage
from zpipe.model import NEVER_EXIT

MACS, HEADS = (1, 9), (True, True)


def split(*, seed: int, samples: int = 2000, originals: int = 200) -> Split:
    """A first exit that is right as often as it is sure, and a last one that is right in 97 %."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.4, 1.0, samples)
    right = np.stack([rng.random(samples) < sure, rng.random(samples) < 0.97], 1)
    confidences = np.stack([sure, np.full(samples, 0.97)], 1).astype(np.float32)
    return Split(Answers(np.zeros((samples, 2), np.int64), confidences, right), np.arange(samples) % originals)


def test_rows_are_the_cheapest_that_reach_their_target_on_calibration() -> None:
    fitted = split(seed=0)
    table = accuracy_table(fitted, split(seed=1), targets=(0.8, 0.9), heads=HEADS, stage_macs=MACS, rule="mean")
    for row in table.rows:
        assert row.calibration.accuracy >= row.target
        for threshold in TABLE_LADDER:
            other = measure_point(fitted.answers, (threshold, threshold), MACS)
            assert other.accuracy < row.target or other.mean_macs >= row.calibration.mean_macs


def test_test_split_is_only_looked_at() -> None:
    fitted, first, second = split(seed=0), split(seed=1), split(seed=2)
    tables = [
        accuracy_table(fitted, test, targets=(0.8, 0.9), heads=HEADS, stage_macs=MACS, rule="mean")
        for test in (first, second, None)
    ]
    assert len({tuple(row.thresholds for row in table.rows) for table in tables}) == 1
    assert tables[0].rows[0].test == measure_point(first.answers, tables[0].rows[0].thresholds, MACS)
    assert tables[0].rows != tables[1].rows
    assert tables[2].rows[0].test is None
    assert tables[2].rows[0].test_interval is None


def test_targets_out_of_reach_are_named_and_the_best_is_a_row() -> None:
    table = accuracy_table(split(seed=0), None, targets=(0.8, 0.999), heads=HEADS, stage_macs=MACS, rule="mean")
    assert table.unreached == (0.999,)
    assert [row.target for row in table.rows] == [0.8, table.best]
    assert table.rows[-1].calibration.accuracy == pytest.approx(table.best, abs=1e-4)
    assert table.best <= table.rows[-1].calibration.accuracy


def test_target_that_the_first_exit_reaches_sends_everybody_out_there() -> None:
    (row, *_) = accuracy_table(split(seed=0), None, targets=(0.5,), heads=HEADS, stage_macs=MACS, rule="mean").rows
    assert row.thresholds == (0.0, 0.0)
    assert row.calibration.exit_shares == (1.0, 0.0)


def test_low_rule_leaves_a_margin_for_other_originals() -> None:
    fitted = split(seed=0)
    table = accuracy_table(fitted, None, targets=(0.85,), heads=HEADS, stage_macs=MACS, rule="low")
    mean = accuracy_table(fitted, None, targets=(0.85,), heads=HEADS, stage_macs=MACS, rule="mean")
    assert bootstrap(right_at(fitted.answers, table.rows[0].thresholds), fitted.digit).low >= 0.85
    assert table.rows[0].calibration.mean_macs > mean.rows[0].calibration.mean_macs
    assert table.best < mean.best


@pytest.mark.parametrize("tables", [16, pytest.param(40, marks=pytest.mark.slow)])
def test_low_rule_keeps_its_promise_on_fresh_originals_more_often(tables: int) -> None:
    fresh = split(seed=99, samples=40_000, originals=4000).answers
    kept = {}
    for rule in RULES:
        made = [
            accuracy_table(split(seed=seed, samples=200), None, targets=(0.9,), heads=HEADS, stage_macs=MACS, rule=rule)
            for seed in range(tables)
        ]
        kept[rule] = sum(float(np.mean(right_at(fresh, table.rows[0].thresholds))) >= 0.9 for table in made)
    assert kept["low"] >= 0.925 * tables
    assert kept["mean"] <= 0.75 * tables


def test_stage_without_a_head_never_gets_a_threshold() -> None:
    fitted = split(seed=0)
    heads = (False, True, True)
    wide = Split(by_stage(fitted.answers, heads), fitted.digit)
    table = accuracy_table(wide, None, targets=(0.8,), heads=heads, stage_macs=(1, 1, 9))
    assert all(row.thresholds[0] == NEVER_EXIT for row in table.rows)
    assert all(row.calibration.exit_shares[0] == 0.0 for row in table.rows)

"""What a manifest holds about calibration: operating points, accuracy tables, and the arrays of the calibration split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from zpipe.calibrate.metrics import (
    Answers,
    Floats,
    Ints,
    answers_of,
    bootstrap,
    expected_calibration_error,
    max_probability,
    negative_log_likelihood,
)
from zpipe.calibrate.points import NO_EXIT, accuracy_lost, choose_default, measure_point, threshold_vectors
from zpipe.calibrate.table import DEFAULT_RULE, TARGETS, Split, accuracy_table, table_json
from zpipe.calibrate.temperature import Variant
from zpipe.model import PointMetrics

Json = dict[str, Any]

CALIBRATION_FILE = "calibration.npz"


def default_rule(least: float) -> str:
    """How `point_rows` chooses the default operating point, for people."""
    return f"the cheapest threshold >= {least:g} that loses nothing against {NO_EXIT} on calibration"


def calibration_arrays(logits: Floats, labels: Ints, severity: Ints, digit: Ints) -> dict[str, Any]:
    """As `calibration.npz` holds them; whole numbers as narrow as they fit."""
    return {
        "logits": logits.astype(np.float32),
        "labels": labels.astype(label_dtype(labels)),
        "severity": severity.astype(np.int8),
        "digit": digit.astype(np.int32),
    }


def label_dtype(labels: Ints) -> type[np.int16 | np.int32]:
    """The narrowest type for these: vocabularies have more than 32,767 classes."""
    return np.int16 if labels.max(initial=0) <= np.iinfo(np.int16).max else np.int32


def calibration_rows(logits: Floats, truth: Ints, temperatures: Sequence[float], *, variant: Variant = "per-exit") -> Json:
    """The manifest's `calibration`: how well each exit's confidences fit before and after.

    Args:
        logits: `[samples, exits, classes]`.
        truth: labels `[samples]`.
        temperatures: one per exit.
        variant: how they were fitted.
    """
    answers = answers_of(logits, temperatures, truth)
    rows = []
    for index, temperature in enumerate(temperatures):
        before = max_probability(logits[:, index], 1.0)
        right = answers.right[:, index]
        rows.append(
            {
                "accuracy": float(right.mean()),
                "ece_before": expected_calibration_error(before, right),
                "ece_after": expected_calibration_error(answers.confidences[:, index], right),
                "nll_before": negative_log_likelihood(logits[:, index], truth, 1.0),
                "nll_after": negative_log_likelihood(logits[:, index], truth, temperature),
            }
        )
    return {"file": CALIBRATION_FILE, "samples": len(truth), "variant": variant, "exits": rows}


def point_rows(
    calibration: Split, test: Split, *, heads: Sequence[bool], stage_macs: Sequence[int], least: float
) -> tuple[list[Json], str]:
    """The operating points and the name of the default, which is chosen from the calibration column alone.

    Args:
        calibration, test: answers with one column per stage.
        heads: per stage, whether it has an exit head.
        stage_macs: multiply-adds of each stage.
        least: the default's threshold is no lower.
    """
    vectors = threshold_vectors(heads)
    on_calibration = {name: measure_point(calibration.answers, vector, stage_macs) for name, vector in vectors.items()}
    default = choose_default(on_calibration, vectors, least=least)
    rows = [
        {
            "name": name,
            "thresholds": list(vector),
            "calibration": _column(on_calibration[name], calibration, vector),
            "test": _column(measure_point(test.answers, vector, stage_macs), test, vector),
        }
        for name, vector in vectors.items()
    ]
    return rows, default


def _column(metrics: PointMetrics, split: Split, vector: Sequence[float]) -> Json:
    return {**asdict(metrics), "accuracy_lost": asdict(accuracy_lost(split.answers, vector, split.digit))}


def table_row(calibration: Split, test: Split, *, heads: Sequence[bool], stage_macs: Sequence[int], variant: Variant) -> Json:
    """The manifest's `accuracy_table`, for the usual targets."""
    table = accuracy_table(calibration, test, targets=TARGETS, heads=heads, stage_macs=stage_macs)
    return table_json(table, variant=variant, rule=DEFAULT_RULE)


def test_rows(answers: Answers, digit: Ints, severity: Ints, *, stages: Sequence[int]) -> Json:
    """Accuracy per exit with its interval over digits, the paired gain over the exit before, and accuracy per severity.

    Args:
        answers: one column per stage.
        digit: which original a sample shows, `[samples]`.
        severity: `[samples]`.
        stages: those that have an exit head.
    """
    right = answers.right[:, list(stages)]
    exits: list[Json] = []
    for index, stage in enumerate(stages):
        row: Json = {
            "accuracy": asdict(bootstrap(right[:, index], digit)),
            "ece": expected_calibration_error(answers.confidences[:, stage], right[:, index]),
        }
        if index > 0:
            row["gain_over_exit_before"] = asdict(bootstrap(right[:, index].astype(np.float64) - right[:, index - 1], digit))
        exits.append(row)
    severities = [
        {
            "severity": int(level),
            "samples": int((severity == level).sum()),
            "accuracy": [float(value) for value in right[severity == level].mean(0)],
        }
        for level in np.unique(severity)
    ]
    return {
        "samples": len(digit),
        "originals": len(np.unique(digit)),
        "interval": "95 %, bootstrap over original images; differences are paired by sample",
        "exits": exits,
        "severities": severities,
    }


def with_temperatures(stages: Sequence[Mapping[str, Any]], temperatures: Sequence[float]) -> list[Json]:
    """The manifest's `stages` with other temperatures, one per exit head."""
    left = iter(temperatures)
    return [
        dict(stage) if stage["exit"] is None else {**stage, "exit": {**stage["exit"], "temperature": next(left)}}
        for stage in stages
    ]

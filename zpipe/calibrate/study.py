"""What calibration does to a bundle: how well each variant's confidences fit, what they promise and how often that is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zpipe.bundle import Bundle
from zpipe.calibrate.doubts import doubts
from zpipe.calibrate.metrics import (
    Answers,
    Bools,
    Doubles,
    Floats,
    Ints,
    answers_of,
    area_under_curve,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from zpipe.calibrate.outage import in_outage, missed, windows
from zpipe.calibrate.points import exit_of, measure_point, right_at
from zpipe.calibrate.table import DEFAULT_RULE, Rule, Split, accuracy_table, table_json
from zpipe.calibrate.temperature import VARIANTS, Variant, by_stage, fit_variant, left_early, thresholds_by_stage

Json = dict[str, Any]

SCHEMA = "zpipe.calibration/1"

#: Source: arXiv:2010.16335 and its journal version; MobileNetV2 on Caltech-256 at target 0.8, as `papers.md` of this project
#: restates it. Outage without calibration 0.108, global 0.043, per exit 0.066.
PUBLISHED_DROP = {"global": -0.60, "per-exit": -0.39}

#: Targets of outage and missed deadlines, and samples in a window.
OUTAGE_TARGETS = (0.8, 0.9)
WINDOWS = (10, 32, 128, 512)
WINDOW = 32

#: Targets of the outage curve.
CURVE_TARGETS = tuple(percent / 100 for percent in range(70, 100))

#: Deadlines of a curve, and how far beyond the slowest exit they reach.
CURVE_POINTS, CURVE_BEYOND = 60, 1.1


@dataclass(frozen=True, slots=True)
class Spoken:
    """Raw answers to one split: logits `[samples, exits, classes]`, one column per exit head; the rest `[samples]`.

    Attributes:
        name: for people, where it comes from.
        labels: what is true.
        severity: strength of the distortion, 0 = none or not known.
        digit: which original image a sample shows.
    """

    name: str
    logits: Floats
    labels: Ints
    severity: Ints
    digit: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Bools) -> Spoken:
        """Those samples that a mask `[samples]` selects."""
        return Spoken(self.name, self.logits[rows], self.labels[rows], self.severity[rows], self.digit[rows])


@dataclass(frozen=True, slots=True)
class Study:
    """What came out.

    Attributes:
        variant: the one that the table rests on.
        temperatures: {variant: one per exit}.
        report: all of it as JSON values.
    """

    variant: Variant
    temperatures: Mapping[Variant, tuple[float, ...]]
    report: Json


def study_bundle(
    bundle: Bundle,
    calibration: Spoken,
    test: Spoken,
    *,
    variant: Variant,
    targets: Sequence[float],
    rule: Rule = DEFAULT_RULE,
    outage_targets: Sequence[float] = OUTAGE_TARGETS,
    window: int = WINDOW,
    exit_seconds: Sequence[float] | None = None,
    keep: Callable[[tuple[float, ...], tuple[float, ...]], tuple[float, ...]] = lambda stored, fitted: fitted,
) -> Study:
    """Fits all variants on `calibration` and says on `test` what each is worth.

    Args:
        bundle: whose exits spoke.
        calibration: everything is fitted and chosen on it.
        test: only looked at.
        variant: the temperatures that the accuracy table is made with.
        targets: of the accuracy table.
        rule: of the accuracy table.
        outage_targets: of outage and missed deadlines.
        window: samples in a window of both.
        exit_seconds: per stage, what a sample takes that leaves there; None = no missed deadlines.
        keep: takes the bundle's temperatures and fitted ones, and says which to use.
    """
    stages = Stages.of(bundle)
    stored = tuple(stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None)
    temperatures = {name: keep(stored, fit_variant(name, calibration.logits, calibration.labels)) for name in VARIANTS}
    answers = {name: stages.answers(test, temperatures[name]) for name in VARIANTS}
    chosen = Split(stages.answers(calibration, temperatures[variant]), calibration.digit)
    verified = Split(answers[variant], test.digit)
    table = accuracy_table(chosen, verified, targets=targets, heads=stages.heads, stage_macs=stages.macs, rule=rule)
    report: Json = {
        "schema": SCHEMA,
        "bundle": bundle.name,
        "digest": bundle.digest,
        "full_macs": bundle.full_macs,
        "variant": variant,
        "warnings": doubts(
            calibration.logits,
            calibration.labels,
            calibration.digit,
            classes=bundle.classes,
            stages=stages.exits,
            temperatures=temperatures[variant],
        ),
        "data": {split: _data_row(spoken) for split, spoken in (("calibration", calibration), ("test", test))},
        "variants": {
            name: {
                "temperatures": list(temperatures[name]),
                "exits": _exit_rows(stages, temperatures[name], calibration, test),
            }
            for name in VARIANTS
        },
        "accuracy_table": {
            **table_json(table, variant=variant, rule=rule),
            "unreached": list(table.unreached),
            "best": table.best,
        },
        "severities": _severity_rows(stages, answers, test, window, outage_targets, bundle.default_point.thresholds, variant),
        "outage": _outage_rows(stages, answers, outage_targets, window),
        "outage_curve": _outage_rows(stages, answers, CURVE_TARGETS, window),
        "outage_by_window": [
            row for size in WINDOWS if size <= len(test) for row in _outage_rows(stages, answers, outage_targets, size)
        ],
        "published_relative_drop": PUBLISHED_DROP,
        "missed_deadlines": None
        if exit_seconds is None
        else _missed(stages, answers, outage_targets, window, np.asarray(exit_seconds)),
    }
    return Study(variant, temperatures, report)


@dataclass(frozen=True, slots=True)
class Stages:
    """What of a bundle this needs: per stage whether it has an exit head, and its multiply-adds."""

    heads: tuple[bool, ...]
    macs: tuple[int, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Stages:
        """Of that bundle."""
        return cls(tuple(stage.exit_head is not None for stage in bundle.stages), tuple(stage.macs for stage in bundle.stages))

    def answers(self, spoken: Spoken, temperatures: Sequence[float]) -> Answers:
        """One column per stage."""
        return by_stage(answers_of(spoken.logits, temperatures, spoken.labels), self.heads)

    @property
    def exits(self) -> list[int]:
        """The stages that have a head."""
        return [stage for stage, head in enumerate(self.heads) if head]


def _data_row(spoken: Spoken) -> Json:
    return {"source": spoken.name, "samples": len(spoken), "originals": len(np.unique(spoken.digit))}


def _exit_rows(stages: Stages, temperatures: Sequence[float], calibration: Spoken, test: Spoken) -> list[Json]:
    """Per exit and split: accuracy, ECE, NLL, AUROC; on test also the reliability diagram."""
    rows: list[Json] = []
    for column, (stage, temperature) in enumerate(zip(stages.exits, temperatures, strict=True)):
        row: Json = {"stage": stage, "temperature": temperature}
        for split, spoken in (("calibration", calibration), ("test", test)):
            logits = spoken.logits[:, column]
            answers = answers_of(logits[:, None], (temperature,), spoken.labels)
            confidences, right = answers.confidences[:, 0], answers.right[:, 0]
            row[split] = {
                "accuracy": float(right.mean()),
                "mean_confidence": float(confidences.mean()),
                "ece": expected_calibration_error(confidences, right),
                "nll": negative_log_likelihood(logits, spoken.labels, temperature),
                "auroc": area_under_curve(confidences, right),
            }
            if split == "test":
                counts, mean, accuracy = reliability(confidences, right)
                row["reliability"] = {
                    "samples": counts.tolist(),
                    "confidence": _without_nan(mean),
                    "accuracy": _without_nan(accuracy),
                }
        rows.append(row)
    return rows


def _without_nan(values: Doubles) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


# ---- outage and missed deadlines ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Left:
    """Where the samples of a split leave when the target is the threshold: all arrays `[samples]`."""

    exits: Ints
    right: Bools
    early: Bools

    @classmethod
    def at(cls, stages: Stages, answers: Answers, target: float) -> _Left:
        vector = thresholds_by_stage(target, stages.heads)
        exits = exit_of(answers.confidences, vector)
        return cls(exits, right_at(answers, vector), left_early(exits, len(stages.heads)))


def _outage_rows(stages: Stages, answers: Mapping[Variant, Answers], targets: Sequence[float], size: int) -> list[Json]:
    """Per target the outage of each variant, what left early and what that cost, and the drop against no calibration."""
    rows = []
    for target in targets:
        row: Json = {"target": target, "window": size, "variants": {}}
        for name, found in answers.items():
            left = _Left.at(stages, found, target)
            cut = windows(len(left.exits), size)
            metrics = measure_point(found, thresholds_by_stage(target, stages.heads), stages.macs)
            row["variants"][name] = {
                "outage": float(in_outage(left.right, left.early, target, cut).mean()),
                "left_early": float(left.early.mean()),
                "accuracy_of_early": float(left.right[left.early].mean()) if left.early.any() else None,
                "accuracy": metrics.accuracy,
                "macs_share": metrics.mean_macs / sum(stages.macs),
            }
        plain = row["variants"]["none"]["outage"]
        row["relative_drop"] = {
            name: row["variants"][name]["outage"] / plain - 1 if plain else None for name in answers if name != "none"
        }
        rows.append(row)
    return rows


def _missed(stages: Stages, answers: Mapping[Variant, Answers], targets: Sequence[float], size: int, exit_seconds: Doubles) -> Json:
    """Per target the share of windows that miss each deadline, a curve for each variant."""
    limits = np.linspace(0.0, CURVE_BEYOND * float(exit_seconds.max()), CURVE_POINTS).tolist()
    curves = []
    for target in targets:
        row: Json = {"target": target, "variants": {}, "mean_seconds": {}}
        for name, found in answers.items():
            left = _Left.at(stages, found, target)
            cut = windows(len(left.exits), size)
            seconds = exit_seconds[left.exits]
            row["variants"][name] = missed(in_outage(left.right, left.early, target, cut), seconds, limits, cut)
            row["mean_seconds"][name] = float(seconds.mean())
        curves.append(row)
    return {"window": size, "exit_seconds": exit_seconds.tolist(), "deadline_seconds": limits, "curves": curves}


# ---- shift -------------------------------------------------------------------------------------


def _severity_rows(
    stages: Stages,
    answers: Mapping[Variant, Answers],
    test: Spoken,
    size: int,
    targets: Sequence[float],
    thresholds: Sequence[float],
    variant: Variant,
) -> list[Json]:
    """The test split by severity: each exit's accuracy, what the default thresholds give, and outage."""
    rows = []
    for level in np.unique(test.severity):
        mine = test.severity == level
        found = {name: Answers(each.labels[mine], each.confidences[mine], each.right[mine]) for name, each in answers.items()}
        point = measure_point(found[variant], thresholds, stages.macs)
        rows.append(
            {
                "severity": int(level),
                "samples": int(mine.sum()),
                "accuracy_of_exits": [float(found[variant].right[:, stage].mean()) for stage in stages.exits],
                "confidence_of_exits": [float(found[variant].confidences[:, stage].mean()) for stage in stages.exits],
                "default_point": {
                    "accuracy": point.accuracy,
                    "exit_shares": list(point.exit_shares),
                    "macs_share": point.mean_macs / sum(stages.macs),
                },
                "outage": _outage_rows(stages, found, targets, size),
            }
        )
    return rows

"""The accuracy table: which thresholds keep a target accuracy, chosen on calibration data and verified on test data.

One threshold for all exits, since calibrated confidences mean the same at each. Thresholds searched per exit on calibration lost
more on other writers (a trial), as did half a point of slack below the target; so there is none. Two rules:

`low`    the cheapest thresholds for which the low end of the accuracy's 95 % interval on calibration is at least the target
         (`metrics.accuracy_interval`: how few originals there are counts, even where all answers are right).
`mean`   the cheapest for which the accuracy itself is.

A split is small, and its originals are not those of tomorrow. Test digits are by other writers, and there `low` keeps all 21
targets of the full-width digits network, but only 13 of 16 of the half-width one and 8 of 20 of the 96-pixel one, which fall short
by up to 1.2 points; under `mean` two thirds of all rows fall short. `low` costs an eighth more compute at 95 % (`python -m
bench.calibrate`), and is the rule where nobody says. The second column shows the test split, on which nothing is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from zpipe.calibrate.metrics import Answers, Ints, accuracy_interval, capped_bootstrap
from zpipe.calibrate.points import measure_point, right_at
from zpipe.calibrate.temperature import thresholds_by_stage
from zpipe.model import NEVER_EXIT, PointMetrics, Promise

#: From "all leave at the first exit" to "nobody leaves early", dense towards 1, where confidences crowd.
TABLE_LADDER = (0.0, *(float(f"{1 - 10 ** -(step / 20):.5g}") for step in range(2, 81)), NEVER_EXIT)

#: What is looked for where nobody says; the best that can be had comes on top of it.
TARGETS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, *(mille / 1000 for mille in range(900, 1000, 5)), 0.999)

Rule = Literal["low", "mean"]
RULES: tuple[Rule, ...] = get_args(Rule)
DEFAULT_RULE: Rule = "low"


@dataclass(frozen=True, slots=True)
class Split:
    """What every stage said about one split: answers `[samples, stages]`, and the original image of each sample `[samples]`."""

    answers: Answers
    digit: Ints


@dataclass(frozen=True, slots=True)
class Table:
    """The rows, by rising target, and the targets that no thresholds reach on the calibration split."""

    rows: tuple[Promise, ...]
    unreached: tuple[float, ...]

    @property
    def best(self) -> float:
        """The highest target that can be had."""
        return self.rows[-1].target


def accuracy_table(
    calibration: Split,
    test: Split | None,
    *,
    targets: Iterable[float],
    heads: Sequence[bool],
    stage_macs: Sequence[int],
    rule: Rule = DEFAULT_RULE,
) -> Table:
    """The cheapest thresholds for each target, and for the highest that there is.

    Args:
        calibration: thresholds are chosen on it.
        test: verified on it; None where there is none.
        targets: accuracies 0..1, in any order.
        heads: per stage, whether it has an exit head.
        stage_macs: multiply-adds of each stage, per sample.
        rule: what must reach the target.
    """
    candidates = []
    for threshold in TABLE_LADDER:
        vector = thresholds_by_stage(threshold, heads)
        metrics = measure_point(calibration.answers, vector, stage_macs)
        kept = metrics.accuracy
        if rule == "low":
            kept = accuracy_interval(right_at(calibration.answers, vector), calibration.digit).low
        candidates.append((metrics.mean_macs, kept, vector, metrics))
    candidates.sort(key=lambda candidate: candidate[0])
    # Rounded down: what the highest row says must not be more than what was reached.
    best = math.floor(1e4 * max(kept for _, kept, _, _ in candidates)) / 1e4
    wanted = sorted({*targets, best})
    rows = []
    for target in wanted:
        able = [(vector, metrics) for _, kept, vector, metrics in candidates if kept >= target]
        if able:
            rows.append(_promise(target, *able[0], test, stage_macs))
    return Table(tuple(rows), tuple(target for target in wanted if target > best))


def _promise(
    target: float, vector: tuple[float, ...], metrics: PointMetrics, test: Split | None, stage_macs: Sequence[int]
) -> Promise:
    if test is None:
        return Promise(target, vector, metrics, None, None)
    found = capped_bootstrap(right_at(test.answers, vector), test.digit)
    return Promise(target, vector, metrics, measure_point(test.answers, vector, stage_macs), (found.low, found.high))


_RULES: dict[Rule, str] = {
    "mean": "the cheapest threshold whose accuracy on calibration is at least the target; test only verifies it",
    "low": "the cheapest threshold whose 95 % interval on calibration lies at or above the target; test only verifies it",
}


def table_json(table: Table, *, variant: str, rule: Rule) -> dict[str, Any]:
    """As the manifest holds it."""
    return {
        "variant": variant,
        "rule": _RULES[rule],
        "interval": "95 %, bootstrap over original images",
        "rows": [asdict(row) for row in table.rows],
    }

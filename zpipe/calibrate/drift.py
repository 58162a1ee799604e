"""Whether live answers still look like those of the calibration split: thresholds promise nothing where they don't.

A source sees of each sample where it left and how sure that exit was. *Ease* puts both into one number, `confidence - stage`: a
sample that left at the first exit and surely is the easiest. Live and calibration eases are compared by a two-sample
Kolmogorov-Smirnov test, which so sees exit shares (the distribution at whole numbers) and confidences within an exit alike. No
label is needed.

Samples that show one original are not independent: 3,000 calibration samples of 200 digits tell no more than some 900 independent
ones would. How many those are is found once by resampling originals; the live samples are taken to depend on each other as much.
That is careful where they are independent, and too bold for a camera that sees the same for minutes.

Source: Kolmogorov (1933) and Smirnov (1939); asymptotic p-value. The effective sample size is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from zpipe.bundle import Bundle
from zpipe.calibrate.metrics import Doubles, Floats, Ints, answers_of
from zpipe.calibrate.points import exit_of
from zpipe.calibrate.temperature import by_stage
from zpipe.report import KINDS, RunLog

#: Below this p-value answers have drifted. A monitor looks some thousand times a day.
ALPHA = 1e-3

#: Fewer live samples than this say nothing.
LEAST_SAMPLES = 100

#: Resamples of the originals, and the quantile of their distances that is compared with Kolmogorov's.
_DRAWS, _QUANTILE, _KOLMOGOROV = 200, 0.95, 1.3581

#: A monitor keeps so many of the last answers, and looks at them each time so many have come.
WINDOW, EVERY = 1000, 250


@dataclass(frozen=True, slots=True)
class Drift:
    """What the test says.

    Attributes:
        samples: live answers it rests on.
        distance: largest difference of the two distribution functions, 0..1.
        p_value: how likely so large a distance is without any drift.
        drifted: `p_value` is below ALPHA.
        harder: fewer left early, or less surely, than on the calibration split (in the mean).
        expected_shares, shares: of answers per stage, on the calibration split and live.
    """

    samples: int
    distance: float
    p_value: float
    drifted: bool
    harder: bool
    expected_shares: tuple[float, ...]
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As a report holds it."""
        return {**asdict(self), "expected_shares": list(self.expected_shares), "shares": list(self.shares)}

    def __str__(self) -> str:
        """For a log: what was seen and what to do."""
        stage = max(range(len(self.shares)), key=lambda at: abs(self.shares[at] - self.expected_shares[at]))
        return (
            f"the answers drifted from the calibration data (p = {self.p_value:.1g} over {self.samples:,} samples): "
            f"{'harder' if self.harder else 'easier'} inputs; {100 * self.shares[stage]:.0f} % leave at stage {stage}, "
            f"{100 * self.expected_shares[stage]:.0f} % did; accuracies promised for these thresholds need not hold: calibrate on "
            "inputs like these with `zpipe calibrate --data`"
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """The calibration split's answers under some thresholds.

    Attributes:
        ease: `confidence - stage` of each sample, rising, `[samples]`.
        effective: independent samples that would tell as much.
        shares: of answers per stage.
    """

    ease: Doubles
    effective: float
    shares: tuple[float, ...]

    @classmethod
    def of(cls, bundle: Bundle, thresholds: Sequence[float]) -> Reference | None:
        """What the bundle's calibration split says under these thresholds (one per stage); None where it has none.

        Raises:
            BundleError: its file is damaged.
        """
        if bundle.calibration_file is None:
            return None
        found = bundle.calibration()
        temperatures = [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None]
        heads = [stage.exit_head is not None for stage in bundle.stages]
        confidences = by_stage(answers_of(found.logits, temperatures, found.labels), heads).confidences
        exits = exit_of(confidences, thresholds)
        taken = np.take_along_axis(confidences, exits[:, None], 1)[:, 0]
        return cls.from_answers(exits, taken, found.digit, stages=len(bundle.stages))

    @classmethod
    def from_answers(cls, exits: Ints, confidences: Floats | Doubles, digit: Ints, *, stages: int) -> Reference:
        """From where each sample left, how sure that exit was, and which original it shows; all `[samples]`."""
        ease = confidences.astype(np.float64) - exits
        order = np.argsort(ease, kind="stable")
        shares = np.bincount(exits, minlength=stages) / len(exits)
        _, member = np.unique(digit, return_inverse=True)
        return cls(ease[order], _effective_samples(ease[order], member[order]), tuple(float(share) for share in shares))

    def compare(self, exits: Sequence[int] | Ints, confidences: Sequence[float] | Doubles) -> Drift | None:
        """The test on live answers: where they were given, and how surely, `[samples]`; None of too few."""
        stage = np.asarray(exits, np.int64)
        count = len(stage)
        if count < LEAST_SAMPLES:
            return None
        # The wire carries float32; in float64 the same confidence must be the same number on both sides.
        live = np.sort(np.asarray(confidences, np.float32).astype(np.float64) - stage)
        at = np.concatenate([self.ease, live])
        below = (np.searchsorted(values, at, side="right") / len(values) for values in (self.ease, live))
        expected, seen = below
        distance = float(np.abs(expected - seen).max())
        independent = count * min(1.0, self.effective / len(self.ease))
        size = math.sqrt(self.effective * independent / (self.effective + independent))
        p_value = _kolmogorov(size * distance)
        shares = np.bincount(stage, minlength=len(self.shares)) / count
        return Drift(
            samples=count,
            distance=distance,
            p_value=p_value,
            drifted=p_value < ALPHA,
            harder=bool(live.mean() < self.ease.mean()),
            expected_shares=self.shares,
            shares=tuple(float(share) for share in shares),
        )


@dataclass(slots=True)
class Monitor:
    """Looks at a source's answers as they come: `see` each one.

    Attributes:
        reference: what they should look like.
        last: what the latest look said; None before the first.
    """

    reference: Reference
    last: Drift | None = None
    _exits: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _confidences: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _unseen: int = 0

    def see(self, exit_stage: int, confidence: float) -> Drift | None:
        """Takes one answer; the new state where it has just drifted, or is just as it should be again."""
        self._exits.append(exit_stage)
        self._confidences.append(confidence)
        self._unseen += 1
        if self._unseen < EVERY:
            return None
        self._unseen = 0
        before, self.last = self.last, self.reference.compare(self._exits, self._confidences)
        drifted = self.last is not None and self.last.drifted
        return self.last if drifted != (before is not None and before.drifted) else None


def drift_rows(log: RunLog, bundle: Bundle, thresholds: Mapping[int, Sequence[float] | None]) -> dict[int, dict[str, Any]]:
    """{source: what the test says of its answers in a run}, for sources whose thresholds stayed and that got enough answers.

    Args:
        log: of the run.
        bundle: whose calibration split they are compared with; without one there are no rows.
        thresholds: {source: what its samples carried}, None where they moved.
    """
    columns = log.columns()
    answered = columns["kind"] == KINDS.index("result")
    rows = {}
    references: dict[tuple[float, ...], Reference | None] = {}  # a hundred sources may share one
    for rank, vector in thresholds.items():
        mine = answered & (columns["source"] == rank)
        if vector is None or int(mine.sum()) < LEAST_SAMPLES:
            continue
        key = tuple(vector)
        if key not in references:
            references[key] = Reference.of(bundle, key)
        reference = references[key]
        found = None if reference is None else reference.compare(columns["stage"][mine], columns["confidence"][mine])
        if found is not None:
            rows[rank] = found.to_json()
    return rows


def _effective_samples(ease: Doubles, member: Ints) -> float:
    """How many independent samples tell as much as these, which belong to originals `member`; `ease` rising."""
    originals = int(member.max()) + 1
    whole = np.arange(1, len(ease) + 1) / len(ease)
    last_of_ties = np.append(ease[1:] != ease[:-1], True)
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(_DRAWS):
        weights = np.bincount(rng.integers(0, originals, originals), minlength=originals)[member]
        steps = np.cumsum(weights)
        distances.append(float(np.abs(steps / max(1, steps[-1]) - whole)[last_of_ties].max()))
    typical = float(np.quantile(distances, _QUANTILE))
    return min(float(len(ease)), (_KOLMOGOROV / typical) ** 2) if typical > 0.0 else 1.0


def _kolmogorov(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0  # to 30 digits, where the series needs ever more terms
    terms = np.arange(1, 101)
    series = 2.0 * float(np.sum((-1.0) ** (terms - 1) * np.exp(-2.0 * terms**2 * x**2)))
    return min(1.0, max(0.0, series))

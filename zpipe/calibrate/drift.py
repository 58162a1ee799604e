"""Whether live answers still look like those of the calibration split: thresholds promise nothing where they don't.

A source sees of each sample where it left and how sure that exit was. *Ease* puts both into one number, `confidence - stage`: a
sample that left at the first exit and surely is the easiest. Live and calibration eases are compared by a two-sample
Kolmogorov-Smirnov test, which so sees exit shares (the distribution at whole numbers) and confidences within an exit alike. No
label is needed.

Samples that show one original are not independent: 3,000 calibration samples of 200 digits tell no more than some 900 independent
ones would. How many those are is found once by resampling originals; the live samples are taken to depend on each other as much,
which is careful where they do not.

Frames of a camera depend on those before them as well. How long is measured: the integrated autocorrelation time of the eases, in
samples, with its own uncertainty on top. So many samples count for one, and where too few are left the test says nothing. A
monitor therefore keeps every sample of the last 1,000, and every 4th, 16th, ... of ever longer stretches; the shortest stretch that
holds enough independent samples answers. A stretch is looked at each time a quarter of it is new, so that the more slowly the
picture changes the rarer looks are: independent frames are looked at every 250 samples, things in view for 30 frames every 1,000
or 4,000. What stays in view for thousands of frames it cannot judge, and does not.

Source: Kolmogorov (1933) and Smirnov (1939); asymptotic p-value. Autocorrelation time: Sokal, Monte Carlo Methods in Statistical
Mechanics (1997), with his window and error. The effective sample size over originals, and the stretches, are ours.
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

#: Below this p-value answers have drifted: a look at answers that have not says so in fewer than one of a thousand (measured for
#: things in view for 1, 10, 30 and 100 frames: `tests/calibrate/test_drift.py`).
ALPHA = 1e-3

#: Where more of the admitted samples than this got no answer, those that came say nothing: early exits are quicker, so it is the
#: others that are missing.
MOST_UNANSWERED = 0.01

#: Fewer live samples than this say nothing.
LEAST_SAMPLES = 100

#: Resamples of the originals, and the quantile of their distances that is compared with Kolmogorov's.
_DRAWS, _QUANTILE, _KOLMOGOROV = 200, 0.95, 1.3581

#: A monitor keeps so many answers of each stretch, and looks at them each time so many of it have come.
WINDOW, EVERY = 1000, 250

#: The stretches: every so many-th answer.
STRIDES = (1, 4, 16, 64, 256)

#: Fewer independent live samples than this say nothing: their autocorrelation time is guesswork.
LEAST_INDEPENDENT = 75

#: Sokal's window: lags up to so many autocorrelation times are summed.
_SOKAL = 5

#: Deviations of the first autocorrelation of independent samples within which samples are taken to be independent, and of the
#: autocorrelation time that are put on top of it.
_INDEPENDENT_WITHIN, _CAREFUL = 3.0, 2.0


@dataclass(frozen=True, slots=True)
class Drift:
    """What the test says.

    Attributes:
        samples: live answers it rests on.
        independent: how many of them count, as samples follow on samples like them.
        distance: largest difference of the two distribution functions, 0..1.
        p_value: how likely so large a distance is without any drift.
        drifted: `p_value` is below ALPHA.
        harder: fewer left early, or less surely, than on the calibration split (in the mean).
        expected_shares, shares: of answers per stage, on the calibration split and live.
    """

    samples: int
    independent: float
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
        """What the bundle's calibration split says under these thresholds (one per stage).

        None where it has none, or has students: how sure they are together no stage says.

        Raises:
            BundleError: its file is damaged.
        """
        if bundle.calibration_file is None or bundle.students:
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
        """The test on live answers in the order they came: where they were given, and how surely, `[samples]`; None of too few."""
        stage = np.asarray(exits, np.int64)
        count = len(stage)
        if count < LEAST_SAMPLES:
            return None
        # The wire carries float32; in float64 the same confidence must be the same number on both sides.
        live = np.asarray(confidences, np.float32).astype(np.float64) - stage
        ordered = np.sort(live)
        # Ranks, equal ones in the middle: one far out then weighs no more than another.
        ranks = np.searchsorted(ordered, live, side="left") + np.searchsorted(ordered, live, side="right")
        followed = count / autocorrelation_time(ranks / (2.0 * count))
        if followed < LEAST_INDEPENDENT:
            return None
        live = ordered
        at = np.concatenate([self.ease, live])
        below = (np.searchsorted(values, at, side="right") / len(values) for values in (self.ease, live))
        expected, seen = below
        distance = float(np.abs(expected - seen).max())
        independent = followed * min(1.0, self.effective / len(self.ease))
        size = math.sqrt(self.effective * independent / (self.effective + independent))
        p_value = _kolmogorov(size * distance)
        shares = np.bincount(stage, minlength=len(self.shares)) / count
        return Drift(
            samples=count,
            independent=followed,
            distance=distance,
            p_value=p_value,
            drifted=p_value < ALPHA,
            harder=bool(live.mean() < self.ease.mean()),
            expected_shares=self.shares,
            shares=tuple(float(share) for share in shares),
        )


@dataclass(slots=True)
class _Stretch:
    """Every `stride`-th of the last answers, and what the latest look at them said."""

    stride: int
    exits: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    confidences: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    unseen: int = 0
    said: Drift | None = None


@dataclass(slots=True)
class Monitor:
    """Looks at a source's answers as they come: `see` each one, and `miss` each admitted sample that gets none.

    Attributes:
        reference: what they should look like.
        last: what the latest look said; None before the first that could say anything.
    """

    reference: Reference
    last: Drift | None = None
    _stretches: list[_Stretch] = field(default_factory=lambda: [_Stretch(stride) for stride in STRIDES])
    _seen: int = 0
    _unanswered: float = 0.0  #: share of the latest `WINDOW` or so

    def miss(self) -> None:
        """An admitted sample expired or failed."""
        self._unanswered += (1.0 - self._unanswered) / WINDOW

    def see(self, exit_stage: int, confidence: float) -> Drift | None:
        """Takes one answer; the new state where it has just drifted, or is just as it should be again."""
        self._seen += 1
        self._unanswered -= self._unanswered / WINDOW
        news = None
        for index, stretch in enumerate(self._stretches):
            if self._seen % stretch.stride:
                break  # strides are multiples of each other
            stretch.exits.append(exit_stage)
            stretch.confidences.append(confidence)
            stretch.unseen += 1
            if stretch.unseen == EVERY:
                stretch.unseen = 0
                news = self._look(index) or news
        return news

    def _look(self, index: int) -> Drift | None:
        """Looks at one stretch; counts where no shorter one can say anything."""
        stretch = self._stretches[index]
        if self._unanswered > MOST_UNANSWERED:
            stretch.said = self.last = None
            return None
        stretch.said = self.reference.compare(stretch.exits, stretch.confidences)
        if stretch.said is None or any(shorter.said is not None for shorter in self._stretches[:index]):
            return None
        before, self.last = self.last, stretch.said
        return self.last if self.last.drifted != (before is not None and before.drifted) else None


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
        lost = ~answered & (columns["attempts"] > 0) & (columns["source"] == rank)
        if vector is None or int(mine.sum()) < LEAST_SAMPLES or lost.sum() > MOST_UNANSWERED * mine.sum():
            continue
        key = tuple(vector)
        if key not in references:
            references[key] = Reference.of(bundle, key)
        reference = references[key]
        found = None if reference is None else reference.compare(columns["stage"][mine], columns["confidence"][mine])
        if found is not None:
            rows[rank] = found.to_json()
    return rows


def autocorrelation_time(values: Doubles) -> float:
    """Of `values [samples]` in order, how many count for one: at least 1, inf where they never change; careful, so rather too many.

    1 + 2 * the sum of the autocorrelations up to the first lag that is _SOKAL times as long as that itself; its standard error is
    sqrt(2 (2 lag + 1) / samples) of it.
    """
    count = len(values)
    around = values - values.mean()
    spectrum = np.fft.rfft(around, 2 * count)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[:count]
    if covariance[0] <= 1e-12 * count:
        return math.inf
    correlation = covariance / covariance[0]
    if correlation[1] < _INDEPENDENT_WITHIN / math.sqrt(count):
        return 1.0
    times = 2.0 * np.cumsum(correlation) - 1.0
    lag = int(np.argmax(np.arange(count) >= _SOKAL * times))
    return max(1.0, float(times[lag])) * (1.0 + _CAREFUL * math.sqrt(2.0 * (2 * lag + 1) / count))


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

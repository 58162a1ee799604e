"""The drift test: quiet on the evaluation mix whatever the seed, loud where only hard inputs come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.runtime.mesh import HALF
from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.drift import (
    ALPHA,
    EVERY,
    LEAST_SAMPLES,
    Drift,
    Monitor,
    Reference,
    _kolmogorov,
    autocorrelation_time,
    drift_rows,
)
from zpipe.calibrate.points import exit_of
from zpipe.model import NEVER_EXIT, Outcome, Result
from zpipe.report import RunLog

SEEDS = 300


def answers(bundle: Bundle, thresholds: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Where the evaluation samples leave, and how surely."""
    confidences = bundle.replay().confidences
    exits = exit_of(confidences, thresholds)
    return exits, np.take_along_axis(confidences, exits[:, None], 1)[:, 0]


def reference_of(bundle: Bundle, thresholds: tuple[float, ...]) -> Reference:
    found = Reference.of(bundle, thresholds)
    assert found is not None
    return found


def compare(reference: Reference, exits: np.ndarray, confidences: np.ndarray, rows: np.ndarray) -> Drift:
    found = reference.compare(exits[rows], confidences[rows])
    assert found is not None
    return found


@pytest.fixture(scope="module", params=["digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(HALF.parent / request.param, verify=False)


@pytest.fixture(params=["default", "of the table", "no-exit"])
def thresholds(request: pytest.FixtureRequest, bundle: Bundle) -> tuple[float, ...]:
    chosen = {"default": bundle.default_point.thresholds, "of the table": bundle.promise(0.93).thresholds}
    return chosen.get(request.param, (NEVER_EXIT,) * 5)


def test_no_more_false_alarms_on_the_evaluation_mix_than_the_level_allows(bundle: Bundle, thresholds: tuple[float, ...]) -> None:
    """Other writers, the same mix: runs of several lengths, drawn from 597 digits and so not independent."""
    reference, rng = reference_of(bundle, thresholds), np.random.default_rng(7)
    exits, confidences = answers(bundle, thresholds)
    p_values = [
        compare(reference, exits, confidences, rng.integers(0, len(exits), size)).p_value
        for size in (LEAST_SAMPLES, 500, 3000)
        for _ in range(SEEDS // 3)
    ]
    assert sum(p_value < 0.01 for p_value in p_values) <= 0.01 * SEEDS
    assert sum(p_value < ALPHA for p_value in p_values) <= 1


def test_whole_evaluation_set_is_no_drift(bundle: Bundle, thresholds: tuple[float, ...]) -> None:
    exits, confidences = answers(bundle, thresholds)
    found = compare(reference_of(bundle, thresholds), exits, confidences, np.arange(len(exits)))
    assert not found.drifted
    assert found.p_value > 0.05


def test_hardest_inputs_alone_are_found_in_every_run(bundle: Bundle, thresholds: tuple[float, ...]) -> None:
    reference, rng = reference_of(bundle, thresholds), np.random.default_rng(7)
    exits, confidences = answers(bundle, thresholds)
    hard = np.flatnonzero(bundle.evaluation().severity == 4)
    found = [compare(reference, exits, confidences, rng.choice(hard, 500)) for _ in range(50)]
    assert all(each.drifted and each.harder for each in found)


def test_clean_inputs_alone_are_a_drift_the_other_way(bundle: Bundle) -> None:
    thresholds = bundle.default_point.thresholds
    exits, confidences = answers(bundle, thresholds)
    easy = np.random.default_rng(7).choice(np.flatnonzero(bundle.evaluation().severity == 0), 1000)
    found = compare(reference_of(bundle, thresholds), exits, confidences, easy)
    assert found.drifted
    assert not found.harder
    assert "easier inputs" in str(found)


# ---- a camera: the same thing is in view for many frames ---------------------------------------


def looks_at(bundle: Bundle, *, frames: int, rows: np.ndarray, seed: int, samples: int) -> tuple[list[Drift], int]:
    """What a monitor's looks say of a stream that shows each of some random `rows` for that many frames; and its warnings."""
    thresholds = bundle.default_point.thresholds
    exits, confidences = answers(bundle, thresholds)
    monitor, looks, warnings = Monitor(reference_of(bundle, thresholds)), [], 0
    shown = np.random.default_rng(seed).choice(rows, samples // frames).repeat(frames)
    for stage, confidence in zip(exits[shown].tolist(), confidences[shown].tolist(), strict=True):
        before = monitor.last
        news = monitor.see(stage, confidence)
        warnings += news is not None and news.drifted
        if monitor.last is not None and monitor.last is not before:
            looks.append(monitor.last)
    return looks, warnings


@pytest.mark.parametrize("frames", [1, 10, 30, 100])
def test_frames_that_follow_on_each_other_are_no_drift_but_hard_ones_are(frames: int) -> None:
    bundle = load_bundle(HALF, verify=False)
    severity, samples, seeds = bundle.evaluation().severity, 8000 + 400 * frames, range(5)
    calm = [looks_at(bundle, frames=frames, rows=np.arange(len(severity)), seed=seed, samples=samples) for seed in seeds]
    p_values = np.array([look.p_value for looks, _ in calm for look in looks])
    assert len(p_values) >= 30
    assert sum(warnings for _, warnings in calm) == 0
    assert (p_values < ALPHA).mean() <= ALPHA
    assert (p_values < 0.01).mean() <= 0.01
    for seed in seeds:
        looks, warnings = looks_at(bundle, frames=frames, rows=np.flatnonzero(severity == 4), seed=seed, samples=samples)
        assert warnings >= 1
        assert np.mean([look.drifted for look in looks]) > 0.5


@pytest.mark.parametrize("frames", [1, 10, 100])
def test_autocorrelation_time_is_how_long_things_stay(frames: int) -> None:
    values = np.random.default_rng(0).random(40_000 // frames).repeat(frames)
    found = autocorrelation_time(values)
    assert 0.9 * frames <= found <= 2.5 * frames
    assert autocorrelation_time(np.ones(100)) == math.inf


# ---- the test itself ---------------------------------------------------------------------------


def test_series_is_kolmogorovs_distribution() -> None:
    for x, p in ((0.1, 1.0), (0.828, 0.5), (1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)):
        assert _kolmogorov(x) == pytest.approx(p, rel=0.01)


def test_dependent_samples_count_for_as_many_as_there_are_originals() -> None:
    rng = np.random.default_rng(0)
    alone = rng.uniform(0.5, 1.0, 400)
    independent = Reference.from_answers(np.zeros(400, np.int64), alone, np.arange(400), stages=2)
    repeated = Reference.from_answers(np.zeros(4000, np.int64), np.repeat(alone, 10), np.repeat(np.arange(400), 10), stages=2)
    assert independent.effective == pytest.approx(400, rel=0.15)
    assert repeated.effective == pytest.approx(400, rel=0.15)


def test_confidence_at_the_same_exits_is_seen() -> None:
    rng = np.random.default_rng(0)
    exits = np.zeros(2000, np.int64)
    reference = Reference.from_answers(exits, rng.uniform(0.9, 1.0, 2000), np.arange(2000), stages=2)
    same, other = (reference.compare(exits, rng.uniform(low, 1.0, 2000)) for low in (0.9, 0.95))
    assert same is not None
    assert other is not None
    assert (same.drifted, other.drifted, other.harder) == (False, True, False)
    assert same.shares == same.expected_shares == (1.0, 0.0)


def test_few_answers_and_bundles_without_calibration_say_nothing() -> None:
    reference = Reference.from_answers(np.zeros(200, np.int64), np.linspace(0.5, 1, 200), np.arange(200), stages=1)
    assert reference.compare([0] * (LEAST_SAMPLES - 1), [0.9] * (LEAST_SAMPLES - 1)) is None


def test_monitor_speaks_once_when_it_drifts_and_once_when_it_is_over() -> None:
    rng = np.random.default_rng(0)
    monitor = Monitor(Reference.from_answers(np.zeros(2000, np.int64), rng.uniform(0.9, 1.0, 2000), np.arange(2000), stages=2))
    calm = [monitor.see(0, rng.uniform(0.9, 1.0)) for _ in range(2000)]
    assert not any(calm)
    hard = [news for _ in range(4000) if (news := monitor.see(1, rng.uniform(0.5, 1.0))) is not None]
    assert [news.drifted for news in hard] == [True]
    assert math.isclose(sum(hard[0].shares), 1.0)
    over = [news for _ in range(4000) if (news := monitor.see(0, rng.uniform(0.9, 1.0))) is not None]
    assert [news.drifted for news in over] == [False]
    assert monitor.last is not None
    assert EVERY < 1000


def test_monitor_says_nothing_while_late_answers_are_missing() -> None:
    """Under a short deadline only what leaves early is answered: that is no drift."""
    rng = np.random.default_rng(0)
    half = np.repeat([0, 1], 1000)
    monitor = Monitor(Reference.from_answers(half, rng.uniform(0.9, 1.0, 2000), np.arange(2000), stages=2))
    news = []
    for _ in range(3000):
        monitor.miss()
        news.append(monitor.see(0, rng.uniform(0.9, 1.0)))
    assert not any(news)
    assert monitor.last is None
    spoken = [each for _ in range(6000) if (each := monitor.see(0, rng.uniform(0.9, 1.0))) is not None]
    assert [each.drifted for each in spoken] == [True]


@pytest.mark.parametrize(("expired", "said"), [(0, True), (5, True), (20, False)])
def test_a_run_in_which_admitted_samples_expired_tells_no_drift(expired: int, *, said: bool) -> None:
    bundle = load_bundle(HALF, verify=False)
    thresholds, log = bundle.default_point.thresholds, RunLog()
    exits, confidences = answers(bundle, thresholds)
    for sample in range(1000):
        log.submitted(sample, sample, 0, deadline=1.0)
        answered = sample >= expired
        result = Result(sample, 0, "0", float(confidences[sample]), int(exits[sample]), 0.1, 0.0, 0.1, 1) if answered else None
        log.outcome(Outcome(sample, "result" if answered else "expired", 0.1, 1, result), now=0.5)
    assert bool(drift_rows(log, bundle, {0: thresholds})) is said

"""Claims follow from the tables: what is slower, tied, or beyond its bound does not hold."""

from __future__ import annotations

from typing import Any

import pytest

from zpipe.bench.suites import settings
from zpipe.bench.suites.claims import claims
from zpipe.bench.suites.statistics import interval

SETTING = settings.setting("32px-20")


def row(policy: str, rate: float, *, accuracy: float = 0.97, topology: str = "mesh3", **changes: Any) -> dict[str, Any]:
    known = {
        "setting": SETTING.name,
        "topology": topology,
        "policy": policy,
        "point": "t0.95",
        "rate_hz": [rate, 0.5],
        "accuracy": [accuracy, 0.0],
        "bound_hz": 1.01 * rate,
        "limits": ["node 0"],
        "raw_inputs": [0.0, 0.0],
    }
    return known | changes


def given(policy: str, rate: float, right: float) -> dict[str, Any]:
    return {
        "bound_hz": 250.0,
        "setting": SETTING.name,
        "topology": "mesh3",
        "policy": policy,
        "offered_hz": rate,
        "right": [right, 0.001],
        "answered": [right, 0.001],
    }


def judged(
    capacity: list[dict[str, Any]], rates: list[dict[str, Any]] | None = None, *, cheaper: bool = True
) -> list[dict[str, Any]]:
    found = {
        "settings": [{"bundle": SETTING.bundle, "default_point": "t0.95"}],
        "rate_at_accuracy": capacity,
        "accuracy_at_rate": rates or [],
        "cuts": [{"bundle": SETTING.bundle, "cut": 1, "cheaper": cheaper, "mean_bytes": 8983.4, "input_bytes": 3072}],
    }
    return claims(found, [SETTING])


def verdicts(capacity: list[dict[str, Any]], rates: list[dict[str, Any]] | None = None, *, cheaper: bool = True) -> dict[str, bool]:
    return {claim["text"]: claim["holds"] for claim in judged(capacity, rates, cheaper=cheaper)}


def one(found: dict[str, bool], *words: str) -> bool:
    (held,) = [holds for text, holds in found.items() if all(word in text for word in words)]
    return held


@pytest.mark.parametrize(("mine", "holds"), [(126.0, True), (64.4, False), (60.0, False)])
def test_a_higher_rate_holds_only_where_the_intervals_do_not_meet(mine: float, holds: bool) -> None:
    assert one(verdicts([row("mdi", mine), row("no-exit", 64.0)]), "mdi carries a higher rate than no-exit") == holds


def test_a_faster_point_below_the_accuracy_target_does_not_count() -> None:
    capacity = [row("mdi", 200.0, accuracy=0.90), row("mdi", 50.0), row("no-exit", 64.0, accuracy=0.972)]
    assert not one(verdicts(capacity), "mdi carries a higher rate than no-exit")


def test_gain_on_mesh3_is_one_and_a_half_at_the_default_point() -> None:
    fast = row("mdi", 200.0, point="t0.90")
    assert one(verdicts([fast, row("mdi", 96.0), row("no-exit", 64.0)]), "mdi on mesh3")
    assert not one(verdicts([fast, row("mdi", 95.0), row("no-exit", 64.0)]), "mdi on mesh3")
    assert not one(verdicts([row("mdi", 96.0, accuracy=0.96), row("no-exit", 64.0)]), "mdi on mesh3")


def test_ddi_is_compared_only_where_activations_are_fewer_bytes_than_inputs() -> None:
    capacity = [row("mdi", 90.0), row("ddi", 100.0), row("no-exit", 64.0)]
    assert not one(verdicts(capacity), "matches or beats ddi")
    assert not any("ddi" in text for text in verdicts(capacity, cheaper=False))


@pytest.mark.parametrize(("mine", "half", "holds"), [(98.5, 0.5, True), (97.0, 0.5, False), (97.0, 3.0, True)])
def test_ddi_is_matched_within_two_percent_or_the_interval(mine: float, half: float, holds: bool) -> None:
    capacity = [row("mdi", mine, rate_hz=[mine, half]), row("ddi", 100.0), row("no-exit", 64.0)]
    assert one(verdicts(capacity), "matches or beats ddi") == holds


def test_a_policy_that_misses_the_accuracy_target_fails_in_the_open() -> None:
    (claim,) = [
        claim
        for claim in judged([row("mdi", 200.0, accuracy=0.9), row("no-exit", 64.0)])
        if "than no-exit at equal acc" in claim["text"]
    ]
    assert not claim["holds"]
    assert claim["cases"][0]["why"] == "none of the points tried reaches 96.5% under mdi"


def test_unequal_boards_want_85_percent_of_the_bound() -> None:
    for share, holds in ((0.86, True), (0.84, False)):
        capacity = [row(policy, 100.0, topology=settings.SLOW_NODE, bound_hz=100.0 / share) for policy in ("mdi", "no-exit")]
        assert one(verdicts(capacity), "mdi reaches", "boards are unequal") == holds


def test_more_accuracy_wants_no_rate_worse_and_some_rate_better() -> None:
    capacity = [row("mdi", 126.0), row("no-exit", 64.0)]
    for mine, holds in (((0.97, 0.90), True), ((0.96, 0.99), False), ((0.97, 0.80), False)):
        rates = [
            given("mdi", 40.0, mine[0]),
            given("mdi", 90.0, mine[1]),
            given("no-exit", 40.0, 0.97),
            given("no-exit", 90.0, 0.80),
        ]
        assert one(verdicts(capacity, rates), "mdi answers more", "no-exit") == holds


def test_a_case_that_no_policy_could_win_says_so_beside_its_bound() -> None:
    capacity = [row("mdi", 50.0, bound_hz=56.0), row("local", 74.0), row("no-exit", 20.0)]
    (claim,) = [claim for claim in judged(capacity) if "mdi carries a higher rate than local" in claim["text"]]
    assert claim["cases"][0]["bound"] == "56.0/s (node 0)"
    assert claim["cases"][0]["why"] == "nothing under this policy's rules could: the bound is no higher"
    assert claim["settings"] == [{"setting": SETTING.name, "holds": False, "held": 0, "cases": 1, "not_asked": ""}]


def test_where_a_claim_is_not_asked_it_says_why() -> None:
    poor = settings.setting("32px-5")
    capacity = [
        row(policy, rate, setting=name)
        for name in (SETTING.name, poor.name)
        for policy, rate in (("mdi", 100.0), ("no-exit", 64.0))
    ]
    found = {"settings": [], "rate_at_accuracy": capacity, "accuracy_at_rate": [], "cuts": []}
    found["accuracy_at_rate"] = [given("mdi", 40.0, 0.97), given("no-exit", 40.0, 0.9)]
    found["settings"] = [{"bundle": SETTING.bundle, "default_point": "t0.95"}]
    found["cuts"] = [{"bundle": SETTING.bundle, "cut": 1, "cheaper": False, "mean_bytes": 8983.4, "input_bytes": 3072}]
    (claim,) = [claim for claim in claims(found, [SETTING, poor]) if "no-exit at equal rate" in claim["text"]]
    assert [each["holds"] for each in claim["settings"]] == [True, None]
    assert claim["settings"][1]["not_asked"] == "no data rates were given in this setting"


def test_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx([2.0, 2.4841], rel=1e-4)
    assert interval([5.0]) == [5.0, 0.0]

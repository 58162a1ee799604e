"""Claims follow from the tables: what falls short does not hold, and says by how much."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench.suites.rocoin.results import results
from zpipe.bench.suites.rocoin.claims import claims


def claim(found: dict[str, Any], text: str) -> dict[str, Any]:
    (only,) = [claim for claim in found["claims"] if text in claim["text"]]
    assert isinstance(only, dict)
    return only


ONE = "answers as it does with all boards when a board of every group is gone"
GROUP = "loses at most 3 points, and no answer, when a whole group is gone"
PARAMETERS = "has at most 40% of the network's parameters"
BYTES = "has no student of more than 500 kB at int8"
TAIL = "takes at most 50% of failover's time at the 99th percentile"
PROMISE = "loses no sample, and answers none twice"
LIVE = "tells accuracy and mean latency of live runs within 5%"


def test_all_that_was_asked_for_is_asked() -> None:
    found = results()
    for text in (ONE, GROUP, PARAMETERS, BYTES, TAIL, PROMISE, LIVE):
        asked = claim(found, text)
        assert asked["holds"], asked
        assert asked["claimed"]
        assert asked["cases"]


@pytest.mark.parametrize(
    ("text", "change", "figures"),
    [
        (ONE, {"other": 1}, "1 of 100 answers differ"),
        (ONE, {"answered": 99}, "0 of 100 answers differ"),
        (ONE, {"live_answered": 199}, "199 of 200 answered"),
        (GROUP, {"without": 0.919}, "3.10 points less: 91.90%, 95.00% with all"),
        (GROUP, {"less": 0.031}, "3.10 ± 0.40 points less, 100 of 100 answered"),
        (GROUP, {"answered": 99}, "2.00 ± 0.40 points less, 99 of 100 answered"),
        (PARAMETERS, {"parameters": 800_002}, "800,002 of 2,000,000: 40.0%"),
        (BYTES, {"student_bytes": 1_600_000}, "550 kB with weights in int8, 1600 kB as it is"),
        (TAIL, {"hedged_ms": 201.0}, "201 ± 20 ms against 400 ± 20 ms: 0.50 ± 0.00 of it"),
        (PROMISE, {"broken": 1}, "1 samples in 32 rows"),
        (LIVE, {"live": -0.051}, "live 100 ± 0 ms, simulated 95 ± 0 ms: -5.1% ± 1.0%"),
    ],
)
def test_what_falls_short_does_not_hold_and_says_so(text: str, change: dict[str, Any], figures: str) -> None:
    short = claim(results(**change), text)
    assert not short["holds"]
    assert figures in next(case["figures"] for case in short["cases"] if not case["holds"])


def test_live_cases_are_asked_only_where_they_were_run() -> None:
    found = results(live=None)
    assert not [claim for claim in found["claims"] if LIVE in claim["text"]]
    for text in (ONE, GROUP, TAIL, PROMISE):
        asked = {each["setting"]: each["not_asked"] for each in claim(found, text)["settings"]}
        assert asked["live"] == "not run live"
    assert claim(found, TAIL)["holds"]


def test_the_network_may_not_say_how_large_it_is() -> None:
    found = results()
    found["students"]["network_parameters"] = 0
    found["claims"] = claims(found)
    asked = claim(found, PARAMETERS)["settings"][0]
    assert asked["holds"] is None
    assert "does not say" in asked["not_asked"]


def test_other_systems_are_for_the_record() -> None:
    beside = claim(results(), "is right more often than the other systems")
    assert not beside["claimed"]
    assert [case["topology"] for case in beside["cases"] if not case["holds"]] == ["copies, dead", "copies, dying"]
    assert "0: +0.0, 0.5: +30.0" in beside["cases"][0]["figures"]

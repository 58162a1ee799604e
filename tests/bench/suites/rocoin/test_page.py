"""The page has every part and says what the JSON says; figures are drawn only where they are looked at."""

from __future__ import annotations

import re

import pytest

from tests.bench.suites.rocoin.results import results
from tests.bench.suites.test_page import Tags
from zpipe.bench.suites import render_suite
from zpipe.bench.suites.rocoin import figures

SECTIONS = ("verdict", "failures", "groups", "stalls", "sizes", "students", "live", "settings", "summary", "made-on")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("over_probability", "over_devices", "tails", "sample"):
        assert hasattr(figures, name)
        monkeypatch.setattr(figures, name, lambda *data, **options: "<svg ></svg>")


@pytest.mark.usefixtures("without_figures")
def test_page_has_every_part_and_needs_nothing_else() -> None:
    page = render_suite(results())
    tags = Tags(page)
    assert tags.open == []
    assert {link.removeprefix("#") for link in tags.links} == set(SECTIONS)
    assert set(SECTIONS) <= set(tags.ids)
    assert not re.search(r"https?:|@import|url\(|<link|<img|<iframe", page)
    assert "dead with probability 0.5: rocoin-hedged 90 %, chain-replicas 60 %, chain 0 %" in page
    assert "accuracy falls by at most 2.00 points (group 0)" in page
    assert "hedged takes 0.38 of failover" in page


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_broke_the_promise_is_said_at_the_top() -> None:
    assert "broken: system rocoin-failover: 2 samples lost" in render_suite(results(broken=2))
    assert "Live parts: not run." in render_suite(results(live=None))


def test_figures_draw_every_system_that_answers() -> None:
    rows = [row for row in results()["failures"] if row["model"] == "dead"]
    svg = figures.over_probability(rows, lambda row: row["latency_ms"], y="ms", log=True, says="<what>")
    assert 'aria-label="&lt;what&gt;"' in svg
    for system, mark in figures.MARKS.items():
        assert mark.colour.lower() in svg, system
    stalls = results()["stalls"]
    drawn = figures.tails(stalls, says="tails")
    assert drawn.count("#d55e00") >= 4  # for each kind of stall, and where there is none

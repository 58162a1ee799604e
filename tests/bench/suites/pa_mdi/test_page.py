"""The page has every part and says what the JSON says; figures are drawn only where they are looked at."""

from __future__ import annotations

import re

import pytest

from tests.bench.suites.pa_mdi.results import results
from tests.bench.suites.test_page import Tags
from zpipe.bench.suites import render_suite
from zpipe.bench.suites.pa_mdi import figures

SECTIONS = ("verdict", "published", "time", "others", "nodes", "live", "settings", "summary", "made-on")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("inference_time", "reductions", "served", "policy_mark"):
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
    assert "-83.8% against ar-mdi (published -75.3%)" in page
    assert "our reading" in page


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_broke_the_promise_is_said_at_the_top() -> None:
    assert "broken: resnet50: 2 samples lost" in render_suite(results(broken=2))
    assert "Live parts: not run." in render_suite(results(live=None))


def test_figures_draw_every_policy_and_the_published_lines() -> None:
    found = results()
    policies: dict[str, dict[float, dict[str, object]]] = {}
    for row in found["sweep"]:
        if (row["setting"], row["sources"], row["kind"]) == ("gpt2", 2, "closed"):
            policies.setdefault(row["policy"], {})[row["load"]] = row
    svg = figures.inference_time(policies, kind="closed", least={2.0: 100.0, 8.0: 200.0}, says="<what>")
    assert 'aria-label="&lt;what&gt;"' in svg
    for policy, mark in figures.MARKS.items():
        assert mark.colour.lower() in svg, policy
    published = {"ar-mdi": 0.564, "ms-mdi": 0.348}
    drawn = figures.reductions([policies], kind="open", published=published, says="change")
    assert drawn.count("stroke-dasharray") >= 2

"""The page stands alone, has every part, and says what the JSON says; a browser shows it at every width."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.bench.suites.results import RATES, results
from tests.browser import photograph, shown
from zpipe.bench.suites import plots
from zpipe.bench.suites.page import render_page
from zpipe.report.page.markup import number, table

SECTIONS = ("verdict", "rate", "accuracy", "time", "exits", "bytes", "sweep", "live", "summary", "made-on")


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of a section's tables, without their tags."""
    (part,) = re.findall(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part)
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(results())


def test_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r"https?:|@import|url\(|<link|<img|<iframe", page)
    tags = Tags(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert {link.removeprefix("#") for link in tags.links} <= set(tags.ids), "a link that leads nowhere in the page"


def test_page_has_every_section_and_links_to_it(page: str) -> None:
    tags = Tags(page)
    for name in SECTIONS:
        assert name in tags.ids
        assert f"#{name}" in tags.links


def test_figures_have_axes_with_units_and_a_text_for_those_who_do_not_see_them(page: str) -> None:
    for label in ("accuracy (%)", "data rate (samples/s)", "right and in time (% of offered)", "time (s)", "kB per sample"):
        assert label in page
    assert 'aria-label="Data rate over accuracy for each policy on mesh3, 32 px inputs, 20 Mbit/s shared"' in page


def test_page_says_what_the_results_say(page: str) -> None:
    found = results()
    assert ["T_O", "50", "125.5 ± 0.7"] in [row[:3] for row in rows_of(page, "sweep")]
    summary = {row[1]: row for row in rows_of(page, "summary") if row[0] == "mesh3"}
    assert {policy: row[3] for policy, row in summary.items()} == {policy: f"{rate:.1f} ± 0.5" for policy, rate in RATES.items()}
    assert summary["mdi"][5] == "80.0", "share of the bound"
    assert rows_of(page, "live")[1][4:7] == ["97.5", "100.0", "-2.50"]
    assert "mdi carries 126 samples/s (1.97x no-exit, 1.71x local, 0.57x ddi)" in page
    assert "standard deviation 27.6\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}6.0/s in steady state" in page
    for word in (
        found["commit"],
        "A Board",
        "numpy 2.4.6",
        "zpipe bench --suite mdi-exit --quick",
        "on loopback, links without limits",
    ):
        assert word in page


@pytest.mark.usefixtures("without_figures")
def test_claims_name_their_settings_and_show_what_fails_beside_its_bound() -> None:
    capacity = results()["rate_at_accuracy"]
    for row in capacity:
        if row["policy"] == "mdi":
            row |= {"rate_hz": [70.0, 0.5], "bound_hz": 71.0}
    page = render_page(results(rate_at_accuracy=capacity))
    (claim,) = re.findall(r'<details class="claim"><summary><span>mdi carries a higher rate than local.*?</details>', page)
    assert 'class="bad">does not hold<' in claim
    assert "32px-20 ✗ 0/1" in claim
    assert "71.0/s (node 0)" in claim
    assert "nothing under this policy&#x27;s rules could: the bound is no higher" in claim


@pytest.mark.usefixtures("without_figures")
def test_broken_promise_stands_in_the_verdict() -> None:
    page = render_page(results(broken=["32px-20, mesh3, mdi: 1 samples lost, answered twice or hanging"]))
    assert "broken: 32px-20, mesh3, mdi: 1 samples lost" in page
    assert "none lost" not in page


def test_markers_are_hollow_where_samples_went_unanswered() -> None:
    rows = [row for row in results()["accuracy_at_rate"] if row["policy"] == "mdi"]
    hollow = "fill: #ffffff; stroke: #0072b2"
    assert hollow in plots.accuracy_at_rate(rows, says="150/s: 84 % answered")
    assert hollow not in plots.accuracy_at_rate(rows[:1], says="50/s: all answered")


def test_figures_are_small() -> None:
    found = results()
    assert len(plots.rate_at_accuracy(found["rate_at_accuracy"], says="")) < 16_000
    assert len(plots.accuracy_at_rate(found["accuracy_at_rate"], says="")) < 16_000


def test_same_results_make_the_same_page(page: str) -> None:
    assert render_page(results()) == page


def test_numbers_are_told_as_finely_as_they_are_known() -> None:
    assert [number(value) for value in (None, 3, 12345, 0.256, 12.34, 1234.5)] == ["–", "3", "12,345", "0.26", "12.3", "1,234"]
    assert number([125.04, 0.0]) == "125.0"


def test_text_in_tables_is_escaped() -> None:
    assert "<td>&lt;b&gt;</td>" in table(["a"], [["<b>"]])


@pytest.mark.slow
def test_a_browser_shows_the_figures_and_nothing_is_wider_than_the_screen(page: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    found = shown(page, tmp_path, widths=(390, 1300))
    assert all(wide <= screen for screen, wide in found.wide.items())
    assert (found.loaded, found.console) == ([], [])
    shot = image.open(photograph(page, tmp_path, size=(1300, 4000))).convert("RGB")
    colours = {colour for _, colour in shot.getcolors(1 << 24)}
    for mark in (plots.MARKS["mdi"], plots.MARKS["ddi"]):
        assert tuple(bytes.fromhex(mark.colour[1:])) in colours

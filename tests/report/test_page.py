"""The page stands alone, says what the report says, and shows at once what fell short; a browser shows it at every width."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.browser import photograph, shown
from tests.report.reports import Report, empty, grid, line, mesh, of_students, overloaded
from zpipe import simulate
from zpipe.report import check_schema
from zpipe.report.page import render_page
from zpipe.report.page.markup import number

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order; what stands in the page, and what its pictures say."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in known)
        self.seen.append(tag)
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known[name] for name in ("href", "src") if name in known]
        if tag == "svg":
            assert known["role"] == "img"
            self.pictures.append(known["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def rows_of(page: str, section: str) -> list[list[str]]:
    """The cells of a section's tables, without their tags."""
    (part,) = re.findall(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part)
    return [[unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def as_json(page: str) -> list[Any]:
    return [json.loads(unescape(text)) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]


PAGES: dict[str, Callable[[], list[Report]]] = {
    "line": lambda: [line()],
    "overloaded": lambda: [overloaded()],
    "mesh of five": lambda: [mesh("mesh5")],
    "two sources": lambda: [mesh("two-sources")],
    "grid of 16": lambda: [grid(16)],
    "grid of 60": lambda: [grid(60)],
    "line of 100": lambda: [grid(100, "line")],
    "nothing": lambda: [empty()],
    "students": lambda: [of_students()],
    "students beside a line": lambda: [of_students(), line()],
    "compared": lambda: [mesh(), {**line(), "topology": "mesh3/local"}, empty()],
}


def test_several_sources_are_named_in_the_drawing_and_have_a_row_each_the_urgent_one_first() -> None:
    page = render_page([mesh("two-sources")])
    drawing, rest = page.split('id="answers"', 1)
    assert "camera" in drawing
    assert "mapping" in drawing
    assert rest.index("<td>camera</td>") < rest.index("<td>mapping</td>")
    assert "Each source" not in render_page([mesh()])


@pytest.mark.parametrize("name", PAGES)
def test_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    runs = PAGES[name]()
    for run in runs:
        check_schema(json.loads(json.dumps(run)))
    page = render_page(runs, command="zpipe bench --html a.html", made_at="2026-01-02 03:04 UTC")
    tags = Tags(page)
    assert not re.search(r"https?:|@import|url\(", page)
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert len(tags.ids) == len(set(tags.ids))
    assert {link.removeprefix("#") for link in tags.links} <= set(tags.ids), "a link that leads nowhere in the page"
    assert all(tags.pictures), "a picture without words"
    assert "NaN" not in page
    assert not re.search(r"\bNone\b", " ".join(tags.text))
    assert render_page(runs, command="zpipe bench --html a.html", made_at="2026-01-02 03:04 UTC") == page


def test_plain_install_can_write_it() -> None:
    asked = "import sys, zpipe.report.page; print(sorted({'matplotlib', 'scipy', 'PIL', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout == "[]\n"


# ---- what it says ------------------------------------------------------------------------------


def test_every_figure_of_the_report_is_there_as_json() -> None:
    report = line()
    assert as_json(render_page([report])) == [report]


def test_nodes_and_links_are_told_with_their_load() -> None:
    report = line()
    told = rows_of(render_page([report]), "nodes")
    busy = report["nodes"][0]["busy"]
    row = next(row for row in told if row[:2] == ["0", "0"])
    assert row[2:5] == ["onnx", number(100 * busy), number(report["nodes"][0]["batch_mean"])]
    assert row[7:11] == [number(report["nodes"][0]["tasks"]), "1.25", "0.75", "87.5"]
    assert next(row for row in told if row[0] == "3")[1] == "3, 4"
    total = sum(link["mbit_s"] for link in report["links"])
    link = next(row for row in told if row[0] == "0 → 1")
    assert link[5:8] == ["20.0", "air", number(100 * total / 20.0)], "all links of a medium share it"


def test_latency_accuracy_and_exits_stand_in_tables_and_in_what_pictures_say() -> None:
    report = line()
    page = render_page([report])
    told, pictures = rows_of(page, "answers"), " ".join(Tags(page).pictures)
    ms = report["latency_ms"]
    assert ["latency", *[number(ms[stat]) for stat in ("mean", "p50", "p90", "p95", "p99", "max")]] in told
    assert f"half of them within {number(ms['p50'])} ms" in pictures
    for row in report["exits"]:
        assert [str(row["stage"]), number(100 * row["share"]), number(100 * row["accuracy"])] in told
    assert f"{100 * report['accuracy']:.1f} %" in pictures
    for point in report["operating_points"]:
        assert f"{point['name']}: {100 * point['test']:.1f} % right at {100 * point['macs_share']:.1f} %" in page


def test_answers_of_students_are_told_by_which_parts_were_missing() -> None:
    report = of_students()
    page = render_page([report])
    told = rows_of(page, "answers")
    assert ["missing parts", "answers", "share (%)", "accuracy (%)", "on the test data (%)"] in told
    whole, without = report["missing"]
    assert without["parts"] == [1]
    assert [name for name, *_ in told if name in ("none", "1")] == ["none", "1"]
    assert ["1", number(without["samples"]), *[number(100 * without[key]) for key in ("share", "accuracy", "expected")]] in told
    text = " ".join(Tags(page).text)
    assert f"{without['samples']} answers without some" in text
    copies, hedged = (report["counts"][key] for key in ("copies", "hedged"))
    assert f"copies sent to students: {copies}, {100 * hedged / copies:.1f} % of them hedged" in text
    assert "Each exit" not in text
    assert "multiply-adds" not in text
    assert whole["samples"] + without["samples"] == report["counts"]["result"]


def test_page_says_how_it_was_made() -> None:
    report = line()
    text = " ".join(Tags(render_page([report], command="zpipe bench --seed 3", made_at="2026-01-02 03:04 UTC")).text)
    machine = report["machine"]
    for said in (
        "zpipe bench --seed 3",
        "2026-01-02",
        machine["cpu"],
        f"numpy {machine['versions']['numpy']}",
        "node 2: 0.25 of a core",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("changes", "how"), [({"simulated": True}, "simulated"), ({}, "live"), ({"executor": "emulated"}, "live, emulated")]
)
def test_page_says_what_kind_of_run_it_was(changes: dict[str, Any], how: str) -> None:
    report = line() | {key: value for key, value in changes.items() if key in line()}
    report |= {"events": 1, "nodes_running_share": 1.0, "service": "raspberry-pi-4"}
    for row in report["nodes"]:
        row["executor"] = changes.get("executor", row["executor"])
    assert f"zpipe · {how} run" in render_page([report])


def test_faults_are_told_and_marked_over_time() -> None:
    page = render_page([line()])
    told = rows_of(page, "faults")
    assert [row[:4] for row in told if row[0] in ("kill", "slow")] == [["kill", "1", "1", "1"], ["slow", "1", "0", "1"]]
    assert next(row for row in told if row[-1] == "it was down")[:3] == ["2.50", "kill", "node 2"]
    assert "kill node 2 at 1.0 s for 0.5 s" in page
    assert "Meanwhile 2 faults were made on purpose." in page


# ---- what fell short ---------------------------------------------------------------------------


def verdicts(page: str) -> list[str]:
    return re.findall(r'class="verdict (\w+)"', page)


def test_run_that_answered_everything_is_good() -> None:
    assert verdicts(render_page([mesh()])) == ["good"]


def test_samples_without_an_answer_and_their_causes_come_first() -> None:
    report = overloaded()
    page = render_page([report])
    counts = report["counts"]
    assert verdicts(page) == ["warn"]
    assert f"{counts['submitted'] - counts['result']:,} of {counts['submitted']:,} samples ended without an answer" in page
    before = page[: page.index('class="tiles"')]
    for cause, times in report["causes"].items():
        assert f"{times:,} × {cause}" in before
    assert "accuracy wanted 95.0 %" in before


def test_answers_to_harder_inputs_are_told_before_the_figures() -> None:
    report = simulate("line2", count=400, severity=(4,))
    assert report["counts"]["result"] == 400
    page = render_page([report])
    assert "harder inputs than the calibration data" in page[: page.index('class="tiles"')]


@pytest.mark.parametrize(
    ("key", "said"), [("lost", "without an outcome"), ("duplicate", "answered more than once"), ("hung", "open past")]
)
def test_broken_promise_is_said_in_red(key: str, said: str) -> None:
    report = overloaded()
    report["counts"][key] = 3
    page = render_page([report])
    assert verdicts(page) == ["bad"]
    assert f"The promise was broken: 3 {said}" in page


def test_late_answers_and_outcomes_of_strangers_are_told() -> None:
    report = line() | {"strangers": 2, "goodput_hz": line()["throughput_hz"] - 10.0 / line()["seconds"]}
    page = render_page([report])
    assert "2 outcomes of samples that nobody offered" in page
    assert "10 answers came after their deadline." in page


def test_how_every_sample_ended_is_told() -> None:
    report = overloaded()
    counts = report["counts"] | {"resubmitted": 12, "second_results": 5}
    page = render_page([{**report, "counts": counts}])
    ends = ", ".join(
        f"{counts[kind]:,} {kind}" for kind in ("result", "rejected", "expired", "failed", "lost", "duplicate", "hung")
    )
    assert f"{counts['submitted']:,} samples in {report['seconds']:.1f} s: {ends}; sent again 12 times, 5 second answers" in page


def test_thousands_of_faults_are_cut_and_said_so() -> None:
    report = line()
    report["chaos"]["timeline"] *= 1000
    page = render_page([report])
    assert len(page) < 150_000
    assert "2,940 more faults: `--json FILE` writes them all." in page
    assert len(as_json(page)[0]["chaos"]["timeline"]) == 60


def test_run_without_samples_says_so() -> None:
    page = render_page([empty()])
    assert verdicts(page) == ["warn"]
    assert "No sample was offered" in page


def test_node_that_was_silent_at_the_end_is_drawn_and_named() -> None:
    report = line()
    del report["nodes"][2]
    page = render_page([report])
    assert "node 2: silent at the end" in page
    assert "Silent at the end, so without figures: node 2." in page


# ---- large and several -------------------------------------------------------------------------


def test_few_nodes_are_boxes_and_many_are_dots() -> None:
    assert render_page([grid(16)]).count('class="box"') == 2 * 16, "once for wide screens, once for narrow ones"
    many = render_page([grid(60)])
    assert 'class="box"' not in many
    assert many.count('<circle class="load') == 60
    assert many.count('class="ring"') == 3


def test_thousand_nodes_make_a_page_a_phone_can_take() -> None:
    page = render_page([grid(1000)])
    assert len(page) < 450_000
    assert page.count('<circle class="load') == 1000
    assert "1,000 nodes" in page
    (told,) = as_json(page)
    assert len(told["nodes"]) == 60
    assert "940 more nodes: `--json FILE` writes them all." in page


def test_runs_stand_side_by_side_and_each_by_itself() -> None:
    runs = [mesh(), {**overloaded(), "topology": "mesh3/no-exit"}]
    page = render_page(runs)
    assert verdicts(page) == ["good", "warn"]
    told = rows_of(page, "together")
    assert [row[0] for row in told[1:]] == ["mesh3", "no-exit"]
    assert [row[1] for row in told[1:]] == [number(run["throughput_hz"]) for run in runs]
    assert as_json(page) == runs
    assert {"run0", "run1", "run0-topology", "run1-nodes"} <= set(Tags(page).ids)


def test_names_are_text_whatever_they_hold() -> None:
    report = line()
    named = {"topology": HOSTILE, "bundle": HOSTILE, "policy": HOSTILE, "causes": {HOSTILE: 1}, "executor_choice": HOSTILE}
    report |= named
    report["machine"]["cpu"] = HOSTILE
    report["chaos"]["spec"] = HOSTILE
    report["chaos"]["timeline"][0]["target"] = HOSTILE
    for row in report["nodes"]:
        row["executor"] = HOSTILE
    for row in report["links"]:
        row["medium"] = HOSTILE
    for row in report["operating_points"]:
        row["name"] = HOSTILE
    for runs in ([report], [report, {**report, "topology": f"{HOSTILE}/x"}]):
        page = render_page(runs, command=HOSTILE, made_at=HOSTILE)
        tags = Tags(page)
        assert not {"script", "img"} & set(tags.seen)
        assert HOSTILE in "".join(tags.text)
        assert as_json(page)[0] == report


# ---- a browser ---------------------------------------------------------------------------------


def test_browser_shows_it_on_a_phone_and_on_a_desk_without_complaints(tmp_path: Path) -> None:
    found = shown(render_page([line()]), tmp_path)
    assert found.wide[360] <= 360
    assert found.wide[1280] <= 1280
    assert found.loaded == []
    assert found.console == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if name != "line"])
def test_browser_shows_every_kind_of_page(name: str, tmp_path: Path) -> None:
    found = shown(render_page(PAGES[name]()), tmp_path)
    assert found.wide[360] <= 360
    assert found.wide[1280] <= 1280
    assert (found.loaded, found.console) == ([], [])


@pytest.mark.slow
def test_browser_is_forbidden_to_run_or_load_what_might_slip_in(tmp_path: Path) -> None:
    slipped = '<script>document.body.remove()</script><img src="http://127.0.0.1:1/x.png"><div style="width:2000px">.</div></main>'
    found = shown(render_page([line()]).replace("</main>", slipped), tmp_path)
    assert found.wide[360] > 360, "so the other tests can fail, too"
    assert any("inline script" in said for said in found.console)
    assert any("127.0.0.1:1" in said for said in found.console)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_dark_where_the_reader_wishes_it(dark: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    shot = image.open(photograph(render_page([line()]), tmp_path, dark=dark)).convert("RGB")
    assert shot.getpixel((2, 2)) == ((0x12, 0x16, 0x1A) if dark else (0xFF, 0xFF, 0xFF))
    colours = {colour for _, colour in shot.getcolors(1 << 24)}
    assert ((0x5A, 0xB6, 0xEE) if dark else (0x00, 0x67, 0xA5)) in colours, "the first exit"

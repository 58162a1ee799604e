"""Where nodes stand, how axes are told, and how busy links are."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.report.page.loads import level, link_loads, ranges
from zpipe.report.page.places import layers, packed
from zpipe.report.page.plots import Axis, Band, Dot, Line, chart, stacked, thinned

PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)).filter(lambda pair: pair[0] < pair[1]), unique=True, max_size=60)


@given(links=PAIRS, first=st.integers(0, 29))
def test_links_join_neighbouring_layers_and_every_node_has_a_place(links: list[tuple[int, int]], first: int) -> None:
    found = layers(range(30), links, first)
    at = {rank: index for index, layer in enumerate(found) for rank in layer}
    assert sorted(at) == list(range(30))
    assert found[0] == [first]
    linked = {rank for rank in at if at[rank] < len(found) - 1}
    assert all(abs(at[a] - at[b]) <= 1 for a, b in links if {a, b} & linked)


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=60))
def test_many_nodes_have_a_place_of_their_own_within_the_drawing(sizes: list[int]) -> None:
    numbers = iter(range(sum(sizes)))
    places, columns, rows = packed([[next(numbers) for _ in range(size)] for size in sizes])
    assert len(set(places.values())) == sum(sizes)
    assert all(0 <= column < columns and 0 <= row < rows for column, row in places.values())


def test_long_line_goes_to_and_fro() -> None:
    places, columns, rows = packed([[rank] for rank in range(400)])
    assert (columns, rows) == (40, 10)
    steps = [abs(places[rank][0] - places[rank + 1][0]) + abs(places[rank][1] - places[rank + 1][1]) for rank in range(399)]
    assert set(steps) == {1}, "neighbours stay neighbours"


def link(a: int, b: int, mbit_s: float, limit: float | None, medium: str = "") -> dict[str, object]:
    return {"between": [a, b], "mbit_s": mbit_s, "limit_mbit_s": limit, "medium": medium}


def test_link_has_a_limit_in_each_direction_and_a_medium_one_for_all() -> None:
    assert link_loads([link(0, 1, 5.0, 20.0), link(1, 0, 10.0, 20.0), link(1, 2, 5.0, None)]) == [0.25, 0.5, None]
    assert link_loads([link(0, 1, 5.0, 20.0, "air"), link(1, 2, 10.0, 20.0, "air")]) == [0.75, 0.75]


def test_levels_and_ranges() -> None:
    assert [level(share) for share in (None, 0.0, 0.5, 0.89, 0.9, 1.2)] == ["unknown", "calm", "busy", "busy", "full", "full"]
    assert [ranges(numbers) for numbers in ([], [3], [0, 1], [4, 0, 2, 3], [1, 2, 3, 7, 8])] == [
        "",
        "3",
        "0, 1",
        "0, 2–4",
        "1–3, 7, 8",
    ]


# ---- charts ------------------------------------------------------------------------------------


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_axes_are_told_in_round_steps() -> None:
    svg = chart(x=Axis("time (s)", 0.0), y=Axis("rate", 0.0), lines=[Line([(0.0, 3.0), (9.7, 1234.0)], "c0")], title="t", says="")
    assert [said for said in words(svg) if said[0].isdigit()] == ["0", "500", "1,000", "1,500", "0", "2", "4", "6", "8", "10"]


def test_logarithmic_axis_is_told_in_factors() -> None:
    svg = chart(
        x=Axis("ms", logarithmic=True), y=Axis("%", 0.0, 100.0), lines=[Line([(3.0, 0.0), (90.0, 100.0)], "c0")], title="t", says=""
    )
    assert [said for said in words(svg) if said[0].isdigit()][-4:] == ["5", "10", "20", "50"]


@given(
    points=st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), min_size=1, max_size=20),
    logarithmic=st.booleans(),
    low=st.sampled_from([None, 0.0]),
)
def test_whatever_is_drawn_stays_within_the_chart(points: list[tuple[float, float]], logarithmic: bool, low: float | None) -> None:
    points = sorted(points)
    x = Axis("x", logarithmic=True) if logarithmic else Axis("x", low)
    dots = [Dot(*points[0], "c0", "first", "here")]
    svg = chart(
        x=x, y=Axis("y", low), lines=[Line(points, "c0")], dots=dots, bands=[Band(*2 * points[0][:1], "b")], title="t", says="s"
    )
    (path,) = re.findall(r'class="line c0" d="M([^"]*)"', svg)
    for part in path.split("L"):
        across, up = map(float, part.split())
        assert math.isfinite(across)
        assert 0.0 <= across <= 340.0
        assert 0.0 <= up <= 216.0


def test_shares_fill_their_bar_and_say_what_they_are() -> None:
    svg = stacked([("all", [0.75, 0.25], ["three quarters", "one <quarter>"])], title="t", says="")
    wide = [float(found) for found in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert wide[0] + 1 == pytest.approx(3 * (wide[1] + 1), rel=0.01)
    assert "one &lt;quarter&gt;" in svg
    assert words(svg) == ["all", "75", "25"]


def test_thinned_points_are_means() -> None:
    assert thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], 2) == [(0.5, 2.0), (2.0, 5.0)]
    assert thinned([], 5) == []

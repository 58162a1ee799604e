"""A topology beside its baselines: one load, one thing taken away from each."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from zpipe.errors import TopologyError
from zpipe.report import check_schema, comparison, render_comparison
from zpipe.sim import SimOptions, compare_sim

NAMES = ["no-exit", "local", "ddi", "mdi-static"]
OPTIONS = SimOptions("mesh3", count=300, warm_up=50, device="raspberry-pi-3")


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    return compare_sim(OPTIONS, NAMES)


def test_the_topology_comes_first_then_its_baselines_each_with_a_whole_report(reports: list[dict[str, Any]]) -> None:
    assert [report["topology"] for report in reports] == ["mesh3", *[f"mesh3/{name}" for name in NAMES]]
    for report in reports:
        check_schema(report)
        assert report["counts"]["submitted"] == 300


def test_each_baseline_lacks_what_it_is_named_after(reports: list[dict[str, Any]]) -> None:
    mesh, no_exit, local, ddi, static = reports
    assert no_exit["mean_macs_share"] == pytest.approx(1.0)
    assert mesh["mean_macs_share"] < 0.5
    assert (local["bytes_per_sample"], static["bytes_per_sample"]) == (0.0, 0.0)
    assert ddi["raw_inputs_sent"] > 100
    assert mesh["raw_inputs_sent"] == local["raw_inputs_sent"] == 0
    assert mesh["throughput_hz"] > 1.5 * no_exit["throughput_hz"]


def test_what_the_command_line_changes_is_in_all_of_them_but_what_the_baseline_takes_away() -> None:
    changed = SimOptions("mesh3", count=60, warm_up=10, exit_point="t0.50", admission="mdi-rate")
    mesh, no_exit, static = compare_sim(changed, ["no-exit", "mdi-static"])
    assert (mesh["policy"], no_exit["policy"], static["policy"]) == ("t0.50, mdi-rate", "no-exit, mdi-rate", "t0.50, fixed")


def test_bytes_per_sample_are_those_of_all_links_by_results(reports: list[dict[str, Any]]) -> None:
    mesh = reports[0]
    assert mesh["bytes_per_sample"] == pytest.approx(sum(link["bytes"] for link in mesh["links"]) / 300)


def test_table_has_a_row_per_run_and_says_where_raw_inputs_went_out(reports: list[dict[str, Any]]) -> None:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(render_comparison(comparison(reports)))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for name in ("mesh3 ", *[f"  {name} " for name in NAMES]):
        assert sum(line.startswith(name) for line in text.splitlines()) == 1
    assert f"mesh3/ddi: {reports[3]['raw_inputs_sent']} raw inputs sent on to other nodes" in text


def test_unknown_baseline_is_one_line() -> None:
    with pytest.raises(TopologyError, match=r"baseline: found 'lokal', expected one of no-exit, local, ddi, mdi-static"):
        compare_sim(OPTIONS, ["lokal"])

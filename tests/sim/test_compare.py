"""A topology beside its baselines: one load, one thing taken away from each."""

from __future__ import annotations

from typing import Any

import click
import pytest
from rich.console import Console

from zpipe.cli import cli
from zpipe.configure import compared
from zpipe.errors import TopologyError
from zpipe.policy.offload import OFFLOADS
from zpipe.report import check_schema, comparison, render_comparison
from zpipe.sim import SimOptions, compare_sim
from zpipe.topology import load_topology, override

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


def test_a_strategy_by_name_brings_its_own_service_order() -> None:
    """Of one in which classes go first, `fifo` in name only would still serve them first."""
    topology = load_topology("two-sources")
    variants = compared(override(topology, offload="ms-mdi"), ["pa-mdi", "fifo", "no-exit"])
    assert [(each.name, each.policy.offload, each.policy.order) for each in variants] == [
        ("two-sources", "ms-mdi", "fifo"),
        ("two-sources/pa-mdi", "pa-mdi", "priority"),
        ("two-sources/fifo", "fifo", "fifo"),
        ("two-sources/no-exit", "ms-mdi", "fifo"),
    ]
    assert all(each.policy.offload_input == "auto" for each in variants)
    (_, fifo) = compare_sim(SimOptions(topology, count=40, warm_up=10, offload="mdi"), ["fifo"])
    assert fifo["topology"] == "two-sources/fifo"


def test_the_command_line_knows_every_strategy() -> None:
    (option,) = (each for each in cli.commands["bench"].params if each.name == "offload")
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(OFFLOADS)
    assert option.type.choices == next(each for each in cli.commands["sim"].params if each.name == "offload").type.choices  # type: ignore[attr-defined]


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
    with pytest.raises(TopologyError, match=r"--compare: found 'lokal', expected one of no-exit, local, ddi, mdi-static, .*pa-mdi"):
        compare_sim(OPTIONS, ["lokal"])

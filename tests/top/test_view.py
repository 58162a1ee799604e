"""The view as text: readable at 80 columns and at 140, and honest about what it leaves out."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from zpipe.top.snapshot import LinkRow, NodeRow, Snapshot, SourceRow
from zpipe.top.view import render, sparkline

NODE = NodeRow(
    0,
    "10.0.0.1:5800",
    "up",
    stages=(0, 1, 2, 4),
    executor="torch-cuda",
    input_length=12,
    output_length=3,
    running=8,
    busy=0.934,
    batch_mean=7.5,
    run_hz=1234.5,
    exits_hz=((0, 750.0), (4, 250.0)),
    outstanding=31,
    window=64,
    round_trip_seconds=0.00123,
    rss_bytes=191_000_000,
)
GONE = NodeRow(1, "10.0.0.2:5800", "gone", 3.2, "connection refused", (3,))
LINK = LinkRow(0, 1, "up", 1.5e6, 250.0, 16, 16, 0.0042, 8e8)
SOURCE = SourceRow(
    rank=0,
    admission="aimd",
    when_full="latest",
    point="t0.9",
    target_hz=None,
    window=12.34,
    waiting=1,
    room=1,
    in_flight=12,
    outcomes={"result": 123456, "expired": 3},
    offered_hz=1110.0,
    admitted_hz=1050.0,
    goodput_hz=1000.0,
    resubmitted=2,
    latency_seconds={0.5: 0.0123, 0.95: 0.25, 0.99: 1.5},
    latencies=(0.1, None, 0.2, 0.4),
)
MESH = Snapshot("mesh2", "engines/digits/", 42.0, (NODE, GONE), (LINK,), (SOURCE,), (), ())


def shown(snapshot: Snapshot, width: int, height: int | None = None, foot: str = "") -> list[str]:
    """The lines a terminal of that size shows."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(render(snapshot, width=width, height=height, foot=foot))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def large(nodes: int) -> Snapshot:
    """A full mesh in which the last node is gone and node 3 works most."""
    rows = [replace(NODE, rank=rank, busy=0.9 if rank == 3 else 0.01 * rank) for rank in range(nodes - 1)]
    links = [
        replace(LINK, sender=one, receiver=other, bytes_hz=1e6 * one, state="no credit" if (one, other) == (0, 5) else "up")
        for one in range(nodes - 1)
        for other in range(nodes)
        if one != other
    ]
    return replace(MESH, nodes=(*rows, replace(GONE, rank=nodes - 1)), links=tuple(links))


def test_a_source_of_students_has_a_line_for_missing_parts() -> None:
    def line(**missing: Any) -> list[str]:
        source = replace(SOURCE, **missing)
        return [line for line in shown(replace(MESH, sources=(source,)), 80) if line.startswith("results without")]

    assert line() == []
    assert line(missing={}) == ["results without parts  none"]
    assert line(missing={(1,): 3, (0, 2): 1200}) == ["results without parts  0, 2: 1,200   1: 3"]


def test_at_80_columns_everything_that_matters_is_there() -> None:
    assert shown(MESH, 80, foot="q ends") == [
        "mesh2 · 1 of 2 nodes up · seen for 42 s · digits",
        "",
        "1,000 results/s   offered 1,110/s   admitted 1,050/s   point t0.9",
        "aimd window 12.3, when full: latest   in flight 12   waiting 1/1",
        "latency p50 12.3  p95 250  p99 1,500 ms   ▃ ▅█  p95, most 400 ms",
        "result 123,456  rejected 0  expired 3  failed 0  resubmitted 2",
        "exits by stage   0: 75 %  4: 25 %",
        "",
        "node state    stages executor  in+out busy batch credit exit/s RTT ms  MB",
        "0    up       0-2,4  torch-cu…   12+3 93 %   7.5  31/64  1,000    1.2 191",
        "1    gone 3 s 3      –              –    –     –      –      –      –   –",
        "node 1 (10.0.0.2:5800): connection refused",
        "",
        "link   state      sent  tasks/s  credit  RTT ms",
        "0 → 1  up     1.5 MB/s    250.0   16/16     4.2",
        "q ends",
    ]


@pytest.mark.parametrize("state", ["no executor", "silent"])
def test_where_room_is_short_the_executors_name_gives_way(state: str) -> None:
    crowded = replace(NODE, state=state, seconds=None, input_length=1234, output_length=987, outstanding=1000, window=1024)
    row = shown(replace(MESH, nodes=(crowded,), links=()), 80)[-1]
    assert row.split()[-8:] == ["1234+987", "93", "%", "7.5", "1000/1024", "1,000", "1.2", "191"]


def test_at_140_columns_there_is_room_for_exits_and_addresses() -> None:
    lines = shown(MESH, 140)
    head = next(line for line in lines if line.startswith("node"))
    assert head.endswith("run/s  exit/s  RTT ms   MB  exits by stage, %    address")
    assert "torch-cuda" in lines[lines.index(head) + 1]
    assert lines[lines.index(head) + 1].endswith(" 75   ·   ·   ·  25  10.0.0.1:5800")
    assert lines[lines.index(head) + 2].endswith("connection refused   10.0.0.2:5800")
    assert lines[-1] == "0 → 1  up     1.5 MB/s    250.0   16/16     4.2    100 MB/s"


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("nodes", [2, 16])
def test_no_line_is_longer_than_the_screen(width: int, nodes: int) -> None:
    notes = ("rank 2 runs another topology than this one, in which links and sources may be others",)
    lines = shown(replace(large(nodes), notes=notes), width, foot="q ends")
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("height", [24, 30, 50])
@pytest.mark.parametrize("width", [80, 140])
def test_a_large_mesh_fits_the_screen_and_says_what_it_leaves_out(width: int, height: int) -> None:
    lines = shown(large(16), width, height, foot="q ends")
    assert len(lines) <= height
    assert lines[-1] == "q ends"
    text = "\n".join(lines)
    rows = [tuple(line.split()[:2]) for line in lines]
    assert ("15", "gone") in rows  # who is not well comes first, then the busiest
    assert ("3", "up") in rows
    assert any(line.split()[:5] == ["0", "→", "5", "no", "credit"] for line in lines)
    left = next(line for line in lines if "more links" in line)
    links = sum(" → " in line for line in lines)
    assert left.startswith(f"and {15 * 15 - links} more links: ")
    if height < 50:
        nodes = sum("torch-cu" in line or "gone" in line for line in lines)
        assert f"and {16 - nodes} more nodes: {16 - nodes} up, busy 0 % to " in text


def test_without_a_height_nothing_is_left_out() -> None:
    assert not [line for line in shown(large(16), 80) if line.startswith("and ")]


def test_before_there_are_two_looks_there_are_dashes() -> None:
    fresh = replace(NODE, busy=None, batch_mean=None, run_hz=None, exits_hz=None, round_trip_seconds=None)
    source = replace(SOURCE, offered_hz=None, admitted_hz=None, goodput_hz=None, latency_seconds=None, latencies=())
    lines = shown(replace(MESH, nodes=(fresh,), links=(), sources=(source,)), 80)
    assert lines[2].startswith("– results/s   offered –/s   admitted –/s")
    assert "latency p50 –  p95 –  p99 – ms" in lines
    assert "exits by stage   –" in lines


def test_nobody_submits() -> None:
    lines = shown(replace(MESH, sources=(), absent=(0,)), 80)
    assert "source 0: nobody submits samples there now" in lines


def test_several_sources_are_told_apart() -> None:
    sources = (SOURCE, replace(SOURCE, rank=4, point=None, target_hz=50.0, window=None))
    lines = shown(replace(MESH, sources=sources, absent=(5,), labels={0: "source camera", 5: "source mapping"}), 80)
    assert "source mapping: nobody submits samples there now" in lines
    first = lines.index("source camera · class 0 · weight 1")
    assert lines[first + 1].startswith("1,000 results/s")
    second = next(index for index, line in enumerate(lines) if line.startswith("source 4 "))
    assert "point unnamed" in lines[second + 1]
    assert "aimd aims at 50.0/s, when full: latest" in lines[second + 2]


def test_the_one_of_two_sources_that_lives_has_its_name_class_and_weight() -> None:
    """However long its name, no figure gives way to it."""
    name = "source " + "a-very-long-name-" * 2
    alone = replace(MESH, sources=(replace(SOURCE, priority=1, weight=4.0),), absent=(5,), labels={0: name, 5: "source mapping"})
    lines = shown(alone, 80)
    assert lines[lines.index(f"{name} · class 1 · weight 4") + 1].endswith("admitted 1,050/s   point t0.9")


def test_a_sparkline_is_scaled_to_its_largest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([None, 0.0]) == "  "
    assert sparkline([1.0, None, 4.0, 8.0]) == "▂ ▅█"

"""The run report: counts from ids, figures from counts, JSON that any reader takes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from zpipe.model import OperatingPoint, Outcome, OutcomeKind, PointMetrics, Result
from zpipe.report import (
    HUNG_SECONDS,
    KINDS,
    MOST_CAUSES,
    RunLog,
    build_report,
    check_schema,
    comparison,
    link_rows,
    machine,
    render,
    render_comparison,
    spread,
)
from zpipe.report.words import number
from zpipe.topology import SourceSpec

MACS = (100, 200, 700)


def result(sample: int, *, label: int = 0, stage: int = 0, latency: float = 0.01) -> Outcome:
    answer = Result(sample, label, str(label), 0.75, stage, latency, 0.4 * latency, 0.25 * latency, 1)
    return Outcome(sample, "result", latency, 1, answer)


def ended(sample: int, kind: OutcomeKind, cause: str = "") -> Outcome:
    return Outcome(sample, kind, 0.02, 0 if kind == "rejected" else 1, None, cause)


def log_of(*truths: int, first: int = 0, deadline: float = 1.0) -> RunLog:
    log = RunLog(first=first)
    for i, truth in enumerate(truths):
        log.submitted(first + i, 10 + i, truth, deadline=deadline)
    return log


def node(rank: int = 0, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rank": rank,
        "stages": [rank],
        "executor": "onnx",
        "busy": 0.5,
        "queue_p95": 3,
        "queue_max": 9,
        "batch_mean": 2.5,
        "tasks": 100,
        "cpu_s": 2.0,
        "stage_cpu_s": 1.5,
        "rss_mb": 80.0,
        "sent_bytes": 4_000_000,
        "sent_inputs": 0,
    }
    return row | changes


def report_of(log: RunLog, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "topology": "line3",
        "bundle": "tiny",
        "policy": "default, aimd",
        "seed": 7,
        "seconds": 2.0,
        "stage_macs": MACS,
        "nodes": [node(0), node(1), node(2)],
        "links": [],
        "series": [{"t": 0.0, "queue": 1}],
        "memory": [],
        "second_results": 0,
        "resubmitted": 0,
        "shared_machine": True,
    }
    return build_report(log, **(known | changes))


# ---- students ----------------------------------------------------------------------------------

#: Test accuracy of each set of two parts.
PARTS = (0.25, 0.6, 0.7, 0.9)


def of_students() -> dict[str, Any]:
    """Three answers of both parts, two of them right, and two without part 1, one of them right."""
    log = log_of(0, 0, 0, 0, 0)
    for sample, (label, missing) in enumerate([(0, ()), (0, (1,)), (1, ()), (0, ()), (2, (1,))]):
        outcome = result(sample, label=label, stage=1)
        assert outcome.result is not None
        log.outcome(replace(outcome, result=replace(outcome.result, missing=missing)), now=0.5)
    return report_of(log, parts=PARTS, copies={"copies": 12, "hedged": 3, "partial": 2})


def test_answers_of_students_are_counted_by_what_was_missing() -> None:
    report = of_students()
    check_schema(report)
    assert report["missing"] == [
        {"parts": [], "samples": 3, "share": 0.6, "accuracy": pytest.approx(2 / 3), "expected": 0.9},
        {"parts": [1], "samples": 2, "share": 0.4, "accuracy": 0.5, "expected": 0.6},
    ]
    assert (report["exits"], report["mean_macs"]) == ([], None)


def test_report_of_students_shows_missing_parts_in_place_of_exits() -> None:
    console = Console(width=80, record=True)
    with console.capture() as shown:
        console.print(render(of_students()))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert "missing parts answers share accuracy on test" in lines
    assert "none 3 60.0 % 66.7 % 90.0 %" in lines
    assert "1 2 40.0 % 50.0 % 60.0 %" in lines
    assert "copies sent to students: 12, 25.0 % of them hedged, as an earlier one was late" in lines
    assert not any(line.startswith(("exit", "multiply-adds")) for line in lines)


def test_a_set_of_parts_that_nobody_missed_is_no_row_but_that_of_none_is() -> None:
    assert report_of(log_of(), parts=PARTS)["missing"] == [
        {"parts": [], "samples": 0, "share": 0.0, "accuracy": None, "expected": 0.9}
    ]
    assert "missing" not in report_of(log_of())


def test_samples_say_which_parts_were_missing(tmp_path: Path) -> None:
    log = log_of(0, 0)
    outcome = result(1)
    assert outcome.result is not None
    log.outcome(result(0), now=0.5)
    log.outcome(replace(outcome, result=replace(outcome.result, missing=(0, 7))), now=0.5)
    log.save(tmp_path / "log.npz")
    RunLog.load(tmp_path / "log.npz").samples_jsonl(tmp_path / "samples.jsonl")
    found = [json.loads(line).get("missing") for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert found == [None, [0, 7]]


# ---- counting from ids -------------------------------------------------------------------------


def test_every_sample_is_counted_once_by_how_it_ended() -> None:
    log = log_of(0, 0, 0, 0, 0, first=40)
    log.outcome(result(40), now=0.1)
    log.outcome(ended(41, "rejected"), now=0.1)
    log.outcome(ended(42, "expired"), now=0.1)
    log.outcome(ended(43, "failed"), now=0.1)
    counts = report_of(log, second_results=3, resubmitted=2)["counts"]
    assert counts == {
        "submitted": 5,
        "result": 1,
        "rejected": 1,
        "expired": 1,
        "failed": 1,
        "lost": 1,
        "duplicate": 0,
        "hung": 0,
        "second_results": 3,
        "resubmitted": 2,
    }


def test_each_source_has_a_row_even_one_that_offered_nothing() -> None:
    log = log_of(0, 0, 0)
    log.outcome(result(0, latency=0.010), now=0.1)
    log.outcome(result(1, latency=0.030), now=5.0)
    sources = (SourceSpec(0, weight=4.0, priority=1, name="camera"), SourceSpec(2))
    report = report_of(log, sources=sources)
    check_schema(report)
    camera, idle = report["sources"]
    assert (camera["name"], camera["rank"], camera["weight"], camera["priority"]) == ("camera", 0, 4.0, 1)
    assert (camera["submitted"], camera["result"], camera["lost"]) == (3, 2, 1)
    assert (camera["throughput_hz"], camera["goodput_hz"]) == (1.0, 0.5)
    assert camera["latency_ms"]["mean"] == pytest.approx(20.0)
    assert camera["queueing_ms"]["mean"] == pytest.approx(15.0)
    assert (idle["name"], idle["submitted"], idle["latency_ms"]["p99"], idle["accuracy"]) == ("source-2", 0, None, None)


def test_a_log_goes_to_another_process_and_comes_back_whole(tmp_path: Path) -> None:
    log = log_of(3, 4, 5, first=7)
    log.source = 2
    log.outcome(result(7, label=3, stage=1), now=0.5)
    log.outcome(result(7), now=0.5)
    log.outcome(ended(8, "failed", "torn"), now=9.0)
    log.outcome(result(99), now=0.5)
    log.ended(now=9.0)
    log.save(tmp_path / "log.npz")
    again = RunLog.load(tmp_path / "log.npz")
    assert again.columns().keys() == log.columns().keys()
    for name, column in log.columns().items():
        np.testing.assert_equal(again.columns()[name], column)
    assert (again.first, again.source, again.strangers, again.causes) == (7, 2, 1, {"failed: torn": 1})
    assert (again.duplicate, again.hung, again.broken) == (log.duplicate, log.hung, log.broken) == (1, 2, log.broken)
    assert list(again.deadlines) == list(log.deadlines)


def two_sources(latency_ms: float) -> dict[str, Any]:
    """Of two sources with names as long as they may be, which wait for long."""
    report = report_of(log_of(0, 0))
    first = report["sources"][0]
    stats = dict.fromkeys(first["latency_ms"], latency_ms)
    sources = [
        {**first, "rank": rank, "name": "n" * 40, "priority": rank, "submitted": 123456, "result": 65432, "latency_ms": stats}
        for rank in range(2)
    ]
    return {**report, "topology": "t" * 40, "sources": sources, "latency_ms": stats, "bytes_per_sample": 500_600.5}


@pytest.mark.parametrize("latency_ms", [12.5, 1_216_345.5, 99_216_345_123.5])
def test_names_give_way_and_no_figure_or_heading_does(latency_ms: float) -> None:
    report, text = two_sources(latency_ms), ""
    for shown in (render(report), render_comparison(comparison([report, {**report, "topology": f"{report['topology']}/fifo"}]))):
        console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False)
        console.print(shown, crop=False)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        cut = [word for line in lines for word in line.split() if "…" in word]
        assert all(set(word) <= set("nt…") for word in cut)
        text = "\n".join(lines)
        assert number(latency_ms) in text
        for word in ("mean ms", "p95", "accuracy"):
            assert word in text
    assert "500,600 " in text or "500,601 " in text
    assert "fifo" in text


def test_large_figures_have_no_decimals() -> None:
    assert [number(value) for value in (None, 0.04, 999.94, 999.96, 1216345.5, -1000.0)] == [
        "–", "0.0", "999.9", "1,000", "1,216,346", "-1,000",
    ]  # fmt: skip


def test_second_outcome_is_a_duplicate_of_one_id_and_the_first_one_counts() -> None:
    log = log_of(0, 0)
    log.outcome(result(0, label=0), now=0.1)
    log.outcome(result(0, label=5), now=0.2)
    log.outcome(ended(0, "failed"), now=0.3)
    report = report_of(log)
    assert (report["counts"]["duplicate"], report["counts"]["result"], report["counts"]["failed"]) == (1, 1, 0)
    assert report["accuracy"] == 1.0


@pytest.mark.parametrize("sample", [39, 42, -1])
def test_outcome_of_a_number_never_offered_is_a_stranger(sample: int) -> None:
    log = log_of(0, 0, first=40)
    log.outcome(result(sample), now=0.1)
    assert report_of(log)["strangers"] == 1


def test_sample_open_past_its_deadline_is_hung_once_whatever_becomes_of_it() -> None:
    log = log_of(0, 0, 0, deadline=1.0)
    too_late = 1.0 + HUNG_SECONDS + 0.001
    log.outcome(result(0), now=1.0 + HUNG_SECONDS)
    log.outcome(result(1), now=too_late)
    log.ended(now=too_late)
    log.outcome(result(2), now=too_late)
    log.ended(now=too_late)
    counts = report_of(log)["counts"]
    assert (counts["hung"], counts["lost"], counts["result"]) == (2, 0, 3)


def test_sample_open_before_its_deadline_is_lost_but_not_hung() -> None:
    log = log_of(0, deadline=1.0)
    log.ended(now=0.5)
    counts = report_of(log)["counts"]
    assert (counts["lost"], counts["hung"]) == (1, 0)


def test_numbers_with_a_gap_are_refused() -> None:
    with pytest.raises(AssertionError, match="without gaps"):
        log_of(0).submitted(2, 0, 0, deadline=1.0)


@given(st.lists(st.tuples(st.integers(-1, 5), st.sampled_from(KINDS[1:]), st.floats(0, 3)), max_size=30))
def test_outcomes_in_any_order_add_up(events: list[tuple[int, OutcomeKind, float]]) -> None:
    log = log_of(*[0] * 5)
    for sample, kind, now in events:
        log.outcome(result(sample) if kind == "result" else ended(sample, kind), now=now)
    log.ended(now=3.0)
    report = report_of(log)
    counts = report["counts"]
    seen = [sample for sample, _, _ in events if 0 <= sample < 5]
    assert sum(counts[kind] for kind in KINDS[1:]) + counts["lost"] == counts["submitted"] == 5
    assert counts["lost"] == 5 - len(set(seen))
    assert counts["duplicate"] == sum(seen.count(sample) > 1 for sample in range(5))
    assert report["strangers"] == len(events) - len(seen)
    assert report["goodput_hz"] <= report["throughput_hz"]
    check_schema(report)


def test_causes_are_counted_and_bounded() -> None:
    log = log_of(*[0] * 60)
    for sample in range(10):
        log.outcome(ended(sample, "failed", "peer-lost"), now=0.1)
    for sample in range(10, 59):
        log.outcome(ended(sample, "expired", f"waited for {sample}"), now=0.1)
    log.outcome(ended(59, "rejected"), now=0.1)
    causes = report_of(log)["causes"]
    assert causes["failed: peer-lost"] == 10
    assert causes["expired: waited for 10"] == 1
    assert len(causes) == MOST_CAUSES + 1
    assert sum(causes.values()) == 60


# ---- curves ------------------------------------------------------------------------------------


def test_latency_curve_tells_what_each_share_of_the_answers_does_not_exceed() -> None:
    log = log_of(*[0] * 101)
    for sample in range(101):
        log.outcome(result(sample, stage=sample % 2, latency=0.001 * sample), now=0.5)
    curve = report_of(log)["latency_curve"]
    at = dict(zip(curve["shares"], curve["ms"], strict=True))
    assert {share: at[share] for share in (0.0, 0.5, 0.98, 0.99, 0.999, 1.0)} == pytest.approx(
        {0.0: 0.0, 0.5: 50.0, 0.98: 98.0, 0.99: 99.0, 0.999: 99.9, 1.0: 100.0}
    )
    assert [(ms[0], ms[-1]) for ms in curve["exits"][:2]] == [(0.0, 100.0), (1.0, 99.0)]
    assert curve["exits"][2] == [], "nothing left there"


def test_operating_points_are_told_as_shares_of_the_whole_network() -> None:
    calibration, test = PointMetrics(0.9, (0.5, 0.0, 0.5), 600.0), PointMetrics(0.8, (0.4, 0.0, 0.6), 650.0)
    report = report_of(log_of(1), operating_points=[OperatingPoint("t0.50", (0.5, 0.5, 0.0), calibration, test)])
    assert report["operating_points"] == [{"name": "t0.50", "macs_share": 0.65, "calibration": 0.9, "test": 0.8}]


def test_links_tell_their_limits_where_they_had_any() -> None:
    sent = {"tasks": 4, "frames": 4, "bytes": 1_000_000, "raw_bytes": 1_000_000, "round_trip_seconds": 0.002}
    stats = [{"rank": 2, "links": [{"to": 1, **sent}, {"to": 3, **sent}]}]
    limited, free = link_rows([], stats, 2.0, limits={(1, 2): (20e6, "air"), (2, 3): (math.inf, "")})
    assert (limited["mbit_s"], limited["limit_mbit_s"], limited["medium"]) == (4.0, 20.0, "air")
    assert (free["limit_mbit_s"], free["medium"]) == (None, "")


# ---- figures -----------------------------------------------------------------------------------


def test_goodput_leaves_out_results_after_their_deadline() -> None:
    log = log_of(0, 0, 0, 0, deadline=1.0)
    for sample, now in enumerate((0.5, 1.0, 1.05, 0.2)):
        log.outcome(result(sample), now=now)
    report = report_of(log, seconds=2.0)
    assert (report["throughput_hz"], report["goodput_hz"]) == (2.0, 1.5)


def test_exits_accuracy_and_multiply_adds_follow_from_the_answers() -> None:
    log = log_of(0, 1, 2, 3, 4)
    log.outcome(result(0, label=0, stage=0), now=0.1)
    log.outcome(result(1, label=9, stage=0), now=0.1)
    log.outcome(result(2, label=2, stage=2), now=0.1)
    log.outcome(result(3, label=3, stage=2), now=0.1)
    log.outcome(ended(4, "expired"), now=0.1)
    report = report_of(log)
    assert report["accuracy"] == 0.75
    assert report["exits"] == [
        {"stage": 0, "share": 0.5, "accuracy": 0.5},
        {"stage": 1, "share": 0.0, "accuracy": None},
        {"stage": 2, "share": 0.5, "accuracy": 1.0},
    ]
    assert report["mean_macs"] == 0.5 * 100 + 0.5 * 1000
    assert report["mean_macs_share"] == 0.55


def test_cpu_figures_sum_over_nodes() -> None:
    report = report_of(log_of(), nodes=[node(0, tasks=300), node(1, tasks=100, cpu_s=1.0, stage_cpu_s=0.9)])
    assert report["cpu_efficiency"] == pytest.approx(2.4 / 3.0)
    assert report["overhead_us_per_task"] == pytest.approx(1e6 * 0.6 / 400)


def test_latency_and_queueing_come_from_results_only() -> None:
    log = log_of(0, 0, 0)
    log.outcome(result(0, latency=0.010), now=0.1)
    log.outcome(result(1, latency=0.030), now=0.1)
    log.outcome(Outcome(2, "expired", 99.0, 1), now=0.1)
    report = report_of(log)
    assert report["latency_ms"]["mean"] == pytest.approx(20.0)
    assert report["latency_ms"]["max"] == pytest.approx(30.0)
    assert report["queueing_ms"]["max"] == pytest.approx(22.5)  # all but the service time


def test_percentiles_are_numpys() -> None:
    values = np.arange(1.0, 102.0)
    assert spread(values) == {"mean": 51.0, "p50": 51.0, "p90": 91.0, "p95": 96.0, "p99": 100.0, "max": 101.0}


# ---- JSON --------------------------------------------------------------------------------------


def odd_values(report: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports of runs in which something could not be measured."""
    unbounded = [{"t": np.float64(0.1), "window": math.inf, "rate_hz": math.nan, "queue": np.int64(3)}]
    return [
        report(log_of(), seconds=0.0, nodes=[]),
        report(log_of(0, 0)),
        report(log_of(), series=unbounded, nodes=[node(busy=np.float32(0.5))]),
    ]


@pytest.mark.parametrize("number", range(3))
def test_report_of_an_odd_run_is_strict_json_and_keeps_the_schema(number: int) -> None:
    report = odd_values(report_of)[number]
    check_schema(report)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_unbounded_rate_becomes_null() -> None:
    assert odd_values(report_of)[2]["series"] == [{"t": 0.1, "window": None, "rate_hz": None, "queue": 3}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("exits"), "report.exits: found no such key"),
        (lambda r: r["counts"].update(lost="none"), "report.counts.lost: found 'none', expected int"),
        (lambda r: r["counts"].update(lost=True), "report.counts.lost: found True, expected int"),
        (lambda r: r["nodes"][1].pop("busy"), r"report.nodes[1].busy: found no such key"),
        (lambda r: r.update(nodes={}), "report.nodes: found {}, expected a list"),
        (lambda r: r.update(throughput_hz=None), "report.throughput_hz: found None, expected float"),
        (lambda r: r.update(schema="zpipe.report/2"), "report.schema: found 'zpipe.report/2', expected 'zpipe.report/1'"),
    ],
)
def test_schema_names_the_key_that_is_wrong(change: Callable[[dict[str, Any]], object], message: str) -> None:
    report = report_of(log_of(0))
    change(report)
    with pytest.raises(ValueError) as info:
        check_schema(report)
    assert message in str(info.value)


def test_samples_file_has_a_line_per_sample_and_null_for_what_is_not_known(tmp_path: Path) -> None:
    log = log_of(3, 4, 5, first=40)
    log.outcome(result(40, label=3, stage=2, latency=0.5), now=0.1)
    log.outcome(ended(41, "rejected"), now=0.1)
    log.samples_jsonl(tmp_path / "samples.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("source", "id", "index", "outcome", "label", "truth", "confidence", "exit_stage", "latency_ms", "attempts")
    assert [tuple(line) for line in lines] == [keys] * 3
    assert [tuple(line.values()) for line in lines] == [
        (0, 40, 10, "result", 3, 3, 0.75, 2, 500.0, 1),
        (0, 41, 11, "rejected", None, 4, None, None, 20.0, 0),
        (0, 42, 12, None, None, 5, None, None, None, 0),
    ]


def test_machine_names_neither_host_nor_path() -> None:
    said = json.dumps(machine())
    assert set(machine()) == {"cpu", "cores", "os", "python", "versions"}
    assert "/work" not in said
    assert str(Path.home()) not in said or str(Path.home()) == "/"


# ---- the table ---------------------------------------------------------------------------------


def shown(report: dict[str, Any], width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get().splitlines()


def full_report() -> dict[str, Any]:
    log = log_of(*[0] * 50)
    for sample in range(50):
        log.outcome(result(sample, stage=sample % 3, label=sample % 7 // 6), now=0.1)
    return report_of(log, nodes=[node(rank, tasks=1_234_567, sent_bytes=10**10) for rank in range(4)])


def test_sources_are_told_line_by_line_where_there_are_several_and_as_a_spread_where_there_are_many() -> None:
    log = log_of(0)
    log.outcome(result(0), now=0.1)
    alone = shown(report_of(log), 80)
    assert not any("source-0" in line for line in alone)
    two = shown(report_of(log, sources=(SourceSpec(0), SourceSpec(2, weight=4.0, priority=1, name="camera"))), 80)
    assert [line.split()[:4] for line in two if line.startswith(("source-0", "camera"))] == [
        ["camera", "4", "1", "0"],
        ["source-0", "1", "0", "1"],
    ]
    assert max(map(len, two)) <= 80
    assert not [line for line in two if "…" in line]
    assert any(line.startswith("20 sources") for line in shown(report_of(log, sources=tuple(map(SourceSpec, range(20)))), 80))


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_the_width_without_cutting_a_figure(width: int) -> None:
    lines = shown(full_report(), width)
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]
    assert [line for line in lines if "1,234,567" in line]


def test_table_of_a_run_without_results_shows_dashes() -> None:
    text = "\n".join(shown(report_of(log_of(0, 0), nodes=[]), 80))
    assert "accuracy –" in text
    assert "lost 2" in text
    assert "nan" not in text
    assert "None" not in text


def test_table_says_that_shared_cores_measure_the_sum_of_computing() -> None:
    shared, apart = (" ".join(shown(report_of(log_of(0), shared_machine=flag), 100)) for flag in (True, False))
    assert "throughput measures the sum of their computing" in shared
    assert "sum of their computing" not in apart


def test_table_says_what_ran_the_stages_and_why() -> None:
    same = "\n".join(shown(report_of(log_of(0), nodes=[node(0), node(1)]), 100))
    assert "stages ran on onnx\n" in same
    mixed = [node(0, executor="trt"), node(1), node(2, executor="trt"), node(3, executor=None)]
    choice = {"executor_choice": "executor auto takes trt, which gives the bundle's answers here"}
    text = "\n".join(shown(report_of(log_of(0), nodes=mixed) | choice, 100))
    assert "stages ran on trt at nodes 0, 2; onnx at node 1\n" in text
    assert choice["executor_choice"] in text


def test_table_shows_strangers_and_causes_only_where_there_are_any() -> None:
    log = log_of(0, 0)
    log.outcome(result(9), now=0.1)
    log.outcome(ended(0, "failed", "stage-failed: out of memory"), now=0.1)
    text = "\n".join(shown(report_of(log), 100))
    assert "strangers 1" in text
    assert "1 failed: stage-failed: out of memory" in text
    assert "strangers" not in "\n".join(shown(full_report(), 100))


# ---- what went over links --------------------------------------------------------------------------


def test_bytes_per_sample_and_raw_inputs_are_sums_over_links_and_nodes() -> None:
    log = log_of(0, 0)
    log.outcome(result(0), now=0.1)
    log.outcome(result(1), now=0.1)
    links = [{"between": [0, 1], "bytes": 300}, {"between": [1, 2], "bytes": 100}]
    report = report_of(log, links=links, nodes=[node(0, sent_inputs=2), node(1, sent_inputs=1)])
    assert (report["bytes_per_sample"], report["raw_inputs_sent"]) == (200.0, 3)
    assert report_of(log_of(0))["bytes_per_sample"] is None


def test_view_says_that_raw_inputs_went_out_only_where_some_did() -> None:
    log = log_of(0)
    log.outcome(result(0), now=0.1)
    for sent, said in ((3, True), (0, False)):
        console = Console(width=100)
        with console.capture() as capture:
            console.print(render(report_of(log, nodes=[node(0, sent_inputs=sent)])))
        assert ("raw inputs sent on to other nodes: 3" in capture.get()) == said


def test_accuracy_on_made_up_inputs_is_explained() -> None:
    log = log_of(1)
    log.outcome(result(0, label=1), now=0.5)
    explained = ["\n".join(shown(report_of(log, generated_inputs=made_up), 120)) for made_up in (True, False)]
    assert ["labelled by the network itself" in text for text in explained] == [True, False]

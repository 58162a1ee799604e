"""`source: {accuracy: ...}`: thresholds from the table, in the simulator and live, and the report says what came of it."""

from __future__ import annotations

import asyncio
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.calibrate.small import small_bundle, without_evaluation
from tests.runtime.mesh import HALF
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.bundle import load_bundle
from zpipe.configure import exit_ladder
from zpipe.errors import BundleError, ConfigError
from zpipe.report import check_schema, render
from zpipe.sim import simulate
from zpipe.topology import Topology, from_dict

BUNDLE = load_bundle(HALF)


def topology(bundle: Path = HALF, **source: Any) -> Topology:
    nodes = [{"rank": 0, "stages": [0, 1, 2, 3, 4], "executor": "onnx"}]
    return from_dict({"name": "one", "bundle": str(bundle), "nodes": nodes, "source": {"rank": 0, **source}})


def shown(report: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(render(report))
    return " ".join(out.getvalue().split())


def test_wanted_accuracy_starts_the_ladder_at_the_tables_thresholds() -> None:
    ladder = exit_ladder(BUNDLE, "default", accuracy=0.93)
    row = BUNDLE.promise(0.93)
    assert row.target == 0.93
    assert ladder.thresholds[ladder.default] == row.thresholds
    assert set(ladder.thresholds) == {point.thresholds for point in BUNDLE.operating_points} | {row.thresholds}
    first = [vector[0] for vector in ladder.thresholds]
    assert first == sorted(first)  # still cheapest first, so that mdi-threshold can walk along it


def test_lowest_target_that_is_no_less_is_taken() -> None:
    assert BUNDLE.promise(0.921).target == 0.925
    assert BUNDLE.promise(0.0).target == BUNDLE.accuracy_table[0].target


def test_named_point_wins_over_a_wanted_accuracy() -> None:
    ladder = exit_ladder(BUNDLE, "t0.80", accuracy=0.93)
    assert ladder.thresholds[ladder.default] == BUNDLE.point("t0.80").thresholds


def test_table_out_of_reach_or_absent_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"found 0\.99, expected at most 0\.94\d+, the highest target .* ask for less"):
        simulate(topology(accuracy=0.99))
    bare = small_bundle(tmp_path / "bare", lambda manifest: manifest.pop("accuracy_table"))
    with pytest.raises(BundleError, match=r"accuracy_table: found none, .*`zpipe calibrate --bundle .* --write`"):
        simulate(topology(bare, accuracy=0.9))
    without = small_bundle(tmp_path / "without", without_evaluation)
    with pytest.raises(BundleError, match="accuracy_table: found none"):
        exit_ladder(load_bundle(without), "default", accuracy=0.9)


def test_simulated_run_gives_what_the_table_has_for_the_test_split() -> None:
    report = simulate(topology(accuracy=0.93), count=2985, seed=3)
    check_schema(report)
    row, (source,) = BUNDLE.promise(0.93), report["sources"]
    assert row.test is not None
    assert source["accuracy_wanted"] == 0.93
    assert source["promised"]["calibration"] == row.calibration.accuracy
    assert source["promised"]["thresholds"] == list(row.thresholds)
    assert source["accuracy"] == source["promised"]["test"] == pytest.approx(row.test.accuracy)
    assert not source["drift"]["drifted"]
    assert source["drift"]["expected_shares"] == pytest.approx(row.calibration.exit_shares, abs=1e-3)
    text = shown(report)
    assert "accuracy wanted 93.0 %: the table has 94." in text
    assert f"{100 * row.test.accuracy:.1f} % on test, here {100 * row.test.accuracy:.1f} %" in text
    assert "than the calibration data" not in text


def test_nobody_wants_anything_where_nothing_is_said() -> None:
    (source,) = simulate(topology(), count=200)["sources"]
    assert (source["accuracy_wanted"], source["promised"]) == (None, None)
    (source,) = simulate(topology(accuracy=0.93), count=200, exit_point="no-exit")["sources"]
    assert (source["accuracy_wanted"], source["promised"]) == (None, None)


def test_moving_thresholds_are_no_drift() -> None:
    (source,) = simulate(topology(admission="mdi-threshold", accuracy=0.93), count=600, severity=(4,))["sources"]
    assert source["drift"] is None
    assert source["accuracy_wanted"] == 0.93


# ---- severities --------------------------------------------------------------------------------


def test_each_severity_is_shown_by_itself() -> None:
    report = simulate(topology(), count=2985)
    assert [row["severity"] for row in report["severities"]] == [0, 1, 2, 3, 4]
    assert sum(row["samples"] for row in report["severities"]) == 2985
    whole = sum(row["samples"] * row["accuracy"] for row in report["severities"]) / 2985
    assert whole == pytest.approx(report["accuracy"])
    assert report["severities"][0]["accuracy"] > report["severities"][4]["accuracy"] + 0.05
    assert all(sum(row["exit_shares"]) == pytest.approx(1.0) for row in report["severities"])


def test_only_the_wanted_severities_are_offered_and_the_report_warns() -> None:
    report = simulate(topology(accuracy=0.93), severity=(4,))
    assert report["counts"]["submitted"] == 597
    assert [row["severity"] for row in report["severities"]] == [4]
    drift = report["sources"][0]["drift"]
    assert drift["drifted"]
    assert drift["harder"]
    assert "source 0: harder inputs than the calibration data" in shown(report)
    with pytest.raises(ConfigError, match="--severity: found 7, expected some of 0, 1, 2, 3, 4"):
        simulate(topology(), severity=(7,))


def run(caplog: pytest.LogCaptureFixture, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """A live run, and what the pipeline warned of."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="zpipe.pipeline"):
        report, _ = asyncio.run(run_bench(BenchOptions(topology(accuracy=0.93), warm_up=0, **options), progress=lambda *_: None))
    return report, [record.getMessage() for record in caplog.records if record.name == "zpipe.pipeline"]


def test_live_run_warns_under_hard_inputs_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    report, warned = run(caplog, severity=(4,), count=600)
    check_schema(report)
    assert report["sources"][0]["drift"]["drifted"]
    assert len(warned) == 1
    assert warned[0].startswith("the answers drifted from the calibration data (p = ")
    assert "harder inputs" in warned[0]
    report, warned = run(caplog, count=1200)
    assert not report["sources"][0]["drift"]["drifted"]
    assert warned == []
    assert report["sources"][0]["accuracy_wanted"] == 0.93

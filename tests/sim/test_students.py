"""Students in the simulator: answers are joined as on live nodes, and the report says which parts were missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import students
from zpipe.bench.chaos.answers import right_answers
from zpipe.bundle import load_bundle
from zpipe.configure import exit_ladder
from zpipe.report import KINDS, check_schema
from zpipe.sim import Death, NodeFault, SimOptions, Stall, run_sim
from zpipe.topology import override

COUNT, RATE_HZ = 150, 20.0
#: Replicas 1 and 4 host part 0, 2 and 5 part 1, 3 and 6 part 2.
DEADLINE = 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return students.write_students(tmp_path / "three")


def run(folder: Path, *faults: NodeFault, **keys: Any) -> dict[str, Any]:
    """The report of a run that lost nothing and answered as its parts do."""
    topology = override(students.star(folder), deadline_seconds=DEADLINE, **keys)
    load: dict[str, Any] = {"count": COUNT, "rate_hz": RATE_HZ, "arrivals": "constant", "warm_up": 0}
    report, log = run_sim(SimOptions(topology, faults=faults, check=True, **load))
    check_schema(report)
    counts, columns = report["counts"], log.columns()
    assert counts["result"] == counts["submitted"] == COUNT
    assert counts["lost"] == counts["duplicate"] == counts["hung"] == 0
    bundle = load_bundle(folder)
    ladder = exit_ladder(bundle, topology.policy.exit_point)
    answers = right_answers(bundle, ladder, admission="fixed", codec="none")
    assert answers is not None
    assert answers.joined is not None
    assert (columns["kind"] == KINDS.index("result")).all()
    assert (columns["label"] == answers.joined[columns["missing"], columns["index"]]).all()
    assert counts["copies"] == sum(node["sent_inputs"] for node in report["nodes"])  # the source has no stage of its own
    assert counts["partial"] == sum(row["samples"] for row in report["missing"] if row["parts"])
    assert 0 <= counts["hedged"] <= (counts["copies"] if topology.policy.redundancy == "hedged" else 0)
    return report


def missing(report: dict[str, Any]) -> dict[tuple[int, ...], int]:
    return {tuple(row["parts"]): row["samples"] for row in report["missing"]}


@pytest.mark.parametrize("redundancy", ["failover", "hedged", "all"])
def test_all_parts_are_in_while_every_student_has_a_host(folder: Path, redundancy: str) -> None:
    report = run(folder, Death(1), Death(2, 3.0), Death(6, 4.0), redundancy=redundancy)
    assert missing(report) == {(): COUNT}
    assert report["policy"] == f"default, fixed, {redundancy}"
    assert report["accuracy"] == pytest.approx(report["missing"][0]["accuracy"])
    least = 3 * COUNT if redundancy != "all" else 3 * COUNT + (3.0 + 4.0) * RATE_HZ - 4
    assert least <= sum(node["sent_inputs"] for node in report["nodes"]) <= least + 0.2 * COUNT


def test_a_student_that_is_gone_is_missing_from_then_on(folder: Path) -> None:
    report = run(folder, Death(2, 3.0), Death(5, 3.0))
    found = missing(report)
    assert found.keys() == {(), (1,)}
    assert found[1,] == pytest.approx(COUNT - 3.0 * RATE_HZ, abs=2)
    without = next(row for row in report["missing"] if row["parts"] == [1])
    assert without["expected"] == load_bundle(folder).join.test[0b101]  # type: ignore[union-attr]


def test_what_stands_still_is_missing_at_the_deadline(folder: Path) -> None:
    report = run(folder, Stall(2, 3.0), Stall(5, 3.0))
    assert missing(report).keys() == {(), (1,)}
    assert report["latency_ms"]["max"] <= 1e3 * DEADLINE + 1.0
    assert np.isfinite(report["latency_ms"]["p99"])


def test_early_exits_of_a_student_spare_its_last_stage(folder: Path) -> None:
    def tasks(**keys: Any) -> int:
        return sum(node["tasks"] for node in run(folder, **keys)["nodes"])

    stay = float((students.confidences()[:, students.EARLY] < students.THRESHOLD).mean())
    assert tasks(exit_point="no-exit", redundancy="failover") >= 4 * COUNT
    assert tasks(redundancy="failover") == pytest.approx((3.0 + stay) * COUNT, rel=0.05)

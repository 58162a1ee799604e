"""The report's `chaos` from a log and events made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import students
from zpipe.bench.chaos.answers import Answers, right_answers
from zpipe.bench.chaos.director import Event
from zpipe.bench.chaos.schedule import Fault
from zpipe.bench.chaos.spec import parse_chaos
from zpipe.bench.chaos.timeline import MOST_STEPS, chaos_report
from zpipe.bundle import load_bundle
from zpipe.model import NEVER_EXIT, Outcome, Result
from zpipe.policy.exits import ExitLadder
from zpipe.report import RunLog, merged

#: Where the log's clock stood when the run began, and what its samples had.
START, DEADLINE = 1000.0, 10.0
#: Of a second source's samples.
HIGH_DEADLINE = 2.0


class Run:
    """A log filled sample by sample."""

    def __init__(self) -> None:
        self.log = RunLog()

    def sample(
        self,
        submitted: float,
        ended: float | None,
        *,
        attempts: int = 1,
        kind: str = "result",
        label: int = 0,
        missing: tuple[int, ...] = (),
    ) -> None:
        number = len(self.log)
        self.log.submitted(number, number % 2, 0, deadline=START + submitted + DEADLINE)
        if ended is None:
            return
        result = None
        if kind == "result":
            result = Result(number, label, "", 1.0, 0, ended - submitted, 0.0, 0.0, attempts, missing)
        self.log.outcome(Outcome(number, kind, ended - submitted, attempts, result), now=START + ended)  # type: ignore[arg-type]

    def report(self, *events: Event, spec: str = "kill every 5s", seconds: float = 20.0, answers: Answers | None = None) -> Any:
        return chaos_report(
            parse_chaos(spec),
            events,
            self.log,
            started_at=START,
            deadlines={0: DEADLINE, 1: HIGH_DEADLINE},
            classes={0: 0, 1: 5} if 1 in self.log.columns()["source"] else {0: 0},
            seconds=seconds,
            damage={"0-1": {"messages": 10, "corrupted": 1, "flipped": 0}},
            bad_frames=3,
            answers={} if answers is None else {0: answers},
        )


def kill(at: float, *, back: float | None = 1.5, skipped: str = "") -> Event:
    return Event(Fault(at, "kill", 2), at, back, back, skipped)


def test_processes_that_were_ended_are_counted_since_their_counts_went_with_them() -> None:
    paused = Event(Fault(3.0, "stop", 1, seconds=1.0), 3.0, 1.0)
    events = (kill(5.0), kill(6.0, skipped="node 2 was not back yet"), kill(9.0), paused)
    report = Run().report(*events)
    assert (report["bad_frames"], report["nodes_ended"]) == (3, 2)


def test_repair_is_timed_from_the_fault_to_the_first_result_that_needed_it() -> None:
    run = Run()
    run.sample(4.0, 5.1)  # open at the fault, but not hurt
    run.sample(4.5, 6.0, attempts=2)
    run.sample(4.9, 5.4, attempts=2)
    run.sample(4.0, 4.8, attempts=2)  # over before
    run.sample(5.2, 5.3, attempts=2)  # came after
    run.sample(4.0, 5.2, attempts=2, kind="expired")  # no result
    run.sample(4.0, None)
    (row,) = run.report(kill(5.0))["timeline"]
    assert row == {
        "at_seconds": 5.0,
        "action": "kill",
        "target": "node 2",
        "lasted_seconds": 1.5,
        "back_after_seconds": 1.5,
        "outstanding": 5,
        "needed_repair": 2,
        "repaired_after_seconds": pytest.approx(0.4),
        "all_repaired_after_seconds": pytest.approx(1.0),
    }


def test_summary_counts_harmless_and_skipped_faults_apart_from_the_times() -> None:
    run = Run()
    for at in (5.0, 10.0, 15.0):
        run.sample(at - 1.0, at + at / 10.0, attempts=2)
    report = run.report(kill(5.0), kill(7.0), kill(10.0, back=2.5), kill(11.5, skipped="node 2 was not back yet"), kill(15.0))
    row = report["summary"]["kill"]
    assert (row["events"], row["skipped"], row["harmless"]) == (4, 1, 1)
    assert row["repaired_after_seconds"]["p50"] == pytest.approx(1.0)
    assert row["repaired_after_seconds"]["max"] == pytest.approx(1.5)
    assert row["back_after_seconds"]["max"] == 2.5
    assert report["timeline"][3]["skipped"] == "node 2 was not back yet"


def test_damage_all_the_time_has_no_moment_to_be_repaired_from() -> None:
    run = Run()
    run.sample(0.0, 1.0, attempts=2)
    report = run.report(Event(Fault(0.0, "corrupt", None, (0, 1), math.inf, 0.01), 0.0, 20.0), spec="corrupt 1%")
    assert "repaired_after_seconds" not in report["timeline"][0]
    assert report["summary"]["corrupt"]["repaired_after_seconds"]["max"] is None
    assert report["damage"] == {"0-1": {"messages": 10, "corrupted": 1, "flipped": 0}}


def test_throughput_with_faults_is_compared_with_the_calm_before_them() -> None:
    run = Run()
    for second in range(20):  # calm: 0-4, 8-12, 16-20
        for place in range(4 if second % 8 < 4 else 3):
            run.sample(second + place / 10, second + place / 10 + 0.05)
    report = run.report(spec="kill every 1s; calm 4s", seconds=20.0)
    throughput = report["throughput"]
    assert (throughput["calm_hz"], throughput["faults_hz"]) == (pytest.approx(4.0), pytest.approx(3.0))
    assert throughput["ratio"] == pytest.approx(0.75)
    assert [row["ratio"] for row in throughput["cycles"]] == [pytest.approx(0.75)] * 2  # the third was cut short
    assert report["outcomes_per_step"]["result"] == 2 * [4, 4, 4, 4, 3, 3, 3, 3] + 4 * [4]


def test_without_calm_there_is_nothing_to_compare_with() -> None:
    run = Run()
    run.sample(0.0, 1.0)
    throughput = run.report(seconds=2.0)["throughput"]
    assert throughput == {"calm_hz": None, "faults_hz": 0.5, "ratio": None, "cycles": []}


def test_samples_sent_again_in_the_calm_are_told() -> None:
    run = Run()
    run.sample(1.0, 2.0)
    run.sample(1.0, 2.0, attempts=2)
    run.sample(3.0, 5.0, attempts=2)  # ended among faults
    run.sample(3.0, 9.0, attempts=2)  # ended in the next calm
    run.sample(5.0, 6.0, attempts=2)
    assert run.report(spec="kill every 1s; calm 4s")["calm"] == {"submitted": 4, "results": 2, "sent_again": 1}


def test_other_labels_and_exits_than_recorded_are_counted() -> None:
    run = Run()
    run.sample(0.0, 1.0, label=0)
    run.sample(0.0, 1.0, label=0)
    run.sample(0.0, 1.0, label=5)
    run.sample(0.0, 1.0, kind="expired")
    answers = Answers(np.array([0, 0]), np.array([0, 1]))
    assert run.report(answers=answers)["labels"] == {"compared": 3, "other_label": 1, "other_exit": 1}
    assert run.report()["labels"] is None


def test_each_source_is_told_by_itself_and_what_was_open_during_a_repair_beside_the_rest() -> None:
    """The kill at 4 s: its node is back after 1.5 s, and its last sample repaired at 7 s; deadlines are each source's own."""
    low, high = Run(), Run()
    high.log = RunLog(source=1)
    low.sample(1.0, 2.0)
    low.sample(3.5, 7.0, attempts=2)
    low.sample(6.9, 7.9)  # came while another was not repaired
    low.sample(7.5, 8.5)
    low.sample(3.9, None)
    for submitted, ended in ((3.9, 4.1), (5.0, 5.4), (9.0, 9.1)):
        number = len(high.log)
        high.log.submitted(number, 0, 0, deadline=START + submitted + HIGH_DEADLINE)
        result = Result(number, 0, "", 1.0, 0, ended - submitted, 0.0, 0.0, 1)
        high.log.outcome(Outcome(number, "result", ended - submitted, 1, result), now=START + ended)
    low.log = merged([low.log, high.log])
    first, second = low.report(kill(4.0))["sources"]
    assert (first["rank"], first["class"], first["submitted"], first["result"], first["lost"]) == (1, 5, 3, 3, 0)
    assert (first["repair_ms"], first["else_ms"]) == (pytest.approx(300.0), pytest.approx(100.0))
    assert (second["rank"], second["result"], second["lost"], second["needed_repair"]) == (0, 4, 1, 1)
    assert (second["repair_ms"], second["else_ms"]) == (pytest.approx(2250.0), pytest.approx(1000.0))


def test_series_of_a_long_run_has_longer_steps() -> None:
    run = Run()
    run.sample(0.0, 1.0)
    series = run.report(seconds=3 * MOST_STEPS)["outcomes_per_step"]
    assert (series["step_seconds"], len(series["result"])) == (3, MOST_STEPS)


def test_expired_samples_are_told_by_second_and_how_late() -> None:
    run = Run()
    run.sample(0.0, DEADLINE + 0.01, kind="expired")
    run.sample(1.0, 1.0 + DEADLINE + 0.04, kind="expired")
    run.sample(1.0, 13.0)  # a late result is another matter
    report = run.report(seconds=14.0)
    assert report["outcomes_per_step"]["expired"] == 10 * [0] + [1, 1, 0, 0]
    assert report["expired_late_seconds"] == pytest.approx(0.04)
    assert Run().report()["expired_late_seconds"] is None


def test_right_answers_leave_at_the_first_stage_that_is_sure_enough() -> None:
    bundle = load_bundle("digits-mobilenetv2", verify=False)
    replay, point = bundle.replay("none"), bundle.default_point
    answers = right_answers(bundle, ExitLadder((point.thresholds,), 0), admission="aimd", codec="none")
    assert answers is not None
    shares = np.bincount(answers.stages, minlength=len(bundle.stages)) / len(answers.stages)
    for index in range(0, bundle.evaluation_samples, 37):
        sure = [stage for stage in range(4) if replay.confidences[index, stage] >= np.float32(point.thresholds[stage])]
        expected = sure[0] if sure else 4
        assert (answers.stages[index], answers.labels[index]) == (expected, replay.labels[index, expected])
    assert shares.sum() == pytest.approx(1.0)
    whole = right_answers(bundle, ExitLadder(((NEVER_EXIT,) * 5,), 0), admission="aimd", codec="none")
    assert whole is not None
    assert set(whole.stages.tolist()) == {4}


def test_right_answers_of_students_are_the_join_of_the_parts_that_were_in(tmp_path: Path) -> None:
    bundle = students.students(tmp_path / "three")
    answers = right_answers(bundle, ExitLadder((bundle.default_point.thresholds,), 0), admission="fixed", codec="none")
    assert answers is not None
    assert answers.joined is not None
    early = students.confidences()[:, students.EARLY] >= np.float32(students.THRESHOLD)
    last = np.where(early, students.EARLY, students.ENDS[-1])
    scores = students.scores()
    for sample in range(students.SAMPLES):
        parts = {0: scores[sample, 0], 1: scores[sample, 1], 2: scores[sample, last[sample]]}
        for missing in range(7):
            present = {part: row.tobytes() for part, row in parts.items() if not missing >> part & 1}
            assert answers.joined[missing, sample] == students.join().answer(present)[0]
    run = Run()
    right = [int(answers.joined[2, index]) for index in (0, 1)]
    for label in (*right, right[0] + 1):
        run.sample(0.0, 0.1, label=label, missing=(1,))
    assert run.report(answers=answers)["labels"] == {"compared": 3, "other_label": 1, "other_exit": 0}


def test_nobody_can_say_what_is_right_while_thresholds_move() -> None:
    bundle = load_bundle("digits-mobilenetv2", verify=False)
    ladder = ExitLadder(tuple(point.thresholds for point in bundle.operating_points), 0)
    assert right_answers(bundle, ladder, admission="mdi-threshold", codec="none") is None

"""What is hard to come by live: things at the same moment, and clocks that leave some doubt."""

from __future__ import annotations

import json
from pathlib import Path

from tests.timeline.reader import Timeline, read
from zpipe.model import SampleKey
from zpipe.timeline.clocks import Clock
from zpipe.timeline.drawing import Drawing
from zpipe.timeline.life import Attempt, Ended, Frame, Life, Ran
from zpipe.timeline.merge import passages


def row(sample: int, attempt: int = 1) -> Attempt:
    return SampleKey(0, 7, sample), attempt


def life(rank: int, **told: object) -> Life:
    made = Life(Path(f"node-{rank}.trace"), rank, (rank,), None, rank == 0, began_at=0.0, ended_at=9.0)
    for name, value in told.items():
        setattr(made, name, value)
    return made


def result(sample: int, ended_at: float, *, submitted_at: float = 1.0, attempt: int = 1) -> Ended:
    return Ended(submitted_at, ended_at, sample, "result", attempt, row(sample, attempt), "", label=3, exit_stage=0)


def drawn(folder: Path, *lives: Life, clocks: tuple[Clock, ...] = ()) -> Timeline:
    events = list(Drawing(lives, clocks or (Clock(),) * len(lives)).events())
    file = folder / "timeline.json"
    file.write_text(json.dumps({"displayTimeUnit": "ms", "otherData": {}, "traceEvents": events}), encoding="utf-8")
    return read(file)


def test_samples_that_come_and_end_at_one_moment_keep_their_own_arrows(tmp_path: Path) -> None:
    both = life(0, runs=[Ran(1.0, 2.0, 0, (row(1), row(2)), exited=2)], outcomes=[result(1, 2.0), result(2, 2.0)])
    timeline = drawn(tmp_path, both)
    assert timeline.arrows == [("submit", "stage 0", False), ("stage 0", "result", False)] * 2
    assert [event["args"]["sample"] for event in timeline.slices["result"]] == [1, 2]


def test_batches_that_took_no_time_lie_one_behind_the_other(tmp_path: Path) -> None:
    runs = [Ran(1.0, 1.0, 0, (row(number),), exited=1) for number in range(3)]
    timeline = drawn(tmp_path, life(0, runs=runs))
    times = [event["ts"] for event in timeline.slices["stage 0"]]
    assert times == [1e6, 1e6 + 0.001, 1e6 + 0.002]


def test_arrows_follow_the_stages_where_clocks_have_them_the_other_way_round(tmp_path: Path) -> None:
    source = life(0, runs=[Ran(2.0, 2.5, 0, (row(1),), exited=0)], outcomes=[result(1, 4.0)])
    other = life(1, runs=[Ran(1.9, 2.2, 1, (row(1),), exited=1)])
    timeline = drawn(tmp_path, other, source)
    assert timeline.arrows == [("submit", "stage 0", False), ("stage 0", "stage 1", True), ("stage 1", "result", True)]


def test_a_further_attempt_has_its_own_arrows(tmp_path: Path) -> None:
    runs = [Ran(1.0, 1.1, 0, (row(1),), exited=0), Ran(2.0, 2.1, 0, (row(1, 2),), exited=1)]
    timeline = drawn(tmp_path, life(0, runs=runs, outcomes=[result(1, 3.0, attempt=2)]))
    assert timeline.arrows == [("submit", "stage 0", False), ("stage 0", "result", False)]


def test_a_frame_goes_from_clock_to_clock_or_is_said_to_be_unseen(tmp_path: Path) -> None:
    frames = [Frame(1.0, 1, 5, 0, 1, (row(1),)), Frame(1.5, 1, 5, 1, 1, (row(2),)), Frame(1.6, 4, 6, 0, 1, (row(3),))]
    clocks = (Clock(), Clock(shift=-100.0))
    other = life(1, began_at=100.0, ended_at=109.0, arrived={(0, 5, 0): 101.25})
    timeline = drawn(tmp_path, life(0, frames=frames), other, clocks=clocks)
    (seen,) = timeline.pairs["to node 1"]
    assert (seen["ts"], seen["dur"]) == (1e6, 250e3)
    (lost,) = timeline.instants["frame to node 1, arrival not seen"]
    assert lost["args"]["why"].startswith("it was lost")
    (unknown,) = timeline.instants["frame to node 4, arrival not seen"]
    assert unknown["args"]["why"] == "no trace of node 4 was given"


def test_what_two_lives_of_a_node_said_alike_tells_nothing_of_its_clock() -> None:
    alike, once = ("report", 0), ("report", 1)
    first, second = life(1, said={(0, alike): 1.0}), life(1, said={(0, alike): 50.0, (0, once): 51.0})
    hearer = life(0, heard=[(1, alike, 50.5), (1, once, 51.5)])
    assert passages([hearer, first, second]) == {(2, 0): [(51.0, 51.5)]}


def test_what_a_node_said_twice_tells_nothing_of_its_clock() -> None:
    assert passages([life(0, heard=[(1, ("blocked", 3), 2.0)]), life(1, said={(0, ("blocked", 3)): None})]) == {}

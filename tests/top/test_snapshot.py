"""From looks to rates: by each node's own clock, and never across a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.top.seen import MESH, gone, up
from zpipe.runtime.observer import Seen
from zpipe.runtime.stats import bucket_seconds, latency_bucket
from zpipe.top.snapshot import HISTORY, History, Snapshot
from zpipe.topology import SourceSpec


def snapshots(*looks: Sequence[Seen], every: float = 1.0) -> list[Snapshot]:
    """One look a second, from 100 s on."""
    history = History(MESH, every=every)
    return [history.take(seen, now=100.0 + index) for index, seen in enumerate(looks)]


def all_up(at: float, **of_source: Any) -> list[Seen]:
    return [up(0, at, **of_source), up(1, at), up(2, at)]


def test_nothing_is_a_rate_before_there_are_two_looks() -> None:
    (first,) = snapshots(all_up(100.0))
    assert [(node.state, node.busy, node.run_hz, node.exits_hz, node.batch_mean) for node in first.nodes] == [
        ("up", None, None, None, None)
    ] * 3
    assert all(link.bytes_hz is None and link.tasks_hz is None for link in first.links)
    assert first.sources[0].goodput_hz is None
    assert first.sources[0].latency_seconds is None
    assert [node.rss_bytes for node in first.nodes] == [150_000_000] * 3


def test_rates_are_by_the_clock_of_the_node_they_are_of() -> None:
    after: dict[str, Any] = {
        "clock": 1104.0,  # four seconds on its own clock, whatever ours says
        "busy_seconds": 3.0,
        "tasks_run": 80,
        "batches": 20,
        "exits": [(0, 60), (2, 20)],
        "links": [{"to": 2, "bytes": 4_000_000, "tasks": 40, "round_trip_seconds": 0.003, "bandwidth_bps": 8e6}],
    }
    _, second = snapshots(
        [up(0, 100.0), up(1, 100.0, clock=1100.0), up(2, 100.0)], [up(0, 101.0), up(1, 101.0, **after), up(2, 101.0)]
    )
    node = second.nodes[1]
    assert (node.busy, node.run_hz, node.batch_mean) == (0.75, 20.0, 4.0)
    assert node.exits_hz == ((0, 15.0), (2, 5.0))
    (link,) = [link for link in second.links if (link.sender, link.receiver) == (1, 2)]
    assert (link.bytes_hz, link.tasks_hz, link.round_trip_seconds, link.bandwidth_bps) == (1e6, 10.0, 0.003, 8e6)
    (quiet,) = [link for link in second.links if (link.sender, link.receiver) == (1, 0)]
    assert (quiet.state, quiet.bytes_hz, quiet.round_trip_seconds) == ("up", 0.0, None)


def test_a_late_answer_changes_no_rate_until_it_is_there() -> None:
    begun, done = up(1, 100.0), up(1, 101.0, tasks_run=10, batches=10)
    looks = snapshots(*[[up(0, 100.0 + index), node, up(2, 100.0 + index)] for index, node in enumerate([begun, done, done])])
    assert [snapshot.nodes[1].run_hz for snapshot in looks] == [None, 10.0, 10.0]


def test_a_node_that_dies_is_gone_since_then_and_back_as_another() -> None:
    alive = up(2, 100.0, tasks_run=500, batches=500)
    looks = [[up(0, at), up(1, at), gone(2, alive)] for at in (101.0, 102.0, 103.0)]
    looks += [[up(0, at), up(1, at), up(2, at, session=2, tasks_run=at - 104, batches=at - 104)] for at in (104.0, 105.0)]
    looks += [all_up(106.0)] * 30
    rows = [snapshot.nodes[2] for snapshot in snapshots([up(0, 100.0), up(1, 100.0), alive], *looks)]
    assert [(row.state, row.seconds) for row in rows[:6]] == [
        ("up", None),
        ("gone", 0.0),
        ("gone", 1.0),
        ("gone", 2.0),
        ("back", 0.0),
        ("back", 1.0),
    ]
    assert rows[1].trouble == "connection refused"
    assert (rows[1].busy, rows[1].rss_bytes, rows[1].input_length) == (None, None, None)
    assert rows[4].run_hz is None  # what it did before it died is no rate of this start
    assert rows[5].run_hz == 1.0


def test_a_restart_between_two_looks_is_seen_by_its_session() -> None:
    _, second = snapshots(all_up(100.0), [up(0, 101.0), up(1, 101.0, session=2), up(2, 101.0)])
    assert [(node.state, node.run_hz) for node in second.nodes] == [("up", 0.0), ("back", None), ("up", 0.0)]


def test_back_is_said_for_a_while_only() -> None:
    looks = [[up(0, at), up(1, at, session=2), up(2, at)] for at in map(float, range(101, 133))]
    states = [snapshot.nodes[1].state for snapshot in snapshots(all_up(100.0), *looks)]
    assert states[1:31] == ["back"] * 30
    assert states[31:] == ["up"] * 2


def test_states_are_told_apart() -> None:
    looks = [[up(0, at, accepting=False), up(1, at, serving=False, accepting=False), gone(2)] for at in (100.0, 101.0)]
    assert [node.state for node in snapshots(*looks)[-1].nodes] == ["leaving", "no executor", "missing"]


def test_a_node_that_is_connected_and_answers_no_more_is_silent() -> None:
    stuck = up(1, 100.0)
    rows = [snapshot.nodes[1] for snapshot in snapshots(*[[up(0, at), stuck, up(2, at)] for at in map(float, range(100, 105))])]
    assert [row.state for row in rows] == ["up", "up", "up", "silent", "silent"]
    assert rows[-1].seconds == 4.0


def test_links_are_as_their_sender_sees_them() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "down": {"up": False, "takes": False},
        "silent": {"takes": False, "suspected": True},
        "closed": {"takes": False},
        "no credit": {"starves": True, "outstanding": 16},
        "up": {},
    }
    well = {"up": True, "takes": True, "suspected": False, "window": 16, "outstanding": 0, "starves": False}
    for state, changed in kinds.items():
        told = [{"rank": 1, **well, **changed}, {"rank": 2, **well, "window": 0}]
        (snapshot,) = snapshots([up(0, 100.0, neighbours=told), up(1, 100.0), gone(2)])
        states = {(link.sender, link.receiver): link.state for link in snapshot.links}
        # 0 sends node 2 no tasks; node 2 cannot be asked.
        assert states == {(0, 1): state, (1, 0): "up", (1, 2): "up", (2, 0): "unknown", (2, 1): "unknown"}
        assert snapshot.nodes[0].window == 16


def test_a_source_tells_rates_latencies_and_outcomes_of_the_interval() -> None:
    def of(submitted: int, results: int, latencies: list[tuple[int, int]], **outcomes: int) -> dict[str, Any]:
        told = up(0, 100.0).stats
        assert told is not None
        return {
            "delivery": {"submitted": submitted, "admitted": submitted - 1, "results": results, "resubmitted": 3},
            "source": {**told["source"], "latencies": latencies, "outcomes": {"result": results, **outcomes}},
        }

    fast, slow = latency_bucket(0.01), latency_bucket(0.5)
    looks = [
        all_up(100.0, **of(100, 90, [(fast, 90)])),
        all_up(101.0, **of(210, 190, [(fast, 180), (slow, 10)], expired=4)),
        all_up(102.0, **of(211, 190, [(fast, 180), (slow, 10)], expired=5)),
    ]
    first, second, third = [snapshot.sources[0] for snapshot in snapshots(*looks)]
    assert first.latencies == ()
    assert (second.offered_hz, second.admitted_hz, second.goodput_hz, second.resubmitted) == (110.0, 110.0, 100.0, 3)
    assert second.latency_seconds == {0.5: bucket_seconds(fast), 0.95: bucket_seconds(slow), 0.99: bucket_seconds(slow)}
    assert second.outcomes == {"result": 190, "expired": 4}
    assert third.latency_seconds is None
    assert third.latencies == (bucket_seconds(slow), None)


def test_a_source_of_students_tells_which_parts_were_missing() -> None:
    told = up(0, 100.0).stats
    assert told is not None
    source = {**told["source"], "missing": [[1, 7], [5, 2]]}
    (chain,), (students,) = (snapshot.sources for snapshot in snapshots(all_up(100.0), all_up(101.0, source=source)))
    assert chain.missing is None
    assert students.missing == {(0,): 7, (0, 2): 2}


def test_the_history_of_latencies_is_bounded() -> None:
    looks = [all_up(float(at)) for at in range(100, 110 + HISTORY)]
    assert len(snapshots(*looks)[-1].sources[0].latencies) == HISTORY


def test_a_source_that_nobody_runs_is_absent() -> None:
    (snapshot,) = snapshots([gone(0), up(1, 100.0), up(2, 100.0)])
    assert snapshot.sources == ()
    assert snapshot.absent == (0,)


def test_sources_have_the_class_and_weight_of_the_topology() -> None:
    urgent = replace(MESH, sources=(SourceSpec(0, priority=3, weight=2.5), SourceSpec(1)))
    snapshot = History(urgent, every=1.0).take([up(0, 100.0, topology=urgent), gone(1), up(2, 100.0, topology=urgent)], now=100.0)
    assert [(source.rank, source.priority, source.weight) for source in snapshot.sources] == [(0, 3, 2.5)]
    assert snapshot.absent == (1,)


def test_nodes_of_another_topology_are_named() -> None:
    stranger = up(2, 100.0)
    stranger.topology_digest = "other"
    (snapshot,) = snapshots([up(0, 100.0), up(1, 100.0), stranger])
    assert snapshot.notes == ("rank 2 runs another topology than this one, in which links and sources may be others",)
    both = [up(0, 100.0), *[replace(up(rank, 100.0), topology_digest="other") for rank in (1, 2)]]
    assert snapshots(both)[0].notes[0].startswith("ranks 1, 2 run another topology")


@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_clock_that_does_not_go_on_gives_no_rate(seconds: float) -> None:
    _, second = snapshots(all_up(100.0), [up(0, 101.0), up(1, 101.0, clock=1100.0 + seconds), up(2, 101.0)])
    assert second.nodes[1].run_hz is None
    assert second.nodes[1].exits_hz is None

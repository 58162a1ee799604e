"""The world: no command without an effect, a clock that only goes forward, counters like a live node's."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from typing import get_args

import pytest

from tests.sim.worlds import Run, topology
from zpipe.load import poisson
from zpipe.policy.messages import Command, Event
from zpipe.runtime.driver import Carried, DriverCounts
from zpipe.runtime.inbox import InboxCounts
from zpipe.service import Spread
from zpipe.sim.hop import HopProfile

LINE = topology([[0], [1], [2, 3, 4]], [{"between": [0, 1], "latency": "2 ms"}, {"between": [1, 2], "latency": "2 ms"}])
#: What only a process with sockets has.
OF_A_PROCESS = {"payloads", "bad_frames", "stray_frames", "forged_frames", "banned_frames", "out_of_step"}


def run(**more: object) -> Run:
    return Run(LINE, service=lambda rank, stage, rows: 0.002 * rows, exit_stage=lambda row: row % 5, **more)  # type: ignore[arg-type]


def test_every_command_has_an_effect_here() -> None:
    assert set(run().world._perform) == set(get_args(Command))


def test_the_clock_never_goes_back_and_every_wake_up_moves_it() -> None:
    seen: list[tuple[float, Event]] = []
    running = run(hop=HopProfile(forward=Spread((0.0, 0.001, 0.02)), control=Spread((0.0, 0.03))))
    world = running.world
    for rank, node in enumerate(world.nodes):

        def handle_all(events: list[Event], *, now: float, rank: int = rank, decide: object = node.handle_all) -> object:
            seen.extend((now, event) for event in events)
            return decide(events, now=now)  # type: ignore[operator]

        node.handle_all = handle_all  # type: ignore[assignment,method-assign]
    running.offer(islice(poisson(150.0, seed=2), 300))
    assert [now for now, _ in seen] == sorted(now for now, _ in seen)
    assert len(seen) == world.events


def test_stats_have_the_keys_of_a_live_node() -> None:
    running = run()
    running.offer(islice(poisson(150.0, seed=2), 300))
    stats = running.world.stats()
    known = {field.name for kind in (DriverCounts, InboxCounts) for field in fields(kind)} - OF_A_PROCESS
    for row in stats:
        assert known <= row.keys()
        assert {"rank", "stages", "cpu_seconds", "rss_bytes", "clock_seconds", "held", "queue_histogram"} <= row.keys()
    (link,) = stats[0]["links"]
    assert link.keys() >= {"to", "round_trip_seconds", *(field.name for field in fields(Carried))}
    assert (link["to"], link["tasks"]) == (1, 240)  # samples 0, 5, 10 ... leave at once


def test_what_is_sent_is_received() -> None:
    running = run()
    running.offer(islice(poisson(150.0, seed=2), 300))
    traffic = running.world.traffic
    assert sum(node.frames_sent for node in traffic) == sum(node.frames_received for node in traffic) > 0
    assert sum(node.sent_bytes for node in traffic) == sum(node.received_bytes for node in traffic)
    assert sum(node.busy_seconds for node in traffic) == pytest.approx(
        0.002 * sum(node.counts.tasks_run for node in running.world.nodes)
    )


@pytest.mark.parametrize("told_late", [0.0004, 0.004])
def test_an_emulated_devices_schedule_does_not_run_late(told_late: float) -> None:
    alone = topology([[0, 1, 2, 3, 4]], node={"max_batch": 1})
    late = HopProfile(start=Spread((0.0003,)), finish=Spread((told_late,)))
    ends = {}
    for grace in (0.0, 0.002):
        running = Run(alone, service=lambda rank, stage, rows: 0.01, hop=replace(late, grace_seconds=grace))
        running.offer([0.0] * 100)
        ends[grace] = running.world.now
    assert ends[0.002] == pytest.approx(100 * 0.01 + 0.0003 + told_late)
    assert ends[0.0] == pytest.approx(100 * (0.01 + 0.0003 + told_late))

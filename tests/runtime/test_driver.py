"""Live drivers: the same policy as everywhere, on real transports, with an executor whose answers are known beforehand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tests.runtime.mesh import FakeExecutor, LiveMesh, answers, expected, image, live, run, topology, turns_until
from zpipe.errors import MAX_TEXT
from zpipe.model import LostRow, ResultRow, SampleKey, Task
from zpipe.policy.messages import Command, Event, LostReceived, ResultReceived, SendLost, SendResults
from zpipe.wire import NO_CODEC, TaskBatch, encode

LINE4 = [[0], [1], [2], [3, 4]]
KINDS = ["memory", "zeromq"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [[[0, 1, 2, 3, 4]], [[0, 1], [2, 3, 4]], LINE4, [[0, 2, 4], [1, 3]], [[], [0, 1], [2, 3, 4]]])
def test_every_sample_leaves_where_its_gate_says_with_its_own_label(kind: str, stages: list[list[int]]) -> None:
    async def main() -> None:
        async with live(topology(stages), kind=kind) as mesh:
            for number in range(200):
                mesh.submit(number)
            assert answers(await mesh.until(200)) == expected(200)
            for driver in mesh.drivers.values():
                driver.policy.check()
                assert driver.policy.held_count == 0
                assert driver.stats()["payloads"] == 0
                assert driver.inbox.counts.bad_frames == driver.inbox.counts.stray_frames == 0
            assert mesh.drivers[0].inputs == {}

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_batch_runs_and_leaves_in_the_turn_in_which_its_task_came(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE4), kind=kind) as mesh:
            mesh.submit(4)
            await mesh.until(1)  # from here on it is known how short a batch is
            node, left = mesh.drivers[1], 0
            drained = node.inbox.drained

            def turn() -> None:
                nonlocal left
                before = node.counts.frames_sent
                drained()
                left += node.counts.frames_sent - before

            node.inbox.drained = turn
            mesh.submit(9)
            await mesh.until(2)
            assert left == 1

    run(main)


def test_no_batch_runs_inside_the_call_that_offers_its_sample() -> None:
    async def main() -> None:
        async with live(topology([[0, 1, 2, 3, 4]])) as mesh:
            mesh.submit(4)
            await mesh.until(1)
            ran = list(mesh.executors[0].ran)
            mesh.submit(9)
            assert mesh.executors[0].ran == ran
            assert answers(await mesh.until(2))[1] == ("result", 9, 4)

    run(main)


def test_an_executor_with_its_own_time_is_told_of_each_batch_that_was_there_when_the_one_before_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeExecutor, "inline", False)
    monkeypatch.setattr(FakeExecutor, "waited", lambda self: self.ran.append("waited"), raising=False)

    async def main() -> None:
        async with live(topology([[0, 1, 2, 3, 4]])) as mesh:
            for number in range(8):
                mesh.submit(number)
            await mesh.until(8)
            mesh.submit(10)  # to an idle device
            await mesh.until(9)
            told: list[Any] = mesh.executors[0].ran
            batches = [at for at, entry in enumerate(told) if entry != "waited"]
            unannounced = [told[at] for at in batches if not at or told[at - 1] != "waited"]
            assert unannounced == [(0, [0]), (0, [10])]
            assert len(told) == 2 * len(batches) - 2

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_comes_back_rejoins_and_what_it_held_is_sent_again(kind: str) -> None:
    async def main() -> None:
        async with live(topology(LINE4), kind=kind) as mesh:
            for number in range(50):
                mesh.submit(number)
            await mesh.until(10)
            await mesh.restart(2)
            for number in range(50, 100):
                mesh.submit(number)
            assert answers(await mesh.until(100)) == expected(100)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_comes_back_with_an_earlier_clock_gets_its_answers(kind: str) -> None:
    """S5: a board without a battery for its clock was started again; what the nodes knew of it has 15 s to live."""

    async def main() -> None:
        async with live(topology(LINE4), kind=kind) as mesh:
            for number in range(20):
                mesh.submit(number)
            await mesh.until(20)
            before = mesh.drivers[0].session
            mesh.session = 500
            await mesh.restart(0)
            for number in range(20, 40):
                mesh.submit(number)
            assert {outcome.kind for outcome in (await mesh.until(40))[20:]} == {"result"}
            source = mesh.drivers[0].policy.source
            assert source is not None
            assert (source.session, source.counts.sessions) == (before + 1, 1)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_a_connection_that_is_gone_reach_nobody(kind: str) -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]]), kind=kind) as mesh:
            source, server = mesh.drivers[0], mesh.drivers[1]
            old = source.peers.outgoing[1].epoch
            await mesh.restart(1)
            server = mesh.drivers[1]
            spec = mesh.bundle.stages[1].input
            stale = Task(SampleKey(0, source.session, 0), 1, 1, (0.5,) * 4, number=0, deadline=time.monotonic() + 9)
            frames = encode(TaskBatch(0, old, NO_CODEC, 1, [stale], np.zeros((1, *spec.shape), spec.dtype)), now=time.monotonic())
            assert source.transport.send_data(source.peers.outgoing[1].channel, frames)
            mesh.submit(1)  # behind it on the same plane: once this is answered the stale one has been read
            await mesh.until(1)
            assert server.inbox.counts.stray_frames == 1
            assert mesh.executors[1].ran == [(1, [1])]

    run(main)


def test_nodes_with_different_topologies_refuse_each_other_and_name_the_key() -> None:
    async def main() -> None:
        mesh = LiveMesh(topology([[0], [1, 2, 3, 4]]))
        other = topology([[0], [1, 2, 3, 4]], deadline="7 s")
        addresses = {0: await mesh.make(0, other), 1: await mesh.make(1)}
        mesh.drivers[1].connect(mesh.topology.with_addresses(addresses))
        mesh.drivers[0].connect(other.with_addresses(addresses))
        await mesh.refused.wait()
        message = str(mesh.refusals[0])
        assert "sources[0].deadline" in message
        assert "7.0" in message
        assert "30.0" in message
        await mesh.aclose()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hello_that_comes_before_a_node_knows_all_addresses_is_kept(kind: str) -> None:
    async def main() -> None:
        mesh = LiveMesh(topology([[0], [1, 2, 3, 4]]), kind=kind)
        addresses = {rank: await mesh.make(rank) for rank in (0, 1)}
        known = mesh.topology.with_addresses(addresses)
        mesh.drivers[0].connect(known)
        await turns_until(lambda: 0 in mesh.drivers[1].peers.incoming)
        mesh.drivers[1].connect(known)
        await mesh.complete()
        mesh.submit(3)
        await mesh.until(1)
        assert mesh.drivers[1].inbox.counts.stray_frames == 0
        await mesh.aclose()

    run(main)


def test_a_source_refused_for_an_older_session_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An impostor, or an older connection of its own that still stands, must not keep it out for good."""
    monkeypatch.setattr("zpipe.runtime.peers.RETRY_SECONDS", 0.01)

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            server = mesh.drivers[1].peers
            mesh.drivers[0].transport.reset(mesh.drivers[0].peers.outgoing[1].channel)
            came = server.incoming[0]
            came.session = 2**60
            await turns_until(lambda: not mesh.drivers[0].peers.outgoing[1].ready)
            came.session = 1
            mesh.submit(3)
            assert answers(await mesh.until(1)) == {0: ("result", 3, 3)}

    run(main)


def test_stats_of_a_node_are_asked_for_without_being_its_neighbour() -> None:
    async def main() -> None:
        async with live(topology(LINE4), kind="zeromq") as mesh:
            for number in range(20):
                mesh.submit(number)
            await mesh.until(20)
            stats = await mesh.drivers[0].stats_of(3)
            assert stats["rank"] == 3
            assert stats["tasks_run"] == sum(len(numbers) for _, numbers in mesh.executors[3].ran)

    run(main)


def test_a_sample_nobody_can_answer_expires_at_its_deadline_and_leaves_nothing() -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            await mesh.drivers[1].aclose()
            mesh.submit(0)
            mesh.submit(1, deadline=0.2)
            outcomes = answers(await mesh.until(2))
            assert outcomes == {0: ("result", 0, 0), 1: ("expired", -1, -1)}
            assert mesh.outcomes[-1].latency_seconds == pytest.approx(0.2, abs=0.1)
            assert mesh.drivers[0].inputs == {}

    run(main)


@pytest.mark.parametrize("deadline", [1e10, 1e305])
def test_a_deadline_beyond_what_the_wire_can_say_is_no_damage(deadline: float) -> None:
    async def main() -> None:
        async with live(topology(LINE4)) as mesh:
            for number in range(20):
                mesh.submit(number, deadline=deadline)
            assert answers(await mesh.until(20)) == expected(20)
            assert [driver.inbox.counts.bad_frames for driver in mesh.drivers.values()] == [0] * 4

    run(main)


def result_row(number: int) -> ResultRow:
    return ResultRow(SampleKey(0, 2**60, 2**60 + number), 2**60, 4, 9, 0.9, 0.5, 0.5, 2**60)


ROWS: list[Any] = [
    [LostRow(SampleKey(0, 1, number), 1, "x" * MAX_TEXT) for number in range(1000)],
    [LostRow(SampleKey(0, 1, number), 1, "\N{SNOWMAN}" * MAX_TEXT) for number in range(1000)],
    [LostRow(SampleKey(0, 1, number), 1, "peer-lost") for number in range(3000)],
    [result_row(number) for number in range(1024)],
    [result_row(0)],
]


@pytest.mark.parametrize("rows", ROWS, ids=["long", "longer", "many", "results", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_one_header_go_in_several_messages(kind: str, rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a neighbour told bundle by bundle is told on in one, and must not cost this node its own connection."""

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]]), kind=kind) as mesh:
            source, server = mesh.drivers[0], mesh.drivers[1]
            came: list[Any] = []
            decide = source._decide

            def hear(events: list[Event], *, now: float) -> list[Command]:
                came.extend(row for event in events if isinstance(event, LostReceived | ResultReceived) for row in event.rows)
                return decide(events, now=now)

            monkeypatch.setattr(source, "_decide", hear)
            server._perform(SendLost(0, rows) if isinstance(rows[0], LostRow) else SendResults(0, rows))
            await turns_until(lambda: len(came) >= len(rows) or source.inbox.counts.bad_frames > 0)
            assert source.inbox.counts.bad_frames == 0
            assert came == rows

    run(main)


def test_images_name_themselves() -> None:
    assert image(513)[0, 0, :2].tolist() == [2, 1]

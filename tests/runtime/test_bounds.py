"""What a live node keeps, on the memory transport: its tables stay below their limits, a stalled link stops the source."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from tests.runtime.mesh import LiveMesh, live, run, topology, turns_until
from zpipe.model import SampleKey, Task
from zpipe.runtime import bounds
from zpipe.transport.base import MAX_INCOMING, Origin
from zpipe.wire import Stats, TaskBatch, encode


def look(mesh: LiveMesh) -> None:
    """Every table of every node is within its limit."""
    for rank, driver in mesh.drivers.items():
        most = bounds.limits(driver)
        over = {name: (size, most[name]) for name, size in bounds.sizes(driver).items() if size > most[name]}
        assert not over, f"node {rank}"


def test_no_table_outgrows_its_limit_while_frames_are_lost_and_a_node_comes_and_goes() -> None:
    async def main() -> None:
        async with live(topology([[0], [1, 2], [3, 4]])) as mesh:
            after_each = []
            for turn in range(6):
                mesh.network.drop_data(mesh.topology.node(0).address, mesh.topology.node(1).address, 2)
                for sample in range(200):
                    mesh.submit(sample)
                    if sample % 20 == 0:
                        await asyncio.sleep(0)
                        look(mesh)
                    if sample == 150:
                        await mesh.restart(1 + turn % 2)
                await mesh.until(200 * (turn + 1))
                await turns_until(lambda: not any(driver.policy.held_count for driver in mesh.drivers.values()))
                look(mesh)
                after_each.append({name: size for name, size in bounds.sizes(mesh.drivers[0]).items() if name != "queue histogram"})
            assert len({resolve.sample for resolve in mesh.outcomes}) == len(mesh.outcomes) == 1200
            assert after_each[-1]["inputs"] == after_each[-1]["payloads"] == after_each[-1]["samples open"] == 0
            grown = {name for name, size in after_each[-1].items() if size > after_each[1][name] + 24}
            assert not grown

    run(main)


def test_a_stalled_link_stops_the_source_within_its_windows() -> None:
    """Frames towards node 2 vanish: what leaves the source afterwards fits into slots and windows, and so do the activations."""

    async def main() -> None:
        async with live(topology([[0], [1, 2], [3, 4]])) as mesh:
            source = mesh.drivers[0].policy.source
            assert source is not None
            mesh.network.drop_data(mesh.topology.node(1).address, mesh.topology.node(2).address, 10**6)
            for number in range(1000):
                mesh.submit(5 * number + 4)  # leaves at the last stage, beyond the stalled link
                if number % 10 == 0:
                    await asyncio.sleep(0)
                    look(mesh)
            slots = sum(bounds.limits(driver)["tasks held"] for driver in mesh.drivers.values())
            await turns_until(lambda: mesh.drivers[1].policy.output_length > 0)
            assert source.counts.admitted <= slots
            assert sum(len(driver._payloads) for driver in mesh.drivers.values()) <= slots
            assert not mesh.outcomes

    run(main)


def test_tasks_of_a_rank_that_is_no_source_leave_nothing_behind() -> None:
    """A row is kept of each source, so whoever invents sources could make them many."""

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            driver = mesh.drivers[1]
            spec = mesh.bundle.stages[1].input
            payload = np.zeros((1, *spec.shape), spec.dtype)
            strays = driver.inbox.counts.stray_frames
            for source in range(1, 40):
                task = Task(SampleKey(source, 1, 0), 1, 1, (0.5,) * 4, number=source - 1, deadline=time.monotonic() + 9.0)
                batch = TaskBatch(0, driver.peers.incoming[0].epoch, "none", 1, [task], payload)
                frames = encode(batch, now=time.monotonic(), transit_seconds=0.0)
                driver.inbox.on_data([bytes(frame) for frame in frames], Origin("nowhere"))
                driver.inbox.on_drained()
            assert driver.inbox.counts.stray_frames == strays + 39
            assert bounds.sizes(driver)["sources known"] == 0
            look(mesh)

    run(main)


def test_stats_show_every_table_beside_its_limit() -> None:
    """The policy's, the runtime's and the transport's."""

    async def main() -> dict[str, Any]:
        async with live(topology([[0], [1, 2, 3, 4]]), kind="zeromq") as mesh:
            return mesh.drivers[1].stats()

    tables = run(main)["tables"]
    assert tables["tasks held"]["now"] == 0
    assert tables["links counted"] == {"now": 0, "most": 1}
    assert tables["incoming channels"] == {"now": 1, "most": MAX_INCOMING}
    assert all(table["now"] <= table["most"] for table in tables.values())


def test_a_question_nobody_answers_is_forgotten_with_its_asker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead node is asked for its counters once a second, for weeks."""

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]])) as mesh:
            driver = mesh.drivers[0]
            await driver.stats_of(1)
            monkeypatch.setattr(mesh.drivers[1], "_answer", lambda channel, message: isinstance(message, Stats))
            for _ in range(3):
                asking = asyncio.ensure_future(driver.stats_of(1))
                await turns_until(lambda: bool(driver.inbox.stats_waiters))
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert not driver.inbox.stats_waiters

    run(main)

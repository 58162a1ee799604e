"""Live nodes with keys: the line works as before, and nobody passes for another."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zpipe
from tests.runtime.mesh import LiveMesh, live, run, topology, turns_until
from zpipe.errors import ConfigError
from zpipe.model import ResultRow, SampleKey, Task
from zpipe.runtime.node import Node
from zpipe.security import make_keys
from zpipe.topology import SecuritySpec, Topology
from zpipe.transport.memory import MemoryTransport
from zpipe.wire import NO_CODEC, Hello, Results, TaskBatch, encode

KINDS = ["memory", "zeromq"]


def secured(folder: Path, stages: list[list[int]], links: Any = "line") -> Topology:
    made = make_keys(folder, range(len(stages)))
    return replace(topology(stages, links), security=SecuritySpec(tuple(made.values()), folder))


def task_of(mesh: LiveMesh, sender: int, receiver: int, epoch: int) -> list[bytes | memoryview]:
    """A task of `sender`'s, as frames."""
    spec = mesh.bundle.stages[1].input
    task = Task(SampleKey(0, mesh.drivers[0].session, 99), 1, 1, (0.5,) * 4, number=0, deadline=time.monotonic() + 9)
    return list(encode(TaskBatch(sender, epoch, NO_CODEC, 1, [task], np.zeros((1, *spec.shape), spec.dtype)), now=time.monotonic()))


@pytest.mark.parametrize("kind", KINDS)
def test_line_with_keys_answers_and_forges_nothing(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with live(secured(tmp_path, [[0], [1, 2], [3, 4]]), kind=kind) as mesh:
            for number in range(60):
                mesh.submit(number)
            assert {outcome.kind for outcome in await mesh.until(60)} == {"result"}
            assert (await mesh.drivers[0].stats_of(2))["rank"] == 2  # an observer that is no neighbour
            for driver in mesh.drivers.values():
                assert driver.inbox.counts.forged_frames == driver.inbox.counts.stray_frames == 0

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_in_another_ranks_name_are_dropped_and_counted(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with live(secured(tmp_path, [[0], [1], [1, 2, 3, 4]], "mesh"), kind=kind) as mesh:
            liar, victim = mesh.drivers[1], mesh.drivers[2]
            real = victim.peers.incoming[0]
            way = liar.peers.outgoing[2].channel
            hello = Hello(0, "peer", 2**40, 2**40, mesh.bundle.digest, mesh.topology.digest(), mesh.topology.canonical())

            assert liar.transport.send_data(way, task_of(mesh, 0, 2, real.epoch))
            assert liar.transport.send_control(way, encode(hello))
            await turns_until(lambda: victim.inbox.counts.forged_frames == 2)

            assert victim.peers.incoming[0] is real
            assert victim.policy.held_count == 0
            assert mesh.executors[2].ran == []
            assert victim.stats()["forged_frames"] == 2
            mesh.submit(1)
            assert [outcome.kind for outcome in await mesh.until(1)] == ["result"]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_without_keys_the_same_frames_are_believed(kind: str) -> None:
    """What keys are for: the test above would be worth nothing if these were dropped for another reason."""

    async def main() -> None:
        async with live(topology([[0], [1], [1, 2, 3, 4]], "mesh"), kind=kind) as mesh:
            liar, victim = mesh.drivers[1], mesh.drivers[2]
            way = liar.peers.outgoing[2].channel
            assert liar.transport.send_data(way, task_of(mesh, 0, 2, victim.peers.incoming[0].epoch))
            await turns_until(lambda: bool(mesh.executors[2].ran))
            assert victim.inbox.counts.forged_frames == 0

    run(main)


LIE = ResultRow(SampleKey(0, 0, 99), 1, 4, 7, 0.9, 0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_liar_with_a_key_is_kept_out_for_good(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        star = [{"between": [0, 1]}, {"between": [0, 2]}]  # nobody else gives the liar anything
        async with live(secured(tmp_path, [[0], [1, 2, 3, 4], [1, 2, 3, 4]], star), kind=kind) as mesh:
            source, liar = mesh.drivers[0], mesh.drivers[1]
            lie = replace(LIE, key=SampleKey(0, source.session, 99))
            assert liar.transport.send_control(liar.peers.incoming[0].channel, encode(Results(1, [lie])))
            await turns_until(lambda: source.peers.banned == {1})
            assert source.peers.missing() == [1]
            for number in range(20):
                mesh.submit(number)
            assert {outcome.kind for outcome in await mesh.until(20)} == {"result"}
            assert mesh.executors[1].ran == []
            assert source.stats()["bans"] == 1

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_without_keys_a_liar_is_sent_away_and_its_rank_may_come_back(kind: str) -> None:
    """Else whoever can reach a port could shut out any node for ever."""

    async def main() -> None:
        async with live(topology([[0], [1, 2, 3, 4]]), kind=kind) as mesh:
            source, liar = mesh.drivers[0], mesh.drivers[1]
            epoch = source.peers.outgoing[1].epoch
            lie = replace(LIE, key=SampleKey(0, source.session, 99))
            assert liar.transport.send_control(liar.peers.incoming[0].channel, encode(Results(1, [lie])))
            await turns_until(lambda: source.peers.outgoing[1].ready and source.peers.outgoing[1].epoch > epoch)
            mesh.submit(1)
            assert [outcome.kind for outcome in await mesh.until(1)] == ["result"]
            assert source.stats()["bans"] == 1

    run(main)


def test_unknown_keys_are_told_of_in_one_line_a_period(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with live(secured(tmp_path, [[0], [1, 2, 3, 4]])) as mesh:
            peers, transport = mesh.drivers[1].peers, mesh.drivers[1].transport
            assert isinstance(transport, MemoryTransport)
            for before, now in ((0, 0), (0, 1), (1, 1), (1, 4000)):
                assert peers._turned_away == before
                transport.counts.unknown_keys, transport.turned_away = now, "10.0.0.9, key 8CWwQ&Tw..."
                peers.close()  # what was to look in a while
                peers._look_at_door()

    with caplog.at_level(logging.INFO, logger="zpipe.node"):
        run(main)
    assert [record.getMessage() for record in caplog.records if "turned away" in record.getMessage()] == [
        "node 1 turned away a connection with unknown keys (last from 10.0.0.9, key 8CWwQ&Tw...)",
        "node 1 turned away 3999 connections with unknown keys (last from 10.0.0.9, key 8CWwQ&Tw...)",
    ]


def test_local_pipeline_with_keys(tmp_path: Path) -> None:
    async def main() -> None:
        async with zpipe.Pipeline.local(secured(tmp_path, [[0], [1, 2], [3, 4]])) as p:
            images = p.bundle.evaluation().images[:20]
            results = await asyncio.gather(*[p.submit(image) for image in images])
            assert {result.attempts for result in results} == {1}
            stats = await p.driver.stats_of(1)
            assert stats["transport"]["unknown_keys"] == stats["forged_frames"] == 0

    run(main)


def test_open_address_without_keys_is_refused_before_anything_starts(tmp_path: Path) -> None:
    whole = topology([[0, 1], [2, 3, 4]])
    exposed = replace(whole, nodes=tuple(replace(node, bind="0.0.0.0") for node in whole.nodes))
    with pytest.raises(ConfigError, match=r"test: rank 1 would listen at 0\.0\.0\.0:0 without keys.*zpipe keygen.*--insecure"):
        Node(exposed, 1)
    with pytest.raises(ConfigError, match=r"test: rank 0 would listen at 0\.0\.0\.0:5800 without keys"):
        zpipe.Pipeline.connect(exposed)
    zpipe.Pipeline.connect(exposed, insecure=True)
    Node(exposed.without_keys(), 1)
    keys = make_keys(tmp_path, range(2))
    Node(replace(exposed, security=SecuritySpec(tuple(keys.values()), tmp_path)), 1)

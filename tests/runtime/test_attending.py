"""Whom a source that is attached waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import students
from tests.runtime.mesh import EmulatedMesh, LiveMesh, run, topology, turns_until
from zpipe.runtime import attending
from zpipe.runtime.attending import all_attached
from zpipe.runtime.ways import parts_away


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for somebody who looks at every turn of the loop, and waits for ever unless a test says otherwise."""
    monkeypatch.setattr(attending, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(attending, "STUDENTS_SECONDS", float("inf"))


@pytest.fixture
def boards(tmp_path: Path) -> Callable[[], LiveMesh]:
    """Two boards of each student: 1 and 4 of part 0, 2 and 5 of part 1, 3 and 6 of part 2."""
    bundle = students.students(tmp_path / "three")
    return lambda: EmulatedMesh(students.star(bundle.path), bundle.emulated(), students.DEVICE)


@asynccontextmanager
async def attached(mesh: LiveMesh, *up: int, told: list[str] | None = None) -> AsyncIterator[asyncio.Future[None]]:
    """The source is there, and of the others these; the rest has an address, and nobody there. `told` takes lines of progress."""
    lines = [] if told is None else told
    source = await mesh.make(0)
    addresses = {node.rank: await mesh.make(node.rank) for node in mesh.topology.nodes if node.rank}
    for rank in addresses.keys() - set(up):
        await mesh.drivers.pop(rank).aclose(None)
    mesh.topology = mesh.topology.with_addresses({0: source, **addresses})
    for driver in mesh.drivers.values():
        driver.connect(mesh.topology)
    peers = mesh.drivers[0].peers
    pipeline: Any = SimpleNamespace(driver=mesh.drivers[0], bundle=mesh.bundle, ready=peers.complete.wait)
    waiting = asyncio.ensure_future(all_attached(pipeline, lambda line, done: lines.append(line)))
    try:
        hosts = set(up) & set(mesh.topology.neighbours(0))
        await turns_until(lambda: not hosts & set(peers.missing()))
        yield waiting
    finally:
        waiting.cancel()
        await mesh.aclose()


async def come(mesh: LiveMesh, rank: int) -> None:
    await mesh.make(rank)
    mesh.drivers[rank].connect(mesh.topology)


def test_one_host_of_every_student_is_enough(boards: Callable[[], LiveMesh], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        mesh, told = boards(), list[str]()
        async with attached(mesh, 1, 5, 3, told=told) as waiting:
            await waiting
            said = told[-1]
            assert not caplog.records
            assert said.startswith("starting without rank 2 (")
            assert all(f"{rank} ({mesh.topology.node(rank).address}" in said for rank in (2, 4, 6))
            assert "part" not in said
            await come(mesh, 2)
            await turns_until(lambda: mesh.drivers[0].policy.neighbour(2).takes)

    run(main)


def test_a_student_without_any_host_is_waited_for(boards: Callable[[], LiveMesh]) -> None:
    async def main() -> None:
        mesh = boards()
        async with attached(mesh, 1, 4, 3, 6) as waiting:
            await turns_until(lambda: parts_away(mesh.drivers[0]) == [1])
            await asyncio.sleep(0)
            assert not waiting.done()
            await come(mesh, 5)
            await waiting

    run(main)


def test_after_a_while_the_others_start_without_it(
    boards: Callable[[], LiveMesh], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attending, "STUDENTS_SECONDS", 0.0)

    async def main() -> None:
        mesh = boards()
        async with attached(mesh, 4) as waiting:
            await waiting
            (said,) = caplog.records
            assert said.levelname == "ERROR"  # what the command line shows without being asked for more
            assert said.getMessage().startswith("starting without rank 1 (")
            assert said.getMessage().endswith(", so without part 1, 2 of every answer; whoever comes later joins")

    run(main)


def test_without_any_host_nothing_starts_however_long_it_takes(
    boards: Callable[[], LiveMesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "STUDENTS_SECONDS", 0.0)

    async def main() -> None:
        mesh = boards()
        async with attached(mesh) as waiting:
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            await come(mesh, 6)
            await waiting

    run(main)


def test_a_mesh_waits_for_everybody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(attending, "STUDENTS_SECONDS", 0.0)

    async def main() -> None:
        mesh = LiveMesh(topology([[0], [1, 2, 3, 4], [1, 2, 3, 4]], "mesh"))
        async with attached(mesh, 1) as waiting:
            assert parts_away(mesh.drivers[0]) == []
            for _ in range(20):
                await asyncio.sleep(0)
            assert not waiting.done()
            await come(mesh, 2)
            await waiting
            assert not caplog.records

    run(main)

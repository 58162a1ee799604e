"""Several programs connected to one running mesh at once, each as another source of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import zpipe
from tests.runtime.mesh import HALF, FakeExecutor, image, run
from zpipe.bundle import Bundle
from zpipe.errors import ConfigError
from zpipe.runtime.node import Node
from zpipe.runtime.pipeline import Pipeline
from zpipe.topology import Topology, from_dict

CAMERA, HUB, MAPPING = range(3)


def topology() -> Topology:
    """Two sources with stage 0, and between them the node that does the rest for both."""
    nodes = [{"rank": CAMERA, "stages": [0]}, {"rank": HUB, "stages": [1, 2, 3, 4]}, {"rank": MAPPING, "stages": [0]}]
    sources = [{"rank": CAMERA, "name": "camera", "weight": 4}, {"rank": MAPPING, "name": "mapping"}]
    return from_dict({"name": "pair", "bundle": str(HALF), "nodes": nodes, "links": "line", "sources": sources})


@pytest.fixture(autouse=True)
def foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image n leaves at stage n % 5 with label n % 10, wherever it runs."""

    def fake(topology: Topology, bundle: Bundle, rank: int, **options: Any) -> FakeExecutor:
        return FakeExecutor(bundle, topology.node(rank).stages)

    monkeypatch.setattr("zpipe.runtime.pipeline.executor_for", fake)
    monkeypatch.setattr("zpipe.runtime.node.executor_for", fake)


class Site:
    """A hub, and the programs that come and go beside it. Everybody binds a free port at first and keeps it."""

    def __init__(self) -> None:
        self.addresses: dict[int, str] = {}
        self._known = asyncio.Condition()

    async def meet(self, rank: int, address: str) -> dict[int, str]:
        async with self._known:
            self.addresses[rank] = address
            self._known.notify_all()
            await self._known.wait_for(lambda: len(self.addresses) == len(topology().nodes))
        return self.addresses

    async def open(self, source: str) -> Pipeline:
        """The program of a source, connected; whoever calls closes it."""
        rank = topology().source_named(source).rank
        here = topology().with_addresses({rank: self.addresses[rank]} if rank in self.addresses else {})
        pipeline = Pipeline(here, source, launch=False, admission="fixed", meet=lambda address: self.meet(rank, address))
        await pipeline.__aenter__()
        await pipeline.ready()
        return pipeline


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Site, Pipeline, Pipeline]]:
    """A hub with both programs connected."""
    place, node = Site(), Node(topology(), HUB)
    try:
        async with AsyncExitStack() as programs:
            address = await node.bind()
            opening = [asyncio.ensure_future(place.open(source)) for source in ("camera", "mapping")]
            node.connect(node.topology.with_addresses(await place.meet(HUB, address)))
            camera, mapping = await asyncio.gather(*opening)
            for pipeline in (camera, mapping):
                programs.push_async_callback(pipeline.aclose)
            yield place, camera, mapping
    finally:
        await node.aclose()


async def check_answers(pipeline: Pipeline, numbers: range) -> None:
    """Every image of these gets the answer of that image, once."""
    before = pipeline.source.counts.results
    results = await asyncio.gather(*[pipeline.submit(image(number)) for number in numbers])
    assert [(result.label, result.exit_stage) for result in results] == [(number % 10, number % 5) for number in numbers]
    assert pipeline.source.counts.results == before + len(numbers)
    assert pipeline.source.counts.second_results == 0


def test_two_programs_submit_at_once_and_each_gets_exactly_its_own_answers() -> None:
    async def main() -> None:
        async with site() as (_, camera, mapping):
            await asyncio.gather(check_answers(camera, range(100)), check_answers(mapping, range(103, 203)))
            delivered = {stats["rank"]: stats["delivery"]["results"] for stats in await mapping.stats() if "delivery" in stats}
            assert delivered == {CAMERA: 100, MAPPING: 100}

    run(main)


def test_a_program_leaves_and_comes_back_while_the_other_goes_on() -> None:
    async def main() -> None:
        async with site() as (place, camera, mapping):
            gone = asyncio.Event()

            async def leave_and_come_back() -> None:
                await check_answers(mapping, range(50))
                left = [asyncio.ensure_future(mapping.submit(image(number))) for number in range(50, 60)]
                await asyncio.sleep(0)
                await mapping.aclose()
                ends = await asyncio.gather(*left, return_exceptions=True)
                assert all(isinstance(end, zpipe.Result | zpipe.SampleFailed) for end in ends)
                gone.set()
                again = await place.open("mapping")
                try:
                    await check_answers(again, range(7, 57))  # sample numbers begin again: these are no old answers
                finally:
                    await again.aclose()

            async def go_on() -> None:
                await check_answers(camera, range(40))
                await gone.wait()
                await check_answers(camera, range(40, 120))

            await asyncio.gather(go_on(), leave_and_come_back())
            assert camera.source.counts.resubmitted == 0

    run(main)


def test_a_program_names_its_source_or_its_rank() -> None:
    assert Pipeline.connect(topology()).rank == CAMERA
    assert Pipeline.connect(topology(), source="mapping").rank == Pipeline.connect(topology(), rank=MAPPING).rank == MAPPING
    assert Pipeline.local(topology(), source="mapping").rank == MAPPING
    known = r"expected one of camera \(rank 0\), mapping \(rank 2\)$"
    for given, found in (({"source": "lidar"}, "'lidar'"), ({"rank": HUB}, "rank 1"), ({"source": HUB}, "rank 1")):
        with pytest.raises(ConfigError, match=rf"^pair: source: found {found}, {known}"):
            Pipeline.connect(topology(), **given)
    with pytest.raises(ConfigError, match="source: found 'camera' beside rank 0, expected one of the two; drop the rank"):
        Pipeline.connect(topology(), source="camera", rank=0)

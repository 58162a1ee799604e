"""Nodes whose stages run on the stand-in: the same answers as on ONNX Runtime, with rows that stay on the device between stages."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import pytest

import zpipe
from tests.executors.cuda.engines import Bench
from tests.runtime.mesh import HALF, LiveMesh, answers, bundle, run, started, topology
from zpipe.errors import ExecutorLost
from zpipe.executors.base import StageExecutor
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.onnx import OnnxExecutor
from zpipe.topology import from_dict

SAMPLES = 150
LINES = {
    "two stages a node": [[0, 1], [2, 3], [4]],
    "one node": [[0, 1, 2, 3, 4]],
    "either of two": [[0, 1, 2], [1, 2, 3, 4]],
}


class RealMesh(LiveMesh):
    """Runs the bundle's own stages on images of its evaluation set; thresholds let some samples leave at every exit."""

    thresholds = (0.9, 0.8, 0.7, 0.6, 0.0)

    def __init__(self, stages: list[list[int]], make: Callable[[tuple[int, ...]], StageExecutor], *, kind: str) -> None:
        super().__init__(topology(stages), kind=kind)
        self._make = make
        self._rows = self.bundle.evaluation().images

    def executor(self, rank: int, stages: tuple[int, ...]) -> StageExecutor:
        return self._make(stages)

    def input(self, number: int) -> npt.NDArray[Any]:
        row: npt.NDArray[Any] = self._rows[number % len(self._rows)]
        return row


def live_answers(mesh: RealMesh) -> dict[int, tuple[str, int, int]]:
    async def main() -> dict[int, tuple[str, int, int]]:
        async with started(mesh):
            for number in range(SAMPLES):
                mesh.submit(number)
            return answers(await mesh.until(SAMPLES))

    return run(main)


@pytest.fixture(scope="module")
def expected() -> dict[int, tuple[str, int, int]]:
    mesh = RealMesh([[0, 1, 2, 3, 4]], lambda stages: OnnxExecutor(mesh.bundle, stages), kind="memory")
    found = live_answers(mesh)
    assert {stage for _, _, stage in found.values()} == {0, 1, 2, 3, 4}
    return found


@pytest.mark.parametrize("kind", ["memory", "zeromq"])
@pytest.mark.parametrize("line", LINES)
def test_answers_are_those_of_onnx_runtime(expected: dict[int, tuple[str, int, int]], line: str, kind: str) -> None:
    benches: list[Bench] = []
    executors: list[CudaStages] = []

    def make(stages: tuple[int, ...]) -> StageExecutor:
        benches.append(Bench(seed=len(benches)))
        executors.append(benches[-1].executor(mesh.bundle, stages, max_batch=4))
        executors[-1].warm_up(4)
        for driver in benches[-1].drivers:
            driver.counts.clear()
        return executors[-1]

    mesh = RealMesh(LINES[line], make, kind=kind)
    assert live_answers(mesh) == expected
    assert any(bench.driver.counts["copy_across"] for bench in benches), "rows went from stage to stage on the device"
    mesh.drivers.clear()
    gc.collect()
    for executor, bench in zip(executors, benches, strict=True):
        executor._owner.join(20.0)
        bench.check()
        assert bench.driver.closed


def test_batches_that_find_no_room_on_the_device_are_counted_in_the_nodes_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.executors.cuda.slots.HELD_BATCHES", 0)
    executors: list[CudaStages] = []

    def make(stages: tuple[int, ...]) -> StageExecutor:
        executors.append(Bench().executor(bundle(), stages, max_batch=4))
        return executors[-1]

    mesh = RealMesh([[0, 1, 2, 3, 4]], make, kind="memory")

    async def main() -> dict[str, Any]:
        async with started(mesh):
            for number in range(SAMPLES):
                mesh.submit(number)
            await mesh.until(SAMPLES)
            return mesh.drivers[0].stats()

    assert run(main)["spilled_batches"] == executors[0].spilled > 0


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_activations_are_coded_on_the_device_for_links_that_all_say_so(codec: str) -> None:
    stages, links = [[0], [1, 2], [3, 4]], {"shape": "line", "codec": codec}

    def line(make: Callable[[tuple[int, ...]], StageExecutor]) -> tuple[RealMesh, dict[int, tuple[str, int, int]]]:
        mesh = RealMesh(stages, make, kind="memory")
        mesh.topology = topology(stages, links)
        return mesh, live_answers(mesh)

    def on_device(hosted: tuple[int, ...]) -> StageExecutor:
        executor = Bench(seed=len(hosted)).executor(bundle(), hosted, max_batch=4)
        executor.warm_up(4)
        return executor

    _, expected = line(lambda hosted: OnnxExecutor(bundle(), hosted))
    mesh, found = line(on_device)
    assert found == expected
    assert [sorted(driver._packing._coded) for driver in mesh.drivers.values()] == [[1], [3], []]


def test_a_device_that_is_lost_hands_over_what_it_can_and_every_sample_ends() -> None:
    benches: list[Bench] = []

    def make(stages: tuple[int, ...]) -> StageExecutor:
        benches.append(Bench(seed=len(benches)))
        if len(benches) == 2:
            benches[-1].faults = {("enqueue", 2): ExecutorLost("the device is gone")}
        return benches[-1].executor(mesh.bundle, stages, max_batch=4)

    mesh = RealMesh([[0], [1, 2], [1, 2], [3, 4]], make, kind="memory")
    mesh.topology = topology([[0], [1, 2], [1, 2], [3, 4]], [{"between": pair} for pair in ([0, 1], [0, 2], [1, 3], [2, 3])])

    async def main() -> None:
        async with started(mesh):
            submitted = 0
            while mesh.drivers[
                1
            ].policy.serving:  # its second batch is long in coming where this machine is slow to load the engine
                for number in range(submitted, submitted + SAMPLES):
                    mesh.submit(number)
                submitted += SAMPLES
                ended = answers(await mesh.until(submitted))
                assert [kind for kind, _, _ in ended.values()] == ["result"] * submitted
            assert [driver.policy.serving for driver in mesh.drivers.values()] == [True, False, True, True]

    run(main)


def test_a_pipeline_of_processes_takes_the_executor_by_its_name() -> None:
    def answers_of(executor: str, stages: list[list[int]]) -> dict[int, tuple[int, int]]:
        nodes = [{"rank": rank, "stages": hosted, "executor": executor, "max_batch": 4} for rank, hosted in enumerate(stages)]
        plain: dict[str, Any] = {"name": "line", "bundle": str(HALF), "nodes": nodes, "source": {"rank": 0}}
        if len(stages) > 1:
            plain["links"] = "line"

        async def main() -> dict[int, tuple[int, int]]:
            async with zpipe.Pipeline.local(from_dict(plain)) as pipeline:
                outcomes = [outcome async for outcome in pipeline.stream(pipeline.bundle.evaluation().images[:60])]
            return {each.sample: (each.result.label, each.result.exit_stage) for each in outcomes if each.result is not None}

        return run(main)

    expected = answers_of("onnx", [[0, 1, 2, 3, 4]])
    assert len(expected) == 60
    assert answers_of("tests.executors.cuda.engines:FakeCuda", LINES["two stages a node"]) == expected

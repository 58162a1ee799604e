"""Live drivers in one loop, on the memory transport or on ZeroMQ, with an executor that any test can foresee.

The first two bytes of an image name it; activations carry that number on. Image n leaves at stage `n % stages` with label `n % 10`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tests.executors.tiny import FakeClock
from zpipe.bundle import Bundle, load_bundle
from zpipe.configure import source_config
from zpipe.errors import ExecutorLost
from zpipe.executors.base import StageExecutor, StageOutput
from zpipe.executors.emulated import EmulatedExecutor
from zpipe.model import GateSpec
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import Resolve, SampleSubmitted
from zpipe.runtime.driver import Driver, zeromq
from zpipe.topology import Topology, from_dict
from zpipe.transport.base import Transport, TransportHandler
from zpipe.transport.memory import MemoryNetwork

T = TypeVar("T")
MeshT = TypeVar("MeshT", bound="LiveMesh")
HALF = Path(__file__).parents[2] / "engines" / "digits-mobilenetv2-half"
#: Nothing here takes long; a test that waits this long has failed.
PATIENCE_SECONDS = 20.0


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Runs a test's coroutine under a limit."""

    async def limited() -> T:
        return await asyncio.wait_for(main(), PATIENCE_SECONDS)

    return asyncio.run(limited())


async def turns_until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until the condition holds; `run` bounds it."""
    while not condition():  # noqa: ASYNC110 - a turn of the loop is what is waited for
        await asyncio.sleep(0)


def bundle() -> Bundle:
    return load_bundle(HALF, verify=False)


def image(number: int) -> npt.NDArray[np.uint8]:
    """Image `number`, as stage 0 takes it."""
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[0, 0, :2] = divmod(number, 256)
    return pixels


def cannot_look(output: StageOutput) -> Any:
    raise ValueError("cannot look\nat this one")


class FakeExecutor:
    """Answers at once and by number; a batch with a `broken` number gives what `fault` makes of its output, a `deadly` one is its
    last."""

    inline = True

    def __init__(self, bundle: Bundle, stages: tuple[int, ...]) -> None:
        self.stages = stages
        self.broken: set[int] = set()
        self.fault: Callable[[StageOutput], Any] = cannot_look
        self.deadly: set[int] = set()
        self.dead = False
        self.ran: list[tuple[int, list[int]]] = []
        self._bundle = bundle

    def warm_up(self, max_batch: int) -> dict[int, float]:
        return {}

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        spec = self._bundle.stages[stage]
        assert inputs.dtype.name == spec.input.dtype
        assert inputs.shape[1:] == spec.input.shape
        if stage == 0:
            numbers = [256 * int(row[0, 0, 0]) + int(row[0, 0, 1]) for row in inputs]
        else:
            numbers = [round(float(row.flat[0])) for row in inputs]  # a codec may have passed over it
        self.ran.append((stage, numbers))
        self.dead = self.dead or not self.deadly.isdisjoint(numbers)
        if self.dead:
            raise ExecutorLost("its device is gone")
        activation = None
        if spec.output is not None:
            activation = np.zeros((len(numbers), *spec.output.shape), spec.output.dtype)
            for row, number in zip(activation, numbers, strict=True):
                row.flat[0] = number
        leaves = [
            gate.last or (number % len(self._bundle.stages) <= stage and threshold < 1.0)
            for number, threshold in zip(numbers, gate.thresholds, strict=True)
        ]
        output = StageOutput(activation, leaves, [number % 10 for number in numbers], [0.9] * len(numbers), 1e-4, 1e-4)
        if self.broken.intersection(numbers):
            faulty: StageOutput = self.fault(output)
            return faulty
        return output

    def close(self) -> None:
        pass


def topology(stages: list[list[int]], links: Any = "line", **source: Any) -> Topology:
    nodes = [{"rank": rank, "stages": hosted, "max_batch": 4} for rank, hosted in enumerate(stages)]
    plain: dict[str, Any] = {"name": "test", "bundle": str(HALF), "nodes": nodes, "source": {"rank": 0, **source}}
    if len(stages) > 1:
        plain["links"] = links
    return from_dict(plain)


def answers(outcomes: list[Resolve]) -> dict[int, tuple[str, int, int]]:
    """{sample: (kind, label, exit stage)}, the last two -1 without a result."""
    return {o.sample: (o.kind, o.row.label, o.row.exit_stage) if o.row else (o.kind, -1, -1) for o in outcomes}


def expected(count: int) -> dict[int, tuple[str, int, int]]:
    """What `answers` gives when every image of these is the sample of the same number and ends as result."""
    return {number: ("result", number % 10, number % 5) for number in range(count)}


class LiveMesh:
    """Drivers of every rank, connected.

    Attributes:
        outcomes: every Resolve of the source, in order.
    """

    #: The one operating point of every source.
    thresholds: tuple[float, ...] = (0.5,) * 5

    def __init__(self, topology: Topology, *, kind: str = "memory") -> None:
        self.topology = topology
        self.bundle = bundle()
        self.network = MemoryNetwork()
        self.kind = kind
        self.session = 1000
        self.executors: dict[int, FakeExecutor] = {}
        self.drivers: dict[int, Driver] = {}
        self.outcomes: list[Resolve] = []
        self.refusals: list[Exception] = []
        self.refused = asyncio.Event()
        self._resolved = asyncio.Condition()
        self._next = 0

    async def start(self) -> None:
        addresses = {}
        for node in self.topology.nodes:
            addresses[node.rank] = await self.make(node.rank)
        self.topology = self.topology.with_addresses(addresses)
        for driver in self.drivers.values():
            driver.connect(self.topology)
        await self.complete()

    async def make(self, rank: int, topology: Topology | None = None) -> str:
        """A driver for this rank, bound and not connected; returns its address."""
        topology = topology or self.topology
        self.session += 1
        stages = topology.node(rank).stages
        source = None
        spec = topology.source_at(rank)
        if spec is not None:
            ladder = ExitLadder((self.thresholds,), 0)
            asked = source_config(spec, self.bundle, exit_point="default", redundancy=topology.policy.redundancy)
            source = SourceConfig(session=self.session, ladder=ladder, admission="fixed", waiting=10_000, fanout=asked.fanout)
        bind = topology.node(rank).bind_address
        transport: Callable[[TransportHandler], Transport] = zeromq(topology, self.bundle, rank)
        if self.kind == "memory":
            transport = partial(self.network.transport, bind=bind, key=topology.key_of(rank))
        driver = self.drivers[rank] = Driver(
            topology,
            self.bundle,
            rank,
            transport=transport,
            executor=self.executor(rank, stages) if stages else None,
            session=self.session,
            source=source,
            resolved=self._on_resolved,
            refused=self._on_refused,
            seed=0,
        )
        return await driver.start()

    def executor(self, rank: int, stages: tuple[int, ...]) -> StageExecutor:
        """What runs a node's stages."""
        self.executors[rank] = FakeExecutor(self.bundle, stages)
        return self.executors[rank]

    def input(self, number: int) -> npt.NDArray[Any]:
        """Input `number`, as stage 0 takes it."""
        return image(number)

    async def restart(self, rank: int) -> None:
        """The node goes without a word and comes back empty, at the same address."""
        old = self.drivers[rank]
        await old.aclose(None)
        await self.make(rank)
        self.drivers[rank].connect(self.topology)
        await self.complete()

    async def complete(self) -> None:
        for driver in self.drivers.values():
            await driver.peers.complete.wait()

    def _on_refused(self, error: Exception) -> None:
        self.refusals.append(error)
        self.refused.set()

    def _on_resolved(self, resolve: Resolve) -> None:
        self.outcomes.append(resolve)

        async def tell() -> None:
            async with self._resolved:
                self._resolved.notify_all()

        asyncio.get_running_loop().create_task(tell())

    def submit(self, number: int, *, deadline: float = 15.0) -> None:
        """Submits input `number` as the next sample."""
        source = self.drivers[0]
        now = time.monotonic()
        source.inputs[self._next] = self.input(number)[None]
        self._next += 1
        source.emit(SampleSubmitted(self._next - 1, now + deadline, now))

    async def until(self, count: int) -> list[Resolve]:
        """Waits for `count` outcomes in all."""
        async with self._resolved:
            await self._resolved.wait_for(lambda: len(self.outcomes) >= count)
        return self.outcomes

    async def aclose(self) -> None:
        for driver in self.drivers.values():
            await driver.aclose()


class EmulatedMesh(LiveMesh):
    """Nodes that emulate a bundle on boards whose clocks go as fast as they are read; input n is evaluation sample n."""

    def __init__(self, topology: Topology, emulation: Bundle, device: str) -> None:
        super().__init__(topology)
        self.bundle = emulation
        self.thresholds = emulation.default_point.thresholds
        self.threads: set[str] = set()  #: where stages slept
        self._device = device
        self._rows = emulation.evaluation().images

    def executor(self, rank: int, stages: tuple[int, ...]) -> StageExecutor:
        return EmulatedExecutor(self.bundle, stages, self._device, clock=NamingClock(self.threads))

    def input(self, number: int) -> npt.NDArray[Any]:
        row: npt.NDArray[Any] = self._rows[number]
        return row


class NamingClock(FakeClock):
    """Notes which threads slept."""

    def __init__(self, threads: set[str]) -> None:
        super().__init__()
        self._threads = threads

    def sleep_until(self, when: float) -> None:
        super().sleep_until(when)
        self._threads.add(threading.current_thread().name)


@asynccontextmanager
async def live(topology: Topology, *, kind: str = "memory") -> AsyncIterator[LiveMesh]:
    async with started(LiveMesh(topology, kind=kind)) as mesh:
        yield mesh


@asynccontextmanager
async def started(mesh: MeshT) -> AsyncIterator[MeshT]:
    await mesh.start()
    try:
        yield mesh
    finally:
        await mesh.aclose()

"""Engines for the fake driver: a stage's own ONNX in ONNX Runtime, and the whole executor over it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from tests.executors.cuda.compiled import CompiledGate
from tests.executors.cuda.fake import FakeDriver, FakeStream, Misuse, Work
from tests.executors.cuda.kernels import Span
from zpipe.bundle import Bundle
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.runner import MAX_BATCH, SLOTS, CudaStages


@dataclass(eq=False)
class FakeEngine:
    """One stage in ONNX Runtime, on the fake device's memory.

    Attributes:
        refuses: asked before each batch is queued; what it returns is raised.
        breaks: asked when a batch is done; what it returns is raised to whoever waits for it.
        headless: says that it has no logits.
        sizes: a batch of another size may be run by the graph of the next of these; none: of its own alone.
        rounds_up: runs such a batch at that size itself, too, as `tensorrt_rtx` does.
    """

    driver: FakeDriver
    bundle: Bundle
    stage: int
    max_batch: int
    capturable: bool = True
    logits: str | None = None
    refuses: Callable[[int], Exception | None] = lambda batch: None
    breaks: Callable[[int], Exception | None] = lambda batch: None
    headless: bool = False
    sizes: Sequence[int] = ()
    rounds_up: bool = False
    closed: bool = False
    seen: set[tuple[int, int]] = field(default_factory=set)  #: (stream, batch) that were queued as they are
    busy: int = 0  #: batches on the device that are not done: one engine takes one at a time

    def __post_init__(self) -> None:
        self.spec = self.bundle.stages[self.stage]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(self.bundle.stage_path(self.stage)), options)
        self.logits = None if self.spec.exit_head is None or self.headless else self.logits or "float32"

    def runs_as(self, batch: int) -> int:
        return next((size for size in self.sizes if size >= batch), batch)

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        batch = self.runs_as(batch) if self.rounds_up else batch
        self.driver.enter("enqueue", self.stage)
        if self.closed or not 1 <= batch <= self.max_batch:
            self.driver.misuse(f"batch {batch} for an engine that takes {self.max_batch}, closed: {self.closed}")
        if stream.recording is None:
            self.seen.add((stream.handle, batch))
        elif (stream.handle, batch) not in self.seen:
            self.driver.misuse("a batch recorded that was never run before")
        refusal = self.refuses(batch)
        if refusal is not None:
            raise refusal
        sizes = {"input": self.spec.input.bytes}
        if self.spec.output is not None:
            sizes["activation"] = self.spec.output.bytes
        if self.spec.exit_head is not None:
            sizes["logits"] = self.spec.exit_head.classes * np.dtype(self.logits).itemsize
        spans = {name: Span(addresses[name], batch * size) for name, size in sizes.items()}
        # In two steps, so that another batch of this engine may come between them if nothing keeps it from it.
        self.driver.queue(stream, Work("engine begins", self._begin))
        self.driver.queue(stream, Work("engine", lambda: self._run(batch, spans), list(spans.values())))

    def close(self) -> None:
        self.closed = True

    def _begin(self) -> None:
        self.busy += 1
        if self.busy > 1:
            self.driver.misuse("two batches in one engine at a time")

    def _run(self, batch: int, spans: Mapping[str, Span]) -> None:
        self.busy -= 1
        broken = self.breaks(batch)
        if broken is not None:
            raise broken
        spec = self.spec.input
        inputs = self.driver.bytes_at(spans["input"]).view(spec.dtype).reshape(batch, *spec.shape)
        names = [name for name in spans if name != "input"]
        for name, values in zip(names, self._session.run(names, {"input": inputs}), strict=True):
            dtype = self.logits if name == "logits" else values.dtype
            self.driver.bytes_at(spans[name])[:] = np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8)


@dataclass
class Bench:
    """What a test of the executor looks at.

    Attributes:
        engine: options of every engine.
    """

    seed: int = 0
    faults: Mapping[tuple[str, int], Exception] = field(default_factory=dict)
    gate: CompiledGate | None = None
    haste: int = 4
    engine: dict[str, Any] = field(default_factory=dict)
    drivers: list[FakeDriver] = field(default_factory=list)
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def driver(self) -> FakeDriver:
        """The one that was opened last."""
        return self.drivers[-1]

    def open(self) -> FakeDriver:
        """A driver, as `CudaStages` asks for one."""
        self.drivers.append(FakeDriver(seed=self.seed, faults=self.faults, gate=self.gate, haste=self.haste))
        return self.driver

    def load(self, bundle: Bundle, driver: Driver, stage: int, max_batch: int) -> FakeEngine:
        """An engine; likewise."""
        assert isinstance(driver, FakeDriver)
        self.engines.append(FakeEngine(driver, bundle, stage, **{"max_batch": max_batch, **self.engine}))
        return self.engines[-1]

    def executor(self, bundle: Bundle, stages: Sequence[int], *, slots: int = SLOTS, max_batch: int = MAX_BATCH) -> CudaStages:
        return CudaStages(bundle, stages, driver=self.open, engine=partial(self.load, bundle), slots=slots, max_batch=max_batch)

    def check(self) -> None:
        """Nothing was misused."""
        for driver in self.drivers:
            if driver.misuses:
                raise Misuse(driver.misuses[0])


class FakeCuda(CudaStages):
    """As a topology names it: `tests.executors.cuda.engines:FakeCuda`."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "") -> None:
        self.bench = Bench(seed=len(stages))
        super().__init__(bundle, stages, driver=self.bench.open, engine=partial(self.bench.load, bundle), max_batch=16)

    def close(self) -> None:
        super().close()
        self.bench.check()


Make = Callable[..., CudaStages]


def on_owner(executor: CudaStages, *, collect: bool = True) -> None:
    """All that was posted before has been done; what nobody refers to has been given back."""
    if collect:
        gc.collect()
    executor._owner.call(lambda: None)


def assert_all_given_back(executor: CudaStages, *, collect: bool = True) -> None:
    on_owner(executor, collect=collect)
    for lane in executor._lanes.values():
        assert len(lane.idle) == len(lane.slots)
        assert len(lane.kept) == len(lane.pinned) == 0


def until(condition: Callable[[], bool]) -> None:
    """Gives other threads time until the condition holds."""
    for _ in range(20_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to that")

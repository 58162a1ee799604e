"""Times on the device, by its own events: engine, gate with the copy of its decisions, gather.

What is timed is queued behind work that keeps the device busy meanwhile: else a kernel of a few microseconds would be measured
together with the time that Python takes to launch the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.gpus.spread import Spread, spread
from zpipe.executors.base import sample_inputs
from zpipe.executors.cuda.driver import Driver, Event, Graph, Memory, PinnedMemory, StageEngine, Stream
from zpipe.executors.cuda.gate import Gate, decisions_bytes
from zpipe.model import NEVER_EXIT, ExitHead, StageSpec

#: Engine runs queued before what is timed: longer than queueing the rest takes.
LEAD_RUNS = 3


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Of one stage at one batch size, microseconds on the device.

    Attributes:
        engine: the network alone.
        gate: decisions, and their copy to the host; None without an exit head.
        gather: the copy of all rows into one run of bytes, which is the most it ever does; None without a gate or an activation.
    """

    stage: int
    batch: int
    engine: Spread
    gate: Spread | None
    gather: Spread | None


class StageBench:
    """One stage with memory for `rows` rows, ready to be timed at any batch up to that. All calls in the driver's thread."""

    def __init__(self, driver: Driver, gate: Gate, engine: StageEngine, spec: StageSpec, rows: int) -> None:
        self._driver, self._gate, self._engine, self.spec = driver, gate, engine, spec
        self._stream = driver.stream()
        self._events = [driver.event(timing=True) for _ in range(4)]
        self._held: list[Memory | PinnedMemory] = []
        self._graphs: dict[int, Graph] = {}
        self._addresses = {"input": self._upload(rows)}
        self._thresholds = self._allocate(4 * rows)
        fill = self._pin(4 * rows)
        fill.array.view(np.float32)[:] = NEVER_EXIT
        driver.copy_in(self._thresholds, fill, 4 * rows, self._stream)
        self._compacted = 0
        if spec.output is not None:
            self._addresses["activation"] = self._allocate(rows * spec.output.bytes)
            self._compacted = self._allocate(rows * spec.output.bytes)
        if spec.exit_head is not None:
            self._addresses["logits"] = self._allocate(rows * spec.exit_head.classes * np.dtype(engine.logits).itemsize)
            self._decisions, self._record = self._allocate(decisions_bytes(rows)), self._pin(decisions_bytes(rows))
        self._stream.synchronize()

    def times(self, batch: int, rounds: int) -> StageTimes:
        """Measures `rounds` times."""
        run = self._runner(batch)
        seconds = np.array([self._once(batch, run) for _ in range(rounds)])
        engine, gate, gather = (spread(1e6 * seconds[:, column]) for column in range(3))
        decides, goes_on = self.spec.exit_head is not None, self.spec.output is not None
        return StageTimes(self.spec.index, batch, engine, gate if decides else None, gather if decides and goes_on else None)

    def close(self) -> None:
        """Frees all but driver and engine."""
        self._stream.synchronize()
        for graph in self._graphs.values():
            graph.free()
        for memory in self._held:
            memory.free()

    def _runner(self, batch: int) -> Callable[[], None]:
        """The engine's work as the executor queues it: a recorded graph where the engine can be recorded."""
        engine, stream, addresses = self._engine, self._stream, self._addresses
        for _ in range(2):  # what is compiled or tuned at the first batch of a size is not what is asked for
            engine.enqueue(batch, addresses, stream)
        stream.synchronize()
        if not engine.capturable:
            return lambda: engine.enqueue(batch, addresses, stream)
        if batch not in self._graphs:
            self._driver.begin_capture(stream)
            engine.enqueue(batch, addresses, stream)
            self._graphs[batch] = self._driver.end_capture(stream)
        graph = self._graphs[batch]
        return lambda: graph.launch(stream)

    def _once(self, batch: int, run: Callable[[], None]) -> tuple[float, float, float]:
        """Seconds of engine, gate and gather."""
        stream, events, head, output = self._stream, self._events, self.spec.exit_head, self.spec.output
        for _ in range(LEAD_RUNS):
            run()
        events[0].record(stream)
        run()
        events[1].record(stream)
        if head is not None:
            self._decide(head, batch, stream)
        events[2].record(stream)
        if head is not None and output is not None:
            self._gate.gather(
                activation=self._addresses["activation"],
                row_bytes=output.bytes,
                rows=batch,
                decisions=self._decisions,
                out=self._compacted,
                stream=stream,
            )
        events[3].record(stream)
        stream.synchronize()
        first, second, third = _between(events)
        return first, second, third

    def _decide(self, head: ExitHead, batch: int, stream: Stream) -> None:
        """At the last stage, too, as any other: there all rows leave and none is counted, which takes no longer."""
        assert self._engine.logits is not None
        self._gate.decide(
            rule="max-probability",
            temperature=head.temperature,
            logits=self._addresses["logits"],
            dtype=self._engine.logits,
            rows=batch,
            classes=head.classes,
            thresholds=self._thresholds,
            last=False,
            decisions=self._decisions,
            stream=stream,
        )
        self._driver.copy_out(self._record, self._decisions, decisions_bytes(batch), stream)

    def _upload(self, rows: int) -> int:
        inputs = sample_inputs(self.spec, rows)
        pinned, address = self._pin(inputs.nbytes), self._allocate(inputs.nbytes)
        pinned.array[:] = inputs.reshape(-1).view(np.uint8)
        self._driver.copy_in(address, pinned, inputs.nbytes, self._stream)
        return address

    def _allocate(self, nbytes: int) -> int:
        memory = self._driver.allocate(nbytes)
        self._held.append(memory)
        return memory.address

    def _pin(self, nbytes: int) -> PinnedMemory:
        memory = self._driver.pinned(nbytes)
        self._held.append(memory)
        return memory


def _between(events: Sequence[Event]) -> list[float]:
    return [later.seconds_since(earlier) for earlier, later in pairwise(events)]

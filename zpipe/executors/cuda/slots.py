"""One stage on the device: its engine, the slots its batches pass through, and where their survivors wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError
from zpipe.executors.cuda.arena import Arena, aligned
from zpipe.executors.cuda.driver import Driver, Event, Graph, Memory, PinnedMemory, StageEngine
from zpipe.executors.cuda.gate import MAX_ROWS, Encoding, Gate, decisions_bytes, encoded_row_bytes
from zpipe.executors.cuda.rows import Kept, Lease, Post, array_over
from zpipe.model import GateSpec, StageSpec, TensorSpec

#: Full batches that may be somewhere between this stage and the next at a time, on the device or in pinned memory; those beyond it
#: take the way that costs a copy more.
HELD_BATCHES = 4

#: Of the slot's memory: offset of the thresholds behind so many bytes of input. The same alignment as the driver's own.
_thresholds_at = aligned


class Copy(NamedTuple):
    """A piece of a batch's input: from the slot's pinned memory at the same offset, or from `address` on the device."""

    offset: int
    nbytes: int
    address: int = 0


class HeadMemory(NamedTuple):
    """Of a slot: what the gate reads and writes on the device, and `record`, the pinned copy of the decisions."""

    logits: Memory
    decisions: Memory
    record: PinnedMemory
    compacted: Memory | None


class Slot:
    """Memory, stream and events for one batch of a stage at a time.

    Attributes:
        host: pinned: the input, its thresholds behind it; when both have crossed, survivors that find no room in the arena.
        input, activation: on the device; the last stage has no activation.
        head: what a stage with an exit head has beyond that.
        graphs: {rows: the engine's work on them}; a smaller batch may be run by one (`StageEngine.runs_as`).
    """

    def __init__(self, driver: Driver, spec: StageSpec, rows: int, logits_bytes: int, keep: list[Memory | PinnedMemory]) -> None:
        """Args: keep: gets each piece of memory as it is made, so that none is lost if the next fails."""

        def device(nbytes: int) -> Memory:
            keep.append(memory := driver.allocate(nbytes))
            return memory

        def pinned(nbytes: int) -> PinnedMemory:
            keep.append(memory := driver.pinned(nbytes))
            return memory

        input_bytes = aligned(rows * spec.input.bytes) + 4 * rows
        output_bytes = 0 if spec.output is None else rows * spec.output.bytes
        self.host = pinned(max(input_bytes, output_bytes))
        self.input = device(input_bytes)
        self.activation = device(output_bytes) if output_bytes else None
        self.head: HeadMemory | None = None
        if logits_bytes:
            record_bytes = decisions_bytes(rows)
            compacted = device(output_bytes) if output_bytes else None
            self.head = HeadMemory(device(logits_bytes), device(record_bytes), pinned(record_bytes), compacted)
        self.stream = driver.stream()
        self.computed, self.decided, self.finished = driver.event(), driver.event(), driver.event()
        self.graphs: dict[int, Graph] = {}
        self.addresses = {"input": self.input.address}
        if self.activation is not None:
            self.addresses["activation"] = self.activation.address
        if self.head is not None:
            self.addresses["logits"] = self.head.logits.address


class Lane:
    """A stage, loaded. Made, used and freed on the owner's thread, but for `idle`, which its executor's lock guards.

    Args:
        max_batch: rows its batches are to have; the engine may take more, but memory is for these.
        resident: whether the survivors stay on the device.
        post: gives regions back.
        fetch: copies what was kept on the device to the host.

    Attributes:
        rows: most rows of a batch.
        idle: slots that no batch has.
        out: a survivor's row as it is given; None at the last stage.
        kept, pinned: arenas of the survivors, on the device and in pinned memory; the first is used where these stay.
        spilled: batches whose survivors found no room.

    Raises:
        ExecutorError: the engine's outputs are not the stage's.
        ExecutorLost: there is not enough memory.
    """

    def __init__(
        self,
        driver: Driver,
        gate: Gate | None,
        engine: StageEngine,
        spec: StageSpec,
        *,
        max_batch: int,
        slots: int,
        resident: bool,
        post: Post,
        fetch: Callable[[Kept], npt.NDArray[np.uint8]],
    ) -> None:
        self.driver, self.gate, self.engine, self.spec = driver, gate, engine, spec
        self.rows = engine.runs_as(min(max_batch, engine.max_batch, MAX_ROWS))
        self.capturable = engine.capturable
        self.out: TensorSpec | None = spec.output
        self._codec: Encoding = "none"
        self.spilled = 0
        self._post, self._fetch = post, fetch
        self._engine_free: Event | None = None
        self._memory: list[Memory | PinnedMemory] = []  #: all but the pinned arena's
        self._kept_memory: Memory | None = None
        self._pinned_memory: PinnedMemory | None = None
        self._pinned_address = 0
        self.slots: list[Slot] = []
        self.idle: deque[Slot] = deque()
        held = 0 if spec.output is None else HELD_BATCHES * aligned(self.rows * spec.output.bytes)
        self.kept, self.pinned = Arena(held if resident else 0), Arena(0 if resident else held)
        try:
            self._allocate(slots)
        except BaseException:
            self.free()
            raise
        self.idle.extend(self.slots)

    def _allocate(self, slots: int) -> None:
        driver, engine, spec, head = self.driver, self.engine, self.spec, self.spec.exit_head
        if (head is None) != (engine.logits is None):
            found, expected = ("without", "with") if engine.logits is None else ("with", "without")
            raise ExecutorError(
                f"stage {spec.index}: found an engine {found} logits, expected one {expected} as in the manifest; build it again"
            )
        logits_bytes = 0 if head is None else self.rows * head.classes * np.dtype(engine.logits).itemsize
        for _ in range(slots):
            self.slots.append(Slot(driver, spec, self.rows, logits_bytes, self._memory))
        if self.kept.nbytes:
            self._memory.append(memory := driver.allocate(self.kept.nbytes))
            self._kept_memory = memory
        if self.pinned.nbytes:
            self._pinned_memory = driver.pinned(self.pinned.nbytes)
            self._pinned_address = self._pinned_memory.array.ctypes.data

    def free(self) -> None:
        """Frees all but the pinned arena, which may be in somebody's hands yet. Nothing is under way any more."""
        for slot in self.slots:
            with suppress(ExecutorError):
                slot.stream.synchronize()
            for graph in slot.graphs.values():
                with suppress(ExecutorError):
                    graph.free()
            slot.graphs = {}
        with suppress(ExecutorError):
            self.engine.close()
        for memory in self._memory:
            with suppress(ExecutorError):
                memory.free()
        # Streams and events go with the last reference to them: here, where their context is current.
        self._memory, self.slots, self._engine_free = [], [], None
        self.idle.clear()

    def free_pinned(self) -> None:
        """Frees the pinned arena, when nobody has any of it."""
        if self._pinned_memory is not None:
            with suppress(ExecutorError):
                self._pinned_memory.free()
            self._pinned_memory = None

    # ---- the engine's work as graphs -----------------------------------------------------------

    def capture(self, slot: Slot, sizes: Sequence[int], copies: Sequence[Copy]) -> None:
        """Records the engine's work on batches of these sizes, in an idle slot whose pinned memory holds a sample input.

        The engine alone: it is many kernels, the gate is one, and what stays outside may differ from batch to batch (rule,
        temperature, where the survivors go).

        Raises:
            ExecutorError: it cannot be recorded; the slot is as it was.
        """
        self._copy_inputs(slot, copies)
        for rows in sizes:
            # Once as it is: what an engine prepares at the first batch of a size must not be part of the recording.
            self._await_engine(slot)
            self.engine.enqueue(rows, slot.addresses, slot.stream)
            self._engine_queued(slot)
            slot.stream.synchronize()  # recorded is what the engine does once it has settled
            self.driver.begin_capture(slot.stream)
            try:
                self.engine.enqueue(rows, slot.addresses, slot.stream)
            except BaseException:
                with suppress(ExecutorError):
                    self.driver.end_capture(slot.stream).free()
                raise
            slot.graphs[rows] = self.driver.end_capture(slot.stream)

    def drop_graphs(self) -> None:
        """Runs without them from now on."""
        self.capturable = False
        for slot in self.slots:
            slot.stream.synchronize()
            graphs, slot.graphs = slot.graphs, {}
            for graph in graphs.values():
                graph.free()

    # ---- what a batch queues -------------------------------------------------------------------

    def queue_engine(self, slot: Slot, copies: Sequence[Copy], rows: int) -> None:
        """The inputs and the engine."""
        self._copy_inputs(slot, copies)
        self._await_engine(slot)
        graph = slot.graphs.get(self.engine.runs_as(rows))
        if graph is None:
            self.engine.enqueue(rows, slot.addresses, slot.stream)
        else:
            graph.launch(slot.stream)
        self._engine_queued(slot)

    def queue_decisions(self, slot: Slot, head: HeadMemory, rows: int, spec: GateSpec) -> None:
        """The gate, and the copy of what it decides."""
        assert self.gate is not None
        assert self.spec.exit_head is not None
        assert self.engine.logits is not None
        self.gate.decide(
            rule=spec.rule,
            temperature=spec.temperature,
            logits=head.logits.address,
            dtype=self.engine.logits,
            rows=rows,
            classes=self.spec.exit_head.classes,
            thresholds=slot.input.address + _thresholds_at(rows * self.spec.input.bytes),
            last=spec.last,
            decisions=head.decisions.address,
            stream=slot.stream,
        )
        self.driver.copy_out(head.record, head.decisions.address, decisions_bytes(rows), slot.stream)
        slot.decided.record(slot.stream)

    def queue_gather(self, slot: Slot, head: HeadMemory, activation: Memory, rows: int, target: int) -> None:
        """The survivors' rows, one after the other and coded where they leave so, to `target`."""
        assert self.gate is not None
        assert self.spec.output is not None
        self.gate.gather(
            activation=activation.address,
            row_bytes=self.spec.output.bytes,
            rows=rows,
            decisions=head.decisions.address,
            out=target,
            stream=slot.stream,
            encoding=self._codec,
            channels=_channels(self.spec.output),
        )

    def encode(self, codec: Encoding) -> None:
        """The survivors' rows leave coded from the next batch on. Only of a stage with an exit head whose survivors do not stay."""
        output = self.spec.output
        assert output is not None
        self._codec = codec
        self.out = TensorSpec("uint8", (encoded_row_bytes(codec, output.bytes, channels=_channels(output)),))

    def keep(self, nbytes: int) -> Kept | None:
        """Room on the device; None where there is none, or the survivors do not stay."""
        begin = self.kept.take(nbytes) if self._kept_memory is not None else None
        if begin is None or self._kept_memory is None:
            return None
        return Kept(Lease(self.kept, begin, nbytes, self._post), self._kept_memory.address + begin, self._fetch)

    def queue_out(self, slot: Slot, address: int, rows: int) -> npt.NDArray[Any] | None:
        """The copy of `rows` rows to the host; where they will be, None for the slot's own memory."""
        output = self.out
        assert output is not None
        nbytes = rows * output.bytes
        begin = self.pinned.take(nbytes) if self._pinned_memory is not None else None
        if begin is None or self._pinned_memory is None:
            self.spilled += 1
            self.driver.copy_out(slot.host, address, nbytes, slot.stream)
            return None
        lease = Lease(self.pinned, begin, nbytes, self._post)
        array = array_over(lease, self._pinned_address + begin, (rows, *output.shape), np.dtype(output.dtype))
        self.driver.copy_out(self._pinned_memory, address, nbytes, slot.stream, offset=begin)
        return array

    def _copy_inputs(self, slot: Slot, copies: Sequence[Copy]) -> None:
        for offset, nbytes, address in copies:
            if address:
                self.driver.copy_across(slot.input.address + offset, address, nbytes, slot.stream)
            else:
                self.driver.copy_in(slot.input.address + offset, slot.host, nbytes, slot.stream, offset=offset)

    def _await_engine(self, slot: Slot) -> None:
        if self._engine_free is not None and self._engine_free is not slot.computed:
            self.driver.wait(slot.stream, self._engine_free)

    def _engine_queued(self, slot: Slot) -> None:
        slot.computed.record(slot.stream)
        self._engine_free = slot.computed


def _channels(spec: TensorSpec) -> int:
    """As the codec `int8` has them."""
    return spec.shape[0] if len(spec.shape) > 1 else 1

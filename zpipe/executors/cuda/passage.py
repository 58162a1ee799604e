"""The steps of a batch through a slot of its stage.

    caller's thread    input and thresholds into the slot's pinned memory
    owner's thread     copy to the device, engine, gate, copy of the decisions, [decided], gather blind for the whole batch
                       ... [decided] is done: now the number of survivors is known ...
                       copy of exactly their rows, [finished]
                       ... [finished] is done ...
    caller's thread    decisions and activation out of the pinned memory

Each slot has a stream of its own, so the copies of one batch run beside the kernels of another. A stage's engine is one set of
work buffers, so it takes one batch at a time: each slot's stream waits for the engine to be through with the batch before.
The gather is behind the copy of the decisions, so that the host has them while it runs.

Survivors that stay on the device are gathered into the stage's arena at once; whether one has room for the whole batch is known at
the launch. Where it has not, or the next stage is elsewhere, they go to the host's arena, and where that is full through the slot's
own pinned memory into an ordinary array.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError
from zpipe.executors.cuda.driver import Event
from zpipe.executors.cuda.rows import DeviceRows, Kept, Part
from zpipe.executors.cuda.slots import Copy, HeadMemory, Lane, Slot
from zpipe.model import GateSpec


@dataclass(slots=True, eq=False)
class Passage:
    """One batch in a slot (`owner.Job`).

    Attributes:
        copies: what brings its input and thresholds to the device.
        survivors: rows that go on, -1 until that is known.
        kept, array: where these are or will be: on the device, or on the host; neither: in the slot's `host`.
        error: why it failed.
        wall_seconds: from its launch, or the end of the one before it if that was later, to its end.
        cpu_seconds: of the owner's thread.
    """

    lane: Lane
    slot: Slot
    rows: int
    gate: GateSpec
    copies: Sequence[Copy]
    survivors: int = -1
    kept: Kept | None = None
    array: npt.NDArray[Any] | None = None
    error: BaseException | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    awaits: Event | None = None
    launched_at: float = 0.0
    _answered: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        """Until it is answered; raises what it failed with."""
        try:
            self._answered.wait()
        except BaseException:
            self._answered.wait()  # Ctrl-C, but the device has the slot and the rows it was given until then
            raise
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback knows this batch: neither may keep the other, and the rows of both, until a collection

    # ---- on the owner's thread -----------------------------------------------------------------

    def launch(self) -> bool:
        """Queues all that does not depend on the decisions."""
        cpu = time.thread_time()
        self.lane.queue_engine(self.slot, self.copies, self.rows)
        if self.slot.head is None:
            self._all_stay()
        else:
            self._gate_decides(self.slot.head)
        self.cpu_seconds = time.thread_time() - cpu
        return False

    def go_on(self) -> bool:
        """After the decisions: the survivors' copy; after that: nothing."""
        if self.survivors >= 0:
            return True
        cpu = time.thread_time()
        slot, output, head = self.slot, self.lane.spec.output, self.slot.head
        assert head is not None
        self.survivors = int(head.record.array[:4].view(np.int32)[0])
        if not 0 <= self.survivors <= self.rows:
            # Not of this batch: rather no answer than another's rows.
            raise ExecutorError(f"stage {self.lane.spec.index}: found {self.survivors} survivors of {self.rows} rows; run it again")
        if output is None or self.survivors == 0 or self.gate.last:
            self.survivors, self.kept = 0, None
        elif self.kept is not None:
            self.kept.lease.shrink(self.survivors * output.bytes)
            self.awaits = slot.finished
        else:
            assert head.compacted is not None
            self._copy_out(head.compacted.address)
        self.cpu_seconds += time.thread_time() - cpu
        return self.survivors == 0

    def abandon(self) -> None:
        """Waits until nothing of it is under way: its slot and its rows go to others."""
        self.slot.stream.synchronize()

    def answer(self, error: BaseException | None, finished_at: float, free_since: float) -> None:
        """Wakes its caller."""
        self.error = error
        self.wall_seconds = finished_at - max(self.launched_at, free_since)
        self._answered.set()

    def _all_stay(self) -> None:
        """Without an exit head the survivors are known: all rows."""
        slot, output = self.slot, self.lane.spec.output
        assert slot.activation is not None
        assert output is not None
        self.survivors = self.rows
        self.kept = self.lane.keep(self.rows * output.bytes)
        if self.kept is None:
            self._copy_out(slot.activation.address)
        else:
            self.lane.driver.copy_across(self.kept.address, slot.activation.address, self.rows * output.bytes, slot.stream)
            self._await_finish()

    def _gate_decides(self, head: HeadMemory) -> None:
        slot, output = self.slot, self.lane.spec.output
        self.lane.queue_decisions(slot, head, self.rows, self.gate)
        self.awaits = slot.decided
        if output is None or self.gate.last:
            return
        assert slot.activation is not None
        assert head.compacted is not None
        self.kept = self.lane.keep(self.rows * output.bytes)
        target = head.compacted.address if self.kept is None else self.kept.address
        self.lane.queue_gather(slot, head, slot.activation, self.rows, target)
        if self.kept is not None:
            slot.finished.record(slot.stream)

    def _copy_out(self, address: int) -> None:
        self.array = self.lane.queue_out(self.slot, address, self.survivors)
        self._await_finish()

    def _await_finish(self) -> None:
        self.slot.finished.record(self.slot.stream)
        self.awaits = self.slot.finished

    # ---- on the caller's thread again ----------------------------------------------------------

    def activation(self, home: object) -> npt.NDArray[Any] | DeviceRows | None:
        """`[survivors, ...]`; None from the last stage. Before the slot is given back."""
        output = self.lane.out
        if output is None:
            return None
        dtype, shape = np.dtype(output.dtype), (self.survivors, *output.shape)
        if self.survivors == 0:
            return np.empty(shape, dtype)
        if self.kept is not None:
            return DeviceRows(home, [Part(self.kept, 0, self.survivors)], output.shape, dtype)
        if self.array is not None:
            return self.array
        return self.slot.host.array[: self.survivors * output.bytes].view(dtype).reshape(shape).copy()

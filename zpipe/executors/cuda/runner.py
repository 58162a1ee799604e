"""A complete stage executor on an NVIDIA GPU, given the library's driver and engines.

    CudaStages(bundle, [1, 2], driver=PycudaDriver, engine=load_plan)

Activations of a stage whose successor is hosted here as well stay on the device, as `DeviceRows`; `run` takes them back, any rows
of any of them in any order, also mixed with the host's. Whoever else looks at them has them copied to the host: that waits for the
owner's thread (at most 0.5 ms before it looks up, and what it launches in that time), then for a copy through pinned memory, by
the figures of PCIe and memory about 0.2 ms per MiB (not measured yet). The runtime does so where such rows are sent to a neighbour
that hosts the stage too.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.base import StageOutput, check_inputs, open_gate, sample_inputs
from zpipe.executors.cuda.arena import aligned
from zpipe.executors.cuda.driver import Driver, PinnedMemory, StageEngine, Stream
from zpipe.executors.cuda.gate import Encoding, Gate, decisions_bytes, read_decisions
from zpipe.executors.cuda.owner import Owner
from zpipe.executors.cuda.passage import Passage
from zpipe.executors.cuda.rows import DeviceRows, Kept, Part
from zpipe.executors.cuda.slots import Copy, Lane, Slot
from zpipe.executors.gate import GateDecision, check_rows, check_temperature, undecided
from zpipe.model import GateSpec, StageSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

log = logging.getLogger("zpipe.executor")

#: Slots per stage: one computes, one copies in or out. More are of use only to more callers than `parallel`.
SLOTS = 2

#: Rows an engine is asked to take where a stage runs before any `warm_up` said how many.
MAX_BATCH = 32

#: Runs of each stage at batch 1 that `warm_up` takes the median of.
_WARM_UP_RUNS = 5

#: Codecs that the gate's copy can make.
_ENCODINGS: dict[str, Encoding] = {"fp16": "fp16", "int8": "int8"}

#: Rows on their way from the device for somebody else than the next stage go through pinned memory of this size.
_BOUNCE_BYTES = 1 << 20


class CudaStages:
    """The stages one node hosts, on one GPU. Nothing is loaded, nor the device touched, before the first `run` or `warm_up`.

    A batch of more rows than a stage's engine takes is run in pieces, one after the other: an engine that was built for fewer costs
    time and no sample.

    Args:
        bundle: where the stages' specifications come from.
        stages: hosted stages, each within the bundle.
        driver: opens the device; called on the owner's thread.
        engine: `(driver, stage, max_batch)`: a stage's engine, for so many rows if it can; called on the owner's thread.
        slots: batches of one stage that may be under way.
        max_batch: rows to ask engines for, and to take memory for, where a stage runs before `warm_up`.

    Attributes:
        parallel: batches it wants at once: one is copied while the other is computed.
    """

    inline = False
    parallel = 2

    def __init__(
        self,
        bundle: Bundle,
        stages: Sequence[int],
        *,
        driver: Callable[[], Driver],
        engine: Callable[[Driver, int, int], StageEngine],
        slots: int = SLOTS,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self.stages: tuple[int, ...] = tuple(sorted(set(stages)))
        self._bundle = bundle
        self._make_driver, self._make_engine = driver, engine
        self._slots, self._max_batch = slots, max_batch
        self._owner = Owner(parallel=self.parallel, may_sleep=self._nothing_kept)
        self._lanes: dict[int, Lane] = {}  #: loaded so far; written under `_loading`
        self._loading = threading.Lock()
        self._changed = threading.Condition()  #: guards the two below and the lanes' idle slots
        self._inside = 0  #: calls that use slots or the device's memory
        self._closed = False
        # On the owner's thread alone:
        self._driver: Driver | None = None
        self._gate: Gate | None = None
        self._bounce: PinnedMemory | None = None
        self._fetches: Stream | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self._owner.lost else f"inside {self._inside}"
        return f"<{type(self).__name__} {self._bundle.name} | stages {self.stages} | loaded {tuple(self._lanes)} | {state}>"

    @property
    def spilled(self) -> int:
        """Batches whose survivors found no room where they should go, and were copied once more."""
        return sum(lane.spilled for lane in self._lanes.values())

    # ---- StageExecutor -------------------------------------------------------------------------

    def warm_up(self, max_batch: int) -> dict[int, float]:
        """Load every stage, run it at `max_batch` and batch 1; {stage: median seconds per sample at batch 1}.

        Records the engine's work on the common batch sizes as graphs. A stage that was loaded before stays as it is.
        """
        return {stage: self._warm_up_stage(stage, max_batch) for stage in self.stages}

    def run(self, stage: int, inputs: npt.NDArray[Any] | DeviceRows, gate: GateSpec) -> StageOutput:
        """One batch through one stage and its gate; see `StageExecutor.run`. Gives the rows alone that do not exit."""
        with self._entered(stage):
            lane = self._lanes.get(stage) or self._load(stage, self._max_batch)
            rows = inputs if isinstance(inputs, DeviceRows) and inputs.home is self else np.asarray(inputs)
            check_inputs(lane.spec, rows)
            _check_gate(lane.spec, len(rows), gate)
            if len(rows) <= lane.rows:
                return self._run_piece(lane, rows, gate, 0)
            return self._run_in_pieces(lane, rows, gate)

    def encode(self, stage: int, codec: str) -> bool:
        """The gate's own copy of the survivors codes them: fewer bytes cross to the host, which has nothing left to do."""
        spec, lane = self._bundle.stages[stage], self._lanes.get(stage)
        floats = spec.output is not None and spec.output.dtype == "float32"
        if lane is None or not floats or spec.exit_head is None or stage + 1 in self.stages or codec not in _ENCODINGS:
            return False
        lane.encode(_ENCODINGS[codec])
        return True

    def close(self) -> None:
        """Waits for the runs under way and frees all but what somebody still has of its pinned memory; that follows in time."""
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._inside == 0)
        with self._loading:  # whoever closes second waits for the first
            if first and self._owner.started:
                nothing_out = self._owner.call(self._tear_down)
                self._owner.stop(self._all_back)
                if nothing_out:
                    self._owner.join()

    # ---- loading -------------------------------------------------------------------------------

    def _load(self, stage: int, max_batch: int) -> Lane:
        with self._loading:
            if stage not in self._lanes:
                self._owner.start()
                self._lanes[stage] = self._call(partial(self._make_lane, stage, max_batch))
            return self._lanes[stage]

    def _make_lane(self, stage: int, max_batch: int) -> Lane:
        """On the owner's thread."""
        if self._driver is None:
            self._driver = self._make_driver()
        spec = self._bundle.stages[stage]
        if self._gate is None and spec.exit_head is not None:
            self._gate = Gate(self._driver)
        resident = spec.output is not None and stage + 1 in self.stages
        if resident and self._bounce is None:
            self._fetches = self._driver.stream()
            self._bounce = self._driver.pinned(_BOUNCE_BYTES)
        engine = self._make_engine(self._driver, stage, max_batch)
        return Lane(
            self._driver,
            self._gate,
            engine,
            spec,
            max_batch=max_batch,
            slots=self._slots,
            resident=resident,
            post=self._owner.post,
            fetch=self._fetch,
        )

    def _tear_down(self) -> bool:
        """On the owner's thread, with nothing under way: frees what nobody has; whether that is all."""
        for lane in self._lanes.values():
            lane.free()
        if self._bounce is not None:
            with suppress(ExecutorError):
                self._bounce.free()
        self._bounce = self._fetches = self._gate = None
        return not any(len(lane.pinned) for lane in self._lanes.values())

    def _all_back(self) -> bool:
        """On the owner's thread after `_tear_down`: closes the driver once nobody has any of its memory, and says so."""
        if any(len(lane.pinned) for lane in self._lanes.values()):
            return False
        for lane in self._lanes.values():
            lane.free_pinned()
        if self._driver is not None:
            with suppress(ExecutorError):
                self._driver.close()
            self._driver = None
        return True

    # ---- running -------------------------------------------------------------------------------

    def _run_piece(self, lane: Lane, rows: npt.NDArray[Any] | DeviceRows, gate: GateSpec, first: int) -> StageOutput:
        """A batch that fits into a slot; `first`: where its rows begin in the batch the caller gave.

        `rows` is held until the batch is through: so is what it names on the device.
        """
        cpu = time.thread_time()
        with self._slot(lane) as slot:
            batch = Passage(lane, slot, len(rows), gate, _fill(slot, lane.spec, rows, gate))
            self._owner.run(batch)
            batch.wait()
            decision = self._decision(batch, first)
            activation = batch.activation(self)
        cpu_seconds = batch.cpu_seconds + time.thread_time() - cpu
        return StageOutput(activation, *decision, batch.wall_seconds, cpu_seconds)

    def _run_in_pieces(self, lane: Lane, rows: npt.NDArray[Any] | DeviceRows, gate: GateSpec) -> StageOutput:
        whole = np.asarray(rows)
        outputs = []
        for first in range(0, len(whole), lane.rows):
            piece = slice(first, first + lane.rows)
            part = GateSpec(gate.rule, gate.temperature, gate.thresholds[piece], last=gate.last)
            outputs.append(self._run_piece(lane, whole[piece], part, first))
        activations = [np.asarray(output.activation) for output in outputs if output.activation is not None]
        return StageOutput(
            np.concatenate(activations) if activations else None,
            [exited for output in outputs for exited in output.exited],
            [label for output in outputs for label in output.labels],
            [confidence for output in outputs for confidence in output.confidences],
            sum(output.wall_seconds for output in outputs),
            sum(output.cpu_seconds for output in outputs),
        )

    def _decision(self, batch: Passage, first: int) -> GateDecision:
        head = batch.slot.head
        if head is None:
            return undecided(batch.lane.spec.index, batch.rows, batch.gate)
        return read_decisions(head.record.array[: decisions_bytes(batch.rows)], batch.rows, last=batch.gate.last, first_row=first)

    def _fetch(self, kept: Kept) -> npt.NDArray[np.uint8]:
        """What was kept on the device, on the host."""
        with self._entered(None):
            host: npt.NDArray[np.uint8] = self._call(partial(self._copy_kept, kept))
            return host

    def _copy_kept(self, kept: Kept) -> npt.NDArray[np.uint8]:
        """On the owner's thread. All that wrote these bytes was done before the executor gave them away."""
        if kept.host is None:
            assert self._driver is not None
            assert self._bounce is not None
            assert self._fetches is not None
            host = np.empty(kept.lease.nbytes, np.uint8)
            try:
                for begin in range(0, len(host), _BOUNCE_BYTES):
                    piece = host[begin : begin + _BOUNCE_BYTES]
                    self._driver.copy_out(self._bounce, kept.address + begin, len(piece), self._fetches)
                    self._fetches.synchronize()
                    piece[:] = self._bounce.array[: len(piece)]
            except BaseException:
                with suppress(ExecutorError):
                    self._fetches.synchronize()  # nothing may be on its way there when it is used again
                raise
            kept.host = host
        return kept.host

    # ---- warming up ----------------------------------------------------------------------------

    def _warm_up_stage(self, stage: int, max_batch: int) -> float:
        spec = self._bundle.stages[stage]
        with self._entered(stage):
            lane = self._lanes.get(stage) or self._load(stage, max_batch)
            self._record_graphs(lane, min(max_batch, lane.rows))
        self.run(stage, sample_inputs(spec, max_batch), open_gate(spec, max_batch))
        inputs, gate = sample_inputs(spec, 1), open_gate(spec, 1)
        seconds = []
        for _ in range(_WARM_UP_RUNS):
            started = time.perf_counter()
            self.run(stage, inputs, gate)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _record_graphs(self, lane: Lane, max_batch: int) -> None:
        """In every slot, for every size that runs at a common one and that it has none for yet."""
        every = sorted({lane.engine.runs_as(rows) for rows in common_batches(max_batch)})
        inputs, gate = sample_inputs(lane.spec, every[-1]), open_gate(lane.spec, every[-1])
        for slot in lane.slots:
            if not lane.capturable:
                return
            with self._slot(lane, slot):
                sizes = [rows for rows in every if rows not in slot.graphs]
                try:
                    self._call(partial(lane.capture, slot, sizes, _fill(slot, lane.spec, inputs, gate)))
                except ExecutorLost:
                    raise
                except ExecutorError as exc:
                    log.warning("stage %d runs without CUDA graphs: %s", lane.spec.index, exc)
                    self._call(lane.drop_graphs)

    # ---- who may use what ----------------------------------------------------------------------

    def _call(self, function: Callable[[], Any]) -> Any:
        if self._owner.lost is not None:
            raise ExecutorLost(self._owner.lost)
        return self._owner.call(function)

    @contextmanager
    def _entered(self, stage: int | None) -> Iterator[None]:
        """A call that `close` waits for; about a stage, if one is given."""
        with self._changed:
            if self._closed:
                about = "rows on the device" if stage is None else f"stage {stage}"
                raise ExecutorError(f"{about}: found a closed executor, expected an open one; make a new one")
            if stage is not None and stage not in self.stages:
                raise ExecutorError(f"stage {stage}: found {list(self.stages)} hosted here, expected it among them; check `stages`")
            if self._owner.lost is not None:
                raise ExecutorLost(self._owner.lost)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def _slot(self, lane: Lane, wanted: Slot | None = None) -> Iterator[Slot]:
        """A slot for one batch, this one or any; waits until it is idle."""
        with self._changed:
            self._changed.wait_for(lambda: lane.idle if wanted is None else wanted in lane.idle)
            slot = lane.idle.popleft() if wanted is None else wanted
            if wanted is not None:
                lane.idle.remove(wanted)
        try:
            yield slot
        finally:
            with self._changed:
                lane.idle.append(slot)
                self._changed.notify_all()

    def _nothing_kept(self) -> bool:
        """Whether no rows lie on the device that somebody might want on the host; asked on the owner's thread."""
        return not any(len(lane.kept) for lane in tuple(self._lanes.values()))


def common_batches(max_batch: int) -> list[int]:
    """Sizes worth a graph: the powers of two up to the largest batch, and this. Others run as they are, or as the next of these."""
    sizes = [1 << power for power in range(max_batch.bit_length())]
    return sizes if sizes[-1] == max_batch else [*sizes, max_batch]


def _check_gate(spec: StageSpec, rows: int, gate: GateSpec) -> None:
    if spec.exit_head is None:
        undecided(spec.index, rows, gate)
    else:
        check_rows(rows, gate)
        check_temperature(gate.temperature)


def _fill(slot: Slot, spec: StageSpec, rows: npt.NDArray[Any] | DeviceRows, gate: GateSpec) -> list[Copy]:
    """Writes input and thresholds into the slot's pinned memory; what brings them to the device, and rows that lie there."""
    row_bytes, host = spec.input.bytes, slot.host.array
    end = aligned(len(rows) * row_bytes)
    copies: list[Copy] = []
    for offset, (source, first, count) in _placed(rows, row_bytes):
        nbytes = count * row_bytes
        if isinstance(source, Kept):
            copies.append(Copy(offset, nbytes, source.address + first * row_bytes))
        else:
            target = host[offset : offset + nbytes].view(source.dtype).reshape(count, *source.shape[1:])
            np.copyto(target, source[first : first + count])
            copies.append(Copy(offset, nbytes))
    if spec.exit_head is None or gate.last:
        return copies
    with np.errstate(over="ignore"):  # a threshold beyond float32 is an infinity, as in the NumPy gate
        host[end : end + 4 * len(rows)].view(np.float32)[:] = np.array(gate.thresholds, np.float64)
    if len(copies) == 1 and not copies[0].address:
        return [Copy(0, end + 4 * len(rows))]  # one copy takes both
    return [*copies, Copy(end, 4 * len(rows))]


def _placed(rows: npt.NDArray[Any] | DeviceRows, row_bytes: int) -> Iterator[tuple[int, Part]]:
    """(offset in bytes, part) of a batch."""
    offset = 0
    for part in rows.parts if isinstance(rows, DeviceRows) else (Part(rows, 0, len(rows)),):
        yield offset, part
        offset += part.rows * row_bytes

"""A CUDA device that does nothing until it must, and then in an order nobody asked for (`zpipe.executors.cuda.driver`).

What is queued on a stream is done when the host synchronizes with it, or bit by bit while the host looks at events; between streams
that do not wait for each other in a seeded random order. So whoever reads without waiting reads what was there before: pinned
memory that a copy is on its way to holds `STALE`, fresh device memory `UNSET`, freed memory `GONE`. It also finds, as `Misuse`:

- calls from another thread than the one that made the driver, and after its close;
- addresses outside of what is allocated, when work is queued and when it is done, and memory that is freed under pending work;
- pinned memory that the host changes before a copy has read it, or before a copy to it has ended;
- what may not be done while a stream records a graph; recorded work whose memory is gone.

Device addresses are addresses of this process, so the kernels of gate.cu compiled for the CPU can run on them; where they are not
asked for, NumPy does the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tests.executors.cuda.compiled import CompiledGate
from tests.executors.cuda.kernels import Span, kernel
from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.cuda.driver import Event, Function, Graph, PinnedMemory, Stream

STALE, UNSET, GONE = 0xCD, 0xA5, 0xDD

PATIENCE_SECONDS = 20.0


class Misuse(AssertionError):
    """What a real driver punishes, or does not notice."""


@dataclass(eq=False)
class FakeMemory:
    """A block of the device's or of pinned host memory."""

    driver: FakeDriver
    nbytes: int
    alignment: int
    freed: bool = False

    def __post_init__(self) -> None:
        raw = np.full(self.nbytes + self.alignment, UNSET, np.uint8)
        begin = -raw.ctypes.data % self.alignment
        self.array: npt.NDArray[np.uint8] = raw[begin : begin + self.nbytes]
        self.address = self.array.ctypes.data

    def free(self) -> None:
        self.driver.give_back(self)


@dataclass(eq=False)
class Point:
    """A place in a stream's queue."""

    done: bool = False


@dataclass(eq=False)
class Work:
    """Something queued.

    Attributes:
        does: the thing; None for a mark or a wait.
        spans: the device memory it touches.
        hosts: pinned memory it touches.
        queued: called when it is queued, at each launch of a graph anew.
        mark: is done with it.
        wait: must be done before it.
    """

    name: str
    does: Callable[[], None] | None = None
    spans: Sequence[Span] = ()
    hosts: Sequence[FakeMemory] = ()
    queued: Callable[[], None] | None = None
    mark: Point | None = None
    wait: Point | None = None


@dataclass(eq=False)
class FakeStream:
    driver: FakeDriver
    handle: int
    queue: deque[Work] = field(default_factory=deque)
    recording: list[Work] | None = None

    def synchronize(self) -> None:
        self.driver.enter("synchronize", self.handle, capturable=False)
        self.driver.finish(lambda: not self.queue, self)


@dataclass(eq=False)
class FakeEvent:
    driver: FakeDriver
    point: Point | None = None
    stream: FakeStream | None = None

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.driver.enter("record", stream.handle)
        if stream.recording is not None:
            self.driver.misuse("an event recorded into a graph: nobody here means to")
        self.point, self.stream = Point(), stream
        self.driver.queue(stream, Work("record", mark=self.point))

    def done(self) -> bool:
        self.driver.enter("done", capturable=False)
        self.driver.pass_time()
        return self.point is None or self.point.done

    def synchronize(self) -> None:
        point, stream = self.point, self.stream
        self.driver.enter("event_synchronize", stream.handle if stream else 0, capturable=False)
        if point is not None and stream is not None:
            self.driver.finish(lambda: point.done, stream)

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, FakeEvent)
        if not (self.point and self.point.done and earlier.point and earlier.point.done):
            self.driver.misuse("the time between events that are not done")
        return 1e-3


@dataclass(eq=False)
class FakeFunction:
    name: str


@dataclass(eq=False)
class FakeGraph:
    driver: FakeDriver
    work: list[Work]
    freed: bool = False

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.driver.enter("graph_launch", stream.handle)
        if self.freed:
            self.driver.misuse("a freed graph launched")
        for each in self.work:
            self.driver.queue(stream, each)

    def free(self) -> None:
        with contextlib.suppress(ExecutorLost):  # what belongs to a lost device goes with it
            self.driver.enter("graph_free")
        if not self.freed:
            self.freed = True
            self.driver.graphs -= 1


class FakeDriver:
    """One device; see the module.

    Args:
        seed: of the order in which things are done.
        faults: {(call, which time from 1): what it raises}; ExecutorLost is raised by every later call, too.
        gate: runs the gate's kernels; NumPy does if not given.
        haste: less than so many things are done each time that the host looks at an event.

    Attributes:
        calls: (name, what it was about) of each call, the latest 100,000.
        counts: {name: calls}.
        copied_out: bytes that crossed to the host.
        misuses: what was found; the tests' fixture wants none.
        live: memory that is allocated.
        graphs: how many are there.
        running: cleared, the device stands still: events are not done, and who synchronizes waits.
    """

    device = 0
    name = "a stand-in"
    capability = (8, 6)
    version = 13000

    def __init__(
        self,
        *,
        seed: int = 0,
        faults: Mapping[tuple[str, int], Exception] | None = None,
        gate: CompiledGate | None = None,
        haste: int = 4,
    ) -> None:
        self.calls: deque[tuple[str, int]] = deque(maxlen=100_000)
        self.counts: Counter[str] = Counter()
        self.copied_out = 0
        self.misuses: list[str] = []
        self.live: set[FakeMemory] = set()
        self.graphs = 0
        self.running = threading.Event()
        self.running.set()
        self.closed = False
        self._faults = dict(faults or {})
        self._lost: ExecutorLost | None = None
        self._gate = gate
        self._haste = haste
        self._rng = random.Random(seed)
        self._thread = threading.get_ident()
        self._streams: list[FakeStream] = []

    # ---- zpipe.executors.cuda.driver.Driver ----------------------------------------------------

    def allocate(self, nbytes: int) -> FakeMemory:
        return self._new("allocate", nbytes, 256)

    def pinned(self, nbytes: int) -> FakeMemory:
        return self._new("pinned", nbytes, 4096)

    def stream(self) -> FakeStream:
        self.enter("stream", capturable=False)
        self._streams.append(FakeStream(self, len(self._streams) + 1))
        return self._streams[-1]

    def event(self, *, timing: bool = False) -> FakeEvent:
        self.enter("event", capturable=False)
        return FakeEvent(self)

    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(stream, FakeStream)
        assert isinstance(event, FakeEvent)
        self.enter("wait", stream.handle)
        if event.point is not None:
            self.queue(stream, Work("wait", wait=event.point))

    def copy_in(self, address: int, source: PinnedMemory, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        assert isinstance(source, FakeMemory)
        assert isinstance(stream, FakeStream)
        self.enter("copy_in", nbytes)
        there, here = Span(address, nbytes), self._part(source, offset, nbytes)
        before: list[bytes] = []

        def does() -> None:
            if here.tobytes() != before.pop(0):
                self.misuse("pinned memory changed before it was copied to the device")
            self.bytes_at(there)[:] = here

        self.queue(stream, Work("copy_in", does, [there], [source], lambda: before.append(here.tobytes())))

    def copy_out(self, target: PinnedMemory, address: int, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        assert isinstance(target, FakeMemory)
        assert isinstance(stream, FakeStream)
        self.enter("copy_out", nbytes)
        there, here = Span(address, nbytes), self._part(target, offset, nbytes)

        def does() -> None:
            if (here != STALE).any():
                self.misuse("pinned memory changed while a copy to it was under way")
            here[:] = self.bytes_at(there)
            self.copied_out += nbytes

        self.queue(stream, Work("copy_out", does, [there], [target], lambda: here.fill(STALE)))

    def copy_across(self, address: int, source: int, nbytes: int, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.enter("copy_across", nbytes)
        to, of = Span(address, nbytes), Span(source, nbytes)

        def does() -> None:
            self.bytes_at(to)[:] = self.bytes_at(of)

        self.queue(stream, Work("copy_across", does, [to, of]))

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, Function]:
        self.enter("load", len(image), capturable=False)
        return {name: FakeFunction(name) for name in kernels}

    def launch(
        self,
        function: object,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        stream: Stream,
    ) -> None:
        assert isinstance(function, FakeFunction)
        assert isinstance(stream, FakeStream)
        self.enter("launch", stream.handle)
        spans, numpy = kernel(function.name, grid, arguments)

        def does() -> None:
            if self._gate is None:
                numpy(self.bytes_at)
            else:
                self._gate.launch(function.name, grid, block, arguments, order=self._rng.randrange(9))

        self.queue(stream, Work(function.name, does, spans))

    def begin_capture(self, stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        self.enter("begin_capture", stream.handle, capturable=False)
        stream.recording = []

    def end_capture(self, stream: Stream) -> Graph:
        assert isinstance(stream, FakeStream)
        recorded, stream.recording = stream.recording, None
        self.enter("end_capture", stream.handle)
        if recorded is None:
            raise ExecutorError("CUDA: found a stream that does not record, expected one that does")
        self.graphs += 1
        return FakeGraph(self, recorded)

    def close(self) -> None:
        if self.closed:
            return
        with contextlib.suppress(ExecutorLost):
            self.enter("close", capturable=False)
        self.closed = True
        if self.live:
            self.misuse(f"closed with {len(self.live)} blocks of memory that nobody freed")
        if self.graphs:
            self.misuse(f"closed with {self.graphs} graphs that nobody freed")

    # ---- what happens on the device ------------------------------------------------------------

    def queue(self, stream: FakeStream, work: Work) -> None:
        """Appends to a stream, or to what it records."""
        for span in work.spans:
            self.bytes_at(span)
        if stream.recording is not None:
            stream.recording.append(work)
            return
        if work.queued is not None:
            work.queued()
        stream.queue.append(work)

    def pass_time(self) -> None:
        """Does a little of what is queued."""
        if self.running.is_set():
            for _ in range(self._rng.randrange(self._haste)):
                ready = [stream for stream in self._streams if self._ready(stream)]
                if ready:
                    self._step(self._rng.choice(ready))

    def finish(self, over: Callable[[], bool], stream: FakeStream) -> None:
        """Does what the stream needs, and other things, until `over()`."""
        if not self.running.wait(PATIENCE_SECONDS):
            self.misuse("waits for a device that stands still")
        while not over():
            others = [each for each in self._streams if self._ready(each)]
            if others and self._rng.random() < 0.3:
                self._step(self._rng.choice(others))
            else:
                self._step(self._needed(stream))

    def bytes_at(self, span: Span) -> npt.NDArray[np.uint8]:
        """The device's memory there."""
        begin, end = span.address, span.address + span.nbytes
        for memory in self.live:
            if memory.alignment == 256 and memory.address <= begin and end <= memory.address + memory.nbytes:
                break
        else:
            self.misuse(f"{span.nbytes} bytes at {begin:#x} of the device, which are not allocated")
        return memory.array[begin - memory.address : end - memory.address]

    def _ready(self, stream: FakeStream) -> bool:
        if not stream.queue:
            return False
        wait = stream.queue[0].wait
        return wait is None or wait.done

    def _needed(self, stream: FakeStream) -> FakeStream:
        """This stream, or whose turn it is before it can go on."""
        while not self._ready(stream):
            wait = stream.queue[0].wait
            stream = next(each for each in self._streams if any(work.mark is wait for work in each.queue))
        return stream

    def _step(self, stream: FakeStream) -> None:
        work = stream.queue.popleft()
        if work.does is not None:
            try:
                work.does()
            except ExecutorLost as exc:
                self._lost = exc
                raise
        if work.mark is not None:
            work.mark.done = True

    # ---- rules ---------------------------------------------------------------------------------

    def enter(self, name: str, about: int = 0, *, capturable: bool = True) -> None:
        """Every call comes by here first."""
        if threading.get_ident() != self._thread:
            self.misuse(f"{name} from thread {threading.current_thread().name}")
        if self.closed and name != "close":
            self.misuse(f"{name} after close")
        self.calls.append((name, about))
        self.counts[name] += 1
        if self._lost is not None:
            raise ExecutorLost(str(self._lost))
        fault = self._faults.get((name, self.counts[name]))
        if fault is not None:
            if isinstance(fault, ExecutorLost) and name not in ("allocate", "pinned"):
                self._lost = fault
            raise type(fault)(*fault.args)  # anew: its traceback holds what the caller had
        if not capturable and any(stream.recording is not None for stream in self._streams):
            raise ExecutorError(f"CUDA: found {name} while a stream records, expected only work that is queued")

    def heal(self) -> None:
        """No faults any more."""
        self._faults.clear()

    def give_back(self, memory: FakeMemory) -> None:
        with contextlib.suppress(ExecutorLost):  # what belongs to a lost device goes with it
            self.enter("free", memory.nbytes, capturable=False)
        if memory.freed:
            return
        for work in (work for stream in self._streams for work in stream.queue if self._lost is None):
            inside = any(memory.address <= span.address < memory.address + memory.nbytes for span in work.spans)
            if inside or memory in work.hosts:
                self.misuse(f"memory freed under {work.name}")
        memory.freed = True
        memory.array.fill(GONE)
        self.live.discard(memory)

    def misuse(self, what: str) -> NoReturn:
        self.misuses.append(what)
        raise Misuse(what)

    def _new(self, name: str, nbytes: int, alignment: int) -> FakeMemory:
        self.enter(name, nbytes, capturable=False)
        if nbytes < 1:
            self.misuse(f"{name} of {nbytes} bytes")
        self.live.add(memory := FakeMemory(self, nbytes, alignment))
        return memory

    def _part(self, memory: FakeMemory, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        if memory.freed or memory not in self.live:
            self.misuse("a copy of pinned memory that is freed")
        if nbytes < 1 or offset < 0 or offset + nbytes > memory.nbytes:
            self.misuse(f"a copy of bytes {offset}..{offset + nbytes} of {memory.nbytes} in pinned memory")
        return memory.array[offset : offset + nbytes]

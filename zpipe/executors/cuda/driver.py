"""The few CUDA driver calls a stage executor makes, as one small interface.

pycuda implements it (`pycuda.py`), torch does (`torch.py`), and the tests do without a GPU. All of it belongs to one thread: the
one that made the driver makes every call and closes it. Addresses are plain ints, sizes are bytes, so that engines of any library
and our own kernels can be handed the same memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Memory(Protocol):
    """Memory of the device.

    Attributes:
        address: where it begins there.
        nbytes: its size.
    """

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def free(self) -> None:
        """Gives it back; idempotent. Nothing under way may still use it."""


class PinnedMemory(Protocol):
    """Page-locked memory of the host: the device copies from and to it while the host goes on.

    Attributes:
        array: `[nbytes] uint8`, what the host reads and writes.
        nbytes: its size.
    """

    @property
    def array(self) -> npt.NDArray[np.uint8]: ...
    @property
    def nbytes(self) -> int: ...

    def free(self) -> None:
        """Gives it back; idempotent. No view of `array` may be used afterwards."""


class Stream(Protocol):
    """A queue of work on the device, independent of the default stream.

    Attributes:
        handle: the CUstream, as engines want it.
    """

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> None:
        """Waits, without the GIL, until all that was queued is done."""


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Stream) -> None:
        """The point is now the stream's present end."""

    def done(self) -> bool:
        """Whether all before the point is done."""

    def synchronize(self) -> None:
        """Waits for the point without the GIL."""

    def seconds_since(self, earlier: Event) -> float:
        """Seconds on the device between two points that are done; both made with `timing`."""


class Function(Protocol):
    """A kernel of a loaded module."""


class Graph(Protocol):
    """Captured work that is queued again with one call."""

    def launch(self, stream: Stream) -> None: ...

    def free(self) -> None: ...


class Driver(Protocol):
    """One device's primary context, current in the thread that made this. What it makes is freed before `close`.

    Attributes:
        device: ordinal.
        name: of the device, as the driver says it.
        capability: compute capability, (major, minor).
        version: the CUDA version the driver supports, 1000 * major + 10 * minor.

    A call that fails raises ExecutorError; one after which the context is unusable (an illegal address, a lost device) raises
    ExecutorLost.
    """

    @property
    def device(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def capability(self) -> tuple[int, int]: ...
    @property
    def version(self) -> int: ...

    def allocate(self, nbytes: int) -> Memory:
        """Device memory, aligned to 256 bytes.

        Raises:
            ExecutorLost: there is not enough.
        """

    def pinned(self, nbytes: int) -> PinnedMemory:
        """Page-locked host memory, aligned to a page."""

    def stream(self) -> Stream: ...

    def event(self, *, timing: bool = False) -> Event:
        """One that `seconds_since` may be asked of costs more to record."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What is queued on the stream from now on waits for the event; the host does not."""

    def copy_in(self, address: int, source: PinnedMemory, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        """Queues a copy of `source.array[offset:offset + nbytes]` to the device."""

    def copy_out(self, target: PinnedMemory, address: int, nbytes: int, stream: Stream, *, offset: int = 0) -> None:
        """Queues a copy to `target.array[offset:offset + nbytes]`."""

    def copy_across(self, address: int, source: int, nbytes: int, stream: Stream) -> None:
        """Queues a copy within the device."""

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, Function]:
        """The kernels of a cubin or of PTX.

        Raises:
            ExecutorError: the driver does not take the image, or a kernel is not in it.
        """

    def launch(
        self,
        function: Function,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        stream: Stream,
    ) -> None:
        """Queues a kernel; each argument is a ctypes value of the parameter's size (`c_uint64` for an address)."""

    def begin_capture(self, stream: Stream) -> None:
        """What is queued on the stream from now on is recorded, not done (mode: thread local)."""

    def end_capture(self, stream: Stream) -> Graph:
        """Ends the recording; what it holds must stay allocated as long as the graph is launched."""

    def close(self) -> None:
        """Leaves the context; idempotent. The primary context itself lives on while others use it, torch for one."""


class StageEngine(Protocol):
    """One stage of a bundle, loaded on a device: TensorRT's or torch's.

    Attributes:
        max_batch: the largest batch it takes.
        logits: dtype of what it writes as logits: `float32` or `float16`; None where the stage has no exit head.
        capturable: whether `enqueue` may be recorded into a graph, once the same batch at the same addresses was queued as it is.
            The graph is replayed between batches of other sizes, recorded or not, one at a time on the device.
    """

    @property
    def max_batch(self) -> int: ...
    @property
    def logits(self) -> str | None: ...
    @property
    def capturable(self) -> bool: ...

    def runs_as(self, batch: int) -> int:
        """The size that does for a batch: its own, or one above it, at most `max_batch`. Rises with the batch; does for itself.

        `enqueue` may run so many rows; a graph of that size may be replayed for the batch. What lies in the rows beyond it, before
        and after, is nobody's business: rows know nothing of each other.
        """

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queues one batch; returns before it is done.

        Args:
            batch: rows, 1..max_batch.
            addresses: of `input`, and of `activation` and `logits` where the stage has them: contiguous room for `runs_as(batch)`
                rows in the dtypes the bundle states (logits: `self.logits`).
            stream: where it runs.

        Raises:
            ExecutorError: the engine refused it.
        """

    def close(self) -> None:
        """Frees it. Idempotent."""

"""pycuda's objects as the driver seam wants them: its errors translated, and given back by the thread that may do it."""

from __future__ import annotations

import functools
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.libcuda import Libcuda

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="Called")


def translated(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """pycuda's errors become ours. A `with` would cost 1 µs a call, this 0.1."""

    @functools.wraps(method)
    def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except Exception as exc:
            error = self._calls.translate(exc)
            if error is None:
                raise
            raise error from exc

    return call


class Calls:
    """pycuda and libcuda of one open driver, and what their errors mean.

    Attributes:
        dropped: pycuda's objects that nobody holds any more; any thread appends, the owner gives back.
    """

    def __init__(self, pycuda: Any, device: int) -> None:
        self.pycuda = pycuda
        self.libcuda = Libcuda(device)
        self.dropped: deque[Any] = deque()

    def translate(self, exc: Exception) -> ExecutorError | None:
        """The error for one of pycuda's; None for any other exception."""
        if not isinstance(exc, self.pycuda.Error):
            return None
        # "cuMemAlloc failed: out of memory", for some calls with " - " and a log behind: the code itself pycuda keeps for itself.
        call, _, said = str(exc).partition(" failed: ")
        code, detail = self.libcuda.code(said)
        return self.libcuda.error(call, code, detail)


class Called:
    """What calls pycuda."""

    __slots__ = ("_calls",)

    def __init__(self, calls: Calls) -> None:
        self._calls = calls


class Held(Called):
    """One of pycuda's objects, which only the owner's thread may destroy.

    Attributes:
        raw: pycuda's object; None once it was given back. No name but this may hold it: the frames of an exception keep what
            their names hold, and with it the object, beyond the end of its context.
    """

    __slots__ = ("__weakref__", "raw")

    def __init__(self, calls: Calls, raw: Any) -> None:
        super().__init__(calls)
        self.raw = raw

    def __del__(self) -> None:
        if self.raw is not None:
            self._calls.dropped.append(self.raw)

    def free(self) -> None:
        """Gives it back, as `driver.Memory.free`."""
        raw, self.raw = self.raw, None
        if raw is not None and self._calls.libcuda.lost:
            self._calls.dropped.append(raw)  # pycuda writes to stderr where it fails; `close` ends the context first
        elif raw is not None:
            self._release(raw)

    def _release(self, raw: Any) -> None:
        """Frees what dropping `raw` alone would not, or not now."""


def raw_of(held: object) -> Any:
    """pycuda's own object behind one of this driver's."""
    return cast("Held", held).raw


class PycudaMemory(Held):
    """Device memory."""

    __slots__ = ("address", "nbytes")

    def __init__(self, calls: Calls, raw: Any, nbytes: int) -> None:
        super().__init__(calls, raw)
        self.address = int(raw)
        self.nbytes = nbytes


class PycudaPinned(Held):
    """Page-locked memory; `address` is the host's."""

    __slots__ = ("address", "array", "nbytes")

    def __init__(self, calls: Calls, raw: npt.NDArray[np.uint8]) -> None:
        super().__init__(calls, raw.base)
        self.array = raw
        self.address: int = raw.ctypes.data
        self.nbytes = raw.nbytes

    def free(self) -> None:
        """Gives it back; nothing is left of it but views of `array`, which nobody may use."""
        self.array, self.nbytes = np.empty(0, np.uint8), 0
        super().free()

    def _release(self, raw: Any) -> None:
        raw.free()  # a view may hold it


class PycudaStream(Held):
    """A stream of its own."""

    __slots__ = ("handle",)

    def __init__(self, calls: Calls, raw: Any) -> None:
        super().__init__(calls, raw)
        self.handle: int = raw.handle

    @translated
    def synchronize(self) -> None:
        """Waits without the GIL."""
        self.raw.synchronize()


class PycudaEvent(Held):
    """An event that `synchronize` sleeps on."""

    __slots__ = ()

    @translated
    def record(self, stream: seam.Stream) -> None:
        """The point is the stream's present end."""
        self.raw.record(raw_of(stream))

    @translated
    def done(self) -> bool:
        """Whether it was reached."""
        return cast("bool", self.raw.query())

    @translated
    def synchronize(self) -> None:
        """Waits without the GIL."""
        self.raw.synchronize()

    @translated
    def seconds_since(self, earlier: seam.Event) -> float:
        """Seconds on the device; pycuda gives milliseconds."""
        return cast("float", self.raw.time_since(raw_of(earlier))) * 1e-3


class PycudaFunction(Held):
    """A kernel; pycuda keeps its module loaded as long."""

    __slots__ = ()

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], stream: seam.Stream) -> None:
        """Queues it.

        By what pycuda's public launches end in: those set the block's shape in a call of its own first, which CUDA deprecated
        long ago, and take 1.5 µs more.
        """
        layout = _layout(tuple(map(type, arguments)))
        self.raw._launch_kernel(grid, block, layout.pack(*[argument.value for argument in arguments]), 0, raw_of(stream))


@functools.cache
def _layout(types: tuple[Any, ...]) -> struct.Struct:
    """Parameters lie as in a C struct, and ctypes names its types as the module `struct` does."""
    return struct.Struct("@" + "".join(each._type_ for each in types))

"""The driver seam over pycuda: the primary context of one device, in one thread.

The primary context is the one that the CUDA runtime uses, so torch and TensorRT in the same process see the same memory and live
on when this is closed. pycuda keeps a stack of contexts per thread and aborts the process where a thread ends with one on it; its
objects can be given back only in the thread of their context, and warn and leak in any other. So this pushes once and pops in
`close`, and what is dropped in another thread waits until the owner comes by.

pycuda has no graphs: those are made by ctypes, on the same streams.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import struct
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt

from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost, one_line
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.libcuda import OUT_OF_MEMORY, Libcuda
from zpipe.executors.cuda.presence import Missing, gpus

#: CU_STREAM_NON_BLOCKING: does not wait for the default stream, which torch may be using.
_NON_BLOCKING = 1
#: CU_EVENT_BLOCKING_SYNC: who waits sleeps (spinning costs a core, and boards have few). CU_EVENT_DISABLE_TIMING.
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2

_INSTALL = "run: pip install 'zpipe[cuda]' where nvcc is on the path: pycuda is built then (README, GPUs)"

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="_Called")
_H = TypeVar("_H", bound="_Held")


def _translated(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
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


class _Calls:
    """pycuda and libcuda of one open driver, and what their errors mean.

    Attributes:
        lost: the context is unusable.
        dropped: pycuda's objects that nobody holds any more; any thread appends, the owner gives back.
    """

    def __init__(self, pycuda: Any, device: int) -> None:
        self.pycuda = pycuda
        self.libcuda = Libcuda(device)
        self.lost = False
        self.dropped: deque[Any] = deque()

    def translate(self, exc: Exception) -> ExecutorError | None:
        """The error for one of pycuda's; None for any other exception."""
        if isinstance(exc, ExecutorLost):  # of a graph
            self.lost = True
        if not isinstance(exc, self.pycuda.Error):
            return None
        # "cuMemAlloc failed: out of memory", for some calls with " - " and a log behind: the code itself pycuda keeps for itself.
        call, _, said = str(exc).partition(" failed: ")
        code, detail = self.libcuda.code(said)
        error = self.libcuda.error(call, code, detail)
        self.lost |= isinstance(error, ExecutorLost) and code != OUT_OF_MEMORY
        return error


class _Called:
    """What calls pycuda."""

    __slots__ = ("_calls",)

    def __init__(self, calls: _Calls) -> None:
        self._calls = calls


class _Held(_Called):
    """One of pycuda's objects, which only the owner's thread may destroy.

    Attributes:
        raw: pycuda's object; None once it was given back. No name but this may hold it: the frames of an exception keep what
            their names hold, and with it the object, beyond the end of its context.
    """

    __slots__ = ("__weakref__", "raw")

    def __init__(self, calls: _Calls, raw: Any) -> None:
        super().__init__(calls)
        self.raw = raw

    def __del__(self) -> None:
        if self.raw is not None:
            self._calls.dropped.append(self.raw)

    def free(self) -> None:
        """Gives it back, as `driver.Memory.free`."""
        raw, self.raw = self.raw, None
        if raw is not None and self._calls.lost:
            self._calls.dropped.append(raw)  # pycuda writes to stderr where it fails; `close` ends the context first
        elif raw is not None:
            self._release(raw)

    def _release(self, raw: Any) -> None:
        """Frees what dropping `raw` alone would not, or not now."""


class PycudaMemory(_Held):
    """Device memory."""

    __slots__ = ("address", "nbytes")

    def __init__(self, calls: _Calls, raw: Any, nbytes: int) -> None:
        super().__init__(calls, raw)
        self.address = int(raw)
        self.nbytes = nbytes


class PycudaPinned(_Held):
    """Page-locked memory."""

    __slots__ = ("array", "nbytes")

    def __init__(self, calls: _Calls, raw: npt.NDArray[np.uint8]) -> None:
        super().__init__(calls, raw.base)
        self.array = raw
        self.nbytes = raw.nbytes

    def free(self) -> None:
        """Gives it back; `array` is empty from now on, but views of it are not."""
        self.array = np.empty(0, np.uint8)
        super().free()

    def _release(self, raw: Any) -> None:
        raw.free()  # a view may hold it


class PycudaStream(_Held):
    """A stream of its own."""

    __slots__ = ("handle",)

    def __init__(self, calls: _Calls, raw: Any) -> None:
        super().__init__(calls, raw)
        self.handle: int = raw.handle

    @_translated
    def synchronize(self) -> None:
        """Waits without the GIL."""
        self.raw.synchronize()


class PycudaEvent(_Held):
    """An event that `synchronize` sleeps on."""

    __slots__ = ()

    @_translated
    def record(self, stream: seam.Stream) -> None:
        """The point is the stream's present end."""
        self.raw.record(_raw(stream))

    @_translated
    def done(self) -> bool:
        """Whether it was reached."""
        return cast("bool", self.raw.query())

    @_translated
    def synchronize(self) -> None:
        """Waits without the GIL."""
        self.raw.synchronize()

    @_translated
    def seconds_since(self, earlier: seam.Event) -> float:
        """Seconds on the device; pycuda gives milliseconds."""
        return cast("float", self.raw.time_since(_raw(earlier))) * 1e-3


class PycudaFunction(_Held):
    """A kernel; pycuda keeps its module loaded as long."""

    __slots__ = ()

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], stream: seam.Stream) -> None:
        """Queues it.

        By what pycuda's public launches end in: those set the block's shape in a call of its own first, which CUDA deprecated
        long ago, and take 4 µs where this takes 2.
        """
        layout = _layout(tuple(map(type, arguments)))
        self.raw._launch_kernel(grid, block, layout.pack(*[argument.value for argument in arguments]), 0, _raw(stream))


@functools.cache
def _layout(types: tuple[Any, ...]) -> struct.Struct:
    """Parameters lie as in a C struct, and ctypes names its types as the module `struct` does."""
    return struct.Struct("@" + "".join(each._type_ for each in types))


class PycudaDriver(_Called):
    """One device by pycuda; see `driver.Driver`. A thread has at most one open.

    Args:
        device: ordinal, among those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        BackendUnavailable: no driver, no such device, no pycuda, or a device that gives no context.
    """

    _open = False

    def __init__(self, device: int = 0) -> None:
        if getattr(_here, "closer", None) is not None:
            raise ExecutorError(
                f"GPU {device}: found a driver open in this thread, expected none; open each in a thread of its own"
            )
        _check_device(device)
        super().__init__(_Calls(_import_pycuda(), device))
        self._owner = threading.get_ident()
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self.device = device
        try:
            self._pycuda.init()
            gpu = self._pycuda.Device(device)
            self.name: str = gpu.name()
            self.capability: tuple[int, int] = gpu.compute_capability()
            self.version: int = self._pycuda.get_driver_version()
            self._context = gpu.retain_primary_context()
            self._context.push()
        except self._pycuda.Error as exc:
            raise BackendUnavailable(
                f"GPU {device}: found none that can be used ({one_line(str(exc))}), expected a context on it; "
                f"see nvidia-smi for who holds it"
            ) from exc
        self._open = True
        _here.closer = _Closer(self)

    def __repr__(self) -> str:
        return f"<PycudaDriver {self.device} {self.name} | {'open' if self._open else 'closed'}, {len(self._held)} objects>"

    @property
    def _pycuda(self) -> Any:
        return self._calls.pycuda

    @_translated
    def allocate(self, nbytes: int) -> PycudaMemory:
        """Device memory; pycuda collects garbage and tries again before it gives up."""
        return self._hold(PycudaMemory(self._calls, self._pycuda.mem_alloc(nbytes), nbytes))

    @_translated
    def pinned(self, nbytes: int) -> PycudaPinned:
        """Page-locked host memory."""
        return self._hold(PycudaPinned(self._calls, self._pycuda.pagelocked_empty(nbytes, np.uint8)))

    @_translated
    def stream(self) -> PycudaStream:
        """A stream that does not wait for the default one."""
        return self._hold(PycudaStream(self._calls, self._pycuda.Stream(_NON_BLOCKING)))

    @_translated
    def event(self, *, timing: bool = False) -> PycudaEvent:
        """An event; `timing` as in `driver.Driver.event`."""
        flags = _BLOCKING_SYNC if timing else _BLOCKING_SYNC | _DISABLE_TIMING
        return self._hold(PycudaEvent(self._calls, self._pycuda.Event(flags)))

    @_translated
    def wait(self, stream: seam.Stream, event: seam.Event) -> None:
        """The stream waits; the host goes on."""
        _raw(stream).wait_for_event(_raw(event))

    @_translated
    def copy_in(self, address: int, source: seam.PinnedMemory, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Host to device."""
        self._pycuda.memcpy_htod_async(address, _part(source, offset, nbytes), _raw(stream))

    @_translated
    def copy_out(self, target: seam.PinnedMemory, address: int, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Device to host."""
        self._pycuda.memcpy_dtoh_async(_part(target, offset, nbytes), address, _raw(stream))

    @_translated
    def copy_across(self, address: int, source: int, nbytes: int, stream: seam.Stream) -> None:
        """Device to device."""
        self._pycuda.memcpy_dtod_async(address, source, nbytes, _raw(stream))

    @_translated
    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, seam.Function]:
        """The kernels of an image; the log of the driver's compiler is in the error."""
        module = self._hold(_Held(self._calls, self._pycuda.module_from_buffer(image)))
        return {kernel: self._hold(PycudaFunction(self._calls, module.raw.get_function(kernel))) for kernel in kernels}

    @_translated
    def launch(
        self,
        function: seam.Function,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        stream: seam.Stream,
    ) -> None:
        """Queues a kernel."""
        cast("PycudaFunction", function).launch(grid, block, arguments, stream)

    @_translated
    def begin_capture(self, stream: seam.Stream) -> None:
        """Records from now on. Whatever fails then, `end_capture` has to be called: the stream takes no other call until."""
        self._calls.libcuda.begin_capture(stream.handle)

    @_translated
    def end_capture(self, stream: seam.Stream) -> seam.Graph:
        """What was recorded."""
        return self._calls.libcuda.end_capture(stream.handle)

    def close(self) -> None:
        """Gives back what is left and leaves the context; idempotent.

        Raises:
            ExecutorError: this is not the thread that made it.
        """
        if not self._open:
            return
        if threading.get_ident() != self._owner:
            raise ExecutorError(f"GPU {self.device}: found close() in another thread, expected the one that made the driver")
        self._open = False
        _here.closer = None
        self._finish()
        if self._calls.lost:
            self._leave()
            self._free_all()
        else:
            self._free_all()
            self._leave()

    def _hold(self, held: _H) -> _H:
        self._held.add(held)
        if not self._calls.lost:
            self._calls.dropped.clear()  # here is the thread where pycuda can destroy them
        return held

    def _finish(self) -> None:
        """Nothing may be freed under work that is going on."""
        for held in list(self._held):
            if isinstance(held, PycudaStream) and held.raw is not None and not self._calls.lost:
                try:
                    held.synchronize()
                except ExecutorError:
                    pass  # it sets `lost` where it matters, and there is nobody to tell

    def _free_all(self) -> None:
        for held in list(self._held):
            held.free()
        self._calls.dropped.clear()

    def _leave(self) -> None:
        """Off both stacks of this thread, CUDA's and pycuda's, and releases the primary context.

        Not by pycuda's `pop`: its `detach` would push the context again to release it, and leave it there.
        """
        popped = ctypes.c_void_p()
        try:
            self._calls.libcuda.call("cuCtxPopCurrent_v2", ctypes.byref(popped))
        except ExecutorError:
            pass  # a lost context: the release below has to be tried all the same
        self._context.detach()


class _Closer:
    """Closes the driver of a thread that ends: pycuda would abort the process."""

    def __init__(self, driver: PycudaDriver) -> None:
        self._driver = driver

    def __del__(self) -> None:
        with contextlib.suppress(ExecutorError):  # at the interpreter's end the main thread drops those of threads that still run
            self._driver.close()


#: `closer`, while a driver is open in the thread; Python drops it in the thread itself.
_here = threading.local()


@atexit.register
def _close_here() -> None:
    """The main thread's, before the interpreter takes modules apart."""
    _here.closer = None


def _raw(object_: Any) -> Any:
    """pycuda's own object behind one of this driver's."""
    return object_.raw


def _part(memory: seam.PinnedMemory, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
    part = memory.array[offset : offset + nbytes]
    if len(part) != nbytes:  # NumPy cuts a slice short without a word
        raise ExecutorError(f"copy: found bytes {offset}..{offset + nbytes}, expected them within the {memory.nbytes} there are")
    return part


def _check_device(device: int) -> None:
    there = gpus()
    if isinstance(there, Missing):
        raise BackendUnavailable(f"GPU {device}: {there}")
    if not 0 <= device < len(there.devices):
        raise BackendUnavailable(
            f"GPU {device}: found {there}, expected a device 0..{len(there.devices) - 1}; correct `device`, or CUDA_VISIBLE_DEVICES"
        )


def _import_pycuda() -> Any:
    """The module `pycuda.driver`; never `pycuda.autoinit`, which makes a context.

    Raises:
        BackendUnavailable: not installed, or it does not load.
    """
    try:
        with warnings.catch_warnings():  # it warns of what it raises
            warnings.simplefilter("ignore")
            import pycuda.driver as driver
    except ModuleNotFoundError as exc:
        found = "no pycuda" if (exc.name or "").startswith("pycuda") else f"pycuda without {exc.name}, which it needs"
        raise BackendUnavailable(f"pycuda: found {found}, expected it installed; {_INSTALL}") from exc
    except ImportError as exc:
        raise BackendUnavailable(
            f"pycuda: found one that does not load ({one_line(str(exc))}), expected one built for this driver and Python; "
            f"run: pip install --force-reinstall --no-cache-dir --no-deps pycuda"
        ) from exc
    return driver

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
import threading
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from zpipe.errors import BackendUnavailable, ExecutorError, one_line
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.presence import Missing, gpus, pip
from zpipe.executors.cuda.pycuda_objects import (
    Called,
    Calls,
    Held,
    PycudaEvent,
    PycudaFunction,
    PycudaMemory,
    PycudaPinned,
    PycudaStream,
    raw_of,
    translated,
)

#: CU_STREAM_NON_BLOCKING: does not wait for the default stream, which torch may be using.
_NON_BLOCKING = 1
#: CU_EVENT_BLOCKING_SYNC: who waits sleeps (spinning costs a core, and boards have few). CU_EVENT_DISABLE_TIMING.
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2

_H = TypeVar("_H", bound=Held)


class PycudaDriver(Called):
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
        super().__init__(Calls(_import_pycuda(), device))
        self._owner = threading.get_ident()
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()
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

    @translated
    def allocate(self, nbytes: int) -> PycudaMemory:
        """Device memory; pycuda collects garbage and tries again before it gives up."""
        self._give_back()
        return self._hold(PycudaMemory(self._calls, self._pycuda.mem_alloc(nbytes), nbytes))

    @translated
    def pinned(self, nbytes: int) -> PycudaPinned:
        """Page-locked host memory."""
        self._give_back()
        return self._hold(PycudaPinned(self._calls, self._pycuda.pagelocked_empty(nbytes, np.uint8)))

    @translated
    def stream(self) -> PycudaStream:
        """A stream that does not wait for the default one."""
        self._give_back()
        return self._hold(PycudaStream(self._calls, self._pycuda.Stream(_NON_BLOCKING)))

    @translated
    def event(self, *, timing: bool = False) -> PycudaEvent:
        """An event; `timing` as in `driver.Driver.event`."""
        self._give_back()
        flags = _BLOCKING_SYNC if timing else _BLOCKING_SYNC | _DISABLE_TIMING
        return self._hold(PycudaEvent(self._calls, self._pycuda.Event(flags)))

    @translated
    def wait(self, stream: seam.Stream, event: seam.Event) -> None:
        """The stream waits; the host goes on."""
        raw_of(stream).wait_for_event(raw_of(event))

    @translated
    def copy_in(self, address: int, source: seam.PinnedMemory, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Host to device."""
        self._pycuda.memcpy_htod_async(address, _part(source, offset, nbytes), raw_of(stream))

    @translated
    def copy_out(self, target: seam.PinnedMemory, address: int, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Device to host."""
        self._pycuda.memcpy_dtoh_async(_part(target, offset, nbytes), address, raw_of(stream))

    @translated
    def copy_across(self, address: int, source: int, nbytes: int, stream: seam.Stream) -> None:
        """Device to device."""
        self._pycuda.memcpy_dtod_async(address, source, nbytes, raw_of(stream))

    @translated
    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, seam.Function]:
        """The kernels of an image; the log of the driver's compiler is in the error."""
        self._give_back()
        module = self._hold(Held(self._calls, self._pycuda.module_from_buffer(image)))
        return {kernel: self._hold(PycudaFunction(self._calls, module.raw.get_function(kernel))) for kernel in kernels}

    @translated
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

    @translated
    def begin_capture(self, stream: seam.Stream) -> None:
        """Records from now on. Whatever fails then, `end_capture` has to be called: the stream takes no other call until."""
        self._calls.libcuda.begin_capture(stream.handle)

    @translated
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
        if self._calls.libcuda.lost:
            self._leave()
            self._free_all()
        else:
            self._free_all()
            self._leave()

    def _hold(self, held: _H) -> _H:
        self._held.add(held)
        return held

    def _give_back(self) -> None:
        if not self._calls.libcuda.lost:
            self._calls.dropped.clear()  # this is the thread where pycuda can destroy them

    def _finish(self) -> None:
        """Nothing may be freed under work that is going on."""
        for held in list(self._held):
            if isinstance(held, PycudaStream) and held.raw is not None and not self._calls.libcuda.lost:
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
        raise BackendUnavailable(
            f"pycuda: found {found}, expected it installed; "
            f"run: {pip()} install 'zpipe[cuda]' (it is compiled then: needs the CUDA toolkit, nvcc on PATH)"
        ) from exc
    except ImportError as exc:  # a symbol that the driver lacks, mostly: built with a newer toolkit
        raise BackendUnavailable(
            f"pycuda: found one that does not load ({one_line(str(exc))}), expected one built for this driver and Python; "
            f"run: {pip()} install --force-reinstall --no-cache-dir --no-deps pycuda, with a CUDA toolkit no newer than the driver"
        ) from exc
    return driver

"""The driver seam over pycuda: the primary context of one device, in one thread.

The primary context is the one that the CUDA runtime uses, so torch and TensorRT in the same process see the same memory and live
on when this is closed.

pycuda keeps a stack of contexts per thread beside CUDA's, and aborts the process where a thread ends with one on it: also a daemon
thread, when the interpreter ends. It looks at its stack only where an object is made or destroyed. So the context is made current
for CUDA once, by ctypes, and for pycuda just while it makes an object; to destroy one it does the same itself. That works in the
thread of the context alone: in any other pycuda warns and leaks, so what is dropped there waits until the owner comes by.

pycuda has no graphs, and gives up the GIL at each copy it queues: both are done by ctypes, on the same streams.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from zpipe.environment import pip
from zpipe.errors import BackendUnavailable, ExecutorError, one_line
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.device import require_device
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
    """One device by pycuda; see `driver.Driver`.

    Args:
        device: ordinal, among those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        BackendUnavailable: no driver, no such device, no pycuda, or a device that gives no context.
    """

    _open = False

    def __init__(self, device: int = 0) -> None:
        require_device(device)
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
        except self._pycuda.Error as exc:
            raise BackendUnavailable(
                f"GPU {device}: found none that can be used ({one_line(str(exc))}), expected a context on it; "
                f"see nvidia-smi for who holds it"
            ) from exc
        self._open = True
        _drivers.add(self)
        self._calls.libcuda.call("cuCtxPushCurrent_v2", self._context.handle)

    def __repr__(self) -> str:
        return f"<PycudaDriver {self.device} {self.name} | {'open' if self._open else 'closed'}, {len(self._held)} objects>"

    @property
    def _pycuda(self) -> Any:
        return self._calls.pycuda

    @translated
    def allocate(self, nbytes: int) -> PycudaMemory:
        """Device memory; pycuda collects garbage and tries again before it gives up."""
        return self._hold(PycudaMemory(self._calls, self._make(self._pycuda.mem_alloc, nbytes), nbytes))

    @translated
    def pinned(self, nbytes: int) -> PycudaPinned:
        """Page-locked host memory."""
        return self._hold(PycudaPinned(self._calls, self._make(self._pycuda.pagelocked_empty, nbytes, np.uint8)))

    @translated
    def stream(self) -> PycudaStream:
        """A stream that does not wait for the default one."""
        return self._hold(PycudaStream(self._calls, self._make(self._pycuda.Stream, _NON_BLOCKING)))

    @translated
    def event(self, *, timing: bool = False) -> PycudaEvent:
        """An event; `timing` as in `driver.Driver.event`."""
        flags = _BLOCKING_SYNC if timing else _BLOCKING_SYNC | _DISABLE_TIMING
        return self._hold(PycudaEvent(self._calls, self._make(self._pycuda.Event, flags)))

    @translated
    def wait(self, stream: seam.Stream, event: seam.Event) -> None:
        """The stream waits; the host goes on."""
        raw_of(stream).wait_for_event(raw_of(event))

    def copy_in(self, address: int, source: seam.PinnedMemory, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Host to device."""
        host = _place(source, offset, nbytes)
        self._calls.libcuda.call_with_gil("cuMemcpyHtoDAsync_v2", address, host, nbytes, stream.handle)

    def copy_out(self, target: seam.PinnedMemory, address: int, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Device to host."""
        host = _place(target, offset, nbytes)
        self._calls.libcuda.call_with_gil("cuMemcpyDtoHAsync_v2", host, address, nbytes, stream.handle)

    def copy_across(self, address: int, source: int, nbytes: int, stream: seam.Stream) -> None:
        """Device to device."""
        self._calls.libcuda.call_with_gil("cuMemcpyDtoDAsync_v2", address, source, nbytes, stream.handle)

    @translated
    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, seam.Function]:
        """The kernels of an image; the log of the driver's compiler is in the error."""
        module = self._hold(Held(self._calls, self._make(self._pycuda.module_from_buffer, image)))
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

    def begin_capture(self, stream: seam.Stream) -> None:
        """Records from now on. Whatever fails then, `end_capture` has to be called: the stream takes no other call until."""
        self._calls.libcuda.begin_capture(stream.handle)

    def end_capture(self, stream: seam.Stream) -> seam.Graph:
        """What was recorded."""
        return self._calls.libcuda.end_capture(stream.handle)

    def __del__(self) -> None:
        if self._open:
            self._forget()

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
        _drivers.discard(self)
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

    def _make(self, factory: Callable[..., Any], *arguments: object) -> Any:
        """One of pycuda's objects."""
        if not self._calls.libcuda.lost:
            self._calls.dropped.clear()  # this is the thread where pycuda can destroy them
        self._context.push()
        try:
            return factory(*arguments)
        finally:
            self._context.pop()

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
        """Off CUDA's stack of this thread, and releases the primary context.

        pycuda's `detach` pushes a context that is not on its own stack and leaves it there: so it is put on both, and taken off
        CUDA's alone.
        """
        with contextlib.suppress(self._pycuda.Error, ExecutorError):  # of a lost context; it is to be released all the same
            self._context.push()
            for _ in range(2):
                self._calls.libcuda.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self._context.detach()

    def _forget(self) -> None:
        """Closes it, or in another thread has pycuda let go of the context without a call to CUDA, which ends with the process."""
        if threading.get_ident() == self._owner:
            self.close()
        elif self._open:
            self._open = False
            self._context.detach()


#: Open ones: an object of pycuda that outlives the interpreter's end would use a context that may not be there any more.
_drivers: weakref.WeakSet[PycudaDriver] = weakref.WeakSet()


@atexit.register
def _forget_all() -> None:
    for driver in list(_drivers):
        driver._forget()


def _place(memory: seam.PinnedMemory, offset: int, nbytes: int) -> int:
    """Where so many bytes begin on the host."""
    if not 0 <= offset <= memory.nbytes - nbytes:
        raise ExecutorError(f"copy: found bytes {offset}..{offset + nbytes}, expected them within the {memory.nbytes} there are")
    return cast("PycudaPinned", memory).address + offset


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

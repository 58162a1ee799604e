"""What `TorchDriver` hands out: the driver's memory, streams, events and kernels, by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.libcuda import Libcuda

_NOT_READY = 600
#: CU_JIT_ERROR_LOG_BUFFER and its size: where the driver's compiler says what it found wrong.
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6
_LOG_BYTES = 4096

_handle, _address, _size, _int = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int
_out = ctypes.c_void_p  # of `byref`
_six = (ctypes.c_uint,) * 6

#: Arguments by call, beside those that `Libcuda` knows: what is only queued keeps the GIL, what may take its time does not.
_QUEUED: dict[str, tuple[Any, ...]] = {
    "cuEventQuery": (_handle,),
    "cuEventRecord": (_handle, _handle),
    "cuLaunchKernel": (_handle, *_six, ctypes.c_uint, _handle, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p),
    "cuStreamWaitEvent": (_handle, _handle, ctypes.c_uint),
}
_WAITING: dict[str, tuple[Any, ...]] = {
    "cuDeviceGet": (_out, _int),
    "cuDevicePrimaryCtxRelease_v2": (_int,),
    "cuDevicePrimaryCtxRetain": (_out, _int),
    "cuEventCreate": (_out, ctypes.c_uint),
    "cuEventDestroy_v2": (_handle,),
    "cuEventElapsedTime": (_out, _handle, _handle),
    "cuEventSynchronize": (_handle,),
    "cuInit": (ctypes.c_uint,),
    "cuMemAlloc_v2": (_out, _size),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemFree_v2": (_address,),
    "cuMemHostAlloc": (_out, _size, ctypes.c_uint),
    "cuModuleGetFunction": (_out, _handle, ctypes.c_char_p),
    "cuModuleLoadDataEx": (_out, ctypes.c_char_p, ctypes.c_uint, ctypes.POINTER(_int), ctypes.POINTER(ctypes.c_void_p)),
    "cuModuleUnload": (_handle,),
    "cuStreamCreate": (_out, ctypes.c_uint),
    "cuStreamDestroy_v2": (_handle,),
    "cuStreamSynchronize": (_handle,),
}


class Cuda(Libcuda):
    """All the calls that are made here."""

    def __init__(self, device: int) -> None:
        super().__init__(device)
        for library, calls in ((self._library, _WAITING), (self._keeping_gil, _QUEUED)):
            for name, arguments in calls.items():
                getattr(library, name).argtypes = arguments

    def reached(self, event: int) -> bool:
        """Whether all before the event is done."""
        code = self._keeping_gil.cuEventQuery(event)
        if code not in (0, _NOT_READY):
            raise self.error("cuEventQuery", code)
        return bool(code == 0)

    def made(self, name: str, *arguments: object) -> int:
        """What a call writes to its first argument."""
        value = ctypes.c_void_p()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def module(self, image: bytes) -> int:
        """A loaded image."""
        log, module = ctypes.create_string_buffer(_LOG_BYTES), ctypes.c_void_p()
        options = (_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        code = self._library.cuModuleLoadDataEx(ctypes.byref(module), image, 2, options, values)
        if code:
            raise self.error("cuModuleLoadDataEx", code, log.value.decode(errors="replace"))
        return module.value or 0


class Owner(Protocol):
    """The driver, as what it hands out knows it.

    Attributes:
        cuda: the calls.
        held: what has to be given back yet.
    """

    cuda: Cuda
    held: dict[int, Held]


class Held:
    """What has to be given back: a handle, and the call that does it. Until then the driver keeps it alive."""

    __slots__ = ("_cuda", "_gives_back", "_kept", "handle")

    def __init__(self, driver: Owner, handle: int, gives_back: str) -> None:
        self._cuda, self._kept = driver.cuda, driver.held
        self._gives_back = gives_back
        self.handle = handle
        self._kept[id(self)] = self

    def free(self) -> None:
        """Gives it back; idempotent."""
        if self._kept.pop(id(self), None) is not None:
            with contextlib.suppress(ExecutorLost):  # nothing is left to give back
                self._cuda.call(self._gives_back, self.handle)


class TorchMemory(Held):
    """Device memory, the driver's own: torch's allocator keeps what it once had, and rounds up."""

    __slots__ = ("nbytes",)

    def __init__(self, driver: Owner, address: int, nbytes: int) -> None:
        super().__init__(driver, address, "cuMemFree_v2")
        self.nbytes = nbytes

    @property
    def address(self) -> int:
        """Where it begins."""
        return self.handle


class TorchPinned(Held):
    """Page-locked memory."""

    __slots__ = ("array", "nbytes")

    def __init__(self, driver: Owner, address: int, nbytes: int) -> None:
        super().__init__(driver, address, "cuMemFreeHost")
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        self.nbytes = nbytes

    def free(self) -> None:
        """Gives it back; `array` is empty from now on, but views of it are not."""
        self.array = np.empty(0, np.uint8)
        super().free()

    def part(self, offset: int, nbytes: int) -> int:
        """Address of a piece of it, which must lie within."""
        if not 0 <= offset <= offset + nbytes <= self.array.nbytes:
            raise ExecutorError(
                f"copy: found bytes {offset}..{offset + nbytes}, expected them within the {self.array.nbytes} there are"
            )
        return self.handle + offset


class TorchStream(Held):
    """A stream of the driver's."""

    __slots__ = ()

    def synchronize(self) -> None:
        """Waits without the GIL."""
        self._cuda.call("cuStreamSynchronize", self.handle)


class TorchEvent(Held):
    """An event that `synchronize` sleeps on."""

    __slots__ = ()

    def record(self, stream: seam.Stream) -> None:
        """The point is the stream's present end."""
        self._cuda.call_with_gil("cuEventRecord", self.handle, stream.handle)

    def done(self) -> bool:
        """Whether it was reached."""
        return self._cuda.reached(self.handle)

    def synchronize(self) -> None:
        """Waits without the GIL."""
        self._cuda.call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: seam.Event) -> float:
        """Seconds on the device; the driver gives milliseconds."""
        milliseconds = ctypes.c_float()
        self._cuda.call("cuEventElapsedTime", ctypes.byref(milliseconds), raw(earlier), self.handle)
        return milliseconds.value * 1e-3


class TorchFunction:
    """A kernel; its module stays loaded until the driver is closed."""

    __slots__ = ("handle",)

    def __init__(self, handle: int) -> None:
        self.handle = handle


def raw(object_: Any) -> int:
    """The handle behind one of this driver's objects."""
    handle: int = object_.handle
    return handle

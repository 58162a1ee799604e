"""What pycuda does not say of the CUDA driver, asked by ctypes: which errors end a context, and graphs of queued work.

The driver's library is one for the whole process, so a handle from here, from pycuda and from torch is the same thing.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost, one_line
from zpipe.executors.cuda.presence import LIBCUDA

OUT_OF_MEMORY = 2

#: The CUresult after which no call on the context succeeds, and mostly none in the process. Source: cuda.h ("leaves the process
#: in an inconsistent state", "the context cannot be used anymore"), and what a lost or reset device gives.
LOST = {
    4: "deinitialized",
    46: "device unavailable",
    201: "invalid context",
    214: "uncorrectable ECC error",
    220: "uncorrectable NVLink error",
    226: "contained exception",
    700: "illegal address",
    702: "launch timeout",
    709: "context is destroyed",
    710: "assert",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "invalid address space",
    718: "invalid pc",
    719: "launch failed",
    721: "tensor memory leak",
    810: "MPS client terminated",
    911: "external device",
    999: "unknown",
}

_handle, _address, _out = ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)

#: Arguments by call. Without them ctypes hands a pointer over as a 32-bit int.
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuCtxPushCurrent_v2": (_handle,),
    "cuCtxPopCurrent_v2": (_out,),
    "cuStreamBeginCapture_v2": (_handle, ctypes.c_int),
    "cuStreamEndCapture": (_handle, _out),
    "cuGraphInstantiateWithFlags": (_out, _handle, ctypes.c_uint64),
    "cuGraphDestroy": (_handle,),
    "cuGraphExecDestroy": (_handle,),
}

#: Those that only queue work, in 2 to 10 µs. They keep the GIL: where another thread of the process is busy with Python, a call
#: that gives it away returns 0.1 to 0.5 ms later in the mean, at times 5 ms (seen with a
#: thread that counts, on two cores).
_QUEUED: dict[str, tuple[Any, ...]] = {
    "cuGraphLaunch": (_handle, _handle),
    "cuMemcpyDtoDAsync_v2": (_address, _address, ctypes.c_size_t, _handle),
    "cuMemcpyDtoHAsync_v2": (_handle, _address, ctypes.c_size_t, _handle),
    "cuMemcpyHtoDAsync_v2": (_address, _handle, ctypes.c_size_t, _handle),
}

#: CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do to the context, torch's allocator for one, does not spoil the capture.
_CAPTURE_THREAD_LOCAL = 1


class Libcuda:
    """The driver's library, loaded already by whoever made the context.

    Args:
        device: ordinal, for messages.

    Attributes:
        lost: an error that ended the context was seen.

    Raises:
        BackendUnavailable: the driver is too old.
        OSError: there is none.
    """

    def __init__(self, device: int) -> None:
        self.lost = False
        self._device = device
        self._library = ctypes.CDLL(LIBCUDA)
        self._keeping_gil = ctypes.PyDLL(LIBCUDA)
        for library, calls in ((self._library, _CALLS), (self._keeping_gil, _QUEUED)):
            for name, arguments in calls.items():
                if not hasattr(library, name):
                    raise BackendUnavailable(
                        f"GPU {device}: found a driver without {name}, expected one for CUDA 11.4 or newer; update it"
                    )
                getattr(library, name).argtypes = arguments

    def call(self, name: str, *arguments: object) -> None:
        """One call of `_CALLS`, without the GIL.

        Raises:
            ExecutorLost: the context is unusable.
            ExecutorError: the driver refused it.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self.error(name, code)

    def call_with_gil(self, name: str, *arguments: object) -> None:
        """One call of `_QUEUED`; raises as `call` does."""
        code = getattr(self._keeping_gil, name)(*arguments)
        if code:
            raise self.error(name, code)

    def error(self, call: str, code: int, detail: str = "") -> ExecutorError:
        """The exception for a CUresult that is not 0; one that ends the context is remembered.

        Args:
            call: what was called.
            code: the CUresult.
            detail: what the driver wrote beside it, such as the log of its compiler.
        """
        said = " ".join(f"{self.text(code) if code else ''} {detail}".split())
        found = f"GPU {self._device}: found {one_line(said)} ({f'CUDA error {code} of ' if code else ''}{call})"
        if code == OUT_OF_MEMORY:
            return ExecutorLost(f"{found}, expected room; free memory on it, host fewer stages or lower `max_batch`")
        if code in LOST:
            self.lost = True
            return ExecutorLost(f"{found}, expected a GPU that works; restart the node, and see nvidia-smi and dmesg")
        return ExecutorError(f"{found}, expected success; `zpipe doctor` looks at the GPU")

    def text(self, code: int) -> str:
        """The driver's words for a CUresult."""
        said = ctypes.c_char_p()
        if self._library.cuGetErrorString(code, ctypes.byref(said)) or said.value is None:
            return LOST.get(code, "")
        return said.value.decode(errors="replace")

    def code(self, said: str) -> tuple[int, str]:
        """(CUresult, what follows) of a text that begins with the driver's words for it; (0, all of it) where with none."""
        texts = {"": 0} | {text: code for code in range(1, 1000) if (text := self.text(code))}  # 1 ms, where something failed
        known = max((text for text in texts if said.startswith(text)), key=len)
        return texts[known], said[len(known) :].removeprefix(" - ")

    def begin_capture(self, stream: int) -> None:
        """Records what is queued on the stream from now on."""
        self.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> LibcudaGraph:
        """What was recorded, ready to launch. The stream leaves capture even where this fails."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)
        return LibcudaGraph(self, executable)


class LibcudaGraph:
    """A CUgraphExec; `driver.Graph` says what for."""

    __slots__ = ("_executable", "_libcuda")

    def __init__(self, libcuda: Libcuda, executable: ctypes.c_void_p) -> None:
        self._libcuda = libcuda
        self._executable: ctypes.c_void_p | None = executable

    def launch(self, stream: Any) -> None:
        """Queues it all again."""
        self._libcuda.call_with_gil("cuGraphLaunch", self._executable, stream.handle)

    def free(self) -> None:
        """Gives it back; idempotent."""
        executable, self._executable = self._executable, None
        if executable is not None:
            with contextlib.suppress(ExecutorLost):  # nothing is left to give back
                self._libcuda.call("cuGraphExecDestroy", executable)

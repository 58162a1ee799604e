"""The driver seam beside torch: its primary context, its memory pools, and the CUDA driver's own calls by ctypes.

torch offers no kernel launch and no bare memory, and its streams come from a ring of 32 that the whole process shares: what others
queue on one would end up in our graph. So streams, events, memory, copies and kernels are the driver's, on the context that
torch uses, and torch sees addresses and stream handles.

A recording is the driver's, too, while torch's allocator hands this thread memory of a pool kept for that stream alone. What an
engine takes while it is recorded stays put as long as the graph may be launched, and graphs of one stream, which never run at the
same time, share it. `torch.cuda.graph` would do the same, but also put the process's random generator into capture mode, where
whoever draws a number on the GPU in another thread is refused.

Proven against a stand-in for libcuda. What torch does on a real device is yet to be seen there.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Sequence
from typing import Any

from zpipe.environment import installed, pip
from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost, one_line
from zpipe.executors.cuda import driver as seam
from zpipe.executors.cuda.device import require_device
from zpipe.executors.cuda.libcuda import OUT_OF_MEMORY, Libcuda
from zpipe.executors.cuda.torch_objects import Cuda, Held, TorchEvent, TorchFunction, TorchMemory, TorchPinned, TorchStream, raw

#: CU_STREAM_NON_BLOCKING: does not wait for the default stream, which others in the process may be using.
_NON_BLOCKING = 1
#: CU_EVENT_BLOCKING_SYNC: who waits sleeps (spinning costs a core, and boards have few). CU_EVENT_DISABLE_TIMING.
_BLOCKING_SYNC, _DISABLE_TIMING = 1, 2
#: The first torch whose pools take the memory of one thread alone; before, other threads' went there, too (torch's issue 152861).
_POOLS_BY_THREAD = (2, 8)


class TorchDriver:
    """One device beside torch; see `driver.Driver`.

    Args:
        device: ordinal, among those that CUDA_VISIBLE_DEVICES leaves.

    Attributes:
        torch: the module.
        cuda: the driver's calls.
        held: what has to be given back yet.

    Raises:
        BackendUnavailable: no driver, no such device, no torch with CUDA, or a device that this torch cannot use.
    """

    def __init__(self, device: int = 0) -> None:
        there = require_device(device)
        self.torch = _import_torch()
        self.device = device
        self.name, self.capability, self.version = there.devices[device].name, there.devices[device].capability, there.version
        self._owner = threading.get_ident()
        _start_torch(self.torch, device)
        self.cuda = Cuda(device)
        self.held: dict[int, Held] = {}
        #: {stream: memory that its graphs work in}; as long as the driver is open.
        self._pools: dict[int, Any] = {}
        self._recording: dict[int, contextlib.ExitStack] = {}
        try:
            self.cuda.call("cuInit", 0)
            self._ordinal = self.cuda.made("cuDeviceGet", device)
            self.cuda.call("cuCtxPushCurrent_v2", self.cuda.made("cuDevicePrimaryCtxRetain", self._ordinal))
        except ExecutorError as exc:
            raise BackendUnavailable(
                f"GPU {device}: found none that can be used ({exc}), expected a context on it; see nvidia-smi for who holds it"
            ) from exc
        self._open = True

    def __repr__(self) -> str:
        return f"<TorchDriver {self.device} {self.name} | {'open' if self._open else 'closed'}, {len(self.held)} objects>"

    def allocate(self, nbytes: int) -> TorchMemory:
        """Device memory; where there is none left, torch gives back what it only keeps."""
        try:
            address = self.cuda.made("cuMemAlloc_v2", nbytes)
        except ExecutorLost as exc:
            if f"CUDA error {OUT_OF_MEMORY} " not in str(exc):
                raise
            self._empty_cache()
            address = self.cuda.made("cuMemAlloc_v2", nbytes)
        return TorchMemory(self, address, nbytes)

    def pinned(self, nbytes: int) -> TorchPinned:
        """Page-locked host memory."""
        return TorchPinned(self, self.cuda.made("cuMemHostAlloc", nbytes, 0), nbytes)

    def stream(self) -> TorchStream:
        """A stream that does not wait for the default one."""
        return TorchStream(self, self.cuda.made("cuStreamCreate", _NON_BLOCKING), "cuStreamDestroy_v2")

    def event(self, *, timing: bool = False) -> TorchEvent:
        """An event; `timing` as in `driver.Driver.event`."""
        flags = _BLOCKING_SYNC if timing else _BLOCKING_SYNC | _DISABLE_TIMING
        return TorchEvent(self, self.cuda.made("cuEventCreate", flags), "cuEventDestroy_v2")

    def wait(self, stream: seam.Stream, event: seam.Event) -> None:
        """The stream waits; the host goes on."""
        self.cuda.call_with_gil("cuStreamWaitEvent", stream.handle, raw(event), 0)

    def copy_in(self, address: int, source: seam.PinnedMemory, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Host to device."""
        self.cuda.call_with_gil("cuMemcpyHtoDAsync_v2", address, _part(source, offset, nbytes), nbytes, stream.handle)

    def copy_out(self, target: seam.PinnedMemory, address: int, nbytes: int, stream: seam.Stream, *, offset: int = 0) -> None:
        """Device to host."""
        self.cuda.call_with_gil("cuMemcpyDtoHAsync_v2", _part(target, offset, nbytes), address, nbytes, stream.handle)

    def copy_across(self, address: int, source: int, nbytes: int, stream: seam.Stream) -> None:
        """Device to device."""
        self.cuda.call_with_gil("cuMemcpyDtoDAsync_v2", address, source, nbytes, stream.handle)

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, seam.Function]:
        """The kernels of an image; the log of the driver's compiler is in the error."""
        module = Held(self, self.cuda.module(image), "cuModuleUnload")
        return {kernel: TorchFunction(self.cuda.made("cuModuleGetFunction", module.handle, kernel.encode())) for kernel in kernels}

    def launch(
        self,
        function: seam.Function,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        stream: seam.Stream,
    ) -> None:
        """Queues a kernel; the driver copies the arguments."""
        addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.cuda.call_with_gil("cuLaunchKernel", raw(function), *grid, *block, 0, stream.handle, addresses, None)

    def begin_capture(self, stream: seam.Stream) -> None:
        """Records from now on. Whatever fails then, `end_capture` has to be called: the stream takes no other call until."""
        if tuple(int(part) for part in self.torch.__version__.split(".")[:2]) < _POOLS_BY_THREAD:
            oldest = ".".join(map(str, _POOLS_BY_THREAD))
            raise ExecutorError(
                f"GPU {self.device}: found torch {self.torch.__version__}, expected {oldest} or later to record with; "
                f"run: {pip()} install --upgrade torch"
            )
        with contextlib.ExitStack() as stack:
            if stream.handle not in self._pools:
                self._pools[stream.handle] = self.torch.cuda.MemPool()
            stack.enter_context(self.torch.cuda.use_mem_pool(self._pools[stream.handle], device=self.device))
            self.cuda.begin_capture(stream.handle)
            self._recording[stream.handle] = stack.pop_all()

    def end_capture(self, stream: seam.Stream) -> seam.Graph:
        """What was recorded; to be launched on this stream alone, as the graphs of a stream share memory."""
        with self._recording.pop(stream.handle):
            return self.cuda.end_capture(stream.handle)

    def close(self) -> None:
        """Gives back what is left, leaves the context and has torch give back what it only keeps; idempotent.

        Raises:
            ExecutorError: this is not the thread that made it.
        """
        if not self._open:
            return
        if threading.get_ident() != self._owner:
            raise ExecutorError(f"GPU {self.device}: found close() in another thread, expected the one that made the driver")
        self._open = False
        held = list(self.held.values())
        for stream in held:
            if isinstance(stream, TorchStream):
                with contextlib.suppress(ExecutorError):  # there is nobody to tell
                    stream.synchronize()
        for each in reversed(held):
            with contextlib.suppress(ExecutorError):
                each.free()
        self._pools = {}
        self._empty_cache()
        self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(ExecutorError):  # of a lost context: the release has to be tried all the same
            self.cuda.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        with contextlib.suppress(ExecutorError):
            self.cuda.call("cuDevicePrimaryCtxRelease_v2", self._ordinal)

    def _empty_cache(self) -> None:
        with contextlib.suppress(RuntimeError):  # torch's, of a lost device
            self.torch.cuda.empty_cache()


def translated(exc: BaseException, device: int) -> ExecutorError | None:
    """What an exception of torch's means: the error for it, or None where the GPU has no part in it."""
    import torch

    said = str(exc).partition("\n")[0]
    if isinstance(exc, torch.cuda.OutOfMemoryError):  # in torch itself by this name only from 2.5 on
        return Libcuda(device).error("torch", OUT_OF_MEMORY, said)
    _, cuda_error, text = said.partition("CUDA error: ")
    if not isinstance(exc, RuntimeError) or not (cuda_error or "cuDNN error" in said):
        return None
    libcuda = Libcuda(device)
    code, detail = libcuda.code(text) if cuda_error else (0, said)
    return libcuda.error("torch", code, detail)


def _import_torch() -> Any:
    if not installed("torch"):
        raise BackendUnavailable(f"torch: found no torch, expected it installed, with CUDA; run: {pip()} install 'zpipe[train]'")
    try:
        import torch
    except (ImportError, OSError) as exc:  # OSError: of a library it brings along
        said = one_line(" ".join(str(exc).split()))
        raise BackendUnavailable(
            f"torch: found one that does not load ({said}), expected it to; run: {pip()} install --force-reinstall torch"
        ) from exc
    if torch.version.cuda is None:
        raise BackendUnavailable(
            f"torch: found {torch.__version__}, built without CUDA, expected one with it; "
            f"take the command that https://pytorch.org/get-started gives for this machine"
        )
    return torch


def _start_torch(torch: Any, device: int) -> None:
    """Makes the device torch's in this thread, and has it compute once: only that shows whether its kernels are for this GPU."""
    try:
        torch.cuda.init()
        torch.cuda.set_device(device)
        torch.ones(1, device=f"cuda:{device}").item()
    except (RuntimeError, AssertionError) as exc:
        said = one_line(" ".join(str(exc).partition("\n")[0].split()))
        raise BackendUnavailable(
            f"GPU {device}: found none that torch {torch.__version__} can use ({said}), expected one; "
            f"see nvidia-smi, and https://pytorch.org/get-started for which GPUs a torch is built for"
        ) from exc


def _part(memory: Any, offset: int, nbytes: int) -> int:
    address: int = memory.part(offset, nbytes)
    return address

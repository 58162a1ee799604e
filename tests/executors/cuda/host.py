"""The least of a `Driver` that the gate needs, over this machine's memory and the compiled kernels; no call returns early."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tests.executors.cuda.compiled import CompiledGate
from zpipe.executors.cuda.driver import Driver

_ALIGNMENT = 256


class HostMemory:
    """Of the host, pinned and of the device alike; begins as garbage."""

    def __init__(self, nbytes: int) -> None:
        room = np.full(nbytes + _ALIGNMENT, 0xA5, np.uint8)
        skip = -room.ctypes.data % _ALIGNMENT
        self.array: npt.NDArray[np.uint8] = room[skip : skip + nbytes]
        self.address, self.nbytes = self.array.ctypes.data, nbytes

    def free(self) -> None:
        pass


class HostStream:
    handle = 0

    def synchronize(self) -> None:
        pass


class HostDriver:
    """Runs every kernel at once, its threads in some `order` (`CompiledGate.launch`)."""

    name, device, capability, version = "this CPU", 0, (9, 0), 13000

    def __init__(self, kernels: CompiledGate, order: int = 0) -> None:
        self._kernels = kernels
        self.order = order

    def allocate(self, nbytes: int) -> HostMemory:
        return HostMemory(nbytes)

    pinned = allocate

    def stream(self) -> HostStream:
        return HostStream()

    def copy_in(self, address: int, source: HostMemory, nbytes: int, stream: HostStream, *, offset: int = 0) -> None:
        ctypes.memmove(address, source.address + offset, nbytes)

    def copy_out(self, target: HostMemory, address: int, nbytes: int, stream: HostStream, *, offset: int = 0) -> None:
        ctypes.memmove(target.address + offset, address, nbytes)

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, str]:
        return {name: name for name in kernels if self._kernels.parameters(name)}

    def launch(
        self,
        function: str,
        *,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        stream: HostStream,
    ) -> None:
        self._kernels.launch(function, grid, block, arguments, order=self.order)

    def close(self) -> None:
        pass


def host_driver(kernels: CompiledGate, order: int = 0) -> Driver:
    """One as the gate takes it: it has no events, graphs and waits, which the gate does not use."""
    return cast("Driver", HostDriver(kernels, order))

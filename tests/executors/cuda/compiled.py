"""The kernels of gate.cu compiled for this machine's CPU, so that they run where no GPU is.

    gate = compiled_gate()                # None where there is no C++ compiler
    gate.launch("zpipe_gather_4", (1, 8, 1), (32, 1, 1), [c_uint64(...), ...])

Launches are as a driver's: addresses are of the host's memory, each argument a ctypes value of the parameter's size. They run to
their end at once. shim.cpp says how, and which mistakes it finds.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from zpipe.executors.cuda.images import SOURCE

SHIM = Path(__file__).with_name("shim.cpp")

#: Every operation rounds by itself, as in the device's code, and what is undefined is at least the same every time.
OPTIONS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-w")

_MOST_PARAMETERS = 16


class KernelError(Exception):
    """A launch that would fail on a device, or be undefined there."""


class CompiledGate:
    """A library of kernels, at `path`. Launches from several threads wait for each other."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._lock = threading.Lock()

    def parameters(self, kernel: str) -> list[int]:
        """Sizes in bytes of the kernel's parameters.

        Raises:
            KernelError: there is none of this name.
        """
        sizes = (ctypes.c_size_t * _MOST_PARAMETERS)()
        count = self._library.shim_parameters(kernel.encode(), sizes, _MOST_PARAMETERS)
        if count < 0:
            raise KernelError(f"no kernel {kernel}")
        return sizes[:count]

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[ctypes._SimpleCData[Any]],
        *,
        order: int = 0,
    ) -> None:
        """Run a kernel to its end.

        Args:
            order: of warps, lanes and blocks: 0 ascending, 1 descending, else some permutation.

        Raises:
            KernelError: the arguments do not fit the kernel, or it did what a device does not allow.
        """
        found, expected = [ctypes.sizeof(each) for each in arguments], self.parameters(kernel)
        if found != expected:
            raise KernelError(f"{kernel}: found arguments of {found} bytes, expected {expected}")
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        reason = ctypes.create_string_buffer(200)
        sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
        with self._lock:
            failed = self._library.shim_launch(
                kernel.encode(), *sizes, pointers, ctypes.c_uint(order), reason, ctypes.c_size_t(200)
            )
        if failed:
            raise KernelError(f"{kernel}: {reason.value.decode()}")


@cache
def compiled_gate(source: Path = SOURCE) -> CompiledGate | None:
    """The kernels, compiled once in a process; None where there is no C++ compiler."""
    compiler = _compiler()
    if compiler is None:
        return None
    library = Path(_folder().name) / f"gate-{len(list(Path(_folder().name).iterdir()))}.so"
    command = [compiler, *OPTIONS, f'-DSOURCE="{source}"', str(SHIM), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return CompiledGate(library)


def need_compiled_gate() -> CompiledGate:
    """The kernels; skips the test that asks where they cannot be made."""
    gate = compiled_gate()
    if gate is None:
        pytest.skip("needs a C++ compiler to run the gate's kernels on the CPU: install g++, or name one in CXX")
    return gate


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="zpipe-gate-")

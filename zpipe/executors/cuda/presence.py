"""Whether an NVIDIA GPU and what an executor needs beside it are here, without importing any of it.

Importing torch takes seconds and a broken library may abort, so this asks the CUDA driver itself, through ctypes, and looks for
modules without loading them. On a machine without a GPU that is one library that is not found: 0.1 ms.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zpipe.environment import JETSON, installed, pip
from zpipe.errors import BackendUnavailable, one_line

LIBCUDA = "libcuda.so.1"
#: What `Missing.found` says on a machine that has none: nothing is wrong there.
NO_GPU = "no NVIDIA GPU"
#: The two TensorRT flavours by module, in the order they are taken.
FLAVOURS = ("tensorrt", "tensorrt_rtx")

_INSTALL_DRIVER = "install NVIDIA's; in a container: docker run --gpus all"

#: Device files of NVIDIA's kernel drivers (PC, Jetson), and the devices on PCI: a GPU may be there without the driver's library.
_DEVICE_FILES = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"), Path("/dev/nvgpu"))
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA_PCI_VENDOR = "0x10de"
_PCI_DISPLAY_CLASS = "0x03"

#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR in cuda.h.
_CAPABILITY = (75, 76)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, as the driver tells it.

    Attributes:
        name: for people.
        capability: compute capability, (major, minor).
    """

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver shows.

    Attributes:
        version: the CUDA version it supports, 1000 * major + 10 * minor.
        devices: by ordinal.
    """

    version: int
    devices: tuple[Gpu, ...]

    @property
    def cuda(self) -> str:
        """The CUDA version as people write it."""
        return f"{self.version // 1000}.{self.version % 1000 // 10}"

    def __str__(self) -> str:
        return f"CUDA {self.cuda}: {', '.join(map(str, self.devices))}"


@dataclass(frozen=True, slots=True)
class Missing:
    """The one thing to mend first.

    Attributes:
        found: what is here instead.
        expected: what should be.
        remedy: what to do, mostly a command.
    """

    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"found {self.found}, expected {self.expected}; {self.remedy}"


def gpus(*, beside: str = "") -> Gpus | Missing:
    """The devices that the CUDA driver shows, at least one; or what stands in the way.

    Args:
        beside: what is installed that has no use without a driver; its owner expects one, so an answer begins with it.
    """
    try:
        cuda = ctypes.CDLL(LIBCUDA)
    except OSError:
        return _no_driver(f"{beside} but " if beside else "")
    try:
        return _shown(cuda)
    except AttributeError as exc:  # a stub to link with, or what an image put in the driver's place
        found = f"{f'{beside} but ' if beside else ''}a {LIBCUDA} that is no driver ({one_line(str(exc))})"
        return Missing(found, "NVIDIA's", _INSTALL_DRIVER)


def _shown(cuda: Any) -> Gpus | Missing:
    version, count = ctypes.c_int(), ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        says = f"gives error {code} ({_error_name(cuda, code)})" if code else "shows no GPU"
        remedy = "see nvidia-smi, CUDA_VISIBLE_DEVICES, and sudo dmesg | grep -i nvrm"
        return Missing(f"an NVIDIA driver that {says}", "a GPU", remedy)
    return Gpus(version.value, tuple(_gpu(cuda, ordinal) for ordinal in range(count.value)))


def missing_for(executor: str) -> Missing | None:
    """What is missing here for an executor of `zpipe.executors.base.EXECUTORS`, the first thing first; None if nothing seems to be.

    Whether what is there also works only a run can tell.
    """
    libraries = {"trt": _without_tensorrt, "torch-cuda": _without_torch}
    if executor not in libraries:
        return None
    there = gpus(beside="pycuda" if executor == "trt" and installed("pycuda") else "")
    return there if isinstance(there, Missing) else libraries[executor](there)


def require(executor: str) -> None:
    """Refuse an executor whose needs are not here.

    Raises:
        BackendUnavailable: the first thing that is missing, and the remedy.
    """
    missing = missing_for(executor)
    if missing is not None:
        raise BackendUnavailable(f"executor {executor}: {missing}")


def _without_tensorrt(there: Gpus) -> Missing | None:
    if not installed("pycuda"):
        remedy = f"run: {pip()} install 'zpipe[cuda]' (it is compiled then: needs the CUDA toolkit, nvcc on PATH)"
        return Missing(f"a driver ({there}) but no pycuda", "it installed", remedy)
    if not any(map(installed, FLAVOURS)):
        remedy = f"run: {pip()} install 'zpipe[rtx]'"
        if JETSON.exists():
            remedy = "JetPack brings it; make the environment with: python3 -m venv --system-site-packages .venv"
        return Missing(f"a driver ({there}) but no TensorRT", f"the module {' or '.join(FLAVOURS)}", remedy)
    return None


def _without_torch(there: Gpus) -> Missing | None:
    for module, expected in (("torch", "it installed, with CUDA"), ("onnx", "it installed, to read the stages")):
        if not installed(module):
            return Missing(f"a driver ({there}) but no {module}", expected, f"run: {pip()} install 'zpipe[train]'")
    return None


def _no_driver(but: str) -> Missing:
    """Nothing, or a GPU whose driver is not installed: which of the two is the first question of whoever reads it."""
    if but or any(file.exists() for file in _DEVICE_FILES) or _gpu_on_pci(_PCI):
        found = f"{but or 'an NVIDIA GPU but '}no NVIDIA driver ({LIBCUDA})"
        return Missing(found, "the driver of a GPU", _INSTALL_DRIVER)
    return Missing(NO_GPU, f"one with its driver ({LIBCUDA})", "executor onnx does without, and auto takes it then")


@cache
def _gpu_on_pci(devices: Path) -> bool:
    """Asked for by each candidate of `auto`, and plugged in by nobody meanwhile."""
    try:
        found = list(devices.iterdir())
    except OSError:
        return False
    # The class first: most are no display, and reading a file of a device takes up to a millisecond.
    return any(
        _said(device / "class").startswith(_PCI_DISPLAY_CLASS) and _said(device / "vendor") == _NVIDIA_PCI_VENDOR
        for device in found
    )


def _said(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or cuda.cuDeviceGetName(name, len(name), device):
        return Gpu(f"GPU {ordinal}", (0, 0))
    values = (ctypes.c_int(), ctypes.c_int())
    for value, attribute in zip(values, _CAPABILITY, strict=True):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return Gpu(name.value.decode(errors="replace"), (values[0].value, values[1].value))


def _error_name(cuda: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(code, ctypes.byref(name)) or name.value is None:
        return "unknown to it"
    return name.value.decode(errors="replace")

"""A machine with a GPU, as far as looking at it goes: a driver's library that answers a few questions, and packages to be found."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import missing_gpu
from zpipe.executors.cuda.presence import NO_GPU

#: For tests that need a machine without a GPU, or anything of one, and cannot pretend that.
WITHOUT_GPU = pytest.mark.skipif(
    getattr(missing_gpu(), "found", "") != NO_GPU, reason="this machine has something of an NVIDIA GPU"
)

#: What `presence.py` asks the driver, and nothing else; FAKE_CUDA_INIT is what cuInit answers, FAKE_CUDA_GPUS how many there are.
_DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) { const char *said = getenv(name); return said ? atoi(said) : otherwise; }
int cuInit(unsigned flags) { return number("FAKE_CUDA_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_CUDA_GPUS", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return 0; }
int cuGetErrorName(int code, const char **name) { *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return *name == 0; }
"""


def driver(folder: Path) -> Path:
    """A driver in this folder that answers."""
    return library(folder, _DRIVER)


def library(folder: Path, source: str) -> Path:
    """A `libcuda.so.1` in this folder, compiled here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    file = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(file)]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return file


def environment(folder: Path, packages: Mapping[str, str], *, with_driver: bool) -> dict[str, str]:
    """The environment of a process that finds, of what an executor on a GPU needs, these packages and no others.

    Args:
        folder: takes the packages and the driver.
        packages: {module: its source}.
        with_driver: whether there is the driver of `driver`.
    """
    site = folder / "site"
    for name, source in packages.items():
        path = site.joinpath(*name.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(source, encoding="utf-8")
    site.mkdir(parents=True, exist_ok=True)
    hidden = [name for name in NEEDED if name not in packages]
    (site / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))", encoding="utf-8")
    seen = dict(os.environ)
    seen["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    if with_driver:
        seen["LD_LIBRARY_PATH"] = str(driver(folder).parent)
    return seen


#: What executors on a GPU import.
NEEDED = ("pycuda", "tensorrt", "tensorrt_rtx", "torch")

#: pycuda as it is without a driver, and with one; and a TensorRT that can be looked at.
PYCUDA_WITHOUT_DRIVER = {
    "pycuda": "VERSION_TEXT = '2026.1'",
    "pycuda.driver": "raise ImportError('libcuda.so.1: cannot open shared object file: No such file or directory')",
}
PYCUDA = {
    "pycuda": "VERSION_TEXT = '2026.1'",
    "pycuda.driver": """
def init(): pass
class Device:
    @staticmethod
    def count(): return 1
""",
}
TENSORRT_RTX = {
    "tensorrt_rtx": """
__version__ = '1.7.1.116'
class ILogger:
    ERROR = INTERNAL_ERROR = WARNING = INFO = VERBOSE = 0
class ComputeCapability:
    SM86 = SM120 = 0
"""
}

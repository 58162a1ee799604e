"""A machine with a GPU, as far as looking at it goes: a driver's library that answers a few questions, and packages to be found."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

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
    """A `libcuda.so.1` in this folder, compiled here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=_DRIVER, text=True, check=True, capture_output=True)
    return library


def environment(folder: Path, packages: Mapping[str, str], *, with_driver: bool) -> dict[str, str]:
    """The environment of a process that sees these packages ({module: its source}) first, and the driver of `driver` or none."""
    site = folder / "site"
    for name, source in packages.items():
        path = site.joinpath(*name.split("."))
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text(source, encoding="utf-8")
    seen = dict(os.environ)
    seen["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    if with_driver:
        seen["LD_LIBRARY_PATH"] = str(driver(folder).parent)
    return seen

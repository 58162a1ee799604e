"""The stand-in for libcuda, built by the machine's C compiler, and code that runs on it in a process of its own.

    done = on_standin("tests.executors.cuda.pycuda_cases", "copies_wait_for_the_stream", STANDIN_FAIL="cuMemAlloc_v2:1:2")

Settings, all from the environment:

    STANDIN_DEVICES     how many there are; 0: cuInit gives "no device"            1
    STANDIN_CAPABILITY  compute capability times ten                               86
    STANDIN_VERSION     of CUDA that the driver supports                           12040
    STANDIN_MEMORY      MiB of the device                                          256
    STANDIN_KERNELS     library that holds the kernels (`compiled_gate().path`)    none
    STANDIN_FAIL        call:n:code, comma between: the n-th call of that name gives this code, and every later call, too, where it
                        is one that ends a context; `execute` is the carrying out of any queued work

In a process of its own, since whoever looks for a GPU afterwards in the same would find one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.executors.cuda.compiled import compiled_gate

HERE = Path(__file__).parent
ROOT = HERE.parents[3]

OPTIONS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1")


@cache
def standin() -> Path | None:
    """The folder with `libcuda.so.1` in it, built once in a process; None where there is no C compiler."""
    compiler = next(
        (found for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )
    if compiler is None:
        return None
    folder = Path(_folder().name)
    command = [compiler, *OPTIONS, *map(str, sorted(HERE.glob("*.c"))), "-o", str(folder / "libcuda.so.1"), "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return folder


def need_pycuda() -> None:
    """Skips the test that asks where the real pycuda is not installed."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("needs pycuda, pip install pycuda, which builds it and wants the headers of the CUDA toolkit, no GPU")


def on_standin(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module` with warnings as errors and the stand-in as the CUDA driver; skips without a C compiler."""
    folder, gate = standin(), compiled_gate()
    if folder is None or gate is None:
        pytest.skip("needs a C and a C++ compiler for the stand-in of libcuda: install gcc and g++")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("STANDIN_", "CUDA_"))},
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": str(ROOT),
        "STANDIN_KERNELS": str(gate.path),
        **settings,
    }
    command = [sys.executable, "-W", "error", "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="zpipe-standin-")

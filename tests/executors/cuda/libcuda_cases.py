"""What must hold of libcuda by ctypes, without pycuda: cases as in pycuda_cases.py, run by test_pycuda.py."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.executors.cuda.pycuda_cases import report, run_named
from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost
from zpipe.executors.cuda import libcuda
from zpipe.executors.cuda.libcuda import LOST, Libcuda
from zpipe.executors.cuda.presence import Gpus, Missing, gpus
from zpipe.executors.cuda.pycuda_objects import Calls


class FakePycuda:
    """What the translation of errors knows of pycuda."""

    class Error(Exception):
        pass


def errors_of_pycuda_and_of_libcuda_are_told_apart_by_code() -> None:
    said = {
        "cuMemAlloc failed: out of memory": (ExecutorLost, "out of memory (CUDA error 2 of cuMemAlloc), expected room"),
        "cuStreamSynchronize failed: an illegal memory access was encountered": (ExecutorLost, "(CUDA error 700 of cuStream"),
        "cuEventQuery failed: unspecified launch failure": (ExecutorLost, "CUDA error 719"),
        "cuLaunchKernel failed: too many resources requested for launch": (ExecutorError, "CUDA error 701"),
        "cuModuleLoadDataEx failed: a PTX JIT compilation failed - line 1\n  line 2": (ExecutorError, "failed line 1 line 2 (CUDA"),
        "m_stack::pop failed: invalid device context - cannot pop": (ExecutorLost, "invalid device context cannot pop (CUDA"),
        "cuNew failed: words of a newer driver": (ExecutorError, "found words of a newer driver (cuNew)"),
    }
    for text, (kind, part) in said.items():
        calls = Calls(FakePycuda, 0)
        error = calls.translate(FakePycuda.Error(text))
        assert type(error) is kind, text
        assert part in str(error)
        assert "\n" not in str(error)
        assert calls.libcuda.lost == (kind is ExecutorLost and "memory (" not in part), text
    assert Calls(FakePycuda, 0).translate(ValueError("of ours")) is None
    library = Libcuda(0)
    assert all(type(library.error("cuX", code)) is ExecutorLost for code in LOST)
    assert [type(library.error("cuX", code)) for code in (1, 222, 600, 701)] == [ExecutorError] * 4


def graph_repeats_what_was_recorded_and_a_refused_call_is_an_error() -> None:
    cuda, library, context = ctypes.CDLL("libcuda.so.1"), Libcuda(0), ctypes.c_void_p()
    stream, event = ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == cuda.cuCtxPushCurrent_v2(context) == 0
    assert cuda.cuStreamCreate(ctypes.byref(stream), 1) == cuda.cuEventCreate(ctypes.byref(event), 0) == 0
    handle = stream.value or 0
    library.begin_capture(handle)
    with pytest.raises(ExecutorError, match=r"invalid argument.*cuStreamBeginCapture_v2"):
        library.begin_capture(handle)
    assert cuda.cuEventRecord(event, stream) == 0
    graph = library.end_capture(handle)
    for _ in range(2):
        graph.launch(SimpleNamespace(handle=handle))
        assert cuda.cuStreamQuery(stream) == 0  # one work done with each look
    graph.free()
    graph.free()
    assert report() == "memory 0, pinned 0, streams 1, events 1, modules 0, graphs 0, mistakes 0, retained 1, pushed 1"


def driver_that_is_too_old_is_unavailable() -> None:
    libcuda._CALLS["cuOfTheFuture"] = ()
    with pytest.raises(BackendUnavailable, match=r"found a driver without cuOfTheFuture, expected one for CUDA 11\.4"):
        Libcuda(0)


def presence_finds_what_the_driver_shows() -> None:
    there = gpus()
    assert isinstance(there, Gpus)
    assert str(there) == "CUDA 12.4: Stand-in 0 (capability 8.6), Stand-in 1 (capability 8.6)"


def presence_says_what_the_driver_gives_instead() -> None:
    """Run with STANDIN_FAIL: a driver that does not fit its kernel module."""
    there = gpus()
    assert isinstance(there, Missing)
    assert "error 803 (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)" in str(there)


#: Case -> its settings of the stand-in.
CASES: dict[Callable[[], None], dict[str, str]] = {
    errors_of_pycuda_and_of_libcuda_are_told_apart_by_code: {},
    graph_repeats_what_was_recorded_and_a_refused_call_is_an_error: {},
    driver_that_is_too_old_is_unavailable: {},
    presence_finds_what_the_driver_shows: {"STANDIN_DEVICES": "2"},
    presence_says_what_the_driver_gives_instead: {"STANDIN_FAIL": "cuInit:1:803"},
}

#: Which leave something behind.
ALONE = (graph_repeats_what_was_recorded_and_a_refused_call_is_an_error, driver_that_is_too_old_is_unavailable)

if __name__ == "__main__":
    run_named(CASES)

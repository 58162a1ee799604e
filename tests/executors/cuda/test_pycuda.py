"""`PycudaDriver` over the real pycuda on a stand-in for the GPU's driver, alone and under a whole executor; what it says where
something is missing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.executors.cuda import libcuda_cases, pycuda_cases, stages_cases
from tests.executors.cuda.standin import need_pycuda, on_standin
from zpipe.errors import BackendUnavailable
from zpipe.executors.cuda import device, pycuda
from zpipe.executors.cuda.presence import Gpu, Gpus, Missing

Case = Callable[[], None]
Cases = Mapping[Case, Mapping[str, str]]


def sessions(cases: Cases, alone: Sequence[Case] = ()) -> list[Any]:
    """(cases, settings) of one process each: it takes a second to start, so those that can share one do."""
    several = [case for case, settings in cases.items() if not settings and case not in alone]
    single = [pytest.param([case], settings, id=case.__name__) for case, settings in cases.items() if case not in several]
    return [pytest.param(several, {}, id="together"), *single]


def run(cases: Sequence[Case], settings: Mapping[str, str]) -> None:
    done = on_standin(cases[0].__module__, *(case.__name__ for case in cases), **settings)
    assert (done.stderr, done.returncode) == ("", 0), f"after {done.stdout}"


@pytest.mark.parametrize(("cases", "settings"), sessions(pycuda_cases.CASES, pycuda_cases.ALONE))
def test_driver_over_pycuda(cases: Sequence[Case], settings: Mapping[str, str]) -> None:
    need_pycuda()
    run(cases, settings)


@pytest.mark.parametrize(("cases", "settings"), sessions(stages_cases.CASES, stages_cases.ALONE))
def test_executor_over_pycuda(cases: Sequence[Case], settings: Mapping[str, str]) -> None:
    need_pycuda()
    run(cases, settings)


@pytest.mark.parametrize(("cases", "settings"), sessions(libcuda_cases.CASES, libcuda_cases.ALONE))
def test_libcuda_by_ctypes(cases: Sequence[Case], settings: Mapping[str, str]) -> None:
    run(cases, settings)


def session(*arguments: str) -> str:
    """What a pytest session on the stand-in prints, in which nothing failed."""
    need_pycuda()
    done = on_standin("pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments)
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    return done.stdout


def test_executor_over_pycuda_keeps_the_contract() -> None:
    said = session("tests/executors/cuda/contract_on_standin.py")
    passed = re.search(r"(\d+) passed in", said)
    assert passed is not None, said
    assert int(passed[1]) >= 19


@pytest.mark.slow
@pytest.mark.parametrize(("file", "least"), [("test_gpu", 6), ("test_decide", 50), ("test_gather", 50)])
def test_tests_for_a_gpu_are_rehearsed(file: str, least: int) -> None:
    """Skipped may be what needs torch, or a device that survives what is done to it."""
    said = session("-m", "gpu", f"tests/executors/cuda/{file}.py")
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None, said
    assert int(passed[1]) >= least
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert all("torch" in line or "a real device" in line for line in skipped), said


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: Gpus(12040, (Gpu("a card", (8, 6)),)))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a pycuda on the path whose `driver.py` holds the given code; whichever is installed is gone from sight."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def put(code: str) -> None:
        (package / "driver.py").write_text(code)

    return put


@pytest.fixture(autouse=True)
def no_fake_stays() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycuda"]:
        del sys.modules[name]


def test_no_driver_is_said_before_no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: Missing("no NVIDIA GPU", "one", "see executor onnx"))
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailable, match=r"^GPU 0: found no NVIDIA GPU, expected one; see executor onnx$"):
        pycuda.PycudaDriver()


@pytest.mark.usefixtures("one_gpu")
def test_wrong_ordinal_is_said_before_no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailable, match=r"GPU 3: found CUDA 12\.4: a card .*, expected a device 0\.\.0; correct `device`"):
        pycuda.PycudaDriver(3)


@pytest.mark.usefixtures("one_gpu")
def test_pycuda_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailable, match=r"^pycuda: found no pycuda, expected it installed; run: .*'zpipe\[cuda\]'.*nvcc"):
        pycuda.PycudaDriver()


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import no_such_library", "pycuda without no_such_library, which it needs"),
        ("raise ImportError('_driver.so: undefined symbol: cuEventElapsedTime_v2')", "does not load .*cuEventElapsedTime_v2"),
        ("import warnings; warnings.warn('versions differ'); raise ImportError('_v2')", "does not load"),
    ],
)
def test_pycuda_that_does_not_load(code: str, found: str, installed: Callable[[str], None]) -> None:
    installed(code)
    with pytest.raises(BackendUnavailable, match=f"^pycuda: found .*{found}.*run: "):
        pycuda.PycudaDriver()

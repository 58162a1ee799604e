"""The devices that the gate's tests run on: the compiled kernels everywhere, and a GPU where there is one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from tests.executors.cuda.compiled import need_compiled_gate
from tests.executors.cuda.ground import Ground
from tests.executors.cuda.host import host_driver
from zpipe.errors import BackendUnavailable
from zpipe.executors.cuda.driver import Driver

#: How the compiled kernels' threads take turns (`CompiledGate.launch`).
ORDERS = (0, 1, 2)


#: {module in zpipe.executors.cuda: its driver}.
GPU_DRIVERS = {"pycuda": "PycudaDriver", "torch": "TorchDriver"}


def gpu_driver(library: str) -> Driver:
    """The first GPU's, by this library; skips the test where one of them is missing."""
    try:
        made: Driver = getattr(importlib.import_module(f"zpipe.executors.cuda.{library}"), GPU_DRIVERS[library])(0)
    except (ImportError, BackendUnavailable) as exc:
        pytest.skip(f"needs a GPU and {library}: {exc}")
    return made


@pytest.fixture(scope="module", params=[*ORDERS, *(pytest.param(library, marks=pytest.mark.gpu) for library in GPU_DRIVERS)])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    on_gpu = request.param in GPU_DRIVERS
    driver = gpu_driver(request.param) if on_gpu else host_driver(need_compiled_gate(), request.param)
    yield Ground(driver)
    driver.close()

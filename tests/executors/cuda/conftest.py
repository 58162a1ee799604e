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


def gpu_driver() -> Driver:
    """The first GPU's, by pycuda; skips the test where one of them is missing."""
    try:
        made: Driver = importlib.import_module("zpipe.executors.cuda.pycuda").PycudaDriver(0)
    except (ImportError, BackendUnavailable) as exc:
        pytest.skip(f"needs pycuda and a GPU: {exc}")
    return made


@pytest.fixture(scope="module", params=[*ORDERS, pytest.param("gpu", marks=pytest.mark.gpu)], ids=lambda each: f"order-{each}")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    driver = gpu_driver() if request.param == "gpu" else host_driver(need_compiled_gate(), request.param)
    yield Ground(driver)
    driver.close()

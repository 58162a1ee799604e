"""What tests run on: the gate's compiled kernels everywhere, a GPU where there is one, the executor's stand-in for it."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.executors.cuda.compiled import need_compiled_gate
from tests.executors.cuda.engines import Bench, Make
from tests.executors.cuda.ground import Ground
from tests.executors.cuda.host import host_driver
from tests.executors.tiny import tiny_bundle
from zpipe.errors import BackendUnavailable
from zpipe.executors.cuda.driver import Driver
from zpipe.executors.cuda.runner import CudaStages

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


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.check()
    for driver in made.drivers:
        assert driver.closed
        assert driver.live == set()
        assert driver.graphs == 0
    assert all(engine.closed for engine in made.engines)


@pytest.fixture
def make(bench: Bench) -> Iterator[Make]:
    """Makes executors over the bench and closes them."""
    made: list[CudaStages] = []

    def executor(stages: Sequence[int], **options: Any) -> CudaStages:
        made.append(bench.executor(tiny_bundle(), stages, **options))
        return made[-1]

    yield executor
    gc.collect()
    for each in made:
        each.close()
        each._owner.join(20.0)

"""What all tests share: one reproducible Hypothesis profile, the skip for tests that need a GPU, quick garbage collections."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache

import pytest

import tests.properties  # noqa: F401 - loads the Hypothesis profile
from zpipe.executors.cuda.presence import Missing, gpus

#: Set where the CUDA driver is the tests' own stand-in (tests/executors/cuda/standin).
REHEARSAL = "STANDIN_KERNELS"


@cache
def missing_gpu() -> Missing | None:
    """What stands between the tests and a GPU, as the driver says: a second card has another device file, and WSL2 has none."""
    there = gpus()
    return there if isinstance(there, Missing) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu") is not None]
    missing = missing_gpu() if wanting and REHEARSAL not in os.environ else None
    if missing is not None:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {missing}"))


def pytest_collection_finish() -> None:
    # What is imported by now stays to the end. Left to be walked, it makes every gc.collect() take 0.1 s; 400 tests ask for one.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _rubbish_of_one_file() -> Iterator[None]:
    """What a file's tests left unclosed is told of that file; what they imported and cached is not walked by the next ones."""
    yield
    gc.collect()
    gc.freeze()

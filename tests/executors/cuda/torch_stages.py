"""A whole executor over `TorchDriver` on the stand-in, beside a pretended torch; its engine is ONNX Runtime as work of a stream.

As a test session it is the executor contract, which test_torch.py starts where libcuda is the stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from tests.executors.cuda import pretend_torch
from tests.executors.cuda.engines import until
from tests.executors.cuda.pycuda_cases import NOTHING, report
from tests.executors.cuda.pycuda_stages import HostEngine
from tests.executors.test_contract import *  # noqa: F403 - its tests; the fixture below takes the place of its own
from tests.executors.test_contract import Subject
from tests.executors.tiny import images, tiny_bundle
from zpipe.bundle import Bundle
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.cuda.torch import TorchDriver


class TorchStages(CudaStages):
    """As a topology names it: `tests.executors.cuda.torch_stages:TorchStages`."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "") -> None:
        super().__init__(bundle, stages, driver=TorchDriver, engine=partial(HostEngine, bundle), max_batch=16)


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def subject() -> Subject:
    pretend_torch.install()
    return Subject("tests.executors.cuda.torch_stages:TorchStages", tiny_bundle(), images, lambda batch: 255 - images(batch))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    try:
        until(lambda: report() == NOTHING)  # what an answer had is freed after it is gone, on the executor's thread
    finally:
        assert report() == NOTHING

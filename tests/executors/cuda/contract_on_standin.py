"""The executor contract on `PycudaStages`: its own pytest session, which test_pycuda.py starts where libcuda is the stand-in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.executors.cuda.engines import until
from tests.executors.cuda.pycuda_cases import NOTHING, report
from tests.executors.test_contract import *  # noqa: F403 - its tests; the fixture below takes the place of its own
from tests.executors.test_contract import Subject
from tests.executors.tiny import images, tiny_bundle


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def subject() -> Subject:
    return Subject("tests.executors.cuda.pycuda_stages:PycudaStages", tiny_bundle(), images, lambda batch: 255 - images(batch))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    try:
        until(lambda: report() == NOTHING)  # what an answer had is freed after it is gone, on the executor's thread
    finally:
        assert report() == NOTHING

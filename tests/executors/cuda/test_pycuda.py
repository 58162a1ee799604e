"""`PycudaDriver`: over the real pycuda on a stand-in for the GPU's driver, and what it says where pycuda is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.executors.cuda.pycuda_cases import CASES
from tests.executors.cuda.standin import need_pycuda, on_standin


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.__name__))
def test_driver_over_pycuda(case: Callable[[], None]) -> None:
    need_pycuda()
    done = on_standin("tests.executors.cuda.pycuda_cases", case.__name__, **CASES[case])
    assert (done.stderr, done.returncode) == ("", 0)

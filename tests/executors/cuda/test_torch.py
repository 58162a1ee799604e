"""`TorchDriver` on a stand-in for the GPU's driver, beside a pretended torch; tests/executors/torch has what needs the real one."""

from __future__ import annotations

import re

import pytest

from tests.executors.cuda.standin import on_standin
from tests.executors.cuda.torch_cases import CASES, LAST

#: A process takes a second to start, so the cases share one but for those that would not leave it as it was.
TOGETHER = [case.__name__ for case, settings in CASES.items() if not settings and case not in LAST]
ALONE = {case.__name__: settings for case, settings in CASES.items() if case.__name__ not in TOGETHER}


def test_driver_beside_torch() -> None:
    done = on_standin("tests.executors.cuda.torch_cases", *TOGETHER)
    assert (done.stderr, done.returncode) == ("", 0), f"after {done.stdout}"


@pytest.mark.parametrize("case", ALONE)
def test_driver_beside_torch_where_something_fails(case: str) -> None:
    done = on_standin("tests.executors.cuda.torch_cases", case, **ALONE[case])
    assert (done.stderr, done.returncode) == ("", 0)


def test_executor_beside_torch_keeps_the_contract() -> None:
    done = on_standin("pytest", "-q", "-p", "no:cacheprovider", "tests/executors/cuda/torch_stages.py")
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    passed = re.search(r"(\d+) passed in", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 19
    assert "skipped" not in done.stdout

"""Memory that was freed is used again without a page fault."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives freed memory back so soon")

ROUNDS = 20
#: Three buffers that come and go together, more than glibc keeps by itself; tells the faults of all rounds but the first few.
_PROGRAM = f"""
import resource, sys
from zpipe.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        buffers = [b"x" * 3_000_000 for _ in range(3)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(5)
print(faults({ROUNDS}))
"""


def faults(what: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, what], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_buffers_that_come_and_go_cost_no_page_faults() -> None:
    assert faults("leave") > 100 * ROUNDS
    assert faults("keep") < ROUNDS


def test_what_the_user_says_of_malloc_holds() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 100 * ROUNDS
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") > 100 * ROUNDS

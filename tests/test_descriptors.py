"""How many descriptors a process of zpipe's own asks for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zpipe import descriptors

resource = pytest.importorskip("resource", reason="descriptors are limited on POSIX alone")


class Limit:
    """The limit as the system keeps it."""

    RLIMIT_NOFILE = resource.RLIMIT_NOFILE
    RLIM_INFINITY = resource.RLIM_INFINITY

    def __init__(self, soft: int, hard: int, *, most: int = sys.maxsize) -> None:
        self.pair = (soft, hard)
        self._most = most

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.pair

    def setrlimit(self, which: int, pair: tuple[int, int]) -> None:
        if pair[0] > self._most:
            raise ValueError
        self.pair = pair


ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1_048_576), (65_536, 1_048_576)),
        ((256, ANY), (65_536, ANY)),
        ((100_000, 1_048_576), (100_000, 1_048_576)),
        ((ANY, ANY), (ANY, ANY)),
    ],
)
def test_soft_limit_is_raised_and_never_lowered(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int]
) -> None:
    limit = Limit(*before)
    monkeypatch.setattr(descriptors, "resource", limit)
    descriptors.raise_limit()
    assert limit.pair == after


def test_system_that_grants_less_leaves_what_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(256, ANY, most=10_240)
    monkeypatch.setattr(descriptors, "resource", limit)
    descriptors.raise_limit()
    assert limit.pair == (256, ANY)


@pytest.mark.parametrize(
    "code",
    [
        "from zpipe.cli.running import run_interruptible as run; import asyncio; run(asyncio.sleep(0))",
        "from zpipe.runtime import child; child.live(child.serve)",
    ],
    ids=["command", "child"],
)
def test_every_process_of_ours_asks(code: str) -> None:
    lower = "import resource; r = resource.RLIMIT_NOFILE; resource.setrlimit(r, (200, resource.getrlimit(r)[1]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{lower}; {code}; print(resource.getrlimit(r)[0])"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert int(done.stdout) == min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])

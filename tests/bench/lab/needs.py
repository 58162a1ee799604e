"""The skip for tests that make namespaces: they say what is missing and how to get it."""

from __future__ import annotations

import os
import subprocess

import pytest

from zpipe.bench.lab import host
from zpipe.errors import ConfigError


def _missing() -> str:
    try:
        host.check_host()
        name = f"zpipe-try-{os.getpid()}"
        host.call(("ip", "netns", "add", name))
        subprocess.run(("ip", "netns", "delete", name), check=True)
    except ConfigError as exc:
        return str(exc)
    return ""


_WHY = _missing()
needs_lab = pytest.mark.skipif(bool(_WHY), reason=_WHY)
needs_cpu_groups = pytest.mark.skipif(host.cpu_groups() is None, reason="no CPU control group here: mount cgroup v1 `cpu`, or v2")

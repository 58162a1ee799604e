"""Loaded by every Python that has this folder on its PYTHONPATH: where a node's CPU goes, by part of the hot path.

`python -m bench.hotpath --parts` uses it. Each part is a function of zpipe that is timed by its thread's CPU clock, less what other
parts take inside it. What cannot be found (in an older or newer checkout) is named and counts as the rest. The clock itself takes
about a microsecond per call of a part, most of it in the part around it.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: part -> "module:attribute" of each function that belongs to it.
PARTS = {
    "policy": ("zpipe.policy.node:NodePolicy.handle_all", "zpipe.policy.node:NodePolicy.next_wakeup"),
    "decode": ("zpipe.runtime.inbox:decode",),
    "encode": ("zpipe.runtime.driver:encode",),
    "send": ("zpipe.transport.zeromq:ZeroMQTransport.send_data", "zpipe.transport.zeromq:ZeroMQTransport.send_control"),
    "receive": ("zpipe.transport.readers:receive", "zpipe.transport.readers:readable"),
    "reading": ("zpipe.transport.readers:Readers._drain",),
    "inbox": ("zpipe.runtime.inbox:Inbox.on_data", "zpipe.runtime.inbox:Inbox.on_control"),
    "driver": ("zpipe.runtime.driver:Driver._pump",),
    "run a stage": ("zpipe.runtime.worker:Worker.run",),
    "after a stage": ("zpipe.runtime.stages:Stages._ran",),
}

seconds = dict.fromkeys(PARTS, 0.0)
calls = dict.fromkeys(PARTS, 0)
missing: list[str] = []
threads: dict[str, float] = {}
_inner = threading.local()
_lock = threading.Lock()


def _timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    clock = time.thread_time

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        outer = getattr(_inner, "seconds", 0.0)
        _inner.seconds = 0.0
        begin = clock()
        try:
            return function(*args, **kwargs)
        finally:
            took = clock() - begin
            seconds[part] += took - _inner.seconds
            calls[part] += 1
            _inner.seconds = outer + took

    return timed


def _noting_threads(aclose: Callable[..., Any]) -> Callable[..., Any]:
    """ZeroMQ's threads end with the transport."""

    @functools.wraps(aclose)
    def closing(self: Any, *args: Any, **kwargs: Any) -> Any:
        threads.update(_threads(), rank=self.rank)
        return aclose(self, *args, **kwargs)

    return closing


def _install() -> None:
    for part, names in PARTS.items():
        for name in names:
            module_name, _, path = name.partition(":")
            *owners, attribute = path.split(".")
            try:
                owner = functools.reduce(getattr, owners, importlib.import_module(module_name))
                setattr(owner, attribute, _timed(part, getattr(owner, attribute)))
            except (ImportError, AttributeError):
                missing.append(name)
    driver = importlib.import_module("zpipe.runtime.driver").Driver
    driver.aclose = _noting_threads(driver.aclose)


def _threads() -> dict[str, float]:
    """{name: CPU seconds} of this process's threads, those of one name together."""
    tick = os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = {}
    for task in Path("/proc/self/task").glob("*/stat"):
        name, _, rest = task.read_text().partition("(")[2].rpartition(") ")
        fields = rest.split()
        found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / tick
    return found


def _write(file: Path) -> None:
    if threads:  # else this Python was no node
        file.write_text(json.dumps({"seconds": seconds, "calls": calls, "threads": threads, "missing": missing}))


if "ZPIPE_PROBE" in os.environ:
    _install()
    atexit.register(_write, Path(os.environ["ZPIPE_PROBE"]) / f"{os.getpid()}.json")

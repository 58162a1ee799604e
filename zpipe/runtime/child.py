"""A rank that another process started: `python -m zpipe.runtime.child`, one JSON line at a time on its pipes.

    in   {"topology": {...}, "rank": 2, "bundle": "/path", "trace": null or "/path", "path": [...]}     what to be
    out  {"address": "127.0.0.1:40123"}                        bound, stages loaded
    in   {"addresses": {"0": "...", ...}}                      where the others are
    out  {"ready": true}                                       every neighbour said Hello
    out  {"error": "one line"}                                 instead of any of the above; exit code 2

It lives until its standard input ends, so it cannot outlive whoever started it; on Linux the kernel wakes one that is stopped
(SIGSTOP) when its parent dies, so that it sees that end. Ctrl-C is for the parent to act on.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from zpipe.allocator import keep_freed_memory
from zpipe.bundle import load_bundle
from zpipe.descriptors import raise_limit
from zpipe.emulation import bundle_to_run
from zpipe.errors import ZpipeError
from zpipe.runtime.loops import run
from zpipe.runtime.node import Node
from zpipe.topology import from_dict

log = logging.getLogger("zpipe.child")

#: From linux/prctl.h: the signal this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def say(message: dict[str, Any]) -> None:
    """Writes one line to the parent, who may be gone."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def serve() -> int:
    """The whole life of a child; returns its exit code."""
    lines = await _lines()
    stop, orphaned = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    spec = json.loads(await lines.readline() or b"null")
    if spec is None:
        return 0
    # The parent's script may lie beside the module of an executor of its own.
    sys.path.extend(folder for folder in spec.get("path", ()) if folder not in sys.path)
    trace = Path(spec["trace"]) if spec.get("trace") else None
    topology = from_dict(spec["topology"])
    bundle = bundle_to_run(topology, load_bundle(spec["bundle"], verify=False))
    node = Node(topology, spec["rank"], bundle=bundle, trace=trace)
    try:
        say({"address": await node.bind()})
        line = await lines.readline()
        if not line:
            return 0
        addresses = {int(rank): address for rank, address in json.loads(line)["addresses"].items()}
        node.connect(node.topology.with_addresses(addresses))
        watch = asyncio.ensure_future(_until_end(lines, stop, orphaned))
        greet = asyncio.ensure_future(_greet(node))
        try:
            await node.serve(stop)
            if not orphaned.is_set():
                await node.drain(hurry=orphaned)
        finally:
            watch.cancel()
            greet.cancel()
    finally:
        await node.aclose()
    return 0


async def _greet(node: Node) -> None:
    await node.driver.peers.complete.wait()
    say({"ready": True})


async def _until_end(lines: asyncio.StreamReader, stop: asyncio.Event, orphaned: asyncio.Event) -> None:
    while await lines.read(4096):
        pass
    orphaned.set()
    stop.set()


def wake_when_orphaned() -> None:
    """Has the kernel send SIGCONT when the parent dies: to one that runs that is nothing, to a stopped one it is the way out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def main() -> int:
    """Entry point; errors go to the parent in one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_when_orphaned()
    raise_limit()
    keep_freed_memory()
    logging.basicConfig(level=os.environ.get("ZPIPE_LOG", "ERROR"), format="%(message)s")
    try:
        return run(serve())
    except ZpipeError as exc:
        say({"error": " ".join(str(exc).split())})
        return 2
    except Exception as exc:  # a mistake of ours: whoever started this rank has the terminal
        log.debug("what happened:", exc_info=True)
        say({"error": " ".join(f"unexpected {type(exc).__name__}: {exc}".split())})
        return 1


if __name__ == "__main__":
    sys.exit(main())

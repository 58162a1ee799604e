"""A rank that another process started: `python -m zpipe.runtime.child`, one JSON line at a time on its pipes.

    in   {"topology": {...}, "rank": 2, "bundle": "/path", "trace": null or "/path", "path": [...]}     what to be
    out  {"address": "127.0.0.1:40123"}                        bound, stages loaded
    in   {"addresses": {"0": "...", ...}}                      where the others are
    out  {"ready": true}                                       every neighbour said Hello
    out  {"error": "one line"}                                 instead of any of the above; exit code 2

At a rank that is a source it is one at which nobody submits samples; `zpipe.bench.source` begins as this and then offers its load.
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
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zpipe.allocator import keep_freed_memory
from zpipe.bundle import load_bundle
from zpipe.descriptors import raise_limit
from zpipe.emulation import bundle_to_run
from zpipe.errors import ZpipeError
from zpipe.runtime.loops import run
from zpipe.runtime.node import Node
from zpipe.topology import Topology, from_dict

if TYPE_CHECKING:
    from zpipe.runtime.pipeline import Pipeline

log = logging.getLogger("zpipe.child")

T = TypeVar("T")

#: From linux/prctl.h: the signal this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def say(message: dict[str, Any]) -> None:
    """Writes one line to the parent, who may be gone."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


class Orphaned(Exception):
    """The parent is gone: there is nobody left to tell anything."""


class Parent:
    """Whoever started this process, at the other end of its pipes.

    Args:
        lines: what it says.
        spec: what it said first.

    Attributes:
        topology: read from that.
        rank: what to be.
        trace: where to record rounds, None for nowhere.
        gone: set once it says nothing more.
    """

    def __init__(self, lines: asyncio.StreamReader, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.topology: Topology = from_dict(spec["topology"])
        self.rank: int = spec["rank"]
        self.trace = Path(spec["trace"]) if spec.get("trace") else None
        self.gone = asyncio.Event()
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._hearing = asyncio.ensure_future(self._hear(lines))

    async def message(self) -> dict[str, Any]:
        """The next one.

        Raises:
            Orphaned: there will be none.
        """
        message = await self._messages.get()
        if message is None:
            raise Orphaned
        return message

    async def meet(self, address: str) -> dict[int, str]:
        """Says where this rank is; {rank: address} of the others."""
        say({"address": address})
        return {int(rank): address for rank, address in (await self.message())["addresses"].items()}

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """Does the work, unless the parent goes meanwhile.

        Raises:
            Orphaned: it did.
        """
        done, gone = asyncio.ensure_future(work), asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise Orphaned
            return done.result()
        finally:
            gone.cancel()
            done.cancel()
            await asyncio.wait((done,))

    async def _hear(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            self._messages.put_nowait(json.loads(line))
        self._messages.put_nowait(None)
        self.gone.set()


async def parent() -> Parent:
    """Waits to be told what to be.

    Raises:
        Orphaned: nobody says it.
        ConfigError: it cannot be.
    """
    lines = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    line = await lines.readline()
    if not line:
        raise Orphaned
    spec = json.loads(line)
    # The parent's script may lie beside the module of an executor of its own.
    sys.path.extend(folder for folder in spec.get("path", ()) if folder not in sys.path)
    return Parent(lines, spec)


@asynccontextmanager
async def as_source(by: Parent, **options: Any) -> AsyncIterator[Pipeline]:
    """The pipeline of a rank that is a source, once it has met its neighbours; `options` as for `Pipeline.connect`."""
    from zpipe.runtime.pipeline import Pipeline  # nodes need none

    pipeline = Pipeline(by.topology, by.rank, launch=False, meet=by.meet, trace=by.trace, **options)
    async with pipeline:
        await by.while_there(pipeline.ready())
        say({"ready": True})
        yield pipeline


async def serve() -> None:
    """The whole life of a child."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    by = await parent()
    if by.topology.source_at(by.rank) is not None:
        async with as_source(by):
            await by.while_there(stop.wait())
        return
    bundle = bundle_to_run(by.topology, load_bundle(by.spec["bundle"], verify=False))
    node = Node(by.topology, by.rank, bundle=bundle, trace=by.trace)
    try:
        node.connect(node.topology.with_addresses(await by.meet(await node.bind())))
        watch = asyncio.ensure_future(_until_gone(by, stop))
        greet = asyncio.ensure_future(_greet(node))
        try:
            await node.serve(stop)
            if not by.gone.is_set():
                await node.drain(hurry=by.gone)
        finally:
            watch.cancel()
            greet.cancel()
    finally:
        await node.aclose()


async def _greet(node: Node) -> None:
    await node.driver.peers.complete.wait()
    say({"ready": True})


async def _until_gone(by: Parent, stop: asyncio.Event) -> None:
    await by.gone.wait()
    stop.set()


def wake_when_orphaned() -> None:
    """Has the kernel send SIGCONT when the parent dies: to one that runs that is nothing, to a stopped one it is the way out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


def live(life: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """A child's whole process; errors go to the parent in one line. Returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_when_orphaned()
    raise_limit()
    keep_freed_memory()
    logging.basicConfig(level=os.environ.get("ZPIPE_LOG", "ERROR"), format="%(message)s")
    try:
        run(life())
    except Orphaned:
        pass
    except ZpipeError as exc:
        say({"error": " ".join(str(exc).split())})
        return 2
    except Exception as exc:  # a mistake of ours: whoever started this rank has the terminal
        log.debug("what happened:", exc_info=True)
        say({"error": " ".join(f"unexpected {type(exc).__name__}: {exc}".split())})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(live(serve))

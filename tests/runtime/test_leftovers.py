"""What a program is left with after a pipeline in it has ended, however it ended: what it had before."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

import zpipe
from tests.runtime.mesh import HALF, PATIENCE_SECONDS
from zpipe.topology import Topology, load_topology, override

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

IMAGE = np.zeros((3, 32, 32), np.uint8)


class ProgramError(Exception):
    """The program's own."""


def line() -> Topology:
    return override(load_topology("line2"), bundle=str(HALF))


def descriptors() -> set[tuple[str, str]]:
    """(number, what it is) of each: sockets and pipes have numbers of their own."""
    numbers = os.listdir("/proc/self/fd")  # one of them that this was read by
    return {(number, os.readlink(file)) for number in numbers if os.path.lexists(file := f"/proc/self/fd/{number}")}


def threads() -> set[str]:
    """Every thread of the process, Python's and libraries' own."""
    return set(os.listdir("/proc/self/task"))


@contextmanager
def nothing_left() -> Iterator[None]:
    """Threads, descriptors (sockets, pipes, files) and processes after it are those before it."""
    before, others = (threads(), descriptors()), set(psutil.Process().children())
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio-waitpid"):  # asyncio's, of a process that has ended
            thread.join(PATIENCE_SECONDS)
    until = time.monotonic() + PATIENCE_SECONDS
    while threads() - before[0] and time.monotonic() < until:  # the kernel forgets a joined thread a moment later
        os.sched_yield()
    names = [thread.name for thread in threading.enumerate()]
    assert threads() - before[0] == set(), names
    assert descriptors() - before[1] == set()
    assert set(psutil.Process().children()) <= others  # such as multiprocessing's tracker, which stays once it is there


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_loaded() -> None:
    """What libraries open once and keep: ONNX Runtime's files, NumPy's threads."""
    asyncio.run(answered())


async def answered() -> None:
    async with zpipe.Pipeline.local(line()) as pipeline:
        await pipeline.submit(IMAGE)


async def raising() -> None:
    async with zpipe.Pipeline.local(line()) as pipeline:
        await pipeline.submit(IMAGE)
        raise ProgramError


async def open_samples() -> None:
    """Left while answers are awaited, by a call, a stream and a callback."""
    async with zpipe.Pipeline.local(line()) as pipeline:
        launcher = pipeline.launcher
        assert launcher is not None
        launcher.pause(1)  # nothing comes back from it
        waiting = [asyncio.ensure_future(pipeline.submit(image)) for image in pipeline.bundle.evaluation().images[:40]]
        ends: list[str] = []
        pipeline.offer(IMAGE, lambda outcome: ends.append(outcome.kind))
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(ends) == 1


async def cancelled() -> None:
    inside = asyncio.Event()

    async def program() -> None:
        async with zpipe.Pipeline.local(line()) as pipeline:
            async for _ in pipeline.stream(IMAGE for _ in iter(int, 1)):
                inside.set()

    task = asyncio.ensure_future(program())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelled_while_it_starts() -> None:
    task = asyncio.ensure_future(answered())
    while not psutil.Process().children():  # noqa: ASYNC110 - a turn of the loop is what is waited for
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def node_dead() -> None:
    async with zpipe.Pipeline.local(line()) as pipeline:
        await pipeline.submit(IMAGE)
        launcher = pipeline.launcher
        assert launcher is not None
        launcher.kill(1)
        images = pipeline.bundle.evaluation().images  # some exit early, here
        assert "expired" in {outcome.kind async for outcome in pipeline.stream(images[:100], deadline=0.2)}


async def node_crashed() -> None:
    async with zpipe.Pipeline.local(line()) as pipeline:
        launcher = pipeline.launcher
        assert launcher is not None
        os.kill(launcher.processes[1].pid, signal.SIGKILL)
        await asyncio.wait((launcher.crashed,))


async def node_that_cannot_start() -> None:
    with pytest.raises(zpipe.ConfigError, match="node 1"):
        async with zpipe.Pipeline.local(override(line(), executor="no.such:Executor")):
            pass


WAYS = (answered, raising, open_samples, cancelled, cancelled_while_it_starts, node_dead, node_crashed, node_that_cannot_start)


@pytest.mark.parametrize("program", WAYS, ids=lambda program: program.__name__)
def test_pipeline_leaves_nothing_behind(program: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with nothing_left():
            try:
                await program()
            except ProgramError:
                pass
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


# ---- without asyncio ---------------------------------------------------------------------------


def sync_answered() -> None:
    with zpipe.SyncPipeline.local(line()) as pipeline:
        pipeline.submit(IMAGE)


def sync_raising() -> None:
    with zpipe.SyncPipeline.local(line()) as pipeline:
        pipeline.submit(IMAGE)
        raise ProgramError


def sync_open_samples() -> None:
    with zpipe.SyncPipeline.local(line()) as pipeline:
        assert pipeline.pipeline.launcher is not None
        pipeline._loop.call_soon_threadsafe(pipeline.pipeline.launcher.pause, 1)
        images = pipeline.pipeline.bundle.evaluation().images[:40]
        futures = [pipeline.submit_later(image) for image in images]
        next(pipeline.stream(images, deadline=0.2))  # the others of it are open
    assert all(future.done() for future in futures)


def sync_node_dead() -> None:
    with zpipe.SyncPipeline.local(line()) as pipeline:
        assert pipeline.pipeline.launcher is not None
        pipeline._loop.call_soon_threadsafe(pipeline.pipeline.launcher.kill, 1)
        images = pipeline.pipeline.bundle.evaluation().images
        assert "expired" in {outcome.kind for outcome in pipeline.stream(images[:100], deadline=0.2)}


def sync_interrupted_while_it_starts() -> None:
    """Ctrl-C as its first process stands."""

    def interrupt() -> None:
        while not psutil.Process().children():
            os.sched_yield()
        signal.raise_signal(signal.SIGINT)

    presser = threading.Thread(target=interrupt)
    presser.start()
    with pytest.raises(KeyboardInterrupt), zpipe.SyncPipeline.local(line()):
        pass
    presser.join(PATIENCE_SECONDS)


SYNC_WAYS = (sync_answered, sync_raising, sync_open_samples, sync_node_dead, sync_interrupted_while_it_starts)


@pytest.mark.parametrize("program", SYNC_WAYS, ids=lambda program: program.__name__)
def test_sync_pipeline_leaves_nothing_behind(program: Callable[[], None]) -> None:
    with nothing_left():
        try:
            program()
        except ProgramError:
            pass

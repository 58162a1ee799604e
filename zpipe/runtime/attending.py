"""What a command does around a pipeline: wait for nodes that others start, and end when one that it started dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from zpipe.errors import ZpipeError
from zpipe.runtime.pipeline import Pipeline

T = TypeVar("T")

#: An attached source says which ranks it waits for this often.
ATTACH_NOTE_SECONDS = 10.0


async def all_attached(pipeline: Pipeline, progress: Callable[[str, float], None]) -> None:
    """Waits for the nodes that somebody else starts, and says which ones are missing.

    Raises:
        ConfigError: one runs with other files.
    """
    ready = asyncio.ensure_future(pipeline.ready())
    try:
        while not ready.done():
            progress(f"waiting for rank {pipeline.driver.peers.missing_text()}", 0.0)
            await asyncio.wait((ready,), timeout=ATTACH_NOTE_SECONDS)
        ready.result()
    finally:
        ready.cancel()


async def unless_crashed(pipeline: Pipeline, work: Coroutine[Any, Any, T]) -> T:
    """Does the work; ends it when a node that the pipeline started ends by itself.

    Raises:
        ZpipeError: that happened.
    """
    done = asyncio.ensure_future(work)
    crashed = [pipeline.launcher.crashed] if pipeline.launcher is not None else []
    try:
        waited: list[asyncio.Future[Any]] = [done, *crashed]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            error = crashed[0].exception()
            raise error if error is not None else ZpipeError("a node ended by itself")
        return done.result()
    finally:
        done.cancel()
        await asyncio.wait((done,))  # nothing may be offered any more to a pipeline that closes

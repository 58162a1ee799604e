"""What a command does around a pipeline: wait for nodes that others start, and end when one that it started dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from zpipe.errors import ZpipeError
from zpipe.runtime.driver import Driver
from zpipe.runtime.pipeline import Pipeline
from zpipe.runtime.ways import parts_away

T = TypeVar("T")
log = logging.getLogger("zpipe.pipeline")

#: An attached source says which ranks it waits for this often.
ATTACH_NOTE_SECONDS = 10.0
#: Students of which nobody is there are waited for so long; then the others start without them.
STUDENTS_SECONDS = 10.0
#: Whether somebody is there is looked at so often: that it takes samples is known to the policy alone, which calls nobody.
LOOK_SECONDS = 0.25


async def all_attached(pipeline: Pipeline, progress: Callable[[str, float], None]) -> None:
    """Waits for the nodes that somebody else starts, and says which ones are missing.

    With students not for all of them: the run starts once each has a host, after STUDENTS_SECONDS once any has. Whoever comes
    later is taken in then.

    Raises:
        ConfigError: one runs with other files.
    """
    driver = pipeline.driver
    ready = asyncio.ensure_future(pipeline.ready())
    waited: list[asyncio.Future[None]] = [ready]
    if pipeline.bundle.students:
        waited.append(asyncio.ensure_future(_enough_students(driver)))
    try:
        while not any(future.done() for future in waited):
            progress(f"waiting for rank {driver.peers.missing_text()}", 0.0)
            await asyncio.wait(waited, timeout=ATTACH_NOTE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for future in waited:
            if future.done():
                future.result()
        if not ready.done() and driver.peers.missing():
            missing, parts = driver.peers.missing_text(), ", ".join(map(str, parts_away(driver)))
            if parts:  # a word that stays: until somebody sees to it, every answer is worse for it
                log.error("starting without rank %s, so without part %s of every answer; whoever comes later joins", missing, parts)
            else:
                progress(f"starting without rank {missing}; whoever comes later joins", 0.0)
    finally:
        for future in waited:
            future.cancel()


async def _enough_students(driver: Driver) -> None:
    """Returns once every student has a host that takes samples, after a while as soon as any has."""
    until = time.monotonic() + STUDENTS_SECONDS
    while away := parts_away(driver):
        if len(away) < len(driver.topology.firsts) and time.monotonic() >= until:
            return
        await asyncio.sleep(LOOK_SECONDS)


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

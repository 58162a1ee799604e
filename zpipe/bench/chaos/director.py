"""Carries faults out while a run goes on, and notes when each began and when its target was back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from zpipe.bench.chaos.links import LinkFaults
from zpipe.bench.chaos.schedule import Fault, Link

Target = int | tuple[str, Link]


class Processes(Protocol):
    """What a director needs of a `Launcher`."""

    ranks: tuple[int, ...]

    def kill(self, rank: int) -> None: ...
    def terminate(self, rank: int) -> None: ...
    def pause(self, rank: int) -> None: ...
    def resume(self, rank: int) -> None: ...
    async def restart(self, rank: int) -> None: ...


@dataclass(slots=True)
class Event:
    """A fault as it happened; times in seconds since the start of the run, or since the fault.

    Attributes:
        fault: what was planned. Of `rolling` there is an event for each node.
        at_seconds: when it really began.
        lasted_seconds: until it was taken back; None while it goes on.
        back_after_seconds: until the node that was started again had met its neighbours; None for other faults.
        skipped: why it did not happen.
    """

    fault: Fault
    at_seconds: float
    lasted_seconds: float | None = None
    back_after_seconds: float | None = None
    skipped: str = ""


class Director:
    """Sees to the faults of one run.

    Args:
        faults: in the order of their times.
        processes: whose ranks are killed and stopped.
        links: None where no fault is a link's.
        started_at: of the run, `time.monotonic()`.

    Attributes:
        events: #: in the order in which they began
        failed: done with an error when a fault could not be carried out, or a node did not come back.
    """

    def __init__(self, faults: Iterable[Fault], *, processes: Processes, links: LinkFaults | None, started_at: float) -> None:
        self.events: list[Event] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._faults = iter(faults)
        self._processes = processes
        self._links = links
        self._started_at = started_at
        self._over = asyncio.Event()
        self._busy: set[Target] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins; returns at once."""
        self._begin(self._follow())

    async def finish(self) -> None:
        """No further fault; those that go on are taken back now. Returns once every node is back.

        Raises:
            ZpipeError: as `failed`.
        """
        self._over.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failed.done():
            self.failed.result()

    async def abort(self) -> None:
        """Gives up at once; what is dead stays dead. May follow `finish`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failed.done():
            self.failed.exception()
        else:
            self.failed.cancel()

    # ---- inside --------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() - self._started_at

    def _begin(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _follow(self) -> None:
        for fault in self._faults:
            await self._wait(fault.at_seconds - self._now())
            if self._over.is_set():
                return
            self._begin(self._rolling(fault) if fault.action == "rolling" else self._once(fault))

    async def _wait(self, seconds: float) -> None:
        """So long, or until the run is over."""
        try:
            await asyncio.wait_for(self._over.wait(), max(0.0, seconds))
        except asyncio.TimeoutError:
            pass

    async def _rolling(self, fault: Fault) -> None:
        for rank in self._processes.ranks:
            if self._over.is_set():
                return
            await self._once(Fault(fault.at_seconds, fault.action, rank))

    async def _once(self, fault: Fault) -> None:
        event = Event(fault, self._now())
        self.events.append(event)
        target: Target = fault.node if fault.node is not None else (fault.action, fault.link or (-1, -1))
        if target in self._busy:
            event.skipped = f"{fault.target} was not back yet"
            return
        self._busy.add(target)
        try:
            if fault.node is not None:
                await self._to_node(event, fault.node)
            elif fault.link is not None:
                assert self._links is not None
                await self._to_link(event, fault.link, self._links)
        finally:
            self._busy.discard(target)

    async def _to_node(self, event: Event, rank: int) -> None:
        """Cases: stopped for a while; or ended, one way or the other, and started again."""
        fault, processes = event.fault, self._processes
        if fault.action == "stop":
            processes.pause(rank)
            await self._wait(fault.seconds)
            processes.resume(rank)
            event.lasted_seconds = self._now() - event.at_seconds
            return
        if fault.action == "kill":
            processes.kill(rank)
        else:
            processes.terminate(rank)
        await self._wait(fault.seconds)
        await processes.restart(rank)
        event.lasted_seconds = event.back_after_seconds = self._now() - event.at_seconds

    async def _to_link(self, event: Event, link: Link, links: LinkFaults) -> None:
        """Cases: over at once; or something is set (the last: messages are corrupted), and taken back after a while."""
        fault = event.fault
        if fault.action == "reset":
            await links.reset(link)
        elif fault.action == "flip":
            await links.flip(link)
        elif fault.action == "down":
            await links.stall(link, fault.seconds)
            await self._wait(fault.seconds)
            await links.stall(link, 0.0)
        elif fault.action == "slow":
            await links.limit(link, fault.amount)
            await self._wait(fault.seconds)
            await links.limit(link, None)
        else:
            await links.corrupt(link, fault.amount)
            await self._wait(fault.seconds)
            await links.corrupt(link, 0.0)
        event.lasted_seconds = self._now() - event.at_seconds

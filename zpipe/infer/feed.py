"""Reading on a thread, so that no slow disk or camera holds up the event loop and with it the node's links."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

from zpipe.infer.items import Item, Skipped, Source, Wanted

#: How long a reader that was told to stop gets; one that waits for a camera or a pipe is left behind, as a daemon.
JOIN_SECONDS = 1.0


class _Stop(Exception):
    """The feed was closed."""


class Feed:
    """Items of several sources, one after the other: at most `ahead` read and not yet released."""

    def __init__(self, sources: Sequence[Source], wanted: Wanted, *, ahead: int) -> None:
        self._sources = sources
        self._wanted = wanted
        self._places = threading.Semaphore(ahead)
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Item | Skipped | BaseException | None] = asyncio.Queue()
        self._thread = threading.Thread(target=self._read, name="zpipe-inputs", daemon=True)
        self._thread.start()

    async def items(self) -> AsyncIterator[Item | Skipped]:
        """What is read; raises what the reading raised."""
        while (item := await self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def release(self) -> None:
        """One item is done with."""
        self._places.release()

    async def aclose(self) -> None:
        """Ends the reading."""
        self._stopped.set()
        self._places.release()
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def _read(self) -> None:
        try:
            for source in self._sources:
                for item in source.items(self._goes_on):
                    self._places.acquire()
                    self._goes_on("", None)
                    self._put(item)
            self._put(None)
        except _Stop:
            pass
        except BaseException as exc:
            try:
                self._put(exc)
            except _Stop:
                pass

    def _goes_on(self, name: str, frame: int | None) -> bool:
        if self._stopped.is_set():
            raise _Stop
        return not name or self._wanted(name, frame)

    def _put(self, item: Item | Skipped | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens
            raise _Stop from None

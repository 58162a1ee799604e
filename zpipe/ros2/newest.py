"""Work on a thread of its own that keeps no queue: a newer thing takes the place of the one that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Newest(Generic[T]):
    """Does its work on the newest thing put in. Use until `close`."""

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._waiting: T | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="zpipe-newest", daemon=True)
        self._thread.start()

    def put(self, thing: T) -> bool:
        """Hands it over and returns; whether it took the place of another that nobody had begun with."""
        with self._changed:
            replaced = self._waiting is not None
            self._waiting = thing
            self._changed.notify()
        return replaced

    def close(self) -> None:
        """Ends the thread after what it is at; what waits is left. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting is not None)
                if self._closed or self._waiting is None:
                    return
                thing, self._waiting = self._waiting, None
            self._work(thing)

"""Who listens while a library works: its logger, the monitor of a build, and Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from zpipe.errors import one_line

log = logging.getLogger("zpipe.tensorrt")

#: Called with the fraction 0..1 of one build.
Progress = Callable[[float], None]


def make_logger(trt: Any) -> Any:
    """What a library is given to talk to."""

    class Logger(trt.ILogger):
        """Hands on what the library says, and remembers its last errors. An exception must not go through the library."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []
            self.interrupt: BaseException | None = None

        def log(self, severity: Any, message: str) -> None:
            try:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.said.append(message)
                    log.debug("%s", message)
                elif severity == trt.ILogger.WARNING:
                    log.debug("%s", message)
            except BaseException as exc:  # of a handler; Ctrl-C is held back
                self.interrupt = exc

        def forget(self) -> None:
            """Before work whose errors are asked for."""
            self.said, self.interrupt = [], None

        @property
        def first(self) -> str:
            """The first error since: those that follow mostly follow from it."""
            return one_line(said(self.said[0])) if self.said else "no reason given"

    return Logger()


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only says so to whoever asks, while the library works.

    It arrives wherever Python runs next, which is the first line of one of the library's callbacks: before any `try` in there, and
    the library then drops the exception. Other threads are not interrupted anyway.

    Raises:
        KeyboardInterrupt: at the end, if it came.
    """
    seen: list[int] = []
    held = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)
    if not held:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
        if seen:
            raise KeyboardInterrupt


def unwatched(fraction: float) -> None:
    """Nobody wants to know."""


def make_monitor(trt: Any, progress: Progress, interrupted: Callable[[], bool]) -> Any:
    """What a builder tells how far it is, and asks whether to go on."""

    class Monitor(trt.IProgressMonitor):
        """The outermost phase is the build. An exception must not go through the library: the build is ended, then it is raised."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupt: BaseException | None = None
            self._root, self._steps = "", 1

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._root, self._steps = name, max(1, steps)

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if name == self._root:
                    progress(min(1.0, (step + 1) / self._steps))
            except BaseException as exc:
                self.interrupt = exc
            return self.interrupt is None and not interrupted()

    return Monitor()


def said(text: str) -> str:
    """What a library said, in one line."""
    return " ".join(text.split())

"""Running a command's coroutine, and showing how far it is."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM cut a command short: everything is closed already.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(number)


def run_interruptible(main: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; Ctrl-C and SIGTERM cancel it, so that it closes what it opened."""
    from zpipe.allocator import keep_freed_memory
    from zpipe.descriptors import raise_limit
    from zpipe.runtime.loops import run

    raise_limit()
    keep_freed_memory()

    async def interruptible() -> T:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        came: list[int] = []

        def end(number: int) -> None:
            came.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end, number)
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted(*came[:1]) from None

    return run(interruptible())


class progress_shown:  # noqa: N801 - reads as a context manager
    """A bar on a terminal, a line at each tenth otherwise. Calling it: (line, done 0..1).

    "starting" is for the bar alone: it is over in a second, and an error there shall stand alone in a log. Not `shown`: where what
    is printed comes to the terminal itself.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown

    def __enter__(self) -> Callable[[str, float], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal and self._shown:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._said = ("", -1)
        return self._tell

    def _tell(self, line: str, fraction: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=line, completed=fraction)
            return
        if line == "starting" or not self._shown:
            return
        tenth = (line, math.floor(10 * fraction) if math.isfinite(fraction) else 0)
        if tenth != self._said:
            self._said = tenth
            click.echo(f"{line} {100 * fraction:.0f} %" if fraction else line, err=True)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

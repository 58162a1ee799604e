"""Lines for people, so few that no stranger and no flapping link can fill a log with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

log = logging.getLogger("zpipe.node")

#: So many lines of one kind are said at once in a period, which begins with the first. At its end follow the last one and how many
#: there were before it, so that what is read last holds.
FEW = 4
PERIOD_SECONDS = 10.0


@dataclass(slots=True)
class _Period:
    """Since the first line of one kind."""

    timer: Any
    lines: int = 0
    last: str = ""


class Notes:
    """Says lines, of each kind a few in a period and the rest as one.

    Args:
        say: takes a line. Whatever it raises (a pipe that nobody reads, a full disk) is counted and goes no further.
        later: as `loop.call_later`; the running loop's if not given.

    Attributes:
        held_back: lines not said one by one since the start.
        failed: lines that `say` raised on.
    """

    def __init__(self, say: Callable[[str], None], *, later: Callable[[float, Callable[[], None]], Any] | None = None) -> None:
        self._say = say
        self._later = later or (lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call))
        self._periods: dict[Hashable, _Period] = {}
        self.held_back = self.failed = 0

    def __len__(self) -> int:
        return len(self._periods)

    def __call__(self, line: str, kind: Hashable = None) -> None:
        """Says a line, now or at the end of its kind's period; at once where it has no kind."""
        if kind is None:
            self._tell(line)
            return
        period = self._periods.get(kind)
        if period is None:
            period = self._periods[kind] = _Period(self._later(PERIOD_SECONDS, partial(self._end, kind)))
        period.lines += 1
        if period.lines <= FEW:
            self._tell(line)
        else:
            self.held_back += 1
            period.last = line

    def close(self) -> None:
        """Ends every period now."""
        for kind in list(self._periods):
            self._periods[kind].timer.cancel()
            self._end(kind)

    def _end(self, kind: Hashable) -> None:
        period = self._periods.pop(kind)
        before = period.lines - FEW - 1
        if before >= 0:
            self._tell(f"{period.last} (and {before} more like it in {PERIOD_SECONDS:.0f} s)" if before else period.last)

    def _tell(self, line: str) -> None:
        try:
            try:
                self._say(line)
            except UnicodeError:  # an output that knows fewer letters
                self._say(ascii(line)[1:-1])
        except Exception as exc:
            self.failed += 1
            log.debug("a line could not be said: %s", type(exc).__name__)

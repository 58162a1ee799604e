"""Read by every Python whose PYTHONPATH this folder is on: recorders there record while a byte that all processes share says so."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from zpipe.trace.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zpipe.policy.messages import Command, Event

#: In the environment: the file whose first byte it is, 1 or 0.
SWITCH = "ZPIPE_BENCH_SWITCH"
_always = Recorder.handle_all

with open(os.environ[SWITCH], "r+b") as _file:
    switch = mmap.mmap(_file.fileno(), 1)


def _in_turns(self: Recorder, events: Sequence[Event], *, now: float) -> list[Command]:
    return _always(self, events, now=now) if switch[0] else self._policy.handle_all(events, now=now)


Recorder.handle_all = _in_turns  # type: ignore[method-assign]

"""Names of what a lab makes on the machine. They tell who made it, so that what a dead lab left can be told from a living one's.

zpipe-lab.4711.8812345.0.node2
pid  |       | which part
|       lab of that process
when the process started, in clock ticks since boot: a pid comes back, the pair does not
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PREFIX = "zpipe-lab"


def lab_name(serial: int) -> str:
    """The name of this process's lab of that number; its parts' names begin with it and a dot."""
    pid = os.getpid()
    return f"{PREFIX}.{pid}.{start_ticks(pid)}.{serial}"


def start_ticks(pid: int) -> int | None:
    """When that process started, in clock ticks since boot; None where there is none, or only what is left of one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # After the command, which may hold spaces and parentheses: the state, and 19 fields later the start time (proc(5)).
    fields = stat[stat.rindex(")") + 1 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def left_over(names: Iterable[str]) -> list[str]:
    """Those of the names that a lab made whose process is gone, sorted; whatever else is called is left alone."""
    return sorted(name for name in names if _owner_is_gone(name))


def _owner_is_gone(name: str) -> bool:
    parts = name.split(".")
    if len(parts) != 5 or parts[0] != PREFIX or not all(part.isdecimal() for part in parts[1:4]):
        return False
    return start_ticks(int(parts[1])) != int(parts[2])

"""Some of the sweep over real sockets with emulated boxes, beside what the simulator says of the very same load."""

from __future__ import annotations

from pathlib import Path

from zpipe.bench.suites.pa_mdi.settings import Scale
from zpipe.bench.suites.pa_mdi.sweep import Row
from zpipe.bench.suites.work import Progress


async def live_rows(scale: Scale, scratch: Path, *, progress: Progress) -> list[Row]:
    """Rows."""
    return []

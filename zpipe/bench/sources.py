"""The further sources of a bench, each a process of its own (`zpipe.bench.source`), as the bench sees them."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zpipe.load import SourceLoad
from zpipe.report import RunLog
from zpipe.runtime.launch import Launcher, Program

#: From telling the sources when to start until then: long enough for each to hear it.
LEAD_SECONDS = 0.1


class FurtherSources:
    """Those that offer samples beside the bench's own process.

    Args:
        loads: {rank: when its samples come}.
        pipeline: options of `Pipeline.connect`, of every source; JSON values.
        severity: only evaluation samples of these severities.
        window: samples under way in a closed loop.

    Attributes:
        programs: what `Pipeline.local` runs at their ranks.
        done: #: {rank: the fraction of its load that it has offered}
    """

    def __init__(
        self, loads: Mapping[int, SourceLoad], pipeline: Mapping[str, Any], *, severity: Sequence[int] | None, window: int
    ) -> None:
        shared = {"pipeline": dict(pipeline), "severity": severity, "window": window}
        self.done = dict.fromkeys(loads, 0.0)
        self.programs = {
            rank: Program(
                "zpipe.bench.source",
                {"offers": {**shared, "load": asdict(load)}},
                lambda message, rank=rank: self._hear(rank, message),  # type: ignore[misc]
            )
            for rank, load in loads.items()
        }
        self._said: dict[int, asyncio.Queue[dict[str, Any]]] = {rank: asyncio.Queue() for rank in loads}

    def __bool__(self) -> bool:
        return bool(self._said)

    async def warm_up(self, launcher: Launcher | None, samples: Mapping[int, float]) -> None:
        """Every source warms up with so many samples, {rank: samples}."""
        for rank in self._said:
            self._tell(launcher, rank, {"warm_up": samples[rank]})
        await self._until("warm")

    def start(self, launcher: Launcher | None, started_at: float, samples: Mapping[int, float], seconds: float) -> None:
        """Lets all of them begin at that moment of the monotonic clock, for so many {rank: samples} and seconds."""
        for rank in self._said:
            wanted = {"samples": _finite(samples[rank]), "seconds": _finite(seconds)}
            self._tell(launcher, rank, {"start_at": started_at, **wanted})

    async def ended(self) -> None:
        """Returns once every sample of theirs has its outcome."""
        await self._until("ended")

    async def reports(self, launcher: Launcher | None) -> tuple[list[RunLog], list[list[dict[str, Any]]]]:
        """Their logs and the series they recorded, by rank."""
        with tempfile.TemporaryDirectory(prefix="zpipe-") as folder:
            files = {rank: Path(folder) / f"{rank}.npz" for rank in self._said}
            for rank, file in files.items():
                self._tell(launcher, rank, {"report": str(file)})
            series = await self._until("series")
            return [RunLog.load(file) for file in files.values()], series

    def _tell(self, launcher: Launcher | None, rank: int, message: Mapping[str, Any]) -> None:
        assert launcher is not None, "a pipeline with further sources has launched them"
        launcher.tell(rank, message)

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        if "done" in message:
            self.done[rank] = message["done"]
        else:
            self._said[rank].put_nowait(message)

    async def _until(self, key: str) -> list[Any]:
        """What every source says next, by rank. One that dies ends the bench (`Launcher.crashed`)."""
        return [message[key] for message in await asyncio.gather(*[said.get() for said in self._said.values()])]


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return None if math.isinf(value) else value

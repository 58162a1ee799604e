"""Time spent inside stages, summed over the processes of one contender: a small file that all of them map."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_ENTRY = struct.Struct("=ddQ")
#: One entry per stage, each written by one process alone.
_STAGES = 16


@dataclass(frozen=True, slots=True)
class StageTime:
    """What all stages took so far: seconds on the clock, seconds of CPU; `samples` counts each sample once per stage."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    samples: int = 0

    def since(self, before: StageTime) -> StageTime:
        return StageTime(
            self.wall_seconds - before.wall_seconds, self.cpu_seconds - before.cpu_seconds, self.samples - before.samples
        )


class Meter:
    """Adds up stage times; reading while another process writes may miss the batch that ends just then."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _ENTRY.size * _STAGES)

    @staticmethod
    def create(path: Path) -> None:
        path.write_bytes(bytes(_ENTRY.size * _STAGES))

    def add(self, stage: int, wall_seconds: float, cpu_seconds: float, samples: int) -> None:
        wall, cpu, count = _ENTRY.unpack_from(self._map, stage * _ENTRY.size)
        _ENTRY.pack_into(self._map, stage * _ENTRY.size, wall + wall_seconds, cpu + cpu_seconds, count + samples)

    def total(self) -> StageTime:
        entries = [_ENTRY.unpack_from(self._map, stage * _ENTRY.size) for stage in range(_STAGES)]
        walls, cpus, counts = zip(*entries, strict=True)
        return StageTime(sum(walls), sum(cpus), sum(counts))

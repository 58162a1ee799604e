"""Nodes whose clocks really differ: each in a time namespace of its own, so that it is known by how much."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

import zpipe
from tests.timeline.reader import read
from zpipe.runtime.launch import Site
from zpipe.timeline import merge

#: {rank: seconds its clock is ahead of this process's}.
AHEAD = {0: 0.0, 1: 5000.0, 2: -120.0}


def in_another_time(seconds: float) -> tuple[str, ...]:
    """What is put before a command so that its monotonic clock is ahead."""
    return ("unshare", "--time", "--monotonic", f"{seconds:.0f}")


def why_not() -> str:
    """What forbids it here; "" where nothing does."""
    if shutil.which("unshare") is None:
        return "no unshare here: clocks that differ need it"
    tried = subprocess.run([*in_another_time(5.0), "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no time namespaces here (Linux and root): {tried.stderr.strip()}"


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_clocks_hours_apart_are_brought_together_within_what_is_claimed(tmp_path: Path) -> None:
    topology = zpipe.load_topology("mesh3.yaml")

    async def main() -> None:
        sites = {rank: Site(command_prefix=in_another_time(AHEAD[rank])) for rank in (1, 2)}
        async with zpipe.Pipeline.local(topology, sites=sites, trace=tmp_path / "traces") as pipeline:
            images = pipeline.bundle.evaluation().images
            await asyncio.gather(*[pipeline.submit(images[index]) for index in range(60)])

    asyncio.run(main())
    merged = merge(sorted((tmp_path / "traces").iterdir()), tmp_path / "timeline.json")
    for life, clock in zip(merged.lives, merged.clocks, strict=True):
        assert clock.uncertainty_seconds is not None
        assert abs(clock.ahead_seconds - AHEAD[life.rank]) <= clock.uncertainty_seconds < 0.5
    timeline = read(tmp_path / "timeline.json")
    assert merged.counts["arrived"] == merged.counts["frames"] > 0
    assert max(event["ts"] for events in timeline.slices.values() for event in events) < 60e6

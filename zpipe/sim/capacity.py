"""What a topology sustains when samples are always there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from zpipe.sim.run import simulate
from zpipe.topology import Topology

#: Of each run: at a hundred samples a second half a minute of its time, a second of ours.
SAMPLES = 3000
#: Runs of which the worst counts: a placement that does well by luck is none to rely on.
SEEDS = (0, 1)


def capacity(topology: Topology, *, service: Mapping[int, Path] | None = None, samples: int = SAMPLES) -> float:
    """Results per second, the worst of a few runs. Admission holds nothing back (`fixed`): this is about boards and links.

    Args:
        topology: checked.
        service: {rank: file of measured times}.
        samples: of each run.

    Raises:
        ConfigError: as `simulate`.
    """
    reports = [
        simulate(
            topology,
            rate_hz=math.inf,
            admission="fixed",
            count=samples,
            warm_up=samples // 5,
            seed=seed,
            service=service or None,
        )
        for seed in SEEDS
    ]
    return min(float(report["throughput_hz"]) for report in reports)

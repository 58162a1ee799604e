"""What one run of the bench does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zpipe.load import POISSON
from zpipe.topology import Topology

#: Takes a line for people and the fraction done, 0..1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What one run does; `None` leaves the topology's value. With several sources, counts and rates are sums over them.

    Attributes:
        topology: file or name.
        attach: the other ranks run already, and other programs are the further sources.
        source: with `attach`, the source that this process is, by name or rank; that of the lowest rank if not given.
        insecure: this process may listen at an address open to a network without keys.
        lab: start them in the edge lab: links as the topology says, slow boards.
        cpu_shares: {rank: share of one core} in the lab.
        count, duration: samples or seconds to offer, whichever ends first; the evaluation set once if neither is given.
        window: samples under way in the closed loop of each source.
        rate_hz: None = closed loop; `inf` = as fast as admission lets in; else arrivals per second.
        arrivals: `poisson`, `constant`, or a file of arrival times, which several sources take in turns.
        rates: {name or rank of a source: its arrivals per second}, instead of what the topology says; the others have that.
        exit_point: an operating point or `no-exit`.
        offload: an offload strategy, with the service order that comes with it.
        redundancy: of students, `failover`, `hedged` or `all`, instead of the topology's.
        executor: of every node.
        device: profile of every node that names none, for the emulated executor.
        warm_up: samples before the measured ones.
        accuracy: that every source wants; the bundle's accuracy table has thresholds for it.
        severity: only evaluation samples of these severities.
        trace: a folder where every rank started here records its policy's rounds.
        chaos: faults while it runs (`zpipe.bench.chaos`).
    """

    topology: str | Topology
    attach: bool = False
    source: str | int | None = None
    insecure: bool = False
    lab: bool = False
    cpu_shares: Mapping[int, float] = field(default_factory=dict)
    count: int | None = None
    duration: float | None = None
    window: int = 32
    rate_hz: float | None = None
    arrivals: str = POISSON
    rates: Mapping[str | int, float] = field(default_factory=dict)
    exit_point: str | None = None
    offload: str | None = None
    admission: str | None = None
    when_full: str | None = None
    redundancy: str | None = None
    max_batch: int | None = None
    bundle: str | None = None
    executor: str | None = None
    device: str | None = None
    deadline: float | None = None
    seed: int = 0
    warm_up: int = 200
    accuracy: float | None = None
    severity: tuple[int, ...] | None = None
    trace: Path | None = None
    chaos: str | None = None

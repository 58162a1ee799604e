"""Some of the sweep over real sockets with emulated boxes, beside what the simulator says of the very same load.

GPT-2's five boxes at half their pace: their links (10 Gbit/s) are what loopback is, nothing to speak of, so that what is compared
is what this package decides and what its processes take; and at half the pace a layer takes 22 ms, so that five boxes and their
sockets leave two cores idle most of the time.

The simulator's only parameter is measured (`zpipe.bench.hop`), just before each live run: what a hop takes depends on what else the
machine does, and nobody has it for himself for as long as all of this takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from zpipe.bench.hop import look
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.bench.suites.pa_mdi.bundles import write_bundle
from zpipe.bench.suites.pa_mdi.settings import (
    CLOSED,
    OPEN,
    SERVER,
    Scale,
    Setting,
    setting,
    topology_in,
)
from zpipe.bench.suites.pa_mdi.sweep import WARM_UP, Row, figures_of
from zpipe.bench.suites.statistics import interval
from zpipe.bench.suites.work import Progress
from zpipe.emulation import EMULATED
from zpipe.model import NO_CODEC
from zpipe.sim import HopProfile, SimOptions, run_sim
from zpipe.topology import Topology

SETTING, SOURCES = "gpt2", 2
DEVICE = f"{SERVER}/2"
#: Kinds of load, neither so light that nobody waits nor so heavy that a mean is of how long it went on.
LOADS = ((OPEN, 0.6), (CLOSED, 4.0))


def live_setting() -> Setting:
    """The setting as it is run live: other boxes, links without limits."""
    return replace(setting(SETTING), devices=(DEVICE,) * len(setting(SETTING).devices))


def live_topology(where: Setting, policy: str, *, bundle: Path) -> Topology:
    """Emulated nodes on this machine's loopback."""
    topology = topology_in(where, policy, bundle=str(bundle), sources=SOURCES)
    nodes = tuple(replace(node, executor=EMULATED) for node in topology.nodes)
    links = tuple(replace(link, bandwidth_bps=math.inf, latency_seconds=0.0, codec=NO_CODEC) for link in topology.links)
    return replace(topology, nodes=nodes, links=links)


async def live_rows(scale: Scale, scratch: Path, *, progress: Progress, loads: Sequence[tuple[str, float]] = LOADS) -> list[Row]:
    """A row for each policy and load of the live part: live and simulated means over runs, and their differences, run by run."""
    if not scale.live_runs:
        return []
    where = live_setting()
    bundle = write_bundle(where.profile(), scratch / "live").path
    wanted = [(policy, kind, load) for policy in scale.live_policies for kind, load in loads[: scale.live_loads]]
    rows = []
    for place, (policy, kind, load) in enumerate(wanted):
        topology = live_topology(where, policy, bundle=bundle)
        pairs, hops = [], []
        for run in range(scale.live_runs):
            done = (place * scale.live_runs + run) / (len(wanted) * scale.live_runs)
            progress("live", done)
            offered = _offered(where, kind, load, seconds=scale.live_seconds, seed=run)
            hop = await look(seed=run)
            report, _ = await run_bench(BenchOptions(topology, **offered), progress=partial(_unseen, progress, done))
            simulated, _ = run_sim(SimOptions(topology, hop=hop, **offered))
            hops.append(hop)
            pairs.append((figures_of(report, topology), figures_of(simulated, topology), report))
        rows.append(_row(pairs, hops, policy=policy, kind=kind, load=load))
    return rows


def _unseen(progress: Progress, done: float, line: str, of_run: float) -> None:
    progress("live", done)


def _offered(where: Setting, kind: str, load: float, *, seconds: float, seed: int) -> dict[str, Any]:
    """The load of one run, in the words that live runs and simulations share."""
    rate = (load if kind == OPEN else 1.0) * where.capacity_hz
    return {
        "count": round(rate * seconds),
        "rate_hz": rate if kind == OPEN else None,
        "window": int(load) if kind == CLOSED else 1,
        "warm_up": WARM_UP * SOURCES,
        "seed": seed,
    }


def _row(pairs: list[tuple[Row, Row, dict[str, Any]]], hops: Sequence[HopProfile], *, policy: str, kind: str, load: float) -> Row:
    ranks = pairs[0][0]["ranks"]
    both = [[(live["latency_ms"][at], there["latency_ms"][at]) for live, there, _ in pairs] for at in range(len(ranks))]
    seconds = sum(report["seconds"] for _, _, report in pairs)
    used = sum(node["cpu_s"] or 0.0 for _, _, report in pairs for node in report["nodes"])
    return {
        "setting": SETTING,
        "sources": SOURCES,
        "kind": kind,
        "load": load,
        "policy": policy,
        "ranks": ranks,
        "runs": len(pairs),
        "latency_ms": [interval([live for live, _ in values]) for values in both],
        "simulated_ms": [interval([there for _, there in values]) for values in both],
        "difference": [interval([there / live - 1.0 for live, there in values]) for values in both],
        "cores_busy": used / seconds,
        "hop_ms": {part: interval([1e3 * getattr(hop, part).mean for hop in hops]) for part in ("forward", "finish", "control")},
        "broken": sum(live["broken"] for live, _, _ in pairs),
        "how": (
            f"{SOURCES} sources, {len(pairs)} runs of each row: five emulated {DEVICE} boxes, each a process of its own, over real "
            f"sockets on loopback; the simulator has the same arrivals, and its hops take what those of three other boxes took "
            f"just before each run."
        ),
    }

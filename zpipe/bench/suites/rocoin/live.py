"""Some of it over real sockets: emulated boards, each a process of its own that is really killed or stopped, beside the simulator.

Both have the same boards, arrivals and faults. Links have no limits beside loopback's own; students and pieces take the boards'
time, so that this machine's cores have little to do. Students have ten times slower boards than in the sweep: else a third of what
an answer takes would be hops, and those are this machine's. What a hop takes is measured (`zpipe.bench.hop`) just before each case.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zpipe.bench.hop import look
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.bench.suites.rocoin import plans
from zpipe.bench.suites.rocoin.groups import GROUP, ONE_OF_EACH, lost_boards
from zpipe.bench.suites.rocoin.plans import Plan
from zpipe.bench.suites.rocoin.settings import DEVICE, DYING, STALLINGS, Bundles, Scale, system_named, topology_in
from zpipe.bench.suites.rocoin.sweep import WARM_UP, Row, outcomes_of
from zpipe.bench.suites.statistics import interval
from zpipe.bench.suites.work import Progress
from zpipe.emulation import EMULATED
from zpipe.model import NO_CODEC
from zpipe.sim import Death, HopProfile, SimOptions, run_sim
from zpipe.topology import Topology

#: Of boards that die on the way: enough that some do in a short run, and seldom all that hold a part.
DYING_PROBABILITY = 0.3
#: Boards of students, one of which takes 60 to 70 ms for a sample, and how many samples a second they get. A stall holds up about
#: one copy: the next ones see that it is not done, and go elsewhere. With more samples a percentile would not meet it.
STUDENTS_DEVICE, STUDENTS_HZ = "raspberry-pi-3/40", 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """A row before it is run.

    Attributes:
        name: short.
        title: what happens, for people.
        system: of SYSTEMS.
        stalling: whether there are as many boards as where some stall.
        plan: (boards, parts, seed, seconds) -> what happens.
    """

    name: str
    title: str
    system: str
    stalling: bool
    plan: Callable[[int, int, int, float], Plan]


def _gone(gone: str, boards: int, parts: int, seed: int, seconds: float) -> Plan:
    return tuple(Death(rank) for rank in lost_boards(gone, boards=boards, parts=parts))


def _dying(boards: int, parts: int, seed: int, seconds: float) -> Plan:
    return plans.failures(DYING, boards=boards, probability=DYING_PROBABILITY, seed=seed, draw=0, seconds=seconds)


def _stalling(boards: int, parts: int, seed: int, seconds: float) -> Plan:
    long = next(kind for kind in STALLINGS if kind.name == "long")
    return plans.stalls(long, boards=boards, seed=seed, seconds=seconds)


_STALLS = "a fifth of the boards stopped now and then (long stalls)"
CASES = {
    case.name: case
    for case in (
        Case("sound", "nothing happens", "rocoin-hedged", False, lambda boards, parts, seed, seconds: ()),
        Case("one-of-each", "a board of every group killed at the start", "rocoin-hedged", False, partial(_gone, ONE_OF_EACH)),
        Case("group", "all boards of the first group killed at the start", "rocoin-hedged", False, partial(_gone, f"{GROUP} 0")),
        Case("dying", f"each board killed on the way with probability {DYING_PROBABILITY:g}", "rocoin-hedged", False, _dying),
        Case("stall-failover", _STALLS, "rocoin-failover", True, _stalling),
        Case("stall-hedged", _STALLS, "rocoin-hedged", True, _stalling),
        Case("chain-replicas", "a board of every piece killed at the start", "chain-replicas", False, partial(_gone, ONE_OF_EACH)),
    )
}


def live_topology(system: str, bundles: Bundles, *, boards: int) -> Topology:
    """Emulated nodes on this machine's loopback."""
    topology = topology_in(system_named(system), bundles, boards=boards)
    device = STUDENTS_DEVICE if topology.students else DEVICE
    nodes = tuple(replace(node, executor=EMULATED, device=device) if node.stages else node for node in topology.nodes)
    links = tuple(replace(link, bandwidth_bps=math.inf, latency_seconds=0.0, codec=NO_CODEC) for link in topology.links)
    return replace(topology, nodes=nodes, links=links)


async def live_rows(bundles: Bundles, scale: Scale, *, progress: Progress) -> list[Row]:
    """A row for each case: live and simulated figures over runs, and their differences, run by run."""
    rows = []
    for place, case in enumerate(CASES[name] for name in scale.live):
        boards = bundles.parts * (scale.stalling_replicas if case.stalling else scale.replicas)
        topology = live_topology(case.system, bundles, boards=boards)
        rate_hz = STUDENTS_HZ if topology.students else bundles.rate_hz
        pairs, used = [], []
        progress("live", place / len(scale.live))
        hop = await look(seed=place)
        for run in range(scale.live_runs):
            done = (place * scale.live_runs + run) / (len(scale.live) * scale.live_runs)
            progress("live", done)
            plan = plans.for_live(case.plan(boards, bundles.parts, run, scale.live_seconds))
            load: dict[str, Any] = {
                "count": round(rate_hz * scale.live_seconds),
                "rate_hz": rate_hz,
                "warm_up": WARM_UP,
                "seed": run,
            }
            chaos = plans.as_chaos(plan)
            report, log = await run_bench(BenchOptions(topology, chaos=chaos, **load), progress=partial(_unseen, progress, done))
            pairs.append((outcomes_of(report, log), outcomes_of(*run_sim(SimOptions(topology, faults=plan, hop=hop, **load)))))
            used.append(sum(node["cpu_s"] or 0.0 for node in report["nodes"]) / report["seconds"])
        rows.append(_row(case, pairs, used, hop, boards=boards))
    return rows


def _unseen(progress: Progress, done: float, line: str, of_run: float) -> None:
    progress("live", done)


def _row(case: Case, pairs: Sequence[tuple[Row, Row]], used: Sequence[float], hop: HopProfile, *, boards: int) -> Row:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    taken: dict[str, Callable[[Row], float]] = {
        "right": lambda run: run["right"] / run["submitted"],
        "latency_ms": lambda run: sum(run["latencies_ms"]) / max(1, run["answered"]),
        "latency_p99_ms": lambda run: _p99(run["latencies_ms"]),
        "tasks": lambda run: run["tasks"] / run["submitted"],
    }
    found: Row = {}
    for name, take in taken.items():
        values = [(take(live), take(there)) for live, there in pairs]
        found[name] = interval([live for live, _ in values])
        found[f"simulated_{name}"] = interval([there for _, there in values])
        found[f"difference_{name}"] = interval([there / live - 1.0 if live else 0.0 for live, there in values])
    return {
        "case": case.name,
        "title": case.title,
        "system": case.system,
        "boards": boards,
        "runs": len(pairs),
        "samples": sum(live["submitted"] for live, _ in pairs),
        "answered": sum(live["answered"] for live, _ in pairs),
        **found,
        "resubmitted": sum(live["resubmitted"] for live, _ in pairs),
        "simulated_resubmitted": sum(there["resubmitted"] for _, there in pairs),
        "second_results": sum(live["second_results"] for live, _ in pairs),
        "broken": sum(live["broken"] for live, _ in pairs),
        # Of the cores there are, the source's process and what was killed and started again included since that start.
        "cores_busy": max(used) / cores,
        "hop_ms": {part: 1e3 * getattr(hop, part).mean for part in ("forward", "finish", "control")},
        "how": (
            f"Each board is a process ({STUDENTS_DEVICE} for students, else {DEVICE}), over real sockets on loopback. The "
            "simulator has the same arrivals and faults; its hops take what those of three other boards took just before."
        ),
    }


def _p99(milliseconds: Sequence[float]) -> float:
    return float(milliseconds[min(len(milliseconds) - 1, int(0.99 * len(milliseconds)))]) if milliseconds else 0.0

"""The live parts: emulated boards over real sockets beside the simulator's answer, and real computing on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from zpipe.bench.lab.edge import EdgeLab
from zpipe.bench.run import BenchOptions, run_bench
from zpipe.bench.suites import settings
from zpipe.bench.suites.settings import Scale
from zpipe.bench.suites.work import Progress, broken
from zpipe.configure import compared
from zpipe.emulation import EMULATED
from zpipe.errors import ConfigError
from zpipe.sim import simulate
from zpipe.topology import NO_EXIT, Topology, load_topology, override

BUNDLE = "digits-mobilenetv2"
#: The lab has a cable for each link and no shared channel, so here each link has this for itself.
BANDWIDTH = "20 Mbit/s"
#: Run with emulated boards, each with this board's pace.
EMULATED_TOPOLOGIES = ("line4", "mesh3")
#: Run with the network itself, all nodes on this machine's cores.
REAL_TOPOLOGY = "line4"


@dataclass(frozen=True, slots=True)
class Place:
    """Where emulated boards are run: in the lab, or on loopback with the reason."""

    lab: bool
    why: str


def place() -> Place:
    """The lab where it can be made, else loopback."""
    try:
        with EdgeLab(load_topology(EMULATED_TOPOLOGIES[0])):
            pass  # making one tells what checks cannot: whether this root may
    except ConfigError as exc:
        return Place(False, f"on loopback, links without limits: {exc}")
    return Place(
        True, f"in the edge lab: a namespace per board, {BANDWIDTH} and {settings.LATENCY} on each link by tc tbf and a relay"
    )


async def live_parts(scale: Scale, *, progress: Progress) -> dict[str, Any]:
    """Rows of what was run live, with where and how."""
    where = place()
    emulated = [topology for name in EMULATED_TOPOLOGIES for topology in _with_baseline(_emulated(name, where))]
    rows = [await _emulated_row(topology, where, scale, progress) for topology in emulated]
    rows += [await _real_row(topology, scale, progress) for topology in _with_baseline(load_topology(REAL_TOPOLOGY))]
    return {"where": where.why, "rows": rows}


def _emulated(name: str, where: Place) -> Topology:
    topology = override(
        load_topology(name), bundle=BUNDLE, executor=EMULATED, device=settings.DEVICE, offload="mdi", codec=settings.CODEC
    )
    return override(topology, bandwidth=BANDWIDTH, latency=settings.LATENCY) if where.lab else topology


def _with_baseline(topology: Topology) -> Sequence[Topology]:
    return compared(topology, ["no-exit"])


async def _emulated_row(topology: Topology, where: Place, scale: Scale, progress: Progress) -> dict[str, Any]:
    """A closed loop, and the same one simulated."""
    load = {"count": scale.live_samples, "window": settings.WINDOW, "admission": "fixed"}
    options = BenchOptions(topology, lab=where.lab, **load)  # type: ignore[arg-type]
    report, _ = await run_bench(options, progress=partial(_told, progress, f"live, emulated boards, {topology.name}"))
    simulated = simulate(topology, device=settings.DEVICE, **load)
    return _row(topology, report, f"emulated {settings.DEVICE}") | {"simulated_hz": simulated["throughput_hz"]}


async def _real_row(topology: Topology, scale: Scale, progress: Progress) -> dict[str, Any]:
    options = BenchOptions(topology, count=scale.live_samples, window=settings.WINDOW, admission="fixed")
    report, _ = await run_bench(options, progress=partial(_told, progress, f"live, real computing, {topology.name}"))
    return _row(topology, report, "onnx, all nodes on this machine") | {"simulated_hz": None}


def _told(progress: Progress, name: str, line: str, done: float) -> None:
    progress(line if line == "starting" else name, done)


def _row(topology: Topology, report: dict[str, Any], boards: str) -> dict[str, Any]:
    counts = report["counts"]
    return {
        "topology": topology.name.partition("/")[0],
        "policy": "no-exit" if topology.policy.exit_point == NO_EXIT else topology.policy.offload,
        "boards": boards,
        "samples": counts["submitted"],
        "rate_hz": report["throughput_hz"],
        "accuracy": report["accuracy"],
        "latency_ms": report["latency_ms"]["mean"],
        "latency_p95_ms": report["latency_ms"]["p95"],
        "bytes_per_sample": report["bytes_per_sample"],
        "broken": broken(report),
    }

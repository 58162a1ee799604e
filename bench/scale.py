"""What scales: how large a mesh `zpipe sim` can run, and what live lines and a live mesh of emulated boards get done.

    python -m bench.scale             all parts, about 20 minutes
    python -m bench.scale nodes       one of them: million and nodes are simulated, line and mesh are live (`bench.scale_live`)

Writes bench/results/scale.json.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.made import commit
from bench.scale_live import line, mesh
from zpipe.report import machine
from zpipe.sim import SimOptions, generated, run_sim

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "scale.json"

#: What issue 3 asks of a large mesh.
NODES, SOURCES, SAMPLES = 1000, 100, 1_000_000
MOST_MINUTES, MOST_GB, LEAST_SHARE = 10.0, 4.0, 0.9

#: Meshes compared, a source for every ten nodes, and the same load for each node.
SIZES = (10, 100, 1000)
NODES_PER_SOURCE = 10
HZ_PER_NODE = 40.0
#: The cost of an event is the slope between a short and a long run of the same mesh, so that making it does not count.
SHORT, LONG = 5_000, 45_000
ROUNDS = 3


def million() -> dict[str, Any]:
    """A grid of 1,000 nodes whose 100 sources let in what their admission allows, until 1,000,000 samples have ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        mesh = ("--nodes", str(NODES), "--sources", str(SOURCES), "--shape", "grid")
        command = [sys.executable, "-m", "zpipe", "sim", *mesh, "--rate", "max", "--count", str(SAMPLES), "--json", str(file)]
        started = time.monotonic()
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(running.pid, 0)
        wall = time.monotonic() - started
        if status:
            raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
        report = json.loads(file.read_text())
    found = {
        "command": " ".join(["zpipe", *command[3:-2]]),
        "minutes": wall / 60.0,
        "cpu_minutes": (used.ru_utime + used.ru_stime) / 60.0,
        "peak_gb": 1024 * used.ru_maxrss / 1e9,
        "events": report["events"],
        "events_per_second": report["events"] / wall,
        "nodes_running_share": report["nodes_running_share"],
        "simulated_seconds": report["seconds"],
        "throughput_hz": report["throughput_hz"],
        "latency_ms": report["latency_ms"],
        "counts": report["counts"],
    }
    print(f"  {found['command']}")
    show("minutes", found["minutes"], f"(at most {MOST_MINUTES:g})", ".1f")
    show("minutes of CPU", found["cpu_minutes"], "", ".1f")
    show("peak memory", found["peak_gb"], f"GB (at most {MOST_GB:g})", ".2f")
    show("events", found["events"], "", ",d")
    show("events per second", found["events_per_second"], "", ",.0f")
    show("nodes that ran a stage", 100 * found["nodes_running_share"], f"% (at least {100 * LEAST_SHARE:g})", ".1f")
    show("simulated", found["simulated_seconds"], "s", ".1f")
    show("lost + duplicate + hung", sum(found["counts"][key] for key in ("lost", "duplicate", "hung")), "(wanted 0)", ",d")
    return found


def nodes() -> dict[str, Any]:
    """Microseconds an event in meshes of 10, 100 and 1,000 nodes under the same load per node; log(nodes) may be its growth."""
    costs: dict[int, list[float]] = {size: [] for size in SIZES}
    per_sample: dict[int, float] = {}
    for seed in range(ROUNDS):
        for size in SIZES:
            seconds, events = zip(*[_run(size, count, seed) for count in (SHORT, LONG)], strict=True)
            costs[size].append(1e6 * (seconds[1] - seconds[0]) / (events[1] - events[0]))
            per_sample[size] = (events[1] - events[0]) / (LONG - SHORT)
    found: dict[str, Any] = {}
    for size in SIZES:
        median = statistics.median(costs[size])
        growth, allowed = median / statistics.median(costs[SIZES[0]]), math.log(size) / math.log(SIZES[0])
        found[str(size)] = {
            "microseconds_per_event": {"median": median, "low": min(costs[size]), "high": max(costs[size])},
            "events_per_sample": per_sample[size],
            "growth": growth,
            "growth_allowed": allowed,
        }
        ranges = f"µs an event [{min(costs[size]):.1f}, {max(costs[size]):.1f}], {growth:.2f} times (log: {allowed:.0f})"
        show(f"{size:,} nodes", median, ranges, ".1f")
    return found


def _run(size: int, count: int, seed: int) -> tuple[float, int]:
    """Seconds of CPU and events of one run."""
    topology = generated("grid", nodes=size, sources=size // NODES_PER_SOURCE, seed=seed)
    options = SimOptions(topology, count=count, rate_hz=HZ_PER_NODE * size, admission="fixed", seed=seed, warm_up=0)
    started = time.process_time()
    report, _ = run_sim(options)
    return time.process_time() - started, report["events"]


def show(name: str, value: float, unit: str = "", form: str = ",.2f") -> None:
    print(f"  {name:<28}{value:>14{form}} {unit}", flush=True)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"million": million, "nodes": nodes, "line": line, "mesh": mesh}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or list(PARTS):
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        found = PARTS[name]()
        results[name] = {"commit": commit(), "machine": machine(), **found}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

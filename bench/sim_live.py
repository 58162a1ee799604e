"""The simulator against live runs: emulated boards with real sockets, the same samples at the same times, and nothing fitted.

    python -m bench.hop && python -m bench.sim_live            about 40 minutes; writes bench/results/sim-live.json
    python -m bench.sim_live --count 2000 --seeds 1 mesh3      a look: replaces the rows of mesh3 alone

Each row compares live with simulated at a share of the capacity (what the simulator sustains when samples are always there):
throughput, mean latency, p95, and the largest difference of an exit's share in points. Differences are of the means over seeds,
with the 95 % interval of the paired differences (Student's t). The only measured parameter is the hop profile (bench.hop), which
comes from another topology, at other rates. Live runs share the machine, so few run at a time and the share of its cores they take
is printed: above a half, boards are not emulated but delayed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.report import machine
from zpipe.sim import SimOptions, load_hop_profile, run_sim

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "sim-live.json"
HOP = ROOT / "bench" / "results" / "hop.json"
TOPOLOGIES = ("line4", "mesh3", "mesh5")
#: For nodes whose topology names no device; every stage of the bundle takes more than 5 ms on it.
DEVICE = "raspberry-pi-3"
LOADS = (0.5, 0.8, 1.2)
WARM_UP = 500
#: Two-sided 95 % of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
#: What the differences are to stay below: relative, for shares in points.
GOALS = {"throughput": 0.05, "latency": 0.05, "p95": 0.10, "shares": 0.05}


def capacity(name: str) -> float:
    """Results a second when samples are always there, in the simulator."""
    options = SimOptions(topology=name, device=DEVICE, rate_hz=math.inf, count=8000, hop=load_hop_profile(HOP), seed=99)
    return float(run_sim(options, progress=lambda line, done: None)[0]["throughput_hz"])


def live(name: str, rate: float, count: int, seed: int) -> dict[str, Any]:
    """One `zpipe bench` run; its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "zpipe", "bench", "--topology", name, "--executor", "emulated", "--device", DEVICE]
        command += ["--rate", str(rate), "--count", str(count), "--seed", str(seed), "--warm-up", str(WARM_UP), "--json", str(file)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return json.loads(file.read_text())  # type: ignore[no-any-return]


def simulated(name: str, rate: float, count: int, seed: int) -> dict[str, Any]:
    """The same in the simulator."""
    hop = load_hop_profile(HOP)
    options = SimOptions(topology=name, device=DEVICE, rate_hz=rate, count=count, seed=seed, warm_up=WARM_UP, hop=hop)
    return run_sim(options, progress=lambda line, done: None)[0]


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What is compared, and what shows that the run was sound."""
    counts = report["counts"]
    return {
        "throughput": report["throughput_hz"],
        "latency": report["latency_ms"]["mean"],
        "p95": report["latency_ms"]["p95"],
        "shares": [row["share"] for row in report["exits"]],
        "accuracy": report["accuracy"],
        "broken": counts["lost"] + counts["duplicate"] + counts["hung"],
        "rejected": counts["rejected"],
        "cpu_s": sum(node["cpu_s"] or 0.0 for node in report["nodes"]),
        "seconds": report["seconds"],
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval; no width of one value."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def compare(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Differences of (live, simulated) pairs, one per seed."""
    found: dict[str, Any] = {}
    for key in ("throughput", "latency", "p95"):
        mean, half = interval([(there[key] - here[key]) / here[key] for here, there in runs])
        found[key] = {
            "live": statistics.fmean(here[key] for here, _ in runs),
            "simulated": statistics.fmean(there[key] for _, there in runs),
            "difference": mean,
            "half_width": None if math.isnan(half) else half,
        }
    stages = range(len(runs[0][0]["shares"]))
    gaps = [interval([there["shares"][stage] - here["shares"][stage] for here, there in runs]) for stage in stages]
    worst = max(gaps, key=lambda gap: abs(gap[0]))
    found["shares"] = {"difference": worst[0], "half_width": None if math.isnan(worst[1]) else worst[1]}
    found["holds"] = all(abs(found[key]["difference"]) <= goal for key, goal in GOALS.items())
    found["broken"] = sum(here["broken"] + there["broken"] for here, there in runs)
    found["samples"] = [here for here, _ in runs]
    return found


def row(name: str, load: float, rate: float, found: dict[str, Any]) -> str:
    def cell(key: str, unit: float = 1.0) -> str:
        entry = found[key]
        width = f" ±{100 * entry['half_width']:4.1f}" if entry["half_width"] is not None else ""
        values = f"{entry['live'] * unit:7.1f} {entry['simulated'] * unit:7.1f} " if "live" in entry else ""
        return f"{values}{100 * entry['difference']:+5.1f}{width}"

    cells = "  ".join(cell(key) for key in ("throughput", "latency", "p95", "shares"))
    return f"{name:<6} {load:3.1f} {rate:6.1f}  {cells}  {'holds' if found['holds'] else 'DIFFERS'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="*", default=list(TOPOLOGIES))
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS))
    parser.add_argument("--parallel", type=int, default=4, help="live runs at a time")
    arguments = parser.parse_args()
    if not HOP.exists():
        raise SystemExit(f"{HOP}: found no hop profile, expected one; run `python -m bench.hop` first")
    rates = {(name, load): load * capacity(name) for name in arguments.topologies for load in arguments.loads}
    cases = [(name, load, rate, seed) for seed in range(arguments.seeds) for (name, load), rate in rates.items()]
    started = time.monotonic()
    with ThreadPoolExecutor(arguments.parallel) as pool:
        jobs = {case: pool.submit(live, case[0], case[2], arguments.count, case[3]) for case in cases}
        here = {}
        for case in cases:
            here[case] = figures(jobs[case].result())
            name, load, rate, seed = case
            said = f"{name} at {load} of its capacity ({rate:.1f}/s), seed {seed}: {here[case]['latency']:.1f} ms"
            print(f"{time.monotonic() - started:6.0f} s  {said}", file=sys.stderr, flush=True)
    busy = 100.0 * sum(run["cpu_s"] for run in here.values()) / (time.monotonic() - started) / len(os.sched_getaffinity(0))
    made = {
        "machine": machine(),
        "commit": commit(),
        "command": "python -m bench.sim_live " + " ".join(sys.argv[1:]),
        "device": DEVICE,
        "count": arguments.count,
        "busy_percent": busy,
    }
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    print("        load  rate/s  live  simulated  difference % ± 95 %: results/s, mean ms, p95 ms, exit share (points)")
    for (name, load), rate in rates.items():
        pairs = []
        for seed in range(arguments.seeds):
            there = figures(simulated(name, rate, arguments.count, seed))
            pairs.append((here[name, load, rate, seed], there))
        found = compare(pairs)
        print(row(name, load, rate, found), flush=True)
        rows = [other for other in rows if (other["topology"], other["load"]) != (name, load)]
        rows.append({"topology": name, "load": load, "rate_hz": rate, **found, "made": made})
    print(f"cores busy {busy:.0f} % on average while the live runs ran, {arguments.parallel} at a time")
    rows.sort(key=lambda entry: (entry["topology"], entry["load"]))
    RESULTS.write_text(json.dumps({"schema": "zpipe.sim-live/1", "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

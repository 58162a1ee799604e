"""Live nodes on one host, shared memory against TCP loopback: samples and bytes a second, CPU a sample.

    python -m bench.shared_memory                                  three minutes; writes bench/results/shared-memory.json
    python -m bench.shared_memory --workload wire-1m --rounds 5

Two lines of four nodes of `bench.peers` (`Pipeline.local`, exits off, batch 1, 64 samples under way) that differ in nothing but
`shared_memory` in their topology take turns round by round, so a ratio is of two neighbouring rounds; the tables show the median.
Stages of `wire-1m` do no more than write the MiB they send, those of `spin-1m` and `spin-64k` also compute for half a millisecond.
`beside` is CPU outside the stages, all four nodes: what carrying, deciding and submitting takes. Bytes are the activations that go
from node to node, three a sample. Every answer is checked, and that all (or none) of the activations went through memory is what
the nodes themselves count (tests/runtime/test_shared_memory.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.peers.meter import Meter
from bench.peers.rounds import FIRST_WARM_SECONDS, HOPS, MODES, WARM_SECONDS, spread
from bench.peers.running import Running
from bench.peers.work import WORKLOADS, Job, Workload, prepare
from zpipe.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "shared-memory.json"
WAYS = ("tcp", "memory")
#: What issue 7 wants of 1 MiB activations.
LEAST_RATIO = 2.0


def measure(workload: Workload, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Figures of both ways, {way: {figure: median, low, high}}, and their ratios over TCP's."""
    mode = MODES["batch-1"]
    running: dict[str, Running] = {}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="zpipe-shared-") as folder:
        bundle, hosted = prepare(workload, Path(folder))
        try:
            for way in WAYS:
                own = Path(folder) / way
                own.mkdir()
                job = Job(workload.name, bundle, hosted, mode.batch, mode.window, str(own), folder, shared_memory=way == "memory")
                Meter.create(job.meter_path)
                running[way] = Running("z", job)
                running[way].run(warm_seconds=FIRST_WARM_SECONDS, seconds=WARM_SECONDS)
            for number in range(rounds):
                for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                    found[way].append(_figures(running[way].run(warm_seconds=WARM_SECONDS, seconds=seconds), workload))
        finally:
            for each in running.values():
                each.close()
    names = list(found["tcp"][0])
    ratios = {name: spread([a[name] / b[name] for a, b in zip(found["memory"], found["tcp"], strict=True)]) for name in names}
    return {way: {name: spread([each[name] for each in found[way]]) for name in names} for way in WAYS} | {"ratio": ratios}


def _figures(result: dict[str, Any], workload: Workload) -> dict[str, float]:
    if result["wrong"]:
        raise SystemExit(f"{workload.name}: {result['wrong']} of {result['all_samples']} answers wrong or missing")
    hz = result["samples"] / result["seconds"]
    cpu, stages = (1e6 * result[name] / result["all_samples"] for name in ("cpu_seconds", "all_stage_cpu_seconds"))
    return {
        "hz": hz,
        "mb_per_second": 1e-6 * HOPS * workload.activation_bytes * hz,
        "cpu_us": cpu,
        "beside_us": cpu - stages,
        "peak_rss_mb": 1e-6 * result["peak_rss_bytes"],
    }


def _show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name:<10} {'samples/s':>10} {'MB/s':>8} {'CPU us':>8} {'beside':>8} {'RSS MB':>8}   range of samples/s")
    for way in WAYS:
        row = {figure: value["median"] for figure, value in found[way].items()}
        low, high = (found[way]["hz"][end] for end in ("low", "high"))
        figures = f"{row['hz']:>10.0f} {row['mb_per_second']:>8.0f} {row['cpu_us']:>8.0f} {row['beside_us']:>8.0f}"
        print(f"  {way:<8} {figures} {row['peak_rss_mb']:>8.0f}   {low:.0f}-{high:.0f}")
    hz, cpu, beside = (found["ratio"][figure] for figure in ("hz", "cpu_us", "beside_us"))
    print(f"  memory: {hz['median']:.2f}x the samples a second ({hz['low']:.2f}-{hz['high']:.2f}), ", end="")
    print(f"{1 / cpu['median']:.2f}x by CPU, {1 / beside['median']:.2f}x by CPU beside the stages", flush=True)


def main() -> None:
    names = [name for name, load in WORKLOADS.items() if load.activation_bytes >= 65536]
    parser = argparse.ArgumentParser(prog="python -m bench.shared_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=names, action="append", help="once for each; all of them if not given")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round")
    options = parser.parse_args()
    if options.rounds < 1 or not 0.0 < options.seconds <= 60.0:
        parser.error(f"found {options.rounds} rounds of {options.seconds:g} s, expected at least 1 of up to 60 s")
    measured = {}
    for name in options.workload or names:
        measured[name] = measure(WORKLOADS[name], rounds=options.rounds, seconds=options.seconds)
        _show(name, measured[name])
    if options.workload is None:
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
        about = {"commit": commit.stdout.strip(), "machine": machine(), "rounds": options.rounds, "wanted": LEAST_RATIO}
        RESULTS.write_text(json.dumps({**about, "measured": measured}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

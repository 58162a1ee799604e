"""Live nodes on one host, shared memory against TCP loopback: samples and bytes a second, CPU a sample.

    python -m bench.shared_memory                                  four minutes; writes bench/results/shared-memory.json
    python -m bench.shared_memory --workload wire-1m --rounds 5

Two lines of four nodes of `bench.peers` (`Pipeline.local`, exits off, batch 1, 64 samples under way) that differ in nothing but
`shared_memory` in their topology take turns round by round, and with them a third one whose activations are 4 KiB: what nodes cost
that have next to nothing to carry (they pack several samples into a message, too). Ratios are of neighbouring rounds; the tables
show medians. Stages of `wire-1m` do no more than write the MiB they send, those of `spin-1m` and `spin-64k` also compute for half a
millisecond.

`beside` is CPU outside the stages, all four nodes: carrying, deciding and submitting. `carrying` is of that what is above the third
line's, for one activation on one hop: both ends' copies, checksums, system calls, page faults. Bytes are those of the activations
that go from node to node, three a sample. Every answer is checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.made import commit
from bench.peers.meter import Meter
from bench.peers.rounds import FIRST_WARM_SECONDS, HOPS, MODES, WARM_SECONDS, spread
from bench.peers.running import Running
from bench.peers.work import WORKLOADS, Job, Workload, prepare
from zpipe.report import machine
from zpipe.transport.shared import SHARE_FROM_BYTES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "shared-memory.json"
#: The first is of 4 KiB activations.
WAYS = ("small", "tcp", "memory")
SMALL_BYTES = 4096
#: What issue 7 wants of 1 MiB activations.
LEAST_RATIO = 2.0


def measure(workload: Workload, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Figures of each way, {way: {figure: median, low, high}}, and the ratios of memory's over TCP's."""
    mode = MODES["batch-1"]
    running: dict[str, Running] = {}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="zpipe-shared-") as folder:
        try:
            for way in WAYS:
                own = Path(folder) / way
                own.mkdir()
                load = replace(workload, activation_bytes=SMALL_BYTES) if way == "small" else workload
                bundle, hosted = prepare(load, own)
                job = Job(load.name, bundle, hosted, mode.batch, mode.window, str(own), str(own), shared_memory=way == "memory")
                Meter.create(job.meter_path)
                running[way] = Running("z", job)
                running[way].run(warm_seconds=FIRST_WARM_SECONDS, seconds=WARM_SECONDS)
            for number in range(rounds):
                for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                    size = SMALL_BYTES if way == "small" else workload.activation_bytes
                    found[way].append(_figures(running[way].run(warm_seconds=WARM_SECONDS, seconds=seconds), size))
        finally:
            for each in running.values():
                each.close()
    for way in WAYS:
        for small, row in zip(found["small"], found[way], strict=True):
            row["carrying_us"] = (row["beside_us"] - small["beside_us"]) / HOPS
    names = list(found["tcp"][0])
    ratios = {
        name: spread([a[name] / max(b[name], 1e-9) for a, b in zip(found["memory"], found["tcp"], strict=True)]) for name in names
    }
    return {way: {name: spread([each[name] for each in found[way]]) for name in names} for way in WAYS} | {"ratio": ratios}


def _figures(result: dict[str, Any], activation_bytes: int) -> dict[str, float]:
    if result["wrong"]:
        raise SystemExit(f"{result['wrong']} of {result['all_samples']} answers wrong or missing")
    hz = result["samples"] / result["seconds"]
    cpu, stages = (1e6 * result[name] / result["all_samples"] for name in ("cpu_seconds", "all_stage_cpu_seconds"))
    return {
        "hz": hz,
        "mb_per_second": 1e-6 * HOPS * activation_bytes * hz,
        "cpu_us": cpu,
        "beside_us": cpu - stages,
        "peak_rss_mb": 1e-6 * result["peak_rss_bytes"],
    }


def _show(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n{name:<10} {'samples/s':>10} {'MB/s':>8} {'CPU us':>8} {'beside':>8} {'carrying':>9} {'RSS MB':>8}   range of samples/s"
    )
    for way in WAYS:
        row = {figure: value["median"] for figure, value in found[way].items()}
        low, high = (found[way]["hz"][end] for end in ("low", "high"))
        figures = f"{row['hz']:>10.0f} {row['mb_per_second']:>8.0f} {row['cpu_us']:>8.0f} {row['beside_us']:>8.0f}"
        print(f"  {way:<8} {figures} {row['carrying_us']:>9.0f} {row['peak_rss_mb']:>8.0f}   {low:.0f}-{high:.0f}")
    hz, cpu, beside = (found["ratio"][figure] for figure in ("hz", "cpu_us", "beside_us"))
    carrying = found["tcp"]["carrying_us"]["median"] / found["memory"]["carrying_us"]["median"]
    print(
        f"  memory: {hz['median']:.2f}x the samples a second ({hz['low']:.2f}-{hz['high']:.2f}); by CPU {1 / cpu['median']:.2f}x, ",
        end="",
    )
    print(f"beside the stages {1 / beside['median']:.2f}x, for the carrying alone {carrying:.2f}x", flush=True)


def main() -> None:
    names = [name for name, load in WORKLOADS.items() if load.activation_bytes >= SHARE_FROM_BYTES]
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
        about = {"commit": commit(), "machine": machine(), "rounds": options.rounds, "wanted": LEAST_RATIO}
        RESULTS.write_text(json.dumps({**about, "measured": measured}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

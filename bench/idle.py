"""What a mesh costs that has nothing to do: CPU per node of an idle line, with a dead node in it, and with a stopped one.

    python -m bench.idle                 calm, dead, stopped: about 2 minutes
    python -m bench.idle calm            one of them

The line of four on loopback, its stages loaded. *dead*: node 2 is killed (SIGKILL) and stays dead, so its neighbours seek it all
the time. *stopped*: node 2 is stopped (SIGSTOP), so its connections stand and nothing comes by them. Measured is user and system
time of each process, as the kernel counts it, over SECONDS after SETTLE_SECONDS. Writes bench/results/idle.json.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import psutil

from bench.made import commit
from zpipe.report import machine
from zpipe.runtime.loops import run
from zpipe.runtime.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "idle.json"
TOPOLOGY = "line4.yaml"
#: In the middle of the line, with a neighbour on either side.
VICTIM = 2
#: The first seconds after a fault are no idle ones: connections break, pauses between tries grow.
SETTLE_SECONDS, SECONDS = 8.0, 30.0
#: What issue 4 asks for.
MOST_CORE_SHARE = 0.02

PARTS: dict[str, signal.Signals | None] = {"calm": None, "dead": signal.SIGKILL, "stopped": signal.SIGSTOP}


async def measure(fault: signal.Signals | None) -> list[dict[str, Any]]:
    """CPU of every process, the source's (which is this one) too."""
    async with Pipeline.local(TOPOLOGY) as pipeline:
        assert pipeline.launcher is not None
        nodes = {pipeline.rank: psutil.Process()}
        nodes |= {rank: psutil.Process(process.pid) for rank, process in pipeline.launcher.processes.items()}
        try:
            if fault is not None:
                nodes[VICTIM].send_signal(fault)
            await asyncio.sleep(SETTLE_SECONDS)
            idle = {rank: node for rank, node in sorted(nodes.items()) if fault is None or rank != VICTIM}
            before = {rank: _look(node) for rank, node in idle.items()}
            await asyncio.sleep(SECONDS)
            return [_row(rank, before[rank], _look(node)) for rank, node in idle.items()]
        finally:
            if fault is signal.SIGSTOP:
                nodes[VICTIM].send_signal(signal.SIGCONT)


def _look(process: psutil.Process) -> tuple[float, int]:
    """CPU seconds, and how often it was woken."""
    cpu = process.cpu_times()
    return cpu.user + cpu.system, process.num_ctx_switches().voluntary


def _row(rank: int, before: tuple[float, int], after: tuple[float, int]) -> dict[str, Any]:
    return {"rank": rank, "core_share": (after[0] - before[0]) / SECONDS, "wake_ups_hz": (after[1] - before[1]) / SECONDS}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"found {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or list(PARTS):
        rows = run(measure(PARTS[name]))
        print(f"{name}: CPU of a core over {SECONDS:.0f} s (wanted < {100 * MOST_CORE_SHARE:g} % each)", flush=True)
        for row in rows:
            print(f"  node {row['rank']}{100 * row['core_share']:>8.2f} %{row['wake_ups_hz']:>10.0f} wake-ups a second", flush=True)
        held = all(row["core_share"] < MOST_CORE_SHARE for row in rows)
        results[name] = {"commit": commit(), "machine": machine(), "seconds": SECONDS, "held": held, "nodes": rows}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if not all(results[name]["held"] for name in names or PARTS):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The live part of `zpipe bench --suite pa-mdi` alone: emulated boxes over real sockets beside the simulator, at each load.

    python -m bench.pa_mdi_live                              eleven minutes; writes bench/results/pa-mdi-live.json
    python -m bench.pa_mdi_live closed --policies pa-mdi     replaces that row alone

Differences are of mean inference times, source by source, with the 95 % interval of the paired differences over seeds. The
simulator's only parameter is what hops take, measured just before each run on another topology (`zpipe.bench.hop`), so a machine
that others use, too, says the same, in a wider interval. It ends with 1 where a mean difference is more than issue 9 wants.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.made import commit
from zpipe.bench.suites.pa_mdi.claims import LIVE_GOAL
from zpipe.bench.suites.pa_mdi.live import LOADS, live_rows
from zpipe.bench.suites.pa_mdi.settings import FULL
from zpipe.report import machine

RESULTS = Path(__file__).parent / "results" / "pa-mdi-live.json"
KINDS = [kind for kind, _ in LOADS]


def measure(policies: list[str], kinds: list[str], *, seeds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each policy and load."""
    scale = replace(FULL, live_policies=tuple(policies), live_loads=len(LOADS), live_runs=seeds, live_seconds=seconds)
    loads = [(kind, load) for kind, load in LOADS if kind in kinds]
    with tempfile.TemporaryDirectory(prefix="zpipe-pa-mdi-") as scratch:
        return asyncio.run(live_rows(scale, Path(scratch), progress=_shown, loads=loads))


def _shown(line: str, done: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line} {done:.0%}", end="", file=sys.stderr, flush=True)


def show(row: dict[str, Any]) -> bool:
    """Prints it; whether every source is within what is wanted, and nothing was lost."""
    held = not row["broken"] and all(abs(mean) <= LIVE_GOAL for mean, _ in row["difference"])
    busy = row["cores_busy"] / (os.cpu_count() or 1)
    for index, rank in enumerate(row["ranks"]):
        (live, _), (there, _), (mean, half) = (row[key][index] for key in ("latency_ms", "simulated_ms", "difference"))
        width = f" ±{100.0 * half:.1f}" if half else ""
        print(
            f"{row['policy']:<7}{row['kind']:<7}{row['load']:>4g}  source at rank {rank}: live {live:.0f} ms, "
            f"simulated {there:.0f} ms, {100.0 * mean:+.1f}{width} %  {'held' if abs(mean) <= LIVE_GOAL else 'FALLS SHORT'}"
        )
    hops = ", ".join(f"{part} {mean:.2f}" for part, (mean, _) in row["hop_ms"].items())
    said = f"{row['runs']} runs, cores {busy:.0%} busy with it, ms of a hop: {hops}; lost, twice or hanging: {row['broken']}"
    print(f"{'':<18}  {said}", flush=True)
    return held


def keep(rows: list[dict[str, Any]], **made: Any) -> None:
    """Writes them, each with what it was made of, in place of those of the same policy and load."""
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    fresh = {(row["policy"], row["kind"], row["load"]): {**row, "made": made} for row in rows}
    kept = {(row["policy"], row["kind"], row["load"]): row for row in known} | fresh
    listed = [kept[key] for key in sorted(kept)]
    RESULTS.write_text(json.dumps({"schema": "zpipe.pa-mdi-live/1", "rows": listed}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pa_mdi_live", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of load, of {', '.join(KINDS)}; all if none")
    parser.add_argument("--policies", nargs="+", choices=FULL.policies, default=list(FULL.live_policies))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=FULL.live_seconds, help="of each run")
    options = parser.parse_args()
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"found {unknown[0]!r}, expected some of {', '.join(KINDS)}")
    if options.seeds < 1 or not options.seconds > 0.0:
        parser.error(f"found --seeds {options.seeds} --seconds {options.seconds:g}, expected at least 1 and more than 0")
    rows = measure(options.policies, options.kinds or KINDS, seeds=options.seeds, seconds=options.seconds)
    held = [show(row) for row in rows]
    command = " ".join(["python -m bench.pa_mdi_live", *sys.argv[1:]])
    keep(rows, commit=commit(), machine=machine(), command=command, seconds=options.seconds)
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()

"""What a live node takes beside computing and sending, on this machine as it is now: the simulator's hop profile.

    python -m bench.hop [--parallel 4]     a minute; writes bench/results/hop.json

`zpipe.bench.hop` says how it is measured; here twice, in a light and a busy ring. `--parallel`: so many such rings at a time, for a
profile of a machine as busy as it is when that many runs share it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.made import commit
from zpipe.bench.hop import Measured, record
from zpipe.report import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "hop.json"
#: A light and a busy ring; its stages without exits carry 47 a second at most.
RATES_HZ = (12.0, 36.0)
SECONDS = 12.0


def record_one(folder: Path, rate_hz: float, seed: int) -> None:
    """One ring, in a process of the pool."""
    asyncio.run(record(folder, rate_hz=rate_hz, seconds=SECONDS, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parallel", type=int, default=1)
    measure(parallel=parser.parse_args().parallel)


def measure(*, parallel: int) -> None:
    """Measures, writes RESULTS and prints."""
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(parallel) as pool:
        for load, rate_hz in enumerate(RATES_HZ):
            folders = [Path(folder) / f"{load}-{run}" for run in range(parallel)]
            list(pool.map(record_one, folders, [rate_hz] * parallel, range(parallel)))
            for traces in folders:
                measured.take(traces)
    found = measured.profile()
    messages = {
        "forward": len(measured.forward),
        "control": len(measured.control),
        "batches": len(measured.busy) + len(measured.idle),
    }
    profile = {
        "schema": "zpipe.hop/1",
        "forward": found.forward.quantiles,
        "forward_seconds_per_byte": found.forward_seconds_per_byte,
        "start": found.start.quantiles,
        "finish": found.finish.quantiles,
        "control": found.control.quantiles,
        "grace_seconds": found.grace_seconds,
        "machine": machine(),
        "commit": commit(),
        "command": f"python -m bench.hop --parallel {parallel}",
        "messages": messages,
    }
    RESULTS.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
    for key, spread in (("forward", found.forward), ("finish", found.finish), ("control", found.control)):
        values = [1e6 * seconds for seconds in spread.quantiles]
        print(
            f"{key:<8} us: median {statistics.median(values):6.0f}   mean {statistics.fmean(values):6.0f}, most {values[-1]:6.0f}"
        )
    start, slope = found.start.quantiles[0], found.forward_seconds_per_byte
    print(f"start    us: {1e6 * start:.0f}   per byte ns: {1e9 * slope:.3f}   {messages}")


if __name__ == "__main__":
    main()

"""A million mutated frames against the decoder, and sieges of live drivers by hostile neighbours.

    python -m bench.fuzz                          about 2 minutes on two cores; writes bench/results/fuzz.json
    python -m bench.fuzz --frames 20000 --sieges 4 --seed 9     a look, at other frames

What a frame may do is said by tests/fuzz/oracle.py: be refused by one line, or be a sound message that can be said again. A frame
that does else is kept in tests/fuzz/corpus/broke, and the run ends with exit code 1. The slowest frames are timed again, the best
of five, since the first time is the machine's as much as the decoder's. Memory is the process's peak resident size, less what it
had after the first thousand frames.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import logging
import math
import multiprocessing
import random
import re
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from bench.made import commit
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator, kind_of
from tests.fuzz.oracle import Unsound, judge
from tests.fuzz.siege import Clock, Siege
from tests.fuzz.test_siege import PLACES
from tests.wire.samples import LIMITS, NOW
from zpipe.errors import WireError
from zpipe.report import machine
from zpipe.wire import decode

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "fuzz.json"
SLOWEST = 20
SIEGE_STEPS = 2_000


@dataclass
class Found:
    """What one process saw."""

    refused: Counter[str] = field(default_factory=Counter)  #: {why: frames}
    taken: Counter[str] = field(default_factory=Counter)  #: {kind: frames}
    slowest: list[tuple[float, str, int]] = field(default_factory=list)  #: (microseconds, how, bytes)
    unsound: list[str] = field(default_factory=list)
    grown_kib: int = 0
    seconds: float = 0.0


def reason(refusal: str) -> str:
    """A refusal without its numbers and values."""
    plain = re.sub(r"'.*?'|\".*?\"|\(.*|\[.*|-?\d[\w.+-]*|, expected.*|, found.*", "", refusal)
    return re.sub(r"\s+", " ", plain).strip(" :,")[:60]


def attack_decoder(task: tuple[int, int]) -> Found:
    """One process's share of the frames."""
    seed, frames = task
    found, mutator = Found(), Mutator(corpus.samples(), random.Random(seed))
    slowest: list[tuple[int, int, Any]] = []
    started, after_start = time.monotonic(), 0
    for number in range(frames):
        mutant = mutator.mutant()
        begin = time.perf_counter_ns()
        try:
            refusal = judge(mutant.frames, limits=LIMITS, now=NOW, damaged=mutant.damaged)
        except Unsound as exc:
            found.unsound.append(f"{mutant.how}: {exc}")
            corpus.write("broke", f"found-{seed}-{number}", mutant.frames, f"found {exc!s:.90}")
            continue
        took = time.perf_counter_ns() - begin
        if len(slowest) < SLOWEST or took > slowest[0][0]:
            heapq.heappush(slowest, (took, number, mutant))
            if len(slowest) > SLOWEST:
                heapq.heappop(slowest)
        if refusal:
            found.refused[reason(refusal)] += 1
        else:
            found.taken[kind_of(mutant.frames)] += 1
        if number == 1000:
            after_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found.grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - after_start
    found.seconds = time.monotonic() - started
    found.slowest = [(alone(mutant.frames), mutant.how, sum(map(len, mutant.frames))) for _, _, mutant in slowest]
    return found


def alone(frames: list[bytes]) -> float:
    """Microseconds to decode, the best of five."""
    best = math.inf
    for _ in range(5):
        begin = time.perf_counter_ns()
        try:
            decode(frames, limits=LIMITS, now=NOW)
        except WireError:
            pass
        best = min(best, (time.perf_counter_ns() - begin) / 1000)
    return best


def besiege(task: tuple[int, str]) -> dict[str, Any]:
    """One siege; what the driver counted."""
    seed, where = task
    logging.disable(logging.CRITICAL)
    clock, raised = Clock(), list[dict[str, Any]]()

    async def main() -> Siege:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        siege = Siege(*PLACES[where], clock=clock, rng=random.Random(seed))
        await siege.start()
        for _ in range(SIEGE_STEPS):
            await siege.step()
        await siege.end()
        return siege

    with (
        mock.patch("zpipe.runtime.driver.time", clock),
        mock.patch("zpipe.runtime.inbox.time", clock),  # else deadlines are told on another clock and never pass
        mock.patch("zpipe.runtime.stages.INLINE_SECONDS", math.inf),
    ):
        try:
            siege = asyncio.run(main())
        except Exception as exc:
            return {"broke": f"{where}, seed {seed}: {type(exc).__name__}: {exc}"}
    counts = siege.driver.stats()
    keys = (
        "bad_frames",
        "stray_frames",
        "control_received",
        "frames_received",
        "received",
        "tasks_run",
        "bans",
        "relayed",
        "stale",
    )
    found: dict[str, Any] = {key: counts[key] for key in keys} | {"outcomes": len(siege.outcomes)}
    return found | ({"broke": f"{where}, seed {seed}: {raised[0]}"} if raised else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--sieges", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    share = -(-options.frames // options.processes)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        parts = pool.map(attack_decoder, [(options.seed * 1000 + index, share) for index in range(options.processes)])
        names = list(PLACES)
        sieges = pool.map(besiege, [(options.seed * 1000 + index, names[index % len(names)]) for index in range(options.sieges)])
    refused: Counter[str] = sum((part.refused for part in parts), Counter())
    taken: Counter[str] = sum((part.taken for part in parts), Counter())
    slowest = sorted((entry for part in parts for entry in part.slowest), reverse=True)[:5]
    unsound = [line for part in parts for line in part.unsound] + [siege["broke"] for siege in sieges if "broke" in siege]
    frames, seconds = share * options.processes, max(part.seconds for part in parts)
    print(f"{frames:,} frames in {seconds:.0f} s: {frames / seconds:,.0f}/s over {options.processes} processes")
    print(
        f"refused {refused.total():,}, sound messages {taken.total():,} ({', '.join(f'{k} {n:,}' for k, n in taken.most_common())})"
    )
    for why, count in refused.most_common(25):
        print(f"  {count:>9,}  {why}")
    print(f"  {sum(n for _, n in refused.most_common()[25:]):>9,}  {max(0, len(refused) - 25)} other reasons")
    print("slowest, alone: " + "; ".join(f"{took:,.0f} µs, {size:,} bytes ({how})" for took, how, size in slowest))
    print(f"peak memory grew by {max(part.grown_kib for part in parts) / 1024:.1f} MB after the first 1,000 frames")
    totals = {key: sum(siege.get(key, 0) for siege in sieges) for key in sieges[0] if key != "broke"} if sieges else {}
    print(f"{len(sieges)} sieges of {SIEGE_STEPS:,} steps: {', '.join(f'{key} {count:,}' for key, count in totals.items())}")
    print(f"unsound: {len(unsound)}")
    for line in unsound[:10]:
        print("  " + line[:300])
    made = {
        "schema": "zpipe.fuzz/1",
        "machine": machine(),
        "commit": commit(),
        "command": " ".join(["python -m bench.fuzz", *sys.argv[1:]]),
        "frames": frames,
        "frames_hz": frames / seconds,
        "refused": dict(refused.most_common()),
        "sound": dict(taken.most_common()),
        "slowest_us": [{"us": took, "how": how, "bytes": size} for took, how, size in slowest],
        "grown_mb": max(part.grown_kib for part in parts) / 1024,
        "sieges": {"count": len(sieges), "steps": SIEGE_STEPS, **totals},
        "unsound": unsound,
    }
    RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if unsound:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""The attacking process: `python -m bench.attack.attacker`, JSON lines on its pipes.

in   {"arsenal": {name: [[hex frame, ...], ...]}, "seed": 1, "kinds": [name, ...]}          once; kinds [] = all
in   {"host": "127.0.0.1", "port": 4000, "seconds": 4.0, "rate_hz": 100.0}       a segment of the attack
out  {"sessions": {kind: count}, "turned_away": 3, "cpu_seconds": 0.4}           when every session of it has ended or was cut
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.attack.sessions import KINDS, WITHOUT_CURVE, Kind, Target


async def attack(target: Target, kinds: Sequence[Kind], *, seconds: float, rate_hz: float) -> dict[str, Any]:
    """Starts sessions at a steady rate; what has not ended with the segment is cut."""
    started_at, cpu_before = time.monotonic(), time.process_time()
    sessions: Counter[str] = Counter()
    turned_away = 0
    running: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal turned_away
        running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            turned_away += 1  # refused, reset or closed before the handshake was done: what a node should do

    for number in range(round(seconds * rate_hz)):
        await asyncio.sleep(max(0.0, started_at + number / rate_hz - time.monotonic()))
        kind = kinds[next(target.numbers) % len(kinds)]
        sessions[kind.__name__] += 1
        task = asyncio.ensure_future(kind(target))
        running.add(task)
        task.add_done_callback(ended)
    await asyncio.sleep(max(0.0, started_at + seconds - time.monotonic()))
    for task in list(running):
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return {"sessions": sessions, "turned_away": turned_away, "cpu_seconds": time.process_time() - cpu_before}


def main() -> None:
    """Serves until its standard input ends."""
    first = json.loads(sys.stdin.readline())
    arsenal = {
        name: [[bytes.fromhex(frame) for frame in message] for message in messages] for name, messages in first["arsenal"].items()
    }
    kinds = [kind for kind in (*KINDS, *WITHOUT_CURVE) if kind.__name__ in first["kinds"]] or KINDS
    rng, numbers = random.Random(first["seed"]), itertools.count()
    for line in sys.stdin:
        order = json.loads(line)
        target = Target(order["host"], order["port"], arsenal, rng, numbers)
        print(json.dumps(asyncio.run(attack(target, kinds, seconds=order["seconds"], rate_hz=order["rate_hz"]))), flush=True)


if __name__ == "__main__":
    main()

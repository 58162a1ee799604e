"""Interleaved rounds of one workload in one mode, and the figures that come of them."""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.contender import RESTLESS
from bench.peers.meter import Meter
from bench.peers.running import Fell, Running
from bench.peers.work import RANKS, WINDOW, Job, Workload, prepare

#: Messages between processes of a line of four on a sample's way; its answer's way back is part of the overhead, not of the count.
HOPS = RANKS - 1
#: After another contender's round its caches are cold and its links idle.
WARM_SECONDS = 0.3
#: Before the first round: engines' arenas, connections, and what zpipe learns of service times.
FIRST_WARM_SECONDS = 1.0
#: Between rounds: what is still being freed or closed.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Mode:
    """How samples are offered.

    Attributes:
        batch: samples in a message.
        window: samples under way.
    """

    name: str
    batch: int
    window: int


MODES = {mode.name: mode for mode in (Mode("batch-1", 1, WINDOW), Mode("batch-8", 8, WINDOW), Mode("latency", 1, 1))}

Note = Callable[[str], None]


def measure(
    workload: Workload, mode: Mode, keys: Sequence[str], *, rounds: int, seconds: float, note: Note
) -> list[dict[str, Any]]:
    """One row per contender, in the order of `keys`.

    A row holds `contender`, and either `fell` (why there are no figures) or the figures: each a dict of median, low, high over
    the rounds, and the rounds themselves for pairing.
    """
    with tempfile.TemporaryDirectory(prefix="zpipe-peers-") as folder:
        shared = Path(folder)
        bundle, hosted = prepare(workload, shared)
        fell: dict[str, str] = {}
        with _started(keys, workload, mode, bundle, hosted, shared, fell, note) as running:
            found = _rounds(running, fell, rounds=rounds, seconds=seconds, note=note)
    rows = [_row(key, found.get(key, []), fell.get(key), workload) for key in keys]
    return [{"workload": workload.name, "mode": mode.name, **row} for row in rows]


@contextmanager
def _started(
    keys: Sequence[str],
    workload: Workload,
    mode: Mode,
    bundle: str,
    hosted: tuple[tuple[int, ...], ...],
    shared: Path,
    fell: dict[str, str],
    note: Note,
) -> Iterator[dict[str, Running]]:
    running: dict[str, Running] = {}
    try:
        for index, key in enumerate(keys):
            note(f"starting {key}")
            own = shared / str(index)
            own.mkdir()
            job = Job(workload.name, bundle, hosted, mode.batch, mode.window, str(own), str(shared))
            Meter.create(job.meter_path)
            try:
                running[key] = Running(key, job)
                running[key].run(warm_seconds=FIRST_WARM_SECONDS, seconds=WARM_SECONDS)
                _rest(running[key])
            except Fell as exc:
                fell[key] = str(exc)
        yield {key: contender for key, contender in running.items() if key not in fell}
    finally:
        for contender in running.values():
            contender.close()


def _rounds(
    running: dict[str, Running], fell: dict[str, str], *, rounds: int, seconds: float, note: Note
) -> dict[str, list[dict[str, Any]]]:
    """{contender: its rounds}; who breaks is left out from there on."""
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in running}
    dice = random.Random(0)
    for number in range(rounds):
        order = [key for key in running if key not in fell]
        dice.shuffle(order)
        for key in order:
            note(f"round {number + 1} of {rounds}: {key}")
            try:
                running[key].resume()
                result = running[key].run(warm_seconds=WARM_SECONDS, seconds=seconds)
                _rest(running[key])
            except Fell as exc:
                fell[key] = str(exc)
                continue
            if result["wrong"]:
                fell[key] = f"{result['wrong']} of {result['all_samples']} answers wrong or missing"
            found[key].append(_figures(result))
            time.sleep(PAUSE_SECONDS)
    return found


def _rest(contender: Running) -> None:
    if contender.key in RESTLESS:
        contender.pause()


def _figures(result: dict[str, Any]) -> dict[str, float]:
    """One round's, per sample."""
    samples = max(1, result["all_samples"])
    hz = result["samples"] / result["seconds"]
    stage_cpu = result["all_stage_cpu_seconds"] / samples
    cpu = result["cpu_seconds"] / samples
    return {
        "hz": hz,
        "latency_us": 1e6 * result["latency_seconds"],
        "latency_p50_us": 1e6 * result["latency_p50_seconds"],
        "stage_us": 1e6 * result["stage_seconds"],
        "beside_us": 1e6 * (result["latency_seconds"] - result["stage_seconds"]),
        "cpu_us": 1e6 * cpu,
        "stage_cpu_us": 1e6 * stage_cpu,
        "overhead_us": 1e6 * (cpu - stage_cpu) / RANKS,
        "rss_mb": result["peak_rss_bytes"] / 1e6,
        "processes": result["processes"],
    }


def _row(key: str, rounds: list[dict[str, float]], fell: str | None, workload: Workload) -> dict[str, Any]:
    if fell is not None or not rounds:
        return {"contender": key, "fell": fell or "no round ended"}
    figures = {name: spread([each[name] for each in rounds]) for name in rounds[0]}
    if workload.synthetic:
        per_sample = HOPS * workload.activation_bytes
        figures["bytes_per_second"] = spread([per_sample * each["hz"] for each in rounds])
    return {"contender": key, **figures, "rounds": rounds}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range over rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(mine: Sequence[dict[str, float]], others: Sequence[dict[str, float]], figure: str) -> dict[str, float]:
    """Mine over the other's, round by round: what disturbs the machine for longer than a round disturbs both."""
    # A round of a few milliseconds, as in a test, may have used no tick of CPU.
    return spread([a[figure] / b[figure] if b[figure] else math.nan for a, b in zip(mine, others, strict=True)])

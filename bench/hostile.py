"""A live line of emulated boards under steady load while an enemy makes a hundred hostile sessions a second.

    python -m bench.hostile                                about 4 minutes: 10,000 sessions; writes bench/results/hostile.json
    python -m bench.hostile --pairs 5 --seconds 3          a look

Segments alternate: in one the enemy is aimed at a node of the line, in the next at a dummy that listens and does nothing, so both
share whatever else the machine does. The load is a closed loop whose speed is that of the emulated boards. Reported: results a
second in the one kind of segment over the other, as the mean of paired differences with its 95 % interval; latencies; what the
attack cost the node in CPU; its memory, descriptors and threads before and after; and the outcome of every sample, its label
compared with the replay's at the exit it took. No CURVE: the enemy knows topology and bundle, and may be an observer.

Not among them: a Hello with the rank of a neighbour, the right digests and a later session. Without keys nothing tells it from that
neighbour started again, and the connection it replaces is made anew only when the silence is noticed (policy rule R5). That is what
CURVE is for; `--kinds stolen_rank --rate 0.2` shows what it costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench.attack.arsenal import arsenal
from bench.made import commit
from zpipe.bench.drive import Watch, closed_loop
from zpipe.load import Order, Span
from zpipe.model import Outcome
from zpipe.report import machine
from zpipe.runtime.packing import codecs_of, wire_limits
from zpipe.runtime.pipeline import Pipeline
from zpipe.topology import load_topology, override

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "hostile.json"
WARM_UP_SECONDS = 4.0
#: Between segments: the enemy's last sessions are gone, what they left is read.
PAUSE_SECONDS = 0.4
#: Longer than a node waits for a handshake: then every descriptor of an enemy is closed.
QUIET_SECONDS = 5.0
DEADLINE_SECONDS = 10.0
#: Two-sided 95 % for 20 pairs; a little less for more.
STUDENT = 2.09


@dataclass
class Watched:
    """What became of the samples of one segment."""

    results: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    attack: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    node_cpu_seconds: float = 0.0

    @property
    def hz(self) -> float:
        return self.results / self.seconds


class Log:
    """Every sample of the run; each outcome checked against the replay."""

    def __init__(self, pipeline: Pipeline) -> None:
        bundle = pipeline.bundle
        assert bundle.emulates is not None, "the boards are emulated"
        self._labels = bundle.replay("none").labels
        self._open: Counter[int] = Counter()
        self._seen: set[int] = set()
        self.offered = self.duplicate = self.wrong = self.late = 0
        self.kinds: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.segment = Watched()

    def on_offered(self, index: int) -> None:
        self.offered += 1

    def on_ended(self, outcome: Outcome, index: int) -> None:
        self.duplicate += outcome.sample in self._seen
        self._seen.add(outcome.sample)
        self.kinds[outcome.kind] += 1
        self.late += outcome.latency_seconds > DEADLINE_SECONDS + 0.1
        if outcome.result is None:
            self.causes[outcome.cause] += 1
            return
        self.wrong += outcome.result.label != int(self._labels[index, outcome.result.exit_stage])
        self.segment.results += 1
        self.segment.latencies_ms.append(1000.0 * outcome.latency_seconds)

    def counts(self) -> dict[str, int]:
        lost = self.offered - len(self._seen)
        kinds = {kind: self.kinds[kind] for kind in ("result", "rejected", "expired", "failed")}
        return {
            "offered": self.offered,
            **kinds,
            "lost": lost,
            "duplicate": self.duplicate,
            "hung": self.late,
            "wrong_label": self.wrong,
        }


class Enemy:
    """The attacking process and the dummy it is aimed at every other time."""

    def __init__(self, weapons: dict[str, Any], max_message_bytes: int, options: argparse.Namespace) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.attacker = subprocess.Popen([sys.executable, "-m", "bench.attack.attacker"], **pipes)  # type: ignore[call-overload]
        self.dummy = subprocess.Popen([sys.executable, "-m", "bench.attack.dummy", str(max_message_bytes)], **pipes)  # type: ignore[call-overload]
        self.dummy_port = int(self.dummy.stdout.readline())
        hexed = {name: [[frame.hex() for frame in message] for message in messages] for name, messages in weapons.items()}
        self._tell({"arsenal": hexed, "seed": options.seed, "kinds": options.kinds})

    def _tell(self, message: dict[str, Any]) -> None:
        self.attacker.stdin.write(json.dumps(message) + "\n")
        self.attacker.stdin.flush()

    async def attack(self, port: int, *, seconds: float, rate_hz: float) -> dict[str, Any]:
        self._tell({"host": "127.0.0.1", "port": port, "seconds": seconds, "rate_hz": rate_hz})
        line = await asyncio.get_running_loop().run_in_executor(None, self.attacker.stdout.readline)
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        for process in (self.attacker, self.dummy):
            process.stdin.close()
            process.wait(10)


def look(process: psutil.Process) -> dict[str, float]:
    """What may not grow."""
    with process.oneshot():
        return {"rss_mb": process.memory_info().rss / 2**20, "descriptors": process.num_fds(), "threads": process.num_threads()}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    topology = override(load_topology(options.topology), executor="emulated", device=options.device)
    pipeline = Pipeline.local(topology, deadline=DEADLINE_SECONDS, admission="fixed", seed=options.seed)
    async with pipeline:
        assert pipeline.launcher is not None
        port = int(pipeline.topology.node(options.rank).address.rpartition(":")[2])
        process = psutil.Process(pipeline.launcher.processes[options.rank].pid)
        weapons = arsenal(
            pipeline.topology,
            pipeline.bundle,
            target=options.rank,
            source=pipeline.rank,
            session=pipeline.driver.session,
            seed=options.seed,
        )
        limits = wire_limits(pipeline.topology, pipeline.bundle, codecs_of(pipeline.topology, pipeline.bundle))
        enemy = Enemy(weapons, limits.max_message_bytes, options)
        log, evaluation = Log(pipeline), pipeline.bundle.evaluation()
        load = asyncio.ensure_future(
            closed_loop(
                pipeline,
                evaluation.images,
                Order(len(evaluation), seed=options.seed),
                Watch(log.on_offered, log.on_ended),
                window=options.window,
                span=Span(seconds=WARM_UP_SECONDS + 2 * options.pairs * (options.seconds + PAUSE_SECONDS) + 1.0),
                patience_seconds=DEADLINE_SECONDS + 5.0,
            )
        )
        try:
            return await measure(options, pipeline, process, port, enemy, log, load)
        finally:
            load.cancel()
            enemy.close()


async def measure(
    options: argparse.Namespace,
    pipeline: Pipeline,
    process: psutil.Process,
    port: int,
    enemy: Enemy,
    log: Log,
    load: asyncio.Future[None],
) -> dict[str, Any]:
    await asyncio.sleep(WARM_UP_SECONDS / 2)
    await enemy.attack(port, seconds=WARM_UP_SECONDS / 4, rate_hz=options.rate)  # its first sessions make tables and pools
    await enemy.attack(enemy.dummy_port, seconds=WARM_UP_SECONDS / 4, rate_hz=options.rate)
    before, stats_before = look(process), await pipeline.stats()
    segments: dict[str, list[Watched]] = {"node": [], "dummy": []}
    cpu_before, started_at = psutil.cpu_times(), time.monotonic()
    for pair in range(options.pairs):
        for aim in ("node", "dummy") if pair % 2 else ("dummy", "node"):
            segments[aim].append(await segment(options, process, port if aim == "node" else enemy.dummy_port, enemy, log))
            await asyncio.sleep(PAUSE_SECONDS)
        print(
            f"pair {pair + 1}: node {segments['node'][-1].hz:.1f}/s, dummy {segments['dummy'][-1].hz:.1f}/s",
            file=sys.stderr,
            flush=True,
        )
    cpu_after, elapsed = psutil.cpu_times(), time.monotonic() - started_at
    await load
    await asyncio.sleep(QUIET_SECONDS)
    after, stats_after = look(process), await pipeline.stats()
    busy = sum(getattr(cpu_after, key) - getattr(cpu_before, key) for key in ("user", "system"))
    found = summary(segments)
    found |= {
        "counts": log.counts(),
        "causes": dict(log.causes.most_common(5)),
        "before": before,
        "after": after,
        "node": difference(stats_before, stats_after, options.rank),
        "cores_busy": busy / elapsed / len(os.sched_getaffinity(0)),
    }
    return found


async def segment(options: argparse.Namespace, process: psutil.Process, port: int, enemy: Enemy, log: Log) -> Watched:
    """One attack, and what the line did meanwhile."""
    log.segment = watched = Watched()
    cpu = sum(process.cpu_times()[:2])
    started_at = time.monotonic()
    watched.attack = await enemy.attack(port, seconds=options.seconds, rate_hz=options.rate)
    watched.seconds = time.monotonic() - started_at
    watched.node_cpu_seconds = sum(process.cpu_times()[:2]) - cpu
    log.segment = Watched()
    return watched


def summary(segments: dict[str, list[Watched]]) -> dict[str, Any]:
    ratios = [
        100.0 * (node.hz / max(dummy.hz, 1e-9) - 1.0) for node, dummy in zip(segments["node"], segments["dummy"], strict=True)
    ]
    half = STUDENT * statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    found: dict[str, Any] = {"difference_percent": statistics.fmean(ratios), "half_width_percent": half, "pairs": len(ratios)}
    for aim, parts in segments.items():
        latencies = sorted(value for part in parts for value in part.latencies_ms)
        sessions: Counter[str] = sum((Counter(part.attack["sessions"]) for part in parts), Counter())
        found[f"{aim}_aimed"] = {
            "results_hz": sum(part.results for part in parts) / sum(part.seconds for part in parts),
            "p50_ms": latencies[len(latencies) // 2],
            "p99_ms": latencies[int(0.99 * len(latencies))],
            "sessions": sessions.total(),
            "kinds": dict(sessions),
            "turned_away": sum(part.attack["turned_away"] for part in parts),
            "attacker_cpu_seconds": sum(part.attack["cpu_seconds"] for part in parts),
            "node_cpu_seconds": sum(part.node_cpu_seconds for part in parts),
        }
    extra = found["node_aimed"]["node_cpu_seconds"] - found["dummy_aimed"]["node_cpu_seconds"]
    found["cpu_ms_per_session"] = 1000.0 * extra / found["node_aimed"]["sessions"]
    return found


def difference(before: list[dict[str, Any]], after: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """What the node attacked counted meanwhile, and what it holds at the end."""
    first, last = (next(stats for stats in each if stats["rank"] == rank) for each in (before, after))
    keys = ("bad_frames", "stray_frames", "control_received", "frames_received", "wrong_epoch", "bans", "resets")
    transport = {key: last["transport"][key] - first["transport"][key] for key in last["transport"]}
    holds = {key: last[key] for key in ("held", "payloads")}
    return {key: last[key] - first[key] for key in keys} | holds | {"transport": transport}


def show(found: dict[str, Any]) -> None:
    node, dummy, counts = found["node_aimed"], found["dummy_aimed"], found["counts"]
    print(f"sessions: {node['sessions']:,} at the node ({node['turned_away']:,} turned away), {dummy['sessions']:,} at the dummy")
    print(f"results/s: {node['results_hz']:.1f} aimed at the node, {dummy['results_hz']:.1f} at the dummy: ", end="")
    print(
        f"{found['difference_percent']:+.1f} % ± {found['half_width_percent']:.1f} (95 %, {found['pairs']} pairs; wanted within 5)"
    )
    for name in ("p50_ms", "p99_ms"):
        print(f"{name[:3]}: {node[name]:.1f} ms, {dummy[name]:.1f} ms")
    print(f"CPU of the attacker: {node['attacker_cpu_seconds']:.1f} s, {dummy['attacker_cpu_seconds']:.1f} s; ", end="")
    print(f"of the node: {found['cpu_ms_per_session']:.2f} ms a session; cores busy {100 * found['cores_busy']:.0f} %")
    print("samples: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    for name, was in found["before"].items():
        print(f"{name}: {was:.1f} before, {found['after'][name]:.1f} after")
    print(f"node {found['rank']}: " + ", ".join(f"{name} {value}" for name, value in found["node"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="line4")
    parser.add_argument("--device", default="raspberry-pi-3", help="that the boards are emulated as")
    parser.add_argument("--rank", type=int, default=1, help="that is attacked; not the source's")
    parser.add_argument("--rate", type=float, default=100.0, help="sessions a second")
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a segment")
    parser.add_argument("--window", type=int, default=24, help="samples under way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[], help="of sessions, names of bench.attack.sessions; all if not given")
    options = parser.parse_args()
    found = asyncio.run(run(options))
    made = {
        "schema": "zpipe.hostile/1",
        "machine": machine(),
        "commit": commit(),
        "command": " ".join(["python -m bench.hostile", *sys.argv[1:]]),
        "topology": options.topology,
        "rank": options.rank,
        **found,
    }
    show(made)
    RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    counts = found["counts"]
    if any(counts[key] for key in ("lost", "duplicate", "hung", "wrong_label")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""How faithfully emulated boards keep their time on this machine: `python -m bench.micro_emulated`, about a minute.

Runs a topology of emulated boards, each a process with real sockets, first with Poisson arrivals (how late batches end against
the absolute schedule, what a sample costs in CPU), then saturated: there every batch of the source's board has waited, so the time
from the end of one to the start of the next is the host's own, which costs the board nothing as long as it is shorter than a batch.
A host that is over half busy delays what it emulates: then take fewer boards, slower ones, or a lower rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zpipe.bench.run import BenchOptions, run_bench
from zpipe.executors import emulated
from zpipe.runtime.loops import run
from zpipe.runtime.node import Node
from zpipe.topology import Topology, from_dict, load_topology, override

#: Longer than this after the end of a batch the next one has not waited, it came.
WAITED_SECONDS = 0.010


@dataclass
class Lateness:
    """Seconds, one per batch, of all executors in this process."""

    ends: list[float] = field(default_factory=list)
    hand_overs: list[float] = field(default_factory=list)


LATENESS = Lateness()


class NotingClock(emulated.SystemClock):
    """The host's clock, which notes how late it wakes a sleeper and how long after that it is asked again."""

    def __init__(self) -> None:
        self._done_at = 0.0

    def now(self) -> float:
        now = super().now()
        if 0.0 <= now - self._done_at < WAITED_SECONDS:
            LATENESS.hand_overs.append(now - self._done_at)
        return now

    def sleep_until(self, when: float) -> None:
        super().sleep_until(when)
        LATENESS.ends.append(super().now() - when)
        self._done_at = when


def free_addresses(count: int) -> list[str]:
    """Addresses on this host whose data and control ports nobody listens on now."""
    found: list[str] = []
    while len(found) < count:
        with socket.socket() as data, socket.socket() as control:
            data.bind(("127.0.0.1", 0))
            port = data.getsockname()[1]
            try:
                control.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            if all(abs(port - int(address.rpartition(":")[2])) > 1 for address in found):
                found.append(f"127.0.0.1:{port}")
    return found


def serve(topology: Topology, rank: int) -> None:
    """One board in a process of its own; its lateness goes to standard output at its end."""

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with Node(topology, rank) as node:
            await node.serve(stop)

    run(main())
    print(json.dumps({"ends": LATENESS.ends, "hand_overs": LATENESS.hand_overs}))


def measured(topology: Topology, **load: Any) -> tuple[dict[str, Any], dict[int, Lateness]]:
    """One bench run: its report, and each rank's lateness (that of the source's process with the warm-up left in)."""
    topology = topology.with_addresses(dict(enumerate(free_addresses(len(topology.nodes)))))
    LATENESS.ends, LATENESS.hand_overs = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "topology.json"
        file.write_text(json.dumps(topology.to_dict()))
        command = [sys.executable, "-m", "bench.micro_emulated", "--board", str(file)]
        boards = {
            node.rank: subprocess.Popen([*command, str(node.rank)], stdout=subprocess.PIPE, text=True)
            for node in topology.nodes[1:]
        }
        try:
            report, _ = run(run_bench(BenchOptions(topology=topology, attach=True, **load), progress=lambda line, done: None))
        finally:
            for board in boards.values():
                board.terminate()
            said = {rank: board.communicate()[0] for rank, board in boards.items()}
    late = {rank: Lateness(**json.loads(text)) for rank, text in said.items()}
    late[topology.source.rank] = Lateness(LATENESS.ends, LATENESS.hand_overs)
    return report, late


def percentiles(seconds: Sequence[float]) -> str:
    """In milliseconds."""
    if not seconds:
        return "none"
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1e3
    return f"p50 {p50:5.2f}  p95 {p95:5.2f}  p99 {p99:5.2f}  max {1e3 * max(seconds):6.2f} ms   {len(seconds):,} batches"


def show(report: dict[str, Any]) -> None:
    """What the host did."""
    cpu = sum(node["cpu_s"] for node in report["nodes"])
    results = report["counts"]["result"]
    print(
        f"  {report['throughput_hz']:.1f} results/s; CPU {1e3 * cpu / results:.2f} ms a sample, "
        f"{100 * cpu / report['seconds'] / (os.cpu_count() or 1):.0f} % of {os.cpu_count()} cores"
    )


def main() -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--topology", default="line4")
    parser.add_argument("--device", default="raspberry-pi-3")
    parser.add_argument("--rate", type=float, default=100.0, help="Poisson arrivals per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two runs")
    parser.add_argument("--board", nargs=2, metavar=("FILE", "RANK"), help="be one board (used by the program itself)")
    options = parser.parse_args()
    emulated.SystemClock = NotingClock  # type: ignore[misc]
    if options.board:
        serve(from_dict(json.loads(Path(options.board[0]).read_text())), int(options.board[1]))
        return
    topology = override(load_topology(options.topology), executor="emulated", device=options.device)
    print(f"{topology.name} on {options.device}, {options.rate:g} samples/s")
    report, late = measured(topology, rate_hz=options.rate, duration=options.seconds)
    show(report)
    print(f"  ends late by             {percentiles([x for rank in late.values() for x in rank.ends])}")
    print("saturated")
    report, late = measured(topology, window=64, duration=options.seconds)
    show(report)
    print(f"  ends late by             {percentiles([x for rank in late.values() for x in rank.ends])}")
    hand_overs = late[topology.source.rank].hand_overs
    print(f"  next batch after the end {percentiles(hand_overs)}")
    print(
        f"  within the grace of {1e3 * emulated.GRACE_SECONDS:g} ms  {np.mean(np.array(hand_overs) <= emulated.GRACE_SECONDS):.2%}"
    )


if __name__ == "__main__":
    main()

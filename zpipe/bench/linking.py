"""How fast the links between running nodes are: as the nodes themselves take them for, from tasks that crossed them.

An observer may only ask (Hello, Ping, StatsRequest), so nobody can be told to send something for a measurement. Instead this
process is the topology's source: it offers samples that run the whole network, so that every link on their way carries tasks, and
asks each node at the end what it takes its links for (`zpipe.policy.estimates`): the shortest round trip, halved, and the rate at
which bytes arrived while others were waiting behind them.

That is what a plan needs, and no more: a link that was never full shows what it carried, not what it could; a link over which
nothing went shows nothing. A latency includes the transfer of a frame and what the nodes took beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from zpipe.bench.options import BenchOptions, Progress
from zpipe.bench.run import run_bench
from zpipe.topology import NO_EXIT, Topology, load_topology

#: Samples that are offered: some hundred tasks over each link of a line.
SAMPLES = 600


async def measure_links(options: BenchOptions, *, progress: Progress) -> list[dict[str, Any]]:
    """Drives the topology and asks.

    Args:
        options: topology, and whether its nodes run already; what is offered is set here.
        progress: told how far it is.

    Returns:
        For each direction that carried tasks: `between` [from, to], their `addresses`, `latency` in seconds, `bandwidth` in bits
        per second (None: nothing showed a limit), `tasks`.

    Raises:
        ConfigError, ZpipeError: as `run_bench`.
    """
    load = replace(options, count=SAMPLES, window=64, exit_point=NO_EXIT, admission="fixed", rate_hz=None, warm_up=64)
    topology = options.topology if isinstance(options.topology, Topology) else load_topology(options.topology)
    report, _ = await run_bench(load, progress=progress)
    return [
        {
            "between": row["between"],
            "addresses": [topology.node(rank).address for rank in row["between"]],
            "latency": row["estimated_latency_s"],
            "bandwidth": row["estimated_bps"],
            "tasks": row["tasks"],
        }
        for row in report["links"]
        if row["tasks"]
    ]


def silent_links(topology: str, found: list[dict[str, Any]]) -> list[str]:
    """Links of a topology over which nothing went, either way: `1-2`."""
    spoken = {tuple(sorted(row["between"])) for row in found}
    return [f"{low}-{high}" for low, high in (link.between for link in load_topology(topology).links) if (low, high) not in spoken]

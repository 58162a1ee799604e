"""Worlds made by hand: times and answers are what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from zpipe.bundle import Bundle, load_bundle
from zpipe.configure import node_config, source_config
from zpipe.load import Order
from zpipe.model import GateSpec
from zpipe.policy.messages import Resolve
from zpipe.report import RunLog
from zpipe.sim.hop import HopProfile
from zpipe.sim.offer import Offering, OpenLoop
from zpipe.sim.packing import Packed
from zpipe.sim.world import World
from zpipe.topology import Topology, from_dict


@cache
def bundle() -> Bundle:
    return load_bundle("digits-mobilenetv2", verify=False)


#: As `zpipe.sim.service.Answers` gives.
Rows = tuple[list[bool], list[int], list[float], tuple[bytes, ...]]


def topology(stages: Sequence[Sequence[int]], links: object = "line", *, node: dict[str, Any] | None = None) -> Topology:
    """One node per entry of `stages`, all with the keys of `node`; rank 0 is the source."""
    nodes = [{"rank": rank, "stages": list(hosted), **(node or {})} for rank, hosted in enumerate(stages)]
    source = {"rank": 0, "admission": "fixed"}
    plain: dict[str, Any] = {"name": "test", "bundle": "digits-mobilenetv2", "nodes": nodes, "source": source}
    if len(nodes) > 1:
        plain["links"] = links
    return from_dict(plain)


def leave_at(exit_stage: Callable[[int], int]) -> Callable[[int, Sequence[int], GateSpec], Rows]:
    """Answers: evaluation sample i leaves at `exit_stage(i)`, with label i % 10."""

    def answers(stage: int, rows: Sequence[int], gate: GateSpec) -> Rows:
        exited = [gate.last or stage >= exit_stage(row) for row in rows]
        return exited, [row % 10 for row in rows], [0.5] * len(rows), ()

    return answers


class Run:
    """A world whose source offers samples at given times; a log of what became of them."""

    def __init__(
        self,
        topology: Topology,
        *,
        service: Callable[[int, int, int], float],
        exit_stage: Callable[[int], int] = lambda row: 0,
        row_bytes: Sequence[int] = (3072, 98304, 32768, 16384, 24576),
        hop: HopProfile | None = None,
        checked: bool = True,
    ) -> None:
        spec = topology.source
        source = replace(source_config(spec, bundle(), exit_point="default"), session=1, waiting=100_000)
        self.world = World(
            topology,
            [
                node_config(topology, bundle(), node.rank, source=source if node.rank == spec.rank else None)
                for node in topology.nodes
            ],
            service=service,
            answers=[leave_at(exit_stage)],
            pack=lambda codec, sender, peer, stage, now: Packed("none", row_bytes[stage], row_bytes[stage], 0, tell_size=False),
            hop=hop or HopProfile(),
            seed=0,
        )
        self.world.checked = checked
        self.log = RunLog()
        self.offering = Offering(self.world, spec, bundle(), deadline_seconds=1e4, labels=[row % 10 for row in range(1000)])
        self.offering.log = self.log
        self.world.resolved = self._resolved

    def _resolved(self, rank: int, resolve: Resolve) -> None:
        assert rank == self.offering.spec.rank
        self.offering.resolved(resolve)

    def offer(self, times: Iterator[float] | Sequence[float]) -> dict[str, Any]:
        """Offers at these times, runs to the end; the log's columns."""
        self.offering.begin(OpenLoop(self.offering, Order(1000, seed=0), iter(times), self.world.stop))
        self.world.run()
        return self.log.columns()

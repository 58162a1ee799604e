"""What a bench run does with `--chaos`: refuse it early, put relays in, begin, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from zpipe.bench.chaos.answers import right_answers
from zpipe.bench.chaos.director import Director
from zpipe.bench.chaos.links import LabLinks, LinkFaults, LoopbackLinks
from zpipe.bench.chaos.schedule import faults
from zpipe.bench.chaos.spec import parse_chaos
from zpipe.bench.chaos.timeline import chaos_report
from zpipe.bench.lab.edge import EdgeLab
from zpipe.emulation import replay_codec
from zpipe.policy.delivery import SourceConfig
from zpipe.report import RunLog
from zpipe.runtime.launch import Site
from zpipe.runtime.pipeline import Detours, Pipeline
from zpipe.topology import Topology


class ChaosPlan:
    """The faults of one run.

    Args:
        text: the spec.
        topology: of the run; every node but its own source's is started by it.
        seed: of targets, times and damage.
        deadline: of every sample, in seconds; None: as the topology says.

    Raises:
        ConfigError: the spec is wrong, or names what is not there.
    """

    def __init__(self, text: str, topology: Topology, *, seed: int, deadline: float | None = None) -> None:
        self._chaos = parse_chaos(text)
        self._topology = topology
        self._seed = seed
        self._deadline = deadline
        self._between = [link.between for link in topology.links]
        nodes = [node.rank for node in topology.nodes if topology.source_at(node.rank) is None]
        self._faults = faults(self._chaos, nodes=nodes, links=self._between, seed=seed)
        self._links: LinkFaults | None = None
        self._relays: LoopbackLinks | None = None

    @property
    def needs_relays(self) -> bool:
        """Whether some fault is a link's."""
        return self._chaos.needs_relays

    def where(self, lab: EdgeLab | None) -> tuple[Mapping[int, Site] | None, Detours | None]:
        """`sites` and `detours` of the run's pipeline; `lab`: the one it runs in, with a relay on every link if `needs_relays`."""
        if lab is not None:
            self._links = LabLinks(lab) if self.needs_relays else None
            return lab.sites, None
        if self.needs_relays:
            self._links = self._relays = LoopbackLinks(self._between, seed=self._seed)
        return _own_addresses(self._topology), self._relays.start if self._relays else None

    def start(self, pipeline: Pipeline, started_at: float) -> Director:
        """Begins with the faults of a run that begins now."""
        assert pipeline.launcher is not None, "there are nodes beside the source: `faults` has seen to it"
        director = Director(self._faults, processes=pipeline.launcher, links=self._links, started_at=started_at)
        director.start()
        return director

    async def report(
        self,
        pipeline: Pipeline,
        director: Director,
        log: RunLog,
        *,
        configs: Mapping[int, SourceConfig],
        started_at: float,
        seconds: float,
        bad_frames: int,
    ) -> dict[str, Any]:
        """The report's `chaos`, once the director has finished."""
        topology, given = pipeline.topology, self._deadline
        codec = replay_codec(topology)
        found = {
            rank: right_answers(pipeline.bundle, config.ladder, admission=config.admission, codec=codec)
            for rank, config in configs.items()
        }
        answers = {rank: right for rank, right in found.items() if right is not None}
        return chaos_report(
            self._chaos,
            director.events,
            log,
            started_at=started_at,
            deadlines={spec.rank: spec.deadline_seconds if given is None else given for spec in topology.sources},
            classes={spec.rank: spec.priority for spec in topology.sources},
            seconds=seconds,
            bad_frames=bad_frames,
            damage={} if self._links is None else await self._links.damage(),
            answers=answers,
        )

    async def aclose(self) -> None:
        """Ends the relays."""
        if self._relays is not None:
            await self._relays.aclose()


def _own_addresses(topology: Topology) -> dict[int, Site]:
    """Where nodes run that are to come back at the address they had.

    On Linux each gets a loopback address of its own. At 127.0.0.1 a dead node's port may be given to whoever opens a connection
    meanwhile, even to a neighbour that tries to reach it there and then meets itself.
    """
    if sys.platform != "linux":
        return {}
    return {node.rank: Site(f"127.1.{node.rank >> 8}.{(node.rank & 255) + 1}:0") for node in topology.nodes}

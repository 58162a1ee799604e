"""Nodes that fail in a simulation: dead from the start, dying on the way, standing still for a while or for good.

*Death* is that of a process: its connections break off, which its neighbours notice once all that it sent before has arrived;
what is on its way to it is lost, and it does not come back. A *stall* is a process stopped (SIGSTOP), a board that swaps or waits
for its disk: connections stay, what arrives waits, and when it goes on it meets all of it at once. Its clock went on meanwhile, and
so did a batch that it was computing, as on an emulated device. A stall for good is a board without power or out of reach: silence
alone tells it (policy rule R5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from zpipe.errors import ConfigError
from zpipe.policy.messages import Event, PeerLost, TimerFired
from zpipe.topology import Topology

if TYPE_CHECKING:
    from zpipe.sim.world import World


@dataclass(frozen=True, slots=True)
class Death:
    """A node that ends.

    Attributes:
        rank: no source's.
        at_seconds: since the first measured sample; not said: it was never there.
    """

    rank: int
    at_seconds: float = -math.inf


@dataclass(frozen=True, slots=True)
class Stall:
    """A node that stands still.

    Attributes:
        rank: no source's.
        at_seconds: since the first measured sample.
        seconds: until it goes on; not said: never.
    """

    rank: int
    at_seconds: float
    seconds: float = math.inf


NodeFault: TypeAlias = Death | Stall


def check_faults(faults: Iterable[NodeFault], topology: Topology) -> None:
    """Refuses what cannot happen.

    Raises:
        ConfigError: a fault of a source, of a node that is not there, or at no possible time.
    """
    sources = {spec.rank for spec in topology.sources}
    others = [node.rank for node in topology.nodes if node.rank not in sources]
    for index, fault in enumerate(faults):
        key = f"faults[{index}]"
        if fault.rank not in others:
            known = ", ".join(map(str, others)) or "none, as all are sources"
            raise ConfigError(f"{key}.rank: found {fault.rank}, expected a node that is no source: {known}")
        if isinstance(fault, Stall) and not (fault.at_seconds >= 0.0 and fault.seconds > 0.0):
            raise ConfigError(f"{key}: found {fault}, expected a start of at least 0 s and more than 0 s of it")
        if isinstance(fault, Death) and not (fault.at_seconds >= 0.0 or fault.at_seconds == -math.inf):
            raise ConfigError(f"{key}.at_seconds: found {fault.at_seconds}, expected at least 0, or none: dead from the start")


def never_there(faults: Iterable[NodeFault]) -> frozenset[int]:
    """The nodes that are dead from the start."""
    return frozenset(fault.rank for fault in faults if fault.at_seconds == -math.inf)


class Absences:
    """Who is dead or stands still in a world, and what waits for them.

    Args:
        world: where.
        dead: from the start.

    Attributes:
        waiting: #: {rank: what it will meet when it goes on}; nothing is kept for the dead.
    """

    def __init__(self, world: World, dead: frozenset[int]) -> None:
        self.waiting: dict[int, list[Event]] = {rank: [] for rank in dead}
        self._world = world
        self._until = dict.fromkeys(dead, math.inf)
        self._dead = set(dead)

    def schedule(self, faults: Iterable[NodeFault]) -> None:
        """Lets faults happen, their times counted from now."""
        world = self._world
        for fault in faults:
            match fault:
                case Death(rank, at_seconds):
                    if at_seconds >= 0.0:
                        world.call_at(world.now + at_seconds, partial(self._die, rank))
                case Stall(rank, at_seconds, seconds):
                    world.call_at(world.now + at_seconds, partial(self._stall, rank, seconds))

    def put_off(self, rank: int, events: list[Event]) -> None:
        """Something happens to a node that is not there."""
        if rank not in self._dead:
            self.waiting[rank] += events

    def forget(self, a: int, b: int) -> None:
        """Drops what waits between two nodes whose connection is given up."""
        for rank, peer in ((a, b), (b, a)):
            if rank in self.waiting:
                self.waiting[rank] = [event for event in self.waiting[rank] if getattr(event, "peer", -1) != peer]

    def both_from(self, a: int, b: int) -> float:
        """When both are there, as far as is known: now or before; infinite when one is dead or stands still for good."""
        return max(self._until.get(a, -math.inf), self._until.get(b, -math.inf))

    def _stall(self, rank: int, seconds: float) -> None:
        """One that is absent already is left as it is."""
        if rank in self.waiting:
            return
        world = self._world
        self.waiting[rank] = []
        self._until[rank] = world.now + seconds
        if seconds < math.inf:
            world.call_at(world.now + seconds, partial(self._go_on, rank))

    def _go_on(self, rank: int) -> None:
        if rank in self._dead:
            return
        del self._until[rank]
        for event in (*self.waiting.pop(rank), TimerFired()):
            self._world.tell(rank, event)

    def _die(self, rank: int) -> None:
        """Its neighbours notice behind what it sent them; until then what they send goes nowhere."""
        if rank in self._dead:
            return
        world = self._world
        self._dead.add(rank)
        self._until[rank] = math.inf
        self.waiting[rank] = []
        for peer, link in world.links[rank].items():
            world.call_at(max(world.now + link.latency_seconds, link.last_arrival), partial(self._noticed, rank, peer))

    def _noticed(self, dead: int, peer: int) -> None:
        forth, back = self._world.links[peer][dead], self._world.links[dead][peer]
        if forth.epoch < 0 and back.epoch < 0:
            return  # it was given up before
        forth.epoch = back.epoch = -1
        for outgoing in (True, False):
            self._world.tell(peer, PeerLost(dead, outgoing, "it ended"))

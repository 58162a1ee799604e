"""Which boards fail in a run, and when: drawn beforehand, the same for every system.

A board has its own dice, thrown once for each draw: one that fails at some probability fails at every higher one, too, and
curves over the probability are free of that chance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence

from zpipe.bench.chaos.spec import LEAST_SECONDS, MOST_SECONDS
from zpipe.bench.suites.rocoin.settings import DYING, STALLING_SHARE, Stalling
from zpipe.sim import Death, NodeFault, Stall
from zpipe.topology import Topology

#: {board: what happens to it}; a fault names the board as its rank.
Plan = tuple[NodeFault, ...]


def failures(model: str, *, boards: int, probability: float, seed: int, draw: int, seconds: float) -> Plan:
    """Boards that fail.

    Args:
        model: dead from the start, or dying at a random time of the run.
        boards: ranks 1 to this.
        probability: that one fails.
        seed, draw: of the dice.
        seconds: that the run takes.
    """
    found: list[NodeFault] = []
    for rank in range(1, boards + 1):
        dice = random.Random(f"{seed}/{draw}/{rank}")
        fails, when = dice.random() < probability, dice.random() * seconds
        if fails:
            found.append(Death(rank, when) if model == DYING else Death(rank))
    return tuple(found)


def stalls(kind: Stalling, *, boards: int, seed: int, seconds: float) -> Plan:
    """A share of the boards that stall now and then, or once for good."""
    dice = random.Random(f"{seed}/stalls")
    chosen = sorted(dice.sample(range(1, boards + 1), round(STALLING_SHARE * boards)))
    return tuple(stall for rank in chosen for stall in _of_board(kind, rank, random.Random(f"{seed}/{rank}/stalls"), seconds))


def _of_board(kind: Stalling, rank: int, dice: random.Random, seconds: float) -> Iterator[Stall]:
    if kind.seconds == math.inf:
        yield Stall(rank, dice.random() * seconds / 2)
        return
    working = kind.every_seconds - kind.seconds
    at = dice.expovariate(1.0 / working)
    while at < seconds:
        yield Stall(rank, at, kind.seconds)
        at += kind.seconds + dice.expovariate(1.0 / working)


def group_of(part: int, *, boards: int, parts: int) -> tuple[int, ...]:
    """The boards that hold one part."""
    return tuple(range(part + 1, boards + 1, parts))


def within(plan: Iterable[NodeFault], topology: Topology) -> Plan:
    """What happens to the boards that a system uses."""
    return tuple(fault for fault in plan if fault.rank < len(topology.nodes))


def as_chaos(plan: Sequence[NodeFault]) -> str | None:
    """The same for a live run (`zpipe bench --chaos`); None where nothing happens.

    A process that is to be dead from the start is killed with the first measured sample: nodes have to meet before.
    """
    return "; ".join(_clause(fault) for fault in plan) or None


def for_live(plan: Iterable[NodeFault]) -> Plan:
    """What really happens in a live run under `as_chaos`, for the simulation beside it."""
    return tuple(
        Death(fault.rank, max(LEAST_SECONDS, fault.at_seconds))
        if isinstance(fault, Death)
        else Stall(fault.rank, max(LEAST_SECONDS, fault.at_seconds), fault.seconds)
        for fault in plan
    )


def _clause(fault: NodeFault) -> str:
    at = f"at {max(LEAST_SECONDS, fault.at_seconds):.6f}s"
    match fault:
        case Death(rank):
            return f"kill {MOST_SECONDS:.0f}s node {rank} {at}"
        case Stall(rank, _, seconds):
            return f"stop {min(MOST_SECONDS, seconds):.6f}s node {rank} {at}"

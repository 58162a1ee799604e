"""Which faults happen, when and to whom: decided before anything runs."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zpipe.bench.chaos.spec import ACTIONS, Chaos, Clause
from zpipe.errors import ConfigError

Link = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at_seconds: since the first measured sample.
        action: a key of `spec.ACTIONS`.
        node, link: its target; neither for `rolling`.
        seconds: how long it lasts.
        amount: as in its clause.
    """

    at_seconds: float
    action: str
    node: int | None = None
    link: Link | None = None
    seconds: float = 0.0
    amount: float = 0.0

    @property
    def target(self) -> str:
        """As people read it."""
        if self.node is not None:
            return f"node {self.node}"
        return f"link {self.link[0]}-{self.link[1]}" if self.link is not None else ""


def faults(chaos: Chaos, *, nodes: Sequence[int], links: Sequence[Link], seed: int) -> Iterator[Fault]:
    """The faults of a run in the order of their times, without end where some clause has none.

    Args:
        nodes: ranks that may be killed or stopped.
        links: those there are.
        seed: of targets and times. Each clause has dice of its own: another clause beside it changes nothing in it.

    Raises:
        ConfigError: a clause's target does not exist.
    """
    for clause in chaos.clauses:
        _check_target(clause, nodes, links)
    streams = [
        _of_clause(chaos, clause, nodes, links, random.Random(f"{seed}/{number}")) for number, clause in enumerate(chaos.clauses)
    ]
    return heapq.merge(*streams, key=lambda fault: fault.at_seconds)


def _check_target(clause: Clause, nodes: Sequence[int], links: Sequence[Link]) -> None:
    kind = ACTIONS[clause.action].target
    known = [f"{a}-{b}" for a, b in links] if kind == "link" else [str(rank) for rank in nodes]
    if not known:
        raise ConfigError(
            f"--chaos: {clause.action}: found no {kind or 'node'} beside the sources, expected some; choose another topology"
        )
    absent = clause.node not in (None, *nodes) or clause.link not in (None, *links)
    if absent:
        named = f"node {clause.node}" if kind == "node" else f"link {clause.link[0]}-{clause.link[1]}" if clause.link else ""
        also = " (a source's process is the bench itself)" if kind == "node" else ""
        raise ConfigError(f"--chaos: {clause.action}: found {named}, expected one of {', '.join(known)}{also}")


def _of_clause(chaos: Chaos, clause: Clause, nodes: Sequence[int], links: Sequence[Link], rng: random.Random) -> Iterator[Fault]:
    """Cases: all the time (on one link or on all), or at times, each with its target."""
    if clause.action == "corrupt":
        for start in _starts(chaos):
            for one in links if clause.link is None else (clause.link,):
                yield Fault(start, clause.action, None, one, chaos.cycle_seconds - chaos.calm_seconds, clause.amount)
        return
    for time in _times(clause, rng):
        node, link = clause.node, clause.link
        match ACTIONS[clause.action].target:
            case "node" if node is None:
                node = rng.choice(nodes)
            case "link" if link is None:
                link = rng.choice(links)
        yield Fault(chaos.at(time), clause.action, node, link, clause.seconds, clause.amount)


def _starts(chaos: Chaos) -> Iterator[float]:
    """When each stretch with faults begins."""
    start = chaos.calm_seconds
    yield start
    while chaos.cycle_seconds < math.inf:
        start += chaos.cycle_seconds
        yield start


def _times(clause: Clause, rng: random.Random) -> Iterator[float]:
    """Seconds with faults until each of a clause's."""
    time = 0.0
    if clause.when in ("", "at"):
        yield clause.period_seconds
        return
    while True:
        time += clause.period_seconds if clause.when == "every" else rng.expovariate(1.0 / clause.period_seconds)
        yield time

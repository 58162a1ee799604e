"""Where tasks of a node could go just now: what readiness is made of, a source's and a probe's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zpipe.runtime.driver import Driver


def parts_away(driver: Driver) -> list[int]:
    """Students of which no host takes anything from this source, rising; of a chain [0] where its first stage has none, else []."""
    hosted = driver.policy.config.stages
    firsts = driver.topology.firsts
    return [part for part, first in enumerate(firsts) if first not in hosted and not way_open(driver, first)]


def way_open(driver: Driver, stage: int) -> bool:
    """Whether some neighbour takes tasks that wait for this stage."""
    return any(_takes(driver, peer) for peer in ways(driver, stage))


def ways(driver: Driver, stage: int) -> list[int]:
    """Neighbours to whom tasks that wait for this stage may go."""
    topology, rank = driver.topology, driver.rank
    return [peer for peer in topology.neighbours(rank) if stage in topology.lanes(rank, peer)]


def _takes(driver: Driver, peer: int) -> bool:
    neighbour = driver.policy.neighbour(peer)
    return neighbour.sends and neighbour.takes and not neighbour.suspected

"""Whether a node is alive and ready, and in words why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zpipe.runtime.ways import parts_away, way_open, ways

if TYPE_CHECKING:
    from zpipe.runtime.driver import Driver


@dataclass(frozen=True, slots=True)
class Health:
    """One node at one moment.

    Attributes:
        dead: why only a restart helps, one sentence each; () where it is alive.
        waits: why samples that came here could not go on; () where it is ready.
        missing: neighbours that are not connected, rising. In a mesh a node may be ready without one of them.
    """

    dead: tuple[str, ...]
    waits: tuple[str, ...]
    missing: tuple[int, ...]


#: Of a node that loads its stages still.
STARTING = Health((), ("it has not started yet",), ())


def health_of(driver: Driver) -> Health:
    """How a node is; a few attributes are looked at, nothing is asked of anybody."""
    policy = driver.policy
    missing = tuple(driver.peers.missing())
    dead: list[str] = []
    if driver._stopped:
        dead.append("it was closed, or stopped by an internal error, which its log tells")
    if not policy.serving:  # the policy never takes an executor back
        dead.append("its executor was lost; a restart loads it anew")
    waits = list(dead)
    if not policy.accepting and policy.serving:
        waits.append("it finishes what it holds and takes nothing more")
    waits += [_no_way(driver, stage) for stage in _onward(driver) if not way_open(driver, stage)]
    waits += _no_entrance(driver)
    return Health(tuple(dead), tuple(waits), missing)


def _onward(driver: Driver) -> list[int]:
    """Stages that tasks of this node need next and that it does not host, rising."""
    hosted = set(driver.policy.config.stages)
    return sorted({stage + 1 for stage in hosted if stage not in driver.topology.ends} - hosted)


def _no_entrance(driver: Driver) -> list[str]:
    """Why no sample of this source can begin; [] where one can: one part of several is enough for an answer."""
    if driver.policy.source is None or len(parts_away(driver)) < len(driver.topology.firsts):
        return []
    return [_no_way(driver, first) for first in driver.topology.firsts]


def _no_way(driver: Driver, stage: int) -> str:
    waits = ", ".join(f"{peer} ({driver.topology.node(peer).address})" for peer in ways(driver, stage))
    return f"nobody takes samples to stage {stage}: it waits for rank {waits}"

"""Nodes as an observer sees them, made up."""

from __future__ import annotations

from typing import Any

from tests.runtime.mesh import topology
from zpipe.runtime.observer import Seen
from zpipe.topology import Topology

MESH = topology([[0, 1, 2, 3, 4]] * 3, "mesh")


def address(rank: int) -> str:
    return f"10.0.0.{rank}:5800"


def stats(rank: int, clock: float, *, session: int = 1, topology: Topology = MESH, **changed: Any) -> dict[str, Any]:
    """What a node says that has done nothing yet, but for what is given."""
    peers = topology.neighbours(rank)
    neighbour = {"up": True, "takes": True, "suspected": False, "window": 16, "outstanding": 0, "starves": False}
    told: dict[str, Any] = {
        "rank": rank,
        "session": session,
        "clock_seconds": clock,
        "stages": list(topology.node(rank).stages),
        "executor": "onnx",
        "input_length": 0,
        "output_length": 0,
        "running": 0,
        "busy_seconds": 0.0,
        "batches": 0,
        "tasks_run": 0,
        "exits": [],
        "rss_bytes": 150_000_000,
        "serving": True,
        "accepting": True,
        "neighbours": [{"rank": peer, **neighbour} for peer in peers],
        "links": [],
    }
    if topology.source_at(rank) is not None:
        told["delivery"] = {"submitted": 0, "admitted": 0, "results": 0, "resubmitted": 0}
        told["source"] = {
            "admission": "aimd",
            "when_full": "latest",
            "point": "t0.9",
            "thresholds": [0.9] * 5,
            "rate_hz": None,
            "window": 8.0,
            "waiting": 0,
            "room": 1,
            "in_flight": 0,
            "outcomes": {},
            "latencies": [],
        }
    return told | changed


def up(rank: int, at: float, *, topology: Topology = MESH, clock: float | None = None, **changed: Any) -> Seen:
    """A node that has just answered; its clock is 1000 s ahead of ours for each rank."""
    clock = at + 1000.0 * rank if clock is None else clock
    told = stats(rank, clock, topology=topology, **changed)
    return Seen(rank, address(rank), told, at, 0.002, up=True, topology_digest=topology.digest())


def gone(rank: int, before: Seen | None = None, trouble: str = "connection refused") -> Seen:
    """A node that does not answer, `before` if it ever did."""
    if before is None:
        return Seen(rank, address(rank), trouble=trouble)
    return Seen(
        rank, address(rank), before.stats, before.answered_at, 0.002, trouble=trouble, topology_digest=before.topology_digest
    )

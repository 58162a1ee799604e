"""Large topologies that nobody wants to write down: every node hosts the whole network, sources lie evenly among them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from zpipe.errors import ConfigError
from zpipe.topology.spec import LinkSpec, NodeSpec, PolicySpec, SourceSpec, Topology

#: Mean number of neighbours in a random mesh; from about ln(nodes) on it hardly needs mending.
RANDOM_DEGREE = 6.0
#: Links between nodes: wired, as between boards on one switch.
BANDWIDTH_BPS, LATENCY_SECONDS = 100e6, 0.001
#: T_O of Alg. 1: the paper-sized 50 is more than a node with one or two neighbours can hold.
OUTPUT_THRESHOLD = 8

Pair = tuple[int, int]


def generate(shape: str, *, nodes: int, sources: int, stages: int, bundle: str, seed: int = 0) -> Topology:
    """A topology of so many nodes, all alike.

    Args:
        shape: `line`, `grid` (as square as it goes), or `random` (nodes at random places of a square, linked to those near; what
            hangs apart is linked to the nearest).
        nodes: at least 1.
        sources: at least 1, at most `nodes`; spread evenly over the ranks, each with an admission of its own.
        stages: of the bundle; every node hosts them all.
        bundle: name or path.
        seed: of a random shape.

    Raises:
        ConfigError: there is no such shape, or a number is out of range.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape: found {shape!r}, expected one of {', '.join(SHAPES)}")
    if nodes < 1:
        raise ConfigError(f"nodes: found {nodes}, expected at least 1")
    if not 1 <= sources <= nodes:
        raise ConfigError(f"sources: found {sources}, expected 1 to {nodes}, the number of nodes")
    pairs = sorted(SHAPES[shape](nodes, random.Random(seed)))
    return Topology(
        name=f"{shape}-{nodes}",
        bundle=bundle,
        nodes=tuple(NodeSpec(rank, tuple(range(stages))) for rank in range(nodes)),
        links=tuple(LinkSpec(pair, BANDWIDTH_BPS, LATENCY_SECONDS) for pair in pairs),
        sources=tuple(SourceSpec(index * nodes // sources) for index in range(sources)),
        policy=PolicySpec(offload="mdi", output_threshold=OUTPUT_THRESHOLD, offload_input="auto"),
    )


def _line(nodes: int, rng: random.Random) -> Iterable[Pair]:
    return pairwise(range(nodes))


def _grid(nodes: int, rng: random.Random) -> Iterable[Pair]:
    """Rows of ceil(sqrt(nodes)); the last one may be shorter."""
    width = math.isqrt(nodes - 1) + 1
    for rank in range(nodes):
        if (rank + 1) % width and rank + 1 < nodes:
            yield rank, rank + 1
        if rank + width < nodes:
            yield rank, rank + width


def _random(nodes: int, rng: random.Random) -> Iterable[Pair]:
    """A random geometric graph: the radius at which a node has RANDOM_DEGREE neighbours on average.

    Ranks follow strips of the square, up one and down the next, so that even ranks lie evenly in space.
    """
    strips = math.isqrt(nodes)
    drawn = [(rng.random(), rng.random()) for _ in range(nodes)]
    places = sorted(drawn, key=lambda place: (int(place[0] * strips), place[1] if int(place[0] * strips) % 2 else -place[1]))
    radius = math.sqrt(RANDOM_DEGREE / (math.pi * nodes))
    pairs = {(a, b) for a in range(nodes) for b in range(a + 1, nodes) if math.dist(places[a], places[b]) <= radius}
    while len(parts := _parts(nodes, pairs)) > 1:
        apart, rest = parts[0], [rank for part in parts[1:] for rank in part]
        _, pair = min((math.dist(places[a], places[b]), (min(a, b), max(a, b))) for a in apart for b in rest)
        pairs.add(pair)
    return pairs


def _parts(nodes: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Connected parts, the smallest first."""
    near: dict[int, list[int]] = {rank: [] for rank in range(nodes)}
    for a, b in pairs:
        near[a].append(b)
        near[b].append(a)
    parts, seen = [], set[int]()
    for start in range(nodes):
        if start not in seen:
            part, frontier = [], [start]
            seen.add(start)
            while frontier:
                rank = frontier.pop()
                part.append(rank)
                frontier += [peer for peer in near[rank] if peer not in seen]
                seen.update(near[rank])
            parts.append(sorted(part))
    return sorted(parts, key=len)


SHAPES: Mapping[str, Callable[[int, random.Random], Iterable[Pair]]] = {"line": _line, "grid": _grid, "random": _random}

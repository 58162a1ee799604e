"""Nodes and sources that are checked after every event and at the end of the test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.policy.build import Driven, DrivenSource
from zpipe.policy.exits import ExitGates
from zpipe.policy.node import NodePolicy
from zpipe.policy.state import NeighbourConfig, NodeConfig

NodeMaker = Callable[..., Driven]


@pytest.fixture
def make_node() -> Iterator[NodeMaker]:
    """Makes a node of a network of `stage_count` stages and brings its connections up at time 0."""
    made: list[Driven] = []

    def make(
        rank: int,
        stages: tuple[int, ...],
        *neighbours: NeighbourConfig,
        stage_count: int = 3,
        up: bool = True,
        rng: random.Random | None = None,
        **config: Any,
    ) -> Driven:
        plan = NodeConfig(rank, stages, ExitGates((1.0,) * stage_count), tuple(neighbours), **config)
        node = Driven(NodePolicy(plan, rng=rng or random.Random(0)))
        made.append(node)
        if up:
            for neighbour in neighbours:
                node.connect(neighbour.rank)
        return node

    yield make
    for node in made:
        node.policy.check()


@pytest.fixture
def make_source() -> Iterator[Callable[..., DrivenSource]]:
    """Makes a Source of its own; keyword arguments go to SourceConfig."""
    made: list[DrivenSource] = []

    def make(**config: Any) -> DrivenSource:
        made.append(DrivenSource(**config))
        return made[-1]

    yield make
    for source in made:
        source.check()


@pytest.fixture
def middle(make_node: NodeMaker) -> Driven:
    """Rank 1 of a line 0 - 1 - 2, one stage each, windows of 4, up since time 0."""
    return make_node(
        1,
        (1,),
        NeighbourConfig(0, lanes_in=(1,), window_in=4),
        NeighbourConfig(2, lanes_out=(2,), window_out=4),
        nearer={0: (0,)},
    )

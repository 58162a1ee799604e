"""Generated topologies: what shape they have, and that they are as good as written ones."""

from __future__ import annotations

import pytest

from zpipe.errors import ConfigError
from zpipe.topology import Topology, check, from_dict
from zpipe.topology.generate import RANDOM_DEGREE, generate


def mesh(shape: str, nodes: int, sources: int = 1, seed: int = 0) -> Topology:
    return generate(shape, nodes=nodes, sources=sources, stages=5, bundle="digits-mobilenetv2", seed=seed)


@pytest.mark.parametrize("shape", ["line", "grid", "random"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 50, 200])
def test_every_shape_and_size_passes_the_checks_of_a_file(shape: str, nodes: int) -> None:
    topology = mesh(shape, nodes, sources=min(3, nodes))
    check(from_dict(topology.to_dict()), 5)
    assert len(topology.hops(0)) == nodes


def test_a_grid_links_each_node_to_those_beside_above_and_below() -> None:
    grid = mesh("grid", 9)
    assert grid.neighbours(4) == (1, 3, 5, 7)
    assert grid.neighbours(2) == (1, 5)
    assert len(grid.links) == 12
    assert mesh("grid", 8).neighbours(7) == (4, 6)


def test_a_line_is_a_line() -> None:
    assert [link.between for link in mesh("line", 4).links] == [(0, 1), (1, 2), (2, 3)]


def test_a_random_mesh_is_the_same_for_the_same_seed_and_has_about_the_degree_it_says() -> None:
    first = mesh("random", 400, seed=3)
    assert first.digest() == mesh("random", 400, seed=3).digest() != mesh("random", 400, seed=4).digest()
    degree = 2 * len(first.links) / 400
    assert 0.8 * RANDOM_DEGREE < degree < 1.2 * RANDOM_DEGREE


def test_sources_lie_evenly_among_the_ranks() -> None:
    assert [source.rank for source in mesh("grid", 100, sources=4).sources] == [0, 25, 50, 75]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("star", 3, 1), "shape: found 'star', expected one of line, grid, random"),
        (("grid", 0, 1), "nodes: found 0"),
        (("grid", 3, 4), "sources: found 4, expected 1 to 3"),
        (("grid", 3, 0), "sources: found 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, int, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        mesh(*arguments)

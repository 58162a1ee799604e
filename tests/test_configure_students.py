"""What nodes and sources are told of a bundle of students."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.students import EARLY, ENDS, FIRSTS, MACS, SIZES, THRESHOLD, confidences, join, star, write_students
from zpipe.codecs import make_codecs
from zpipe.configure import lane_bytes, lane_order, load_checked, node_config, reach, source_config
from zpipe.errors import TopologyError
from zpipe.topology import override


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_students(tmp_path / "three")


def test_every_student_is_reached_by_every_sample(folder: Path) -> None:
    bundle = load_checked(star(folder))
    stay = 1.0 - float((confidences()[:, EARLY] >= THRESHOLD).mean())
    assert reach(bundle) == pytest.approx((1.0, 1.0, 1.0, stay))


def test_a_scarce_link_carries_first_what_takes_most_work_of_its_own_student_over(folder: Path) -> None:
    bundle = load_checked(star(folder))
    sizes = dict.fromkeys(range(4), 100.0)
    worth = {0: MACS[0], 1: MACS[1], 2: MACS[2] + reach(bundle)[3] * MACS[3], 3: MACS[3]}
    assert lane_order(bundle, sizes) == tuple(sorted(worth, key=lambda stage: -worth[stage]))


def test_nodes_know_where_students_end_and_give_scores(folder: Path) -> None:
    topology = star(folder)
    config = node_config(topology, load_checked(topology), 3, source=None)
    assert config.gates.ends == (True, True, False, True)
    assert config.gates.scores
    assert (config.stages, config.neighbours[0].lanes_in) == ((2, 3), (2,))


def test_a_source_knows_the_students_and_how_they_are_joined(folder: Path) -> None:
    topology = override(star(folder), redundancy="all")
    bundle = load_checked(topology)
    fanout = source_config(topology.source, bundle, exit_point="default", redundancy=topology.policy.redundancy).fanout
    assert fanout is not None
    assert (fanout.firsts, fanout.ends, fanout.redundancy) == (FIRSTS, ENDS, "all")
    assert (fanout.bias, fanout.temperatures) == (join().bias, join().temperatures)


def test_codecs_leave_every_raw_input_alone(folder: Path) -> None:
    bundle = load_checked(star(folder))
    found = {stage: codec.name for (_, stage), codec in make_codecs(bundle, ["int8"]).items()}
    assert found == {0: "none", 1: "none", 2: "none", 3: "int8"}
    assert lane_bytes(bundle)[0] == lane_bytes(bundle)[2]


def test_auto_of_students_is_refused_with_a_way_that_there_is(folder: Path) -> None:
    with pytest.raises(TopologyError, match=r"found auto, .* \(three-students does not\); name one codec, such as int8\+zstd$"):
        load_checked(star(folder, links={"shape": "star", "codec": "auto"}))


def test_other_students_than_the_bundles_are_refused(folder: Path) -> None:
    with pytest.raises(TopologyError, match=r"students: found \[2, 1, 1\], expected \[1, 1, 2\], the stages of each student"):
        load_checked(star(folder, students=[2, 1, 1], links="mesh"))
    assert load_checked(star(folder)).student_stages == SIZES

"""Topologies of students: who sends which student's stages to whom, and every wrong one is one line."""

from __future__ import annotations

from typing import Any

import pytest

from zpipe.errors import TopologyError
from zpipe.topology import Topology, baseline, check, from_dict, override

STUDENTS = (1, 1, 2)
STAGES = sum(STUDENTS)


def star(*stages: list[int], **keys: Any) -> Topology:
    """A source without stages and hosts of these."""
    nodes = [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(([], *stages))]
    plain = {"name": "boards", "bundle": "three", "students": list(STUDENTS), "nodes": nodes, "links": "star"}
    return from_dict({**plain, **keys})


def refusal(*stages: list[int], **keys: Any) -> str:
    with pytest.raises(TopologyError) as caught:
        check(star(*stages, **keys), STAGES, STUDENTS)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("boards: ")


def test_students_are_consecutive_stages() -> None:
    topology = star([0], [1], [2, 3])
    assert (topology.firsts, topology.ends) == ((0, 1, 2), (0, 1, 3))
    assert topology.policy.redundancy == "hedged"
    check(topology, STAGES, STUDENTS)


def test_a_chain_begins_and_ends_once_and_says_nothing_of_students() -> None:
    nodes = [{"rank": 0, "stages": [0]}, {"rank": 1, "stages": [1, 2]}]
    topology = from_dict({"bundle": "digits", "nodes": nodes, "links": "line"})
    assert (topology.firsts, topology.ends) == ((0,), (2,))
    assert "students" not in topology.canonical()
    assert "redundancy" not in topology.canonical()["policy"]


def test_students_and_redundancy_belong_to_what_must_be_the_same_everywhere() -> None:
    topology = star([0], [1], [2, 3], policy={"redundancy": "all"})
    assert from_dict(topology.to_dict()) == topology
    assert topology.canonical()["students"] == [1, 1, 2]
    assert topology.digest() != override(topology, redundancy="failover").digest()


def test_first_stages_come_from_the_source_and_later_ones_from_their_own_student() -> None:
    links = [{"between": pair} for pair in ([0, 1], [0, 2], [1, 2], [2, 3], [0, 4])]
    topology = star([0, 1], [2], [3], [2, 3], links=links)
    assert topology.lanes(0, 1) == (0, 1)
    assert topology.lanes(0, 2) == (2,)
    assert topology.lanes(1, 2) == ()  # rank 1 hosts stage 1, but stage 2 is another student's first
    assert topology.lanes(2, 3) == (3,)
    assert topology.lanes(0, 4) == (2,)  # stage 3 does not come from the source, which does not host stage 2
    check(topology, STAGES, STUDENTS)


def test_a_source_sends_what_it_hosts_as_well() -> None:
    nodes = [{"rank": 0, "stages": [0, 2]}, {"rank": 1, "stages": [0, 1, 2, 3]}]
    topology = from_dict({"bundle": "three", "students": [1, 1, 2], "nodes": nodes, "links": "line"})
    assert topology.lanes(0, 1) == (0, 1, 2, 3)
    assert topology.lanes(1, 0) == ()
    check(topology, STAGES, STUDENTS)


def test_every_source_reaches_every_student() -> None:
    links = [{"between": [0, 1]}, {"between": [1, 2]}, {"between": [0, 3]}]
    expected = "expected a link from rank 0 to a host of it (rank 2)"
    assert f"links: found no way to stage 1 from the source (rank 0), {expected}" in refusal([0], [1], [2, 3], links=links)


def test_within_a_student_every_host_reaches_the_next_stage() -> None:
    assert "no way to stage 3 from rank 3, which hosts stage 2" in refusal([0], [1], [2], [3])


@pytest.mark.parametrize(
    ("found", "bundle", "says"),
    [
        ([1, 1, 2], (2, 2), "students: found [1, 1, 2], expected [2, 2], the stages of each student of bundle three"),
        (
            [1, 1, 2],
            (),
            "students: found [1, 1, 2], expected none, as one chain is all there is in bundle three; remove `students:`",
        ),
        (None, (1, 1, 2), "students: found none, expected [1, 1, 2], the stages of each student of bundle three"),
    ],
)
def test_other_students_than_the_bundles_are_refused_with_both(found: Any, bundle: tuple[int, ...], says: str) -> None:
    links = [{"between": pair} for pair in ([0, 1], [0, 2], [0, 3], [1, 2], [2, 3])]
    with pytest.raises(TopologyError, match=says.replace("[", r"\[")):
        check(star([0], [1], [2, 3], students=found, links=links), STAGES, bundle)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"students": []}, "students: found [], expected how many stages each of 1 to 8 students has, such as [1, 1, 2]"),
        ({"students": [1] * 9}, "expected how many stages each of 1 to 8 students has"),
        ({"students": [1, 0, 3]}, "students[1]: found 0, expected a whole number from 1 on"),
        ({"policy": {"redundancy": "twice"}}, "policy.redundancy: found 'twice', expected one of failover, hedged, all"),
        ({"students": None, "policy": {"redundancy": "all"}}, "policy.redundancy: found it where `students` is empty or not there"),
        ({"policy": {"offload_input": True}}, "policy.offload_input: found True, expected none that passes raw inputs on"),
        ({"policy": {"offload": "ddi"}}, "policy.offload: found 'ddi', expected none that passes raw inputs on"),
    ],
)
def test_wrong_values_are_told_in_one_line(keys: dict[str, Any], says: str) -> None:
    assert says in refusal([0], [1], [2, 3], **keys)


def test_baselines_of_students() -> None:
    topology = star([0], [1], [2, 3])
    alone = baseline(topology, "local", stage_count=STAGES)
    assert [node.stages for node in alone.nodes] == [(0, 1, 2, 3)]
    check(alone, STAGES, STUDENTS)
    with pytest.raises(TopologyError, match="found students, each of which gets every raw input, expected one chain for `ddi`"):
        baseline(topology, "ddi", stage_count=STAGES)

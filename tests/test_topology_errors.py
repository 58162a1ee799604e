"""Every way in which a topology file can be wrong is one line: file, key, found, expected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.errors import TopologyError
from zpipe.topology import Topology, check, from_dict, load_topology
from zpipe.topology.parse import parse

STAGES = 5


def line(*stages: list[int], **keys: Any) -> dict[str, Any]:
    """The plain values of a line with these stages at its nodes."""
    nodes = [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(stages)]
    return {"bundle": "digits", "nodes": nodes, "links": "line", **keys}


def build(plain: dict[str, Any]) -> Topology:
    return parse(plain, file="f.yaml", path=None)


def message(plain: dict[str, Any]) -> str:
    """The one line these values are refused with."""
    with pytest.raises(TopologyError) as caught:
        build(plain)
    text = str(caught.value)
    assert "\n" not in text
    return text


def with_node(which: int, **keys: Any) -> dict[str, Any]:
    plain = line([0], [1], [2])
    plain["nodes"][which].update(keys)
    return plain


def with_source(**keys: Any) -> dict[str, Any]:
    return line([0], [1], source={"rank": 0, **keys})


def check_message(plain: dict[str, Any], stage_count: int) -> str:
    """The one line these values are refused with once the bundle is known."""
    topology = build(plain)
    with pytest.raises(TopologyError) as caught:
        check(topology, stage_count)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- wrong values ------------------------------------------------------------------------------

NUMBER = "a whole number from 0 on"


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (line([0], [1], link="line"), "link: found an unknown key, expected one of name, bundle, nodes, links,"),
        (line([0], [1], link="line"), "(did you mean links?)"),
        (with_node(2, stage=[1]), "nodes[2].stage: found an unknown key, expected one of rank, stages,"),
        (with_node(2, stage=[1]), "(did you mean stages?)"),
        (line([0], [1], links={"shape": "line", "windw": 3}), "links.windw: found an unknown key"),
        (line([0], [1], links=[{"between": [0, 1], "banwidth": 3}]), "links[0].banwidth: found an unknown key"),
        (with_source(dedline=3), "source.dedline: found an unknown key"),
        (
            with_source(admission={"name": "fixed", "alpha": 3}),
            "source.admission.alpha: found an unknown key, expected one of name,",
        ),
        (line([0], [1], policy={"exits": "x"}), "policy.exits: found an unknown key"),
        ({"nodes": [{"rank": 0, "stages": [0]}]}, "bundle: found nothing, expected a word"),
        ({"bundle": "digits"}, "nodes: found nothing, expected a list"),
        ({"bundle": "digits", "nodes": []}, "nodes: found no nodes, expected at least one"),
        ({"bundle": "digits", "nodes": ["a"]}, "nodes[0]: found 'a', expected keys and values"),
        ({"bundle": 7, "nodes": []}, "nodes: found no nodes"),
        (with_node(1, rank=None), f"nodes[1].rank: found nothing, expected {NUMBER}"),
        (with_node(1, rank="one"), f"nodes[1].rank: found 'one', expected {NUMBER}"),
        (with_node(1, rank=True), f"nodes[1].rank: found True, expected {NUMBER}"),
        (with_node(1, rank=-1), f"nodes[1].rank: found -1, expected {NUMBER}"),
        (with_node(2, rank=1), "nodes[2].rank: found rank 1 a second time, expected each rank once"),
        (with_node(2, rank=3), "nodes[2].rank: found 3, expected 2: nodes are listed by rank"),
        (with_node(1, stages=None), "nodes[1].stages: found nothing, expected a list of stage numbers such as [0, 1], [] for none"),
        (with_node(1, stages=1), "nodes[1].stages: found 1, expected a list of stage numbers"),
        (with_node(1, stages=["a"]), f"nodes[1].stages[0]: found 'a', expected {NUMBER}"),
        (with_node(1, stages=[1, 1]), "nodes[1].stages[1]: found stage 1 a second time, expected each stage once"),
        (with_node(1, max_batch=0), "nodes[1].max_batch: found 0, expected a whole number from 1 on"),
        (with_node(1, slots=1.5), "nodes[1].slots: found 1.5, expected a whole number from 1 on"),
        (with_node(1, executor=["onnx"]), "nodes[1].executor: found ['onnx'], expected a word"),
        (with_node(1, address="board"), "nodes[1].address: found 'board', expected host:port such as 192.168.1.10:5800"),
        (with_node(1, address=":5800"), "nodes[1].address: found ':5800', expected host:port"),
        (with_node(1, address="board:65535"), "nodes[1].address: found 'board:65535', expected host:port"),
        (with_node(1, bind="0.0.0.0:99999"), "nodes[1].bind: found '0.0.0.0:99999', expected host:port"),
        (line([0], [1], links="tree"), "links.shape: found 'tree', expected one of line, ring, mesh"),
        (line([0], [1], links=None), "links: found nothing, expected one of line, ring, mesh, star, or a list of links"),
        (line([0], [1], links=[{}]), "links[0].between: found nothing, expected two ranks such as [0, 1]"),
        (line([0], [1], links=[{"between": [0]}]), "links[0].between: found [0], expected two ranks"),
        (line([0], [1], links=[{"between": [0, 5]}]), "links[0].between[1]: found 5, expected the rank of a node, one of 0 to 1"),
        (line([0], [1], links=[{"between": [1, 1]}]), "links[0].between: found rank 1 twice, expected two different ranks"),
        (line([0], [1], links=[{"between": [0, 1]}, {"between": [1, 0]}]), "links[1].between: found a second link between 0 and 1"),
        (
            line([0], [1], links={"shape": "line", "codec": "zip"}),
            "links.codec: found 'zip', expected one of none, fp16, int8, int8+zstd, ",
        ),
        (line([0], [1], links={"shape": "line", "codec": "int8+zst"}), "auto (did you mean int8+zstd?)"),
        (
            line([0], [1], links={"shape": "line", "bandwidth": "20 MB"}),
            "links.bandwidth: found '20 MB', expected a number above 0",
        ),
        (
            line([0], [1], links={"shape": "line", "bandwidth": 0}),
            "links.bandwidth: found 0, expected a number above 0 with a unit",
        ),
        (line([0], [1], links={"shape": "line", "bandwidth": True}), "links.bandwidth: found True, expected a number above 0"),
        (line([0], [1], links={"shape": "line", "latency": "-5 ms"}), "links.latency: found '-5 ms', expected a number above 0"),
        (line([0], [1], source=2), "source: found 2, expected the rank of a node, one of 0 to 1"),
        (line([0], [1], sources=[{}]), "sources[0].rank: found nothing, expected the rank of a node"),
        (line([0], [1], source=0, sources=[1]), "sources: found both source and sources, expected one of the two"),
        (line([0], [1], sources=[]), "sources: found no sources, expected at least one"),
        (line([0], [1], sources=[0, 0]), "sources[1].rank: found a second source at rank 0"),
        (with_source(deadline=0), "source.deadline: found 0, expected a number above 0 with a unit such as '20 s'"),
        (with_source(deadline="nan s"), "source.deadline: found 'nan s'"),
        (with_source(weight=0), "source.weight: found 0, expected a finite number above 0"),
        (with_source(accuracy=1.5), "source.accuracy: found 1.5, expected a number above 0 and up to 1, or nothing"),
        (
            with_source(admission="aimed"),
            "source.admission: found 'aimed', expected one of fixed, mdi-rate, mdi-threshold, aimd (did",
        ),
        (with_source(admission={"name": "x"}), "source.admission.name: found 'x', expected one of fixed,"),
        (with_source(admission={"name": ["x"]}), "source.admission.name: found ['x'], expected one of fixed,"),
        (with_source(admission=["aimd"]), "source.admission: found ['aimd'], expected one of fixed,"),
        (
            with_source(admission={"when_full": "drop"}),
            "source.admission.when_full: found 'drop', expected one of block, latest, deadline",
        ),
        (with_source(admission={"window": -1}), "source.admission.window: found -1, expected a number above 0"),
        (with_source(admission={"window": math.inf}), "source.admission.window: found inf, expected a number above 0"),
        (with_source(admission={"decrease": 1}), "source.admission.decrease: found 1, expected a number above 0 and below 1"),
        (with_source(admission={"name": "mdi-rate", "t_q1": 1.5}), "source.admission.t_q1: found 1.5, expected a whole number"),
        (with_source(admission={"window": 9, "max_window": 4}), "source.admission.window: found 9.0, expected at most max_window"),
        (
            line([0], [1], policy={"offload": "ddi", "offload_input": False}),
            "found False, expected true with offload ddi",
        ),
        (line([0], [1], policy={"offload_input": 1}), "policy.offload_input: found 1, expected true, false or auto"),
        (line([0], [1], policy="nearest"), "policy: found 'nearest', expected one of local, cheapest, ddi, mdi"),
        (
            line([0], [1], policy={"offload": "nearest"}),
            "policy.offload: found 'nearest', expected one of local, cheapest, ddi, mdi",
        ),
        (line([0], [1], policy={"exit": 5}), "policy.exit: found 5, expected a word"),
    ],
)
def test_a_wrong_value_is_told_with_file_key_found_and_expected(plain: dict[str, Any], expected: str) -> None:
    text = message(plain)
    assert text.startswith("f.yaml: ")
    assert expected in text


def test_two_nodes_never_share_a_data_or_control_port() -> None:
    nodes = with_node(1, address="board:5800")
    nodes["nodes"][2]["address"] = "board:5800"
    assert "nodes[2].address: found 'board:5800', whose data port 5800 is the data port of rank 1" in message(nodes)
    nodes["nodes"][2]["address"] = "board:5801"
    assert "nodes[2].address: found 'board:5801', whose data port 5801 is the control port of rank 1" in message(nodes)
    nodes["nodes"][2]["address"] = "board:5799"
    assert "whose control port 5800 is the data port of rank 1" in message(nodes)
    nodes["nodes"][2]["address"] = "board:5802"
    assert build(nodes).node(2).port == 5802
    nodes["nodes"][2]["address"] = "other:5800"
    assert build(nodes).node(2).host == "other"


def test_a_node_that_no_link_leads_to_is_refused() -> None:
    text = message(line([0], [1], [2], links=[{"between": [0, 1]}]))
    assert "links: found no way from the source (rank 0) to rank 2" in text


def test_a_stage_that_no_node_hosts_is_refused() -> None:
    text = check_message(line([0], [1], [3, 4]), STAGES)
    assert text == "topology: nodes: found no node that hosts stage 2, expected each of stages 0 to 4 in some node's stages"


def test_a_stage_that_the_bundle_does_not_have_is_refused() -> None:
    assert "nodes[1].stages: found stage 7 at rank 1, expected stages 0 to 4, as bundle digits has" in check_message(
        line([0], [7]), STAGES
    )


def test_a_stage_whose_predecessor_has_no_link_to_it_is_refused() -> None:
    text = check_message(line([0], [2], [1]), 3)
    assert "links: found no way to stage 1 from the source" not in text
    assert "found no way to stage 1 from rank 0, which hosts stage 0, expected a link from rank 0 to a host of it (rank 2)" in text


def test_every_host_of_a_stage_must_reach_the_next() -> None:
    """A replica at a dead end would swallow what is offloaded to it."""
    text = check_message(line([0], [0, 1], [1], links=[{"between": [0, 1]}, {"between": [0, 2]}]), 3)
    assert "no node that hosts stage 2" in text
    text = check_message(line([0, 2], [1], [1], links=[{"between": [0, 1]}, {"between": [1, 2]}]), 3)
    assert "no way to stage 2 from rank 2, which hosts stage 1, expected a link from rank 2 to a host of it (rank 0)" in text


def test_every_source_must_reach_stage_0() -> None:
    text = check_message(line([], [1], [0]), 2)
    assert "no way to stage 0 from the source (rank 0), expected a link from rank 0 to a host of it (rank 2)" in text


def test_a_window_has_a_slot_for_every_lane() -> None:
    """Without one per lane two nodes with alternating stages deadlock (policy rule C2)."""
    plain = line([0, 2, 4], [1, 3, 5], links={"shape": "line", "window": 2})
    assert "links[0].window: found 2, expected at least 3, one for each stage that rank 0 sends to rank 1 (1, 3, 5)" in message(
        plain
    )
    plain["links"]["window"] = 3
    assert build(plain).links[0].window == 3


@pytest.mark.parametrize(
    ("plain", "key", "expected"),
    [
        (with_node(1, max_batch=100_000), "nodes[1].max_batch", "a whole number up to 1024"),
        (with_node(0, slots=10**20), "nodes[0].slots", "a whole number up to 1000000"),
        (with_source(priority=10**24), "priority", "a whole number up to 255"),
        (with_source(deadline=1e300), "deadline", "from 1e-06 to 1e+06 s"),
        (line([0], [1], policy={"report_interval": 1e-9}), "policy.report_interval", "from 0.001 to 60 s"),
        (line([0], [1], links={"shape": "line", "window": 10**23}), "window", "a whole number up to 1024"),
    ],
)
def test_a_number_nobody_means_is_refused_and_the_bound_is_named(plain: dict[str, Any], key: str, expected: str) -> None:
    found = message(plain)
    assert key in found
    assert expected in found


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"weight": 0}, "weight: found 0, expected a finite number above 0, such as 4"),
        ({"weight": -1.5}, "weight: found -1.5, expected a finite number above 0"),
        ({"weight": float("nan")}, "weight: found nan, expected a finite number above 0"),
        ({"weight": float("inf")}, "weight: found inf, expected a finite number above 0"),
        ({"weight": True}, "weight: found True, expected a finite number above 0"),
        ({"priority": 256}, "priority: found 256, expected a whole number up to 255"),
        ({"priority": -1}, "priority: found -1, expected a whole number from 0 on"),
        ({"priority": 1.5}, "priority: found 1.5, expected a whole number from 0 on"),
        ({"rank": 7}, "rank: found 7, expected the rank of a node, one of 0 to 2"),
        ({"rank": 0}, "rank: found a second source at rank 0, expected one source per rank; give one of them another"),
        ({"name": "camera"}, "name: found a second source named 'camera', expected a name of its own; rename one of them"),
        ({"name": "the camera"}, "name: found 'the camera', expected up to 40 letters, digits, - and _, such as camera"),
        ({"name": "0"}, "name: found '0', expected a word that is no rank, and not the name another rank has by default"),
        ({"name": "source-2"}, "name: found 'source-2', expected a word that is no rank, and not the name another rank has"),
        ({"rate": "fast"}, "rate: found 'fast', expected a number above 0 with a unit such as '20 /s' (units: /s, Hz, kHz, /min)"),
        ({"rate": 0}, "rate: found 0, expected a number above 0"),
        ({"rate": "2 MHz"}, "rate: found '2 MHz', expected a number above 0 with a unit"),
        ({"rate": 1e7}, "rate: found 10000000.0, expected from 0.001 to 1e+06 samples a second"),
        ({"rate": 5, "arrivals": "live"}, "rate: found 5, expected none beside arrivals live: drop one of the two"),
        ({"rate": 5, "arrivals": "./a.txt"}, "rate: found 5, expected none beside arrivals ./a.txt: drop one of the two"),
        ({"arrivals": "constant"}, "rate: found nothing beside arrivals constant, expected samples a second, such as 20/s"),
        (
            {"arrivals": "poison"},
            "arrivals: found 'poison', expected one of live, poisson, constant (did you mean poisson?), or a file of arrival times",
        ),
        ({"arrivals": 3}, "arrivals: found 3, expected a word"),
    ],
)
def test_what_a_source_cannot_be_is_one_line_with_its_key(keys: dict[str, Any], expected: str) -> None:
    plain = line([0], [0, 1], [0, 1], sources=[{"rank": 0, "name": "camera"}, {"rank": 1, **keys}])
    assert f"sources[1].{expected}" in message(plain)


def test_more_weights_than_classes_are_refused_where_priorities_come_from_them() -> None:
    plain = line(*[[0]] * 300, sources=[{"rank": rank, "weight": 1 + rank} for rank in range(300)])
    assert "sources: found 300 different weights, expected at most 256 where priorities come from them" in message(plain)
    for source in plain["sources"]:
        source["priority"] = 3
    assert {source.priority for source in build(plain).sources} == {3}


@pytest.mark.parametrize("admission", ["mdi-rate", "mdi-threshold"])
def test_slots_exceed_the_queue_bound_of_mdi_admission(admission: str) -> None:
    plain = line([0], [1], source={"rank": 0, "admission": admission})
    plain["nodes"][0]["slots"] = 30
    expected = f"nodes[0].slots: found 30, expected more than t_q2 = 30 of the source's admission {admission}"
    assert expected in message(plain)
    plain["source"]["admission"] = {"name": admission, "t_q2": 29}
    assert build(plain).node(0).slots == 30


def test_queues_exceed_the_output_threshold_of_mdi_offloading() -> None:
    """At the source: 20 of its own and 16 of the link to it."""
    plain = line([0, 1], [0, 1], policy="mdi")
    plain["nodes"][0]["slots"] = 20
    expected = "policy.output_threshold: found 50, expected less than 36, all the tasks that rank 0 can hold"
    assert expected in message(plain)
    build(plain | {"policy": {"offload": "mdi", "output_threshold": 35}})


# ---- files -------------------------------------------------------------------------------------


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(TopologyError) as caught:
        load_topology(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "found an empty file, expected a topology with at least bundle and nodes"),
        ("# only a comment\n", "found an empty file"),
        ("bundle: a\nnodes: [{rank: 0\n", "line 3: found"),
        ("bundle: a\n\tnodes: 3\n", "line 2: found"),
        ("bundle: a\nbundle: b\n", "line 2: found the key 'bundle' twice, expected valid YAML with each key once"),
        ("bundle: a\nnodes:\n- {rank: 0, rank: 1}\n", "line 3: found the key 'rank' twice"),
        ("bundle: !!python/object/apply:os.getcwd []\n", "line 1: found could not determine a constructor"),
        ("bundle: a\n? [x]\n: 3\n", "line 2: found unhashable key"),
        ("bundle: " + "[" * 5000, "found lists or mappings nested too deeply, expected valid YAML, a few levels deep"),
        ("just a sentence\n", "found 'just a sentence', expected keys and values"),
        ("bundle: a\x00b\n", "found"),
    ],
)
def test_a_file_that_is_no_topology_is_told_by_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    message = refused(path, text)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="found a file that cannot be read"):
        load_topology(path)


def test_anchors_and_merges_are_ordinary_yaml(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("bundle: a\nnodes:\n- &board {rank: 0, stages: [0], max_batch: 2}\n- {<<: *board, rank: 1}\nlinks: line\n")
    assert [(node.rank, node.max_batch) for node in load_topology(path).nodes] == [(0, 2), (1, 2)]


def test_an_unknown_name_lists_the_places_tried_and_a_near_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TopologyError) as caught:
        load_topology("lin4")
    text = str(caught.value)
    assert text.startswith("topology 'lin4': found no such file (did you mean line4?), expected it (or it with .yaml) in ")
    assert str(tmp_path / "topologies") in text
    assert "data/topologies" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["", ".", "no/such/line4"])
def test_a_path_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(TopologyError, match="found no such file"):
        load_topology(name)


# ---- whatever it is given ----------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5) | st.sampled_from(["line", "mesh", "5 ms"])
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
KEYS = {
    "nodes": ("rank", "stages", "address", "bind", "executor", "device", "max_batch", "slots"),
    "links": ("between", "bandwidth", "latency", "codec", "medium", "window"),
    "sources": ("rank", "name", "arrivals", "rate", "admission", "deadline", "priority", "weight", "accuracy"),
}


@given(st.data())
def test_any_damage_to_a_file_is_one_topology_error_or_none(data: st.DataObject) -> None:
    plain: dict[str, Any] = build(line([0], [1], [2])).to_dict()
    del plain["path"]
    for _ in range(data.draw(st.integers(1, 2))):
        section = data.draw(st.sampled_from([*plain, "extra"]))
        entries = plain.get(section)
        if section in KEYS and isinstance(entries, list) and entries and isinstance(entries[0], dict) and data.draw(st.booleans()):
            entries[0] = {**entries[0], data.draw(st.sampled_from(KEYS[section])): data.draw(values)}
        else:
            plain[section] = data.draw(values)
    try:
        topology = build(plain)
        check(topology, 3)
    except TopologyError as exc:
        text = str(exc)
    else:
        assert from_dict(json.loads(json.dumps(topology.to_dict(), allow_nan=False))) == topology
        return
    assert "found" in text
    assert "\n" not in text

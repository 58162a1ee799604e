from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from zpipe.errors import TopologyError
from zpipe.policy.admission import ADMISSIONS, T_Q2
from zpipe.policy.delivery import WAITING_SAMPLES
from zpipe.policy.offload import OFFLOADS as OFFLOAD_STRATEGIES
from zpipe.topology import (
    AdmissionSpec,
    LinkSpec,
    NodeSpec,
    SourceSpec,
    Topology,
    check,
    first_difference,
    from_dict,
    load_topology,
    override,
    shortest_name,
)
from zpipe.topology.check import DEFAULT_T_Q2
from zpipe.topology.parse import OFFLOADS, parse
from zpipe.topology.sources import ADMISSION_OPTIONS, WHEN_FULL

SHIPPED = ("local", "line2", "line4")
STAGES = 5


def line(*stages: list[int], **keys: Any) -> dict[str, Any]:
    """The plain values of a line with these stages at its nodes."""
    nodes = [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(stages)]
    return {"bundle": "digits", "nodes": nodes, "links": "line", **keys}


def build(plain: dict[str, Any]) -> Topology:
    return parse(plain, file="f.yaml", path=None)


def with_node(which: int, **keys: Any) -> dict[str, Any]:
    plain = line([0], [1], [2])
    plain["nodes"][which].update(keys)
    return plain


def with_source(**keys: Any) -> dict[str, Any]:
    return line([0], [1], source={"rank": 0, **keys})


# ---- what a file says --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_topology_is_fit_for_the_five_stage_bundle(name: str) -> None:
    check(load_topology(name), STAGES)


@pytest.mark.parametrize("path", sorted(Path("topologies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_begins_with_a_comment_and_is_named_after_its_topology(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert load_topology(path).name == path.stem


def test_line4_is_understood_at_one_look() -> None:
    topology = load_topology("line4.yaml")
    assert topology.bundle == "digits-mobilenetv2"
    assert [node.stages for node in topology.nodes] == [(0,), (1,), (2,), (3, 4)]
    assert [link.between for link in topology.links] == [(0, 1), (1, 2), (2, 3)]
    assert topology.source == SourceSpec(0, AdmissionSpec("aimd", when_full="block"), deadline_seconds=30.0)
    assert all(node.launched for node in topology.nodes)
    assert len(Path("topologies/line4.yaml").read_text().splitlines()) <= 10


def test_a_full_file_is_read_key_by_key() -> None:
    topology = build(
        {
            "name": "hall",
            "bundle": "digits",
            "nodes": [
                {"rank": 0, "stages": []},
                {
                    "rank": 1,
                    "stages": [1, 0],
                    "address": "192.168.1.10:5800",
                    "bind": "0.0.0.0",
                    "executor": "trt",
                    "device": "cuda:0",
                    "max_batch": 4,
                    "slots": 80,
                },
            ],
            "links": [
                {
                    "between": [1, 0],
                    "bandwidth": "20 Mbit/s",
                    "latency": "5 ms",
                    "jitter": "1 ms",
                    "codec": "none",
                    "medium": "wifi",
                    "window": 12,
                }
            ],
            "sources": [
                {
                    "rank": 0,
                    "admission": {"name": "mdi-rate", "when_full": "latest", "waiting": 2, "t_q2": 40, "alpha": 0.3},
                    "deadline": "2 s",
                    "priority": 1,
                    "weight": 2.5,
                    "accuracy": 0.9,
                }
            ],
            "policy": {"offload": "cheapest", "exit": "no-exit", "report_interval": "50 ms", "output_threshold": 20},
        }
    )
    assert topology.nodes[1] == NodeSpec(1, (0, 1), "192.168.1.10:5800", "0.0.0.0", "trt", "cuda:0", 4, 80)
    assert topology.links == (LinkSpec((0, 1), 20e6, 0.005, 0.001, "none", "wifi", 12),)
    admission = AdmissionSpec("mdi-rate", {"t_q2": 40, "alpha": 0.3}, "latest", 2)
    assert topology.sources == (SourceSpec(0, admission, 2.0, 1, 2.5, 0.9),)
    assert topology.policy.exit_point == "no-exit"
    assert topology.policy.report_interval_seconds == 0.05


def test_the_documented_file_is_accepted_and_shows_the_defaults() -> None:
    """The reference in the package's docstring cannot go stale."""
    import zpipe.topology

    documented: dict[str, Any] = {
        "name": "t",
        "bundle": "NAME",
        "nodes": [
            {
                "rank": 0,
                "stages": [0, 1],
                "address": "127.0.0.1:0",
                "bind": "",
                "executor": "auto",
                "device": "",
                "max_batch": 8,
                "slots": 64,
            },
            {"rank": 1, "stages": [2]},
        ],
        "links": [{"between": [0, 1], "latency": "0 s", "codec": "none", "medium": "", "window": 16}],
        "source": {
            "rank": 0,
            "name": "source-0",
            "arrivals": "live",
            "rate": None,
            "admission": {"name": "aimd", "when_full": "block", "waiting": 0},
            "deadline": "30 s",
            "priority": None,
            "weight": 1.0,
            "accuracy": None,
        },
        "policy": {"offload": "local", "exit": "default", "report_interval": "100 ms", "output_threshold": 50},
    }
    plain = {
        "name": "t",
        "bundle": "NAME",
        "nodes": [{"rank": 0, "stages": [0, 1]}, {"rank": 1, "stages": [2]}],
        "links": "line",
    }
    assert build(documented) == build(plain)
    words = (zpipe.topology.__doc__ or "").split()
    for part in (documented, documented["nodes"][0], documented["links"][0], documented["source"], documented["policy"]):
        for key in part:
            assert f"{key}:" in words, f"{key} is not documented"


@pytest.mark.parametrize(
    ("shape", "pairs"),
    [
        ("line", [(0, 1), (1, 2)]),
        ("ring", [(0, 1), (1, 2), (0, 2)]),
        ("mesh", [(0, 1), (0, 2), (1, 2)]),
    ],
)
def test_a_shape_stands_for_its_links_and_shares_their_values(shape: str, pairs: list[tuple[int, int]]) -> None:
    topology = build(line([0], [1], [2], links={"shape": shape, "latency": "5 ms"}))
    assert topology.links == tuple(LinkSpec(pair, latency_seconds=0.005) for pair in pairs)
    assert [link.between for link in build(line([0], [1], [2], links=shape)).links] == pairs


def test_a_ring_of_two_is_a_line() -> None:
    assert build(line([0], [1], links="ring")).links == (LinkSpec((0, 1)),)


def test_a_single_node_needs_no_links() -> None:
    assert build({"bundle": "digits", "nodes": [{"rank": 0, "stages": [0]}]}).links == ()


@pytest.mark.parametrize(
    ("text", "bits_per_second"),
    [("20 Mbit/s", 20e6), ("1Gbit/s", 1e9), ("64 kbit/s", 64e3), ("1.5e3 bit/s", 1500.0), (9600, 9600.0), ("1e6", 1e6)],
)
def test_bandwidth_is_read_with_its_unit(text: object, bits_per_second: float) -> None:
    assert build(line([0], [1], links={"shape": "line", "bandwidth": text})).links[0].bandwidth_bps == bits_per_second


@pytest.mark.parametrize(("text", "seconds"), [("5 ms", 0.005), ("250us", 250e-6), ("250 µs", 250e-6), ("1 min", 60.0), (2, 2.0)])
def test_durations_are_read_with_their_unit(text: object, seconds: float) -> None:
    assert build(with_source(deadline=text)).source.deadline_seconds == pytest.approx(seconds)


def test_source_is_a_rank_or_its_keys_or_a_list() -> None:
    as_rank = build(line([1], [0], source=1))
    assert as_rank.source.rank == 1
    assert build(line([1], [0], source={"rank": 1})) == as_rank
    assert build(line([1], [0], sources=[1])) == as_rank
    assert [source.rank for source in build(line([0], [0, 1], sources=[1, {"rank": 0}])).sources] == [0, 1]


def test_policy_is_a_strategy_or_its_keys() -> None:
    assert build(line([0], [1], policy="cheapest")) == build(line([0], [1], policy={"offload": "cheapest"}))


def test_addresses_tell_launched_nodes_from_fixed_ones() -> None:
    launched = NodeSpec(0, (0,))
    fixed = NodeSpec(1, (1,), address="board-1:5800", bind="0.0.0.0")
    assert launched.launched
    assert launched.bind_address == "127.0.0.1:0"
    assert not fixed.launched
    assert (fixed.host, fixed.port, fixed.control_address) == ("board-1", 5800, "board-1:5801")
    assert fixed.bind_address == "0.0.0.0:5800"
    assert replace(fixed, bind="0.0.0.0:6000").bind_address == "0.0.0.0:6000"
    assert NodeSpec(1, (), address="[::1]:5800", bind="[::]").bind_address == "[::]:5800"


# ---- what a topology answers -------------------------------------------------------------------


def test_lanes_lead_from_a_hosted_stage_to_the_next() -> None:
    topology = build(line([0, 2], [1, 3], [4]))
    assert topology.lanes(0, 1) == (1, 3)
    assert topology.lanes(1, 0) == (2,)
    assert topology.lanes(1, 2) == (4,)
    assert topology.lanes(2, 1) == ()
    assert topology.lanes(0, 2) == ()  # no link


def test_downstream_and_upstream_are_the_two_ends_of_lanes() -> None:
    topology = build(line([0, 2], [1, 3], [4]))
    assert [topology.downstream(rank) for rank in range(3)] == [(1,), (0, 2), ()]
    assert [topology.upstream(rank) for rank in range(3)] == [(1,), (0,), (1,)]


def test_a_source_without_stages_sends_raw_inputs() -> None:
    topology = build(line([], [0, 1]))
    assert topology.lanes(0, 1) == (0,)
    assert topology.downstream(0) == (1,)
    check(topology, 2)


def test_neighbours_are_those_with_a_link_whatever_flows() -> None:
    topology = build(line([0], [1], [2]))
    assert [topology.neighbours(rank) for rank in range(3)] == [(1,), (0, 2), (1,)]
    assert topology.link(2, 1) == LinkSpec((1, 2))
    assert topology.link(0, 2) is None


def test_answers_go_nearer_or_beside() -> None:
    everywhere = [{"rank": rank, "stages": [0, 1]} for rank in range(5)]
    links = [{"between": pair} for pair in ([0, 1], [0, 2], [1, 3], [2, 3], [3, 4])]
    topology = build({"bundle": "digits", "nodes": everywhere, "links": links})
    assert [topology.nearer(rank, 0) for rank in range(5)] == [(), (0,), (0,), (1, 2), (3,)]
    assert [topology.beside(rank, 0) for rank in range(5)] == [()] * 5
    assert topology.nearer(0, 4) == (1, 2)
    ring = build({"bundle": "digits", "nodes": everywhere[:3], "links": "ring"})
    assert (ring.nearer(1, 0), ring.beside(1, 0)) == ((0,), (2,))


def test_node_and_source_are_found_by_rank() -> None:
    topology = build(line([0], [0, 1], sources=[0, 1]))
    assert topology.node(1).rank == 1
    assert topology.hosts(0) == (0, 1)
    assert topology.source_at(1) == SourceSpec(1)
    assert build(line([0], [1])).source_at(1) is None
    with pytest.raises(TopologyError, match="found rank 2, expected one of 0 to 1"):
        topology.node(2)


# ---- the same everywhere -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_json_carries_a_topology_to_a_child(name: str) -> None:
    topology = load_topology(name)
    copy = from_dict(json.loads(json.dumps(topology.to_dict())))
    assert copy == topology
    assert copy.path == topology.path
    assert copy.digest() == topology.digest()


def test_json_carries_every_value() -> None:
    topology = build(
        with_source(admission={"name": "aimd", "window": 4, "min_target_seconds": "2 ms"}, deadline="2 s", weight=2)
        | {"links": [{"between": [0, 1], "bandwidth": "20 Mbit/s"}], "policy": "cheapest"}
    )
    assert from_dict(json.loads(json.dumps(topology.to_dict(), allow_nan=False))) == topology


def test_the_digest_leaves_out_where_nodes_listen_and_where_the_file_lies(tmp_path: Path) -> None:
    topology = load_topology("line4")
    moved = tmp_path / "other.yaml"
    moved.write_text("# another comment\n" + Path("topologies/line4.yaml").read_text())
    assert load_topology(moved).digest() == topology.digest()
    assert topology.with_addresses({2: "10.0.0.2:5800"}).digest() == topology.digest()
    assert topology.with_addresses({2: "10.0.0.2:5800"}).node(2).address == "10.0.0.2:5800"
    assert override(topology, max_batch=1).digest() != topology.digest()


def test_the_order_of_links_in_the_file_does_not_matter() -> None:
    pairs = [{"between": [0, 1]}, {"between": [1, 2]}]
    assert build(line([0], [1], [2], links=pairs)).digest() == build(line([0], [1], [2], links=pairs[::-1])).digest()


def test_first_difference_names_the_key_and_both_values() -> None:
    mine = build(with_node(2, max_batch=4)).canonical()
    theirs = build(with_node(2, max_batch=1)).canonical()
    assert first_difference(mine, theirs) == ("nodes[2].max_batch", 4, 1)
    assert first_difference(mine, mine) is None


def test_first_difference_shows_what_one_side_lacks() -> None:
    two, three = build(line([0], [1])).canonical(), build(line([0], [1], [2])).canonical()
    found = first_difference(two, three)
    assert found is not None
    assert found[:2] == ("nodes[2]", None)
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert first_difference([1], {"a": 1}, "links") == ("links", [1], {"a": 1})


def test_fixed_ports_leave_room_for_the_control_plane() -> None:
    topology = load_topology("line4").with_fixed_ports(5800)
    assert [node.address for node in topology.nodes] == [f"127.0.0.1:{port}" for port in (5800, 5802, 5804, 5806)]
    assert from_dict(topology.to_dict()) == topology
    placed = build(with_node(1, address="board:7000")).with_fixed_ports(5800)
    assert [node.port for node in placed.nodes] == [5800, 7000, 5804]


def test_override_changes_every_node_and_source_and_checks_the_outcome() -> None:
    topology = override(
        load_topology("line4"), max_batch=1, offload="cheapest", exit_point="no-exit", admission="fixed", deadline_seconds=2.0
    )
    assert {node.max_batch for node in topology.nodes} == {1}
    assert (topology.policy.offload, topology.policy.exit_point) == ("cheapest", "no-exit")
    assert topology.source == SourceSpec(0, AdmissionSpec("fixed"), 2.0)
    assert override(topology) == topology
    with pytest.raises(TopologyError, match=r"line4\.yaml: nodes\[0\]\.max_batch: found 0, expected a whole number from 1 on"):
        override(topology, max_batch=0)


def test_override_names_an_executor_for_every_node_and_a_device_for_those_without_one() -> None:
    nodes = [{"rank": 0, "stages": [0], "device": "raspberry-pi-5"}, {"rank": 1, "stages": [1]}]
    topology = override(from_dict({"bundle": "b", "nodes": nodes, "links": "line"}), executor="emulated", device="jetson-nano")
    assert [(node.executor, node.device) for node in topology.nodes] == [
        ("emulated", "raspberry-pi-5"),
        ("emulated", "jetson-nano"),
    ]


def test_repr_shows_name_size_and_digest() -> None:
    topology = load_topology("line4")
    assert repr(topology) == f"<Topology line4 | 4 nodes, 3 links | digits-mobilenetv2 | {topology.digest()[:12]}>"


def test_topologies_are_values() -> None:
    assert hash(load_topology("line4")) == hash(load_topology("line4"))
    assert load_topology("line4") != load_topology("line2")


def test_a_name_is_looked_up_as_path_then_in_the_callers_topologies_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_topology("line4")
    monkeypatch.chdir(tmp_path)
    assert load_topology("line4") == shipped
    (tmp_path / "topologies").mkdir()
    (tmp_path / "topologies" / "line4.yaml").write_text(yaml.safe_dump(line([0], [1], name="ours")))
    assert load_topology("line4").name == "ours"
    (tmp_path / "line4.yaml").write_text(yaml.safe_dump(line([0], [1], name="here")))
    assert load_topology("line4").name == "here"
    assert load_topology(tmp_path / "line4").name == "here"
    assert load_topology("line4.yaml").path == Path("line4.yaml")


# ---- one list of names, in two places ----------------------------------------------------------


def test_admission_names_and_options_are_those_of_the_policy() -> None:
    assert set(ADMISSION_OPTIONS) == set(ADMISSIONS)
    for name, strategy in ADMISSIONS.items():
        assert set(ADMISSION_OPTIONS[name]) == set(inspect.signature(strategy).parameters) - {"points", "default_point"}, name
    assert DEFAULT_T_Q2 == T_Q2


def test_the_other_names_are_those_of_the_policy() -> None:
    assert set(OFFLOAD_STRATEGIES) <= set(OFFLOADS)
    assert set(WHEN_FULL) == set(WAITING_SAMPLES)


@pytest.mark.parametrize("policy", ["ddi", {"offload": "ddi"}])
def test_ddi_lets_raw_inputs_out_without_being_told(policy: Any) -> None:
    """It sends nothing else: without them it would be `local` under another name."""
    topology = build(line([0, 1], [0, 1], policy=policy))
    assert topology.policy.offload_input == "yes"
    assert 0 in topology.lanes(0, 1)
    assert 0 in override(build(line([0, 1], [0, 1], policy="local")), offload="ddi").lanes(0, 1)


def test_lone_source_may_leave_its_rank_out() -> None:
    plain = {"bundle": "digits-mobilenetv2", "nodes": [{"rank": 0, "stages": [0, 1, 2, 3, 4]}], "source": {"accuracy": 0.95}}
    (source,) = from_dict(plain).sources
    assert (source.rank, source.accuracy) == (0, 0.95)
    with pytest.raises(TopologyError, match=r"sources\[0\]\.rank: found nothing"):
        from_dict({**{key: value for key, value in plain.items() if key != "source"}, "sources": [{"accuracy": 0.95}]})


def test_accuracy_of_nothing_is_refused() -> None:
    plain = {"bundle": "digits-mobilenetv2", "nodes": [{"rank": 0, "stages": [0, 1, 2, 3, 4]}], "source": {"accuracy": 0}}
    with pytest.raises(TopologyError, match=r"source\.accuracy: found 0, expected a number above 0"):
        from_dict(plain)


def test_a_topology_is_named_as_one_would_type_it_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours = load_topology("line4")
    assert shortest_name(ours) == "line4.yaml"
    (tmp_path / "line4.yaml").write_text("another one")
    assert shortest_name(ours) == str(ours.path)
    (tmp_path / "line4.yaml").unlink()
    (tmp_path / "boards").mkdir()
    elsewhere = tmp_path / "boards" / "hall.yaml"
    elsewhere.write_text("bundle: digits\nnodes: [{rank: 0, stages: [0]}]")
    assert shortest_name(load_topology("boards/hall.yaml")) == "boards/hall.yaml"


# ---- several sources -----------------------------------------------------------------------------


def several(*sources: Any) -> Topology:
    return build(line([0], [0, 1], [0, 1], sources=list(sources)))


def test_sources_have_names_and_are_found_by_name_or_rank() -> None:
    topology = several({"rank": 2}, {"rank": 0, "name": "camera"})
    assert [source.name for source in topology.sources] == ["camera", "source-2"]
    assert topology.source_named("camera") is topology.source_named(0) is topology.source_named("0") is topology.sources[0]
    assert topology.source_named("source-2").rank == 2
    expected = r"source: found 'lidar', expected one of camera \(rank 0\), source-2 \(rank 2\)$"
    with pytest.raises(TopologyError, match=expected):
        topology.source_named("lidar")


@pytest.mark.parametrize(
    ("sources", "classes"),
    [
        ([0, 1, 2], [0, 0, 0]),
        ([{"rank": 0, "weight": 4}, {"rank": 1}, {"rank": 2, "weight": 4}], [1, 0, 1]),
        ([{"rank": 0, "weight": 2}, {"rank": 1, "weight": 0.5}, {"rank": 2, "weight": 8}], [1, 0, 2]),
        ([{"rank": 0, "weight": 4, "priority": 0}, {"rank": 1, "weight": 2}, {"rank": 2, "weight": 1}], [0, 1, 0]),
    ],
)
def test_the_heavier_source_is_of_the_higher_class_unless_a_priority_says_otherwise(sources: list[Any], classes: list[int]) -> None:
    topology = several(*sources)
    assert [source.priority for source in topology.sources] == classes
    explicit = [{"rank": spec.rank, "weight": spec.weight, "priority": spec.priority} for spec in topology.sources]
    assert several(*explicit).digest() == topology.digest()
    assert from_dict(topology.to_dict()) == topology


def test_a_source_says_when_its_samples_come() -> None:
    topology = several(
        {"rank": 0, "rate": "20/s"}, {"rank": 1, "arrivals": "constant", "rate": 0.5}, {"rank": 2, "arrivals": "./morning.txt"}
    )
    found = [(source.arrivals, source.rate_hz) for source in topology.sources]
    assert found == [("poisson", 20.0), ("constant", 0.5), ("./morning.txt", None)]
    assert from_dict(topology.to_dict()) == topology


def test_another_strategy_brings_its_own_service_order_unless_the_file_chose_one() -> None:
    for offload, given, order in (
        ("pa-mdi", {}, "fifo"),
        ("pa-mdi", {"order": "fifo"}, "fifo"),
        ("cheapest", {"order": "priority", "min_share": 0.1}, "priority"),
    ):
        policy = build(line([0], [0, 1], policy={"offload": offload, **given}))
        assert override(policy, offload="fifo").policy.order == order
    assert override(build(line([0], [0, 1])), offload="pa-mdi").policy.order == "priority"


def test_all_lower_classes_together_are_owed_half_at_most() -> None:
    def many(count: int, **policy: object) -> Topology:
        sources = [{"rank": rank, "priority": rank} for rank in range(count)]
        return build(line(*[[0, 1]] * count, sources=sources, policy={"offload": "pa-mdi", **policy}))

    assert [many(count).min_share for count in (2, 11, 26)] == [0.05, 0.05, 0.02]
    assert many(3, min_share=0.25).min_share == 0.25
    message = "policy.min_share: found 0.3 for each of 2 classes below the highest, expected at most 0.25"
    with pytest.raises(TopologyError, match=message):
        many(3, min_share=0.3)


def test_waiting_may_be_worth_a_class() -> None:
    aged, plain = (build(line([0], [0, 1], policy={"offload": "pa-mdi", **key})) for key in ({"ageing": "500 ms"}, {}))
    assert aged.policy.ageing_seconds == 0.5
    assert from_dict(aged.to_dict()) == aged
    assert override(aged, offload="local").policy.ageing_seconds == 0.0, "it came with the order"
    assert "ageing" not in plain.canonical()["policy"], "boards that do not know it go on with those that do"


def test_when_samples_come_is_each_sources_own_business_and_its_name_is_not() -> None:
    plain = several(0, 1).digest()
    assert several({"rank": 0, "rate": "20/s"}, {"rank": 1, "arrivals": "./a.txt"}).digest() == plain
    assert several({"rank": 0, "name": "camera"}, 1).digest() != plain


def test_one_source_looks_to_other_nodes_as_it_did_before_sources_had_names() -> None:
    """Boards that were not updated yet go on with those that were."""
    admission = {"name": "aimd", "when_full": "block", "waiting": 0}
    known = {"rank": 0, "admission": admission, "deadline": 2.0, "priority": 1, "weight": 2.5, "accuracy": None}
    assert build(with_source(weight=2.5, deadline="2 s", priority=1)).canonical()["sources"] == [known]
    known |= {"deadline": 30.0, "priority": 0, "weight": 1.0}
    assert load_topology("line4").canonical()["sources"] == [known]

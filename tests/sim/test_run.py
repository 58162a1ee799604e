"""Whole simulated runs: repeatable, as recorded, and keeping the promise."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import examples
from tests.sim.worlds import bundle
from zpipe.configure import exit_ladder
from zpipe.errors import ConfigError
from zpipe.load import Order, poisson
from zpipe.report import KINDS, RunLog, check_schema
from zpipe.sim import HopProfile, SimOptions, Spread, generated, run_sim, simulate
from zpipe.topology import Topology, from_dict

SHORT: dict[str, Any] = {"count": 400, "warm_up": 20}


def plain(report: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in report.items() if key != "machine"}, indent=1)


def lines(log: RunLog, file: Path) -> list[dict[str, Any]]:
    log.samples_jsonl(file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ---- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["line4", "mesh3", "mesh5"])
@pytest.mark.parametrize("load", [{}, {"rate_hz": 60.0}, {"rate_hz": float("inf")}])
def test_the_same_seed_gives_the_same_report_byte_for_byte(topology: str, load: dict[str, Any]) -> None:
    first = plain(simulate(topology, seed=3, count=200, warm_up=20, **load))
    assert first == plain(simulate(topology, seed=3, count=200, warm_up=20, **load))
    assert first != plain(simulate(topology, seed=4, count=200, warm_up=20, **load))


def test_jitter_and_measured_overheads_are_seeded_too() -> None:
    topology = generated("random", nodes=12, sources=3)
    noisy = from_dict(topology.to_dict() | {"links": [link | {"jitter": 0.01} for link in topology.to_dict()["links"]]})
    hop = HopProfile(forward=Spread((0.0, 0.001, 0.01)), start=Spread((0.0, 0.002)))
    first, again = (simulate(noisy, hop=hop, seed=1, **SHORT) for _ in range(2))
    assert plain(first) == plain(again)
    assert first["latency_ms"] != simulate(topology, seed=1, **SHORT)["latency_ms"]


def test_samples_are_offered_in_the_order_and_at_the_times_of_a_live_run() -> None:
    _, log = run_sim(SimOptions("line4", rate_hz=80.0, seed=5, **SHORT))
    order, times = Order(bundle().evaluation_samples, seed=5), poisson(80.0, seed=5)
    columns = log.columns()
    assert columns["index"].tolist() == [order.next() for _ in range(400)]
    submitted = np.array(log.deadlines) - 30.0
    assert np.diff(submitted) == pytest.approx(np.diff([next(times) for _ in range(400)]))


# ---- as recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "point"),
    [
        ("line4", "default"),
        ("mesh3", "t0.50"),
        ("mesh5", "default"),
        ("mesh5", "no-exit"),
        *(pytest.param("line4", point, marks=pytest.mark.slow) for point in ("t0.50", "no-exit")),
        *(pytest.param("mesh3", point, marks=pytest.mark.slow) for point in ("default", "no-exit")),
        pytest.param("mesh5", "t0.50", marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_the_one_in_the_replay_table(topology: str, point: str, tmp_path: Path) -> None:
    report, log = run_sim(SimOptions(topology, exit_point=point, count=bundle().evaluation_samples, warm_up=0))
    replay, ladder = bundle().replay(), exit_ladder(bundle(), point)
    thresholds = np.array(ladder.thresholds[ladder.default], np.float32)
    leaves = (replay.confidences >= thresholds) & (thresholds < 1.0)
    leaves[:, -1] = True
    for line in lines(log, tmp_path / "samples.jsonl"):
        stage = int(leaves[line["index"]].argmax())
        found = (line["exit_stage"], line["label"], line["confidence"])
        assert found == (stage, replay.labels[line["index"], stage], pytest.approx(replay.confidences[line["index"], stage]))
    if point != "no-exit":
        assert report["accuracy"] == pytest.approx(bundle().point(ladder_name(point)).test.accuracy)


def ladder_name(point: str) -> str:
    return bundle().default_point.name if point == "default" else point


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_has_the_live_schema_and_says_that_it_is_simulated() -> None:
    report = simulate("line4", rate_hz=50.0, **SHORT)
    check_schema(report)
    assert report["simulated"] is True
    assert report["shared_machine"] is False
    assert report["cpu_efficiency"] is report["overhead_us_per_task"] is None
    assert all(node["cpu_s"] is node["rss_mb"] is None for node in report["nodes"])
    assert report["nodes_running_share"] == 1.0
    assert report["events"] > 400
    assert report["counts"]["submitted"] == report["counts"]["result"] == 400


def test_warm_up_is_not_in_the_report() -> None:
    report = simulate("local", count=100, warm_up=300)
    assert report["counts"]["submitted"] == report["nodes"][0]["tasks"] / sum(
        (stage + 1) * row["share"] for stage, row in enumerate(report["exits"])
    )


def test_several_sources_share_count_and_rate_and_are_reported_one_by_one() -> None:
    report, log = run_sim(SimOptions(generated("grid", nodes=9, sources=4), rate_hz=100.0, count=402, warm_up=8))
    assert [row["rank"] for row in report["sources"]] == [0, 2, 4, 6]
    assert [row["submitted"] for row in report["sources"]] == [101, 101, 100, 100]
    assert sum(row["result"] for row in report["sources"]) == report["counts"]["result"] == 402
    orders = [log.columns()["index"][log.columns()["source"] == rank].tolist() for rank in (0, 2)]
    assert orders[0] != orders[1]
    assert report["throughput_hz"] == pytest.approx(100.0, rel=0.3)


def test_a_trace_of_arrivals_is_dealt_to_the_sources_in_turns(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("\n".join(str(0.05 * number) for number in range(30)))
    report, log = run_sim(SimOptions(generated("line", nodes=4, sources=2), arrivals=str(trace), warm_up=0))
    assert [row["submitted"] for row in report["sources"]] == [15, 15]
    submitted = np.array(log.deadlines) - 30.0
    assert sorted(submitted) == pytest.approx([0.05 * number for number in range(30)])


def test_each_source_has_its_own_pace_and_its_own_row() -> None:
    nodes = [{"rank": rank, "stages": [0, 1, 2, 3, 4]} for rank in range(3)]
    sources = [{"rank": 0, "name": "camera", "weight": 4, "rate": "5/s"}, {"rank": 2, "name": "mapping", "rate": "20/s"}]
    plain = {"name": "two", "bundle": "digits-mobilenetv2", "nodes": nodes, "links": "mesh", "sources": sources}
    topology = from_dict(plain)
    report = simulate(topology, warm_up=4)
    camera, mapping = report["sources"]
    assert (camera["name"], camera["weight"], camera["priority"]) == ("camera", 4.0, 1)
    assert (mapping["name"], mapping["weight"], mapping["priority"]) == ("mapping", 1.0, 0)
    assert camera["throughput_hz"] == pytest.approx(5.0, rel=0.5)
    assert mapping["throughput_hz"] == pytest.approx(20.0, rel=0.3)
    assert report["seconds"] == pytest.approx(10.0, abs=0.5)
    for row in (camera, mapping):
        assert 0.0 <= row["queueing_ms"]["mean"] < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
    faster = simulate(topology, rates={"camera": 40.0}, duration=2.0, warm_up=4)
    assert [row["submitted"] for row in faster["sources"]] == pytest.approx([80, 40], rel=0.4)
    shared = simulate(topology, rate_hz=20.0, count=30, warm_up=4)
    assert [row["submitted"] for row in shared["sources"]] == [15, 15]


def test_a_run_ends_by_its_duration() -> None:
    for load in ({}, {"rate_hz": 40.0}, {"rate_hz": float("inf")}):
        report = simulate("line4", duration=3.0, warm_up=10, **load)
        assert 2.9 < report["seconds"] < 4.0
        assert report["counts"]["result"] + report["counts"]["rejected"] == report["counts"]["submitted"] > 60


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"count": 0}, "count: found 0, expected at least 1"),
        ({"rate_hz": 0.0}, "rate_hz: found 0.0, expected a number above 0"),
        ({"deadline": float("nan")}, "deadline: found nan"),
        ({"device": "abacus"}, "--device: found 'abacus', expected one of"),
        ({"admission": "tcp"}, "admission: found 'tcp'"),
        ({"exit_point": "never"}, "operating point: found 'never'"),
        ({"offload": "far"}, "offload: found 'far'"),
        ({"service": Path("nowhere.json")}, "nowhere.json: found no readable JSON"),
        ({"hop": Path("nowhere.json")}, "nowhere.json: found no readable JSON"),
        ({"arrivals": "nowhere.txt"}, "--arrivals: found 'nowhere.txt'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        simulate("line4", **options)


# ---- the promise ---------------------------------------------------------------------------------


@st.composite
def meshes(draw: st.DrawFn) -> Topology:
    """A random connected mesh with slow and fast links, whose every host of a stage hosts the next or is linked to a host of it."""
    nodes = draw(st.integers(2, 6))
    pairs = {(draw(st.integers(0, rank - 1)), rank) for rank in range(1, nodes)}
    pairs |= draw(
        st.sets(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)).filter(lambda pair: pair[0] < pair[1]), max_size=4)
    )
    whole = draw(st.booleans())
    stages = [[0, 1, 2, 3, 4]] * nodes if whole else chain(nodes)
    if not whole:
        pairs |= set(pairwise(range(nodes)))
    links = [
        {
            "between": list(pair),
            "bandwidth": draw(st.sampled_from(["1 Mbit/s", "20 Mbit/s", "1 Gbit/s"])),
            "latency": draw(st.sampled_from([0.0, 0.002, 0.05])),
            "jitter": draw(st.sampled_from([0.0, 0.01])),
            "medium": draw(st.sampled_from(["", "wifi"])),
            "window": draw(st.integers(5, 16)),
        }
        for pair in sorted(pairs)
    ]
    admissions = st.sampled_from(["fixed", "aimd", "mdi-rate", "mdi-threshold"])
    device = st.sampled_from(["raspberry-pi-4", "raspberry-pi-4/4", "jetson-nano"])
    return from_dict(
        {
            "name": "drawn",
            "bundle": "digits-mobilenetv2",
            "nodes": [
                {"rank": rank, "stages": hosted, "device": draw(device), "max_batch": draw(st.integers(1, 8))}
                for rank, hosted in enumerate(stages)
            ],
            "links": links,
            "sources": [{"rank": rank, "admission": draw(admissions)} for rank in sources(draw, nodes, whole)],
            "policy": {
                "offload": (offload := draw(st.sampled_from(["local", "cheapest", "ddi", "mdi"]))),
                "offload_input": offload == "ddi" or draw(st.booleans()),
                "output_threshold": draw(st.integers(0, 20)),
            },
        }
    )


def chain(nodes: int) -> list[list[int]]:
    """The five stages cut over a line of nodes; a sixth hosts the last one again."""
    cuts = min(nodes, 5)
    hosted = [list(range(5 * rank // cuts, 5 * (rank + 1) // cuts)) for rank in range(cuts)]
    return [*hosted, [4]] if nodes > 5 else hosted


def sources(draw: st.DrawFn, nodes: int, whole: bool) -> list[int]:
    return sorted(draw(st.sets(st.integers(0, nodes - 1), min_size=1, max_size=2))) if whole else [0]


runs = given(
    topology=meshes(),
    rate_hz=st.sampled_from([None, 20.0, 200.0, float("inf")]),
    when_full=st.sampled_from([None, "latest", "deadline"]),
    deadline=st.sampled_from([0.3, 5.0, 30.0]),
    seed=st.integers(0, 99),
)


def ends_once(topology: Topology, rate_hz: float | None, when_full: str | None, deadline: float, seed: int) -> None:
    options = SimOptions(
        topology, count=60, warm_up=10, rate_hz=rate_hz, when_full=when_full, deadline=deadline, seed=seed, check=True
    )
    report, log = run_sim(options)
    counts = report["counts"]
    assert counts["submitted"] == 60 == sum(counts[kind] for kind in KINDS[1:])
    assert (counts["lost"], counts["duplicate"], counts["hung"], report["strangers"]) == (0, 0, 0, 0)
    columns, replay = log.columns(), bundle().replay()
    answered = columns["kind"] == KINDS.index("result")
    assert (columns["label"] == replay.labels[columns["index"], columns["stage"]])[answered].all()
    assert sum(row["submitted"] for row in report["sources"]) == 60


test_every_sample_ends_once_on_any_mesh_and_every_invariant_holds = examples(30)(runs(ends_once))
test_every_sample_ends_once_on_many_meshes = pytest.mark.slow(examples(150)(runs(ends_once)))


def test_a_link_so_slow_that_nothing_is_heard_for_seconds_is_made_anew_and_no_sample_is_lost() -> None:
    topology = from_dict(
        {
            "name": "slow",
            "bundle": "digits-mobilenetv2",
            "nodes": [{"rank": 0, "stages": [0]}, {"rank": 1, "stages": [1, 2, 3, 4]}],
            "links": [{"between": [0, 1], "bandwidth": "100 kbit/s"}],
        }
    )
    report = simulate(topology, count=60, warm_up=0, rate_hz=20.0, deadline=60.0, check=True)
    counts = report["counts"]
    assert counts["submitted"] == 60 == sum(counts[kind] for kind in KINDS[1:])
    assert counts["lost"] == counts["duplicate"] == counts["hung"] == 0
    assert counts["resubmitted"] > 0


def test_some_nodes_have_measured_times_and_the_others_their_device(tmp_path: Path) -> None:
    slow, quick = tmp_path / "slow.json", tmp_path / "quick.json"
    for file, seconds in ((slow, 0.05), (quick, 0.0005)):
        stages = {str(stage): {"1": seconds, "8": 8 * seconds} for stage in range(5)}
        file.write_text(json.dumps({"schema": "zpipe.service/1", "stages": stages}))
    load: dict[str, Any] = {**SHORT, "rate_hz": float("inf"), "admission": "fixed"}
    found = simulate("line4", service={0: quick, 2: slow}, **load)
    # Stage 2 takes 50 ms of the share that gets there; what the other boards take is far less.
    reach = 1.0 - sum(row["share"] for row in found["exits"][:2])
    assert found["throughput_hz"] == pytest.approx(1 / 0.05 / reach, rel=0.05)
    assert found["service"] == "quick.json, raspberry-pi-4, slow.json"
    assert simulate("line4", service=quick, **load)["service"] == "quick.json"

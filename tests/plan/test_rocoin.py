"""Plans for a bundle of students: a star of groups that works, says why, and refuses in one line."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.students import MACS, SIZES, students
from zpipe.boards import Boards, load_boards, parse_boards
from zpipe.bundle import Bundle, load_bundle
from zpipe.devices import load_device
from zpipe.errors import ConfigError
from zpipe.plan import GroupPlan, draw_groups, explain_groups, plan_groups, to_yaml, with_failures
from zpipe.service import Measured
from zpipe.sim import Death, simulate
from zpipe.topology import check
from zpipe.topology.parse import parse
from zpipe.topology.reader import read_yaml

PI = "raspberry-pi-3"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three students; the last has two stages."""
    return students(tmp_path_factory.mktemp("bundles") / "three")


def boards(*devices: dict[str, Any], links: Any = "star", failure: float | None = 0.1) -> Boards:
    """The first is the source, without room for a student unless it says otherwise."""
    first = {"device": PI, "memory": "80 MB"}
    plain = {"devices": [{"name": f"b{at}", **device} for at, device in enumerate((first, *devices))], "links": links}
    return with_failures(parse_boards(plain, file="hand", path=None, measured=no_file), failure, {})


def no_file(name: str) -> Measured:
    raise AssertionError(name)


def pi(speed: float = 1.0, **values: Any) -> dict[str, Any]:
    return {"device": PI if speed == 1.0 else f"{PI}/{1 / speed:g}", **values}


def refusal(*arguments: Any, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_groups(*arguments, **values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def hosts(found: GroupPlan) -> list[set[str]]:
    return [{found.boards[board].name for board in group} for group in found.groups]


# ---- what comes out ----------------------------------------------------------------------------


def test_a_plan_is_a_topology_that_works_and_reads_back(three: Bundle) -> None:
    found = plan_groups(three, boards(*[pi()] * 7), redundancy="all", name="seven")
    topology = found.plan.topology
    check(replace(topology, bundle=three.name), len(three.stages), three.student_stages)
    assert topology.students == SIZES
    assert topology.policy.redundancy == "all"
    assert all(link.between[0] == 0 for link in topology.links)
    assert sorted(map(len, found.groups)) == [2, 2, 3]
    assert all(node.stages in ((0,), (1,), (2, 3)) for node in topology.nodes[1:])
    text = to_yaml(topology, "made")
    again = parse(read_yaml(text, "seven", of="a topology"), file="seven", path=None)
    assert again.to_dict() == {**topology.to_dict(), "path": None}


def test_time_is_the_way_there_the_stages_and_the_way_back(three: Bundle) -> None:
    links = {"shape": "star", "bandwidth": "8 Mbit/s", "latency": "2 ms"}
    found = plan_groups(three, boards(pi(), pi(), pi(), links=links, failure=0.0), point="no-exit")
    rate = load_device(PI).macs_per_second
    computing = [MACS[0] / rate, MACS[1] / rate, (MACS[2] + MACS[3]) / rate]
    for part, group in enumerate(found.groups):
        way = found.case.seconds[part][group[0]] - computing[part]
        assert way > 0.004 + 48 / 1e6, "two latencies, and 48 bytes of input at a megabyte a second"
        assert way < 0.005
    exits = plan_groups(three, boards(pi(), pi(), pi(), links=links, failure=0.0))
    assert exits.plan.latency_seconds < found.plan.latency_seconds, "some leave the third student early"


def test_inputs_that_share_a_medium_go_one_after_the_other(three: Bundle) -> None:
    def planned(redundancy: Any = "hedged", **more: str) -> GroupPlan:
        known = boards(*[pi()] * 6, links={"shape": "star", "bandwidth": "0.1 Mbit/s", **more})
        return plan_groups(three, known, missing=0.2, redundancy=redundancy, point="no-exit")

    plans = [planned(), planned(medium="air"), planned("all", medium="air")]
    alone, shared, everywhere = (plan.case.seconds[0][1] for plan in plans)
    own, frame = (plan.plan.problem.link_seconds(plan.plan.problem.boards.links[0], alone=True)[0] for plan in plans[:2])
    assert shared - alone == pytest.approx(3 * frame - own), "one of each part"
    assert everywhere - shared == pytest.approx((6 - 3) * frame), "one to each board"


def test_heavy_students_get_fast_boards_and_replicas_fall_to_who_fails_often(three: Bundle) -> None:
    fast, slow = [pi(4.0)] * 2, [pi()] * 4
    found = plan_groups(three, boards(*fast, *slow), point="no-exit")
    assert {"b1", "b2"} & hosts(found)[2]
    shaky = boards(pi(failure=0.001), pi(failure=0.001), pi(failure=0.001), pi(failure=0.5))
    assert sorted(map(len, plan_groups(three, shaky, missing=0.001).groups)) == [1, 1, 2]


def test_boards_that_cannot_host_are_left_out_and_told(three: Bundle) -> None:
    links = [{"between": ["b0", f"b{at}"]} for at in (1, 2, 3, 5)] + [{"between": ["b3", "b4"]}]
    found = plan_groups(three, boards(pi(), pi(), pi(), pi(), pi(memory="70 MB"), links=links), missing=0.1)
    assert set().union(*hosts(found)) == {"b1", "b2", "b3"}
    assert explain_groups(found)[-1] == "left out: b4 (no link to the source), b5 (too little memory for a student)"


def test_a_source_that_hosts_a_student_never_misses_it(three: Bundle) -> None:
    known = boards(pi(), pi())
    roomy = replace(known, boards=(replace(known.boards[0], memory_bytes=1e9, failure=0.9), *known.boards[1:]))
    found = plan_groups(three, roomy, missing=0.1)
    (mine,) = [part for part, group in enumerate(found.groups) if 0 in group]
    assert found.case.part_missing(found.groups[mine]) == 0.0
    assert found.plan.topology.nodes[0].stages == tuple(found.chains[mine])


def test_replicas_share_the_samples_of_their_part_and_with_all_the_fastest_sets_the_rate(three: Bundle) -> None:
    known = boards(*[pi()] * 6)
    shared, everywhere = (plan_groups(three, known, redundancy=each) for each in ("failover", "all"))
    assert shared.plan.rate_hz == pytest.approx(2 * everywhere.plan.rate_hz)
    uneven = boards(pi(8.0), pi(8.0), pi(8.0), *[pi()] * 3, links={"shape": "star", "bandwidth": "100 Mbit/s"})
    shared, everywhere = (plan_groups(three, uneven, redundancy=each) for each in ("hedged", "all"))
    assert shared.plan.rate_hz == pytest.approx(9 / 8 * everywhere.plan.rate_hz)
    slow_link = [{"between": ["b0", f"b{at}"], "bandwidth": f"{0.01 if at < 4 else 100} Mbit/s"} for at in range(1, 7)]
    strangled = plan_groups(three, boards(pi(8.0), pi(8.0), pi(8.0), *[pi()] * 3, links=slow_link))
    assert strangled.plan.rate_hz > 30.0, "fast boards behind slow links get few samples"


def test_it_is_explained_and_drawn(three: Bundle) -> None:
    found = plan_groups(three, boards(*[pi()] * 3, *[pi(2.0)] * 4, links={"shape": "star", "bandwidth": "1 Mbit/s"}))
    lines = explain_groups(found)
    assert [line.split(":")[0] for line in lines] == [
        *("plan", "part 0", "part 1", "part 2", "missing", "bottleneck", "bound", "device", "link")
    ]
    assert "3 students on 7 devices, hedged: slowest group" in lines[0]
    assert "(asked: 0.01); all parts are in for 9" in lines[4]
    assert found.accuracy is not None
    assert found.accuracy < found.by_parts[-1] + 1e-9
    assert "all groupings were looked at); this one as much" in lines[6]
    assert "twice as fast: -" in lines[7]
    assert "at 2 Mbit/s: -" in lines[8]
    root = ElementTree.fromstring(draw_groups(found, "of seven"))
    said = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text.split(":")[0] for text in said if text.startswith("part ")] == ["part 0", "part 1", "part 2"]
    assert all(f"b{at}" in said for at in range(8))


# ---- what does not work ------------------------------------------------------------------------


def test_what_cannot_be_had_is_said_with_what_can(three: Bundle) -> None:
    known = boards(*[pi()] * 6)
    message = refusal(three, known, missing=0.001)
    assert message.startswith("--missing: found 0.001, expected 0.01 or more, the best that these devices can do (students 0: b")
    assert plan_groups(three, known, missing=0.01).grouping.proven
    odd = boards(*[pi(failure=0.0713)] * 6)
    least = float(refusal(three, odd, missing=0.001).split("expected ")[1].split(" ")[0])
    assert plan_groups(three, odd, missing=least).grouping.proven, "what is offered can be had"


@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        ([pi(), pi()], "devices: found 2 devices that could host a student, expected 3 or more"),
        (
            [pi(memory="70 MB")] * 2,
            "devices: found no device with room for student 0 among the source and those linked to it (b0 (raspberry-pi-3, 80 MB)",
        ),
    ],
)
def test_too_few_boards_or_too_little_memory(three: Bundle, devices: list[dict[str, Any]], complaint: str) -> None:
    assert refusal(three, boards(*devices)).startswith(complaint)


def test_a_chain_has_no_groups() -> None:
    chain = load_bundle("digits-mobilenetv2", verify=False)
    assert refusal(chain, boards(pi())).endswith("found one chain, expected students, which groups of devices could host")


def test_failures_by_name_go_before_the_file_and_that_before_the_rest() -> None:
    plain = {"devices": [{"name": name, **pi(**more)} for name, more in (("a", {}), ("b", {"failure": 0.3}), ("c", {}), ("d", {}))]}
    file = parse_boards(plain, file="hand", path=None, measured=no_file)
    assert [board.failure for board in with_failures(file, 0.1, {"c": 0.2}).boards] == [0.1, 0.3, 0.2, 0.1]
    with pytest.raises(ConfigError, match=r"--failure: found none for c, d, expected P\(it does not answer\) of every device"):
        with_failures(file, None, {})
    with pytest.raises(ConfigError, match="--failure: found e, expected a device of devices: a, b, c, d"):
        with_failures(file, 0.1, {"e": 0.2})


def test_a_failure_by_the_name_of_an_entry_is_that_of_all_its_boards() -> None:
    plain = {"devices": [{"name": "a", **pi()}, {"name": "b", "count": 3, **pi()}, {"name": "c", **pi()}]}
    file = parse_boards(plain, file="hand", path=None, measured=no_file)
    said = with_failures(file, 0.1, {"b-2": 0.2, "b": 0.5})
    assert [board.failure for board in said.boards] == [0.1, 0.5, 0.2, 0.5, 0.1]


@pytest.mark.parametrize(
    ("entry", "by_name", "says"),
    [
        ({"failure": 0.3}, {}, "devices: failure: found the source a, expected others: .* leave it out there"),
        ({}, {"a": 0.3}, "--failure: found the source a, expected others: "),
        ({"failure": 0}, {"a": 0.0}, None),
        ({"failure": 0.3, "count": 2}, {}, None),
    ],
)
def test_a_source_that_fails_is_refused_wherever_it_is_said(
    entry: dict[str, Any], by_name: dict[str, float], says: str | None
) -> None:
    plain = {"devices": [{"name": "a", **pi(**entry)}, {"name": "b", **pi()}]}
    file = parse_boards(plain, file="hand", path=None, measured=no_file)
    with nullcontext() if says is None else pytest.raises(ConfigError, match=says):
        with_failures(file, 0.1, by_name)


@pytest.mark.parametrize("value", [1, 1.0, -0.1, "often", True, [0.1]])
def test_a_failure_that_is_no_probability_below_one(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"hand: devices\[0\].failure: found .*, expected P\(it does not answer\), a number from 0"
    ):
        parse_boards({"devices": [{"name": "a", **pi(failure=value)}]}, file="hand", path=None, measured=no_file)


def test_a_plan_of_many_boards_is_for_a_file(three: Bundle, tmp_path: Path) -> None:
    found = plan_groups(three, boards(*[pi()] * 40), out=tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text(to_yaml(found.plan.topology, "forty"))
    assert len(found.plan.topology.nodes) == 41
    assert sum(map(len, found.groups)) == 40


def test_the_simulator_takes_as_long_as_the_plan_says_with_boards_dead_and_alive() -> None:
    """The slowest group's fastest board dies: the next one answers, and the plan knows when."""
    network = load_bundle("digits-rocoin", verify=False)
    found = plan_groups(network, load_boards("star"), missing=0.05)
    case, groups = found.case, found.groups
    part = max(case.parts, key=lambda part: case.part_seconds(part, groups[part]))
    first = min(groups[part], key=lambda board: case.seconds[part][board])
    for dead in ((), (first,)):
        ranks = [list(found.plan.layout.hosted).index(board) for board in dead]
        quick = [min(case.seconds[each][board] for board in groups[each] if board not in dead) for each in case.parts]
        run = simulate(found.plan.topology, count=24, rate_hz=1.0, faults=tuple(map(Death, ranks)))
        assert run["counts"]["result"] == 24
        assert run["latency_ms"]["p50"] == pytest.approx(1e3 * max(quick), rel=0.02)

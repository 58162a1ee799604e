"""Specs of faults: what each clause means, what is wrong with others in one line, and when and to whom faults happen."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise, takewhile

import pytest

from zpipe.bench.chaos.schedule import Fault, faults
from zpipe.bench.chaos.spec import ACTIONS, CALM, Clause, parse_chaos
from zpipe.errors import ConfigError

NODES, LINKS = (1, 2), ((0, 1), (0, 2), (1, 2))


def planned(text: str, *, until: float = 60.0, seed: int = 0) -> list[Fault]:
    """The faults of so many seconds."""
    found = faults(parse_chaos(text), nodes=NODES, links=LINKS, seed=seed)
    return list(takewhile(lambda fault: fault.at_seconds <= until, found))


def times(text: str, **options: float) -> list[float]:
    return [fault.at_seconds for fault in planned(text, **options)]  # type: ignore[arg-type]


# ---- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("kill every 5s", Clause("kill", when="every", period_seconds=5.0)),
        ("kill 3s node 2 poisson 10s", Clause("kill", 0.0, 3.0, 2, None, "poisson", 10.0)),
        ("terminate at 500ms", Clause("terminate", when="at", period_seconds=0.5)),
        ("stop 2s every 1min", Clause("stop", 0.0, 2.0, None, None, "every", 60.0)),
        ("rolling", Clause("rolling")),
        ("rolling every 60s", Clause("rolling", when="every", period_seconds=60.0)),
        ("down 2s link 0-1 every 5s", Clause("down", 0.0, 2.0, None, (0, 1), "every", 5.0)),
        ("slow 1.5Mbit/s 3s link 2-1 every 10s", Clause("slow", 1.5e6, 3.0, None, (1, 2), "every", 10.0)),
        ("reset every 5s", Clause("reset", when="every", period_seconds=5.0)),
        ("flip every 2s", Clause("flip", when="every", period_seconds=2.0)),
        ("corrupt 1%", Clause("corrupt", 0.01)),
        ("corrupt .5% link 0-2", Clause("corrupt", 0.005, 0.0, None, (0, 2))),
    ],
)
def test_clause_is_read(text: str, clause: Clause) -> None:
    assert parse_chaos(text).clauses == (clause,)


def test_every_example_of_an_error_is_right() -> None:
    assert [parse_chaos(action.example).clauses[0].action for action in ACTIONS.values()] == list(ACTIONS)


def test_clauses_are_joined_and_calm_is_none_of_them() -> None:
    chaos = parse_chaos(" kill every 5s ;calm 20s every 80s; corrupt 1% ;")
    assert [clause.action for clause in chaos.clauses] == ["kill", "corrupt"]
    assert (chaos.calm_seconds, chaos.cycle_seconds, chaos.needs_relays) == (20.0, 80.0, True)
    assert parse_chaos("kill every 5s; calm 60s").cycle_seconds == 120.0
    assert not parse_chaos("kill every 5s").needs_relays


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found '', expected an action, such as 'kill every 5s'"),
        (" ; ", "expected an action"),
        ("calm 5s", "found 'calm 5s', expected an action"),
        ("kil every 5s", "found action 'kil', expected one of kill, terminate, stop, .*(did you mean kill?)"),
        ("kill", "'kill': found no time, expected every 5s, poisson 5s or at 5s; for instance 'kill every 5s'"),
        ("kill every", "'kill every': found every, expected a time, such as every 5s"),
        ("kill every 5", "'kill every 5': found every 5, expected a time"),
        ("kill every 5h", "found every 5h, expected a time"),
        ("kill every 0s", "found 0s, expected 0.01 to 1e+06 s"),
        ("kill often", "'kill often': found 'often', expected every 5s"),
        ("kill every 5s now", "found 'now' there, expected nothing more"),
        ("kill link 0-1 every 5s", "found a link, expected a node"),
        ("kill node x every 5s", "found node 'x', expected node 2"),
        ("kill node", "found node '', expected node 2"),
        ("stop every 5s", "found no duration, expected how long each lasts; for instance 'stop 2s every 5s'"),
        ("reset 2s every 5s", "found duration 2s, expected none: it takes no time"),
        ("reset node 1 every 5s", "found a node, expected a link"),
        ("rolling node 1", "found a node, expected no target"),
        ("slow 3s every 5s", "found '3s', expected a number of bit/s or kbit/s or Mbit/s or Gbit/s"),
        ("slow 0bit/s 3s every 5s", "found '0bit/s', expected above 0 and at most 1e+12 bit/s"),
        (f"slow {'9' * 400}Mbit/s 3s every 5s", "expected above 0 and at most 1e+12 bit/s"),
        ("corrupt", "found no amount, expected a number of %; for instance 'corrupt 1%'"),
        ("corrupt 0%", "found '0%', expected above 0 and at most 100 %; for instance 'corrupt 1%'"),
        ("corrupt 101%", "found '101%', expected above 0 and at most 100 %"),
        ("corrupt 1", "found '1', expected a number of %"),
        ("corrupt 1% every 5s", "found 'every', expected none: it goes on all the time"),
        ("kill every 5s; calm 10s; calm 5s", "found calm twice"),
        ("kill every 5s; calm 10s every 10s", "found no time for faults, expected a cycle longer than its calm"),
        ("kill every 5s; calm 10s at 5s", "found 'at' there, expected a length, and every so often"),
    ],
)
def test_bad_spec_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_chaos(text)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("--chaos: ")
    for part in message.split(".*"):
        assert part in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill node 0 every 5s", "kill: found node 0, expected one of 1, 2 (a source's process is the bench itself)"),
        ("kill node 7 every 5s", "kill: found node 7, expected one of 1, 2"),
        ("down 1s link 0-3 every 5s", "down: found link 0-3, expected one of 0-1, 0-2, 1-2"),
    ],
)
def test_target_that_does_not_exist_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(text)
    assert str(caught.value).startswith(f"--chaos: {message}")


def test_topology_without_other_nodes_is_one_line() -> None:
    for text in ("kill every 5s", "rolling", "reset every 5s"):
        with pytest.raises(ConfigError, match="beside the sources, expected some; choose another topology"):
            faults(parse_chaos(text), nodes=(), links=(), seed=0)


# ---- when, and to whom -------------------------------------------------------------------------


def test_every_so_often_begins_after_the_first_period() -> None:
    assert times("reset every 5s", until=20.0) == [5.0, 10.0, 15.0, 20.0]


def test_calm_comes_first_and_its_time_does_not_count() -> None:
    assert times("reset every 5s; calm 10s every 25s", until=60.0) == [15.0, 20.0, 35.0, 40.0, 45.0, 60.0]
    chaos = parse_chaos("reset every 5s; calm 10s every 25s")
    assert [chaos.is_calm(time) for time in (0.0, 9.9, 10.0, 24.9, 25.0)] == [True, True, False, False, True]


def test_once_is_once() -> None:
    assert planned("kill 10s node 2 at 20s; calm 5s every 60s", until=math.inf) == [Fault(25.0, "kill", 2, None, 10.0)]
    assert [fault.at_seconds for fault in planned("rolling", until=math.inf)] == [0.0]


def test_corruption_goes_on_all_the_time_on_every_link() -> None:
    assert planned("corrupt 1%", until=math.inf) == [Fault(0.0, "corrupt", None, link, math.inf, 0.01) for link in LINKS]


def test_corruption_pauses_in_the_calm() -> None:
    found = planned("corrupt 1% link 0-1; calm 10s every 30s", until=50.0)
    assert found == [Fault(at, "corrupt", None, (0, 1), 20.0, 0.01) for at in (10.0, 40.0)]


def test_poisson_times_have_the_mean_asked_for() -> None:
    found = list(islice(faults(parse_chaos("kill poisson 5s"), nodes=NODES, links=LINKS, seed=3), 4000))
    assert found[-1].at_seconds / 4000 == pytest.approx(5.0, rel=0.05)
    gaps = {round(b.at_seconds - a.at_seconds, 3) for a, b in pairwise(found)}
    assert len(gaps) > 1000


def test_targets_are_every_node_or_link_about_as_often() -> None:
    nodes = Counter(fault.node for fault in planned("kill every 1s", until=1000.0))
    links = Counter(fault.link for fault in planned("reset every 1s", until=1000.0))
    assert set(nodes) == set(NODES)
    assert set(links) == set(LINKS)
    assert min(nodes.values()) > 400
    assert min(links.values()) > 250


def test_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    text = "kill poisson 5s; reset every 3s"
    assert planned(text, seed=1) == planned(text, seed=1)
    assert planned(text, seed=1) != planned(text, seed=2)


def test_clause_keeps_its_times_and_targets_beside_another_one() -> None:
    alone = planned("kill poisson 5s")
    beside = planned("kill poisson 5s; reset every 3s")
    assert [fault for fault in beside if fault.action == "kill"] == alone
    assert beside == sorted(beside, key=lambda fault: fault.at_seconds)


def test_names_of_targets_are_for_people() -> None:
    assert [fault.target for fault in (Fault(0.0, "kill", 2), Fault(0.0, "down", None, (0, 1)), Fault(0.0, "rolling"))] == [
        "node 2",
        "link 0-1",
        "",
    ]
    assert CALM not in ACTIONS

"""Nodes that fail in the simulator: what they held is done elsewhere or expires, and every sample has its one outcome."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from zpipe.errors import ConfigError
from zpipe.sim import Death, NodeFault, SimOptions, Stall, run_sim
from zpipe.sim.faults import check_faults
from zpipe.topology import Topology, from_dict

#: A camera, and a board for the first stage and the rest; or two for each.
DEADLINE = 2.0
REST = [1, 2, 3, 4]


#: About half of what the boards can do.
RATE_HZ, COUNT = 20.0, 200
#: When samples are submitted, seconds since the first measured one.
SUBMITTED = np.arange(COUNT) / RATE_HZ


def boards(*stages: list[int]) -> Topology:
    return from_dict(
        {
            "name": "boards",
            "bundle": "digits-mobilenetv2",
            "nodes": [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(([], *stages))],
            "links": {"shape": "mesh", "latency": "2 ms"},
            "source": {"rank": 0, "admission": "fixed", "deadline": DEADLINE},
        }
    )


LONE, PAIRS = boards([0], REST), boards([0], [0], REST, REST)


def run(topology: Topology, *faults: NodeFault) -> tuple[dict[str, Any], Any]:
    load: dict[str, Any] = {"count": COUNT, "rate_hz": RATE_HZ, "arrivals": "constant", "exit_point": "no-exit"}
    report, log = run_sim(SimOptions(topology, warm_up=10, faults=faults, check=True, **load))
    counts = report["counts"]
    assert counts["submitted"] == COUNT == sum(counts[kind] for kind in ("result", "expired", "rejected", "failed"))
    assert counts["lost"] == counts["duplicate"] == counts["hung"] == 0
    return report, log.columns()


def tasks(report: dict[str, Any], rank: int) -> int:
    return int(report["nodes"][rank]["tasks"])


def test_the_other_replicas_do_the_work_of_the_dead() -> None:
    report, _ = run(PAIRS, Death(1), Death(4))
    assert report["counts"]["result"] == COUNT
    assert tasks(report, 1) == tasks(report, 4) == 0
    assert tasks(report, 2) == COUNT
    assert report["counts"]["resubmitted"] == 0  # nothing was ever sent to them


def test_what_a_node_held_when_it_died_is_done_again() -> None:
    sound, _ = run(PAIRS)
    report, columns = run(PAIRS, Death(3, 5.02), Death(2, 7.01))
    assert report["counts"]["result"] == COUNT
    assert 0 < tasks(report, 3) < tasks(sound, 3)
    assert report["counts"]["resubmitted"] >= 1
    assert (columns["latency"] < 1.0).all()  # neighbours notice a death: no timer had to find it out


def test_samples_expire_where_no_host_of_a_stage_is_left() -> None:
    report, columns = run(LONE, Death(2, 6.0))
    answered = columns["stage"] >= 0
    assert answered[SUBMITTED < 5.5].all()
    assert not answered[SUBMITTED > 6.0].any()
    assert report["counts"]["expired"] == int((~answered).sum())
    nobody, _ = run(LONE, Death(1))
    assert nobody["counts"]["result"] == 0


def test_what_comes_while_a_node_stands_still_waits_for_it() -> None:
    stall = Stall(2, 5.0, 0.2)
    report, columns = run(LONE, stall)
    sound, undisturbed = run(LONE)
    later = columns["latency"] - undisturbed["latency"]
    during = abs(SUBMITTED - stall.at_seconds - stall.seconds / 2) < stall.seconds / 2
    assert report["counts"]["result"] == COUNT
    assert during.any()
    assert (later[during] > 0.02).all()
    assert later.max() < stall.seconds + 0.1
    assert abs(later[SUBMITTED < 4.5]).max() < 1e-9
    assert tasks(report, 2) == tasks(sound, 2)


def test_a_node_that_stands_still_for_good_is_passed_over() -> None:
    report, columns = run(PAIRS, Stall(3, 5.0))
    assert report["counts"]["result"] == COUNT
    assert columns["latency"].max() > 0.2  # only silence tells it
    assert columns["latency"][SUBMITTED > 8.0].max() < 0.2
    assert tasks(report, 3) < tasks(report, 4)


def test_a_node_that_was_given_up_meanwhile_works_again_once_it_goes_on() -> None:
    report, columns = run(LONE, Stall(1, 3.0, 5.0))
    assert report["counts"]["expired"] > 0
    assert (columns["stage"][SUBMITTED > 8.5] >= 0).all()


def test_it_dies_though_it_stood_still() -> None:
    report, _ = run(PAIRS, Stall(4, 2.0, 3.0), Death(4, 3.0), Stall(4, 4.0, 1.0))
    assert report["counts"]["result"] == COUNT


def test_the_same_faults_give_the_same_report() -> None:
    faults = (Death(1), Stall(3, 2.0, 1.0), Death(4, 7.0))
    (first, _), (again, _) = run(PAIRS, *faults), run(PAIRS, *faults)
    assert json.dumps({**first, "machine": 0}) == json.dumps({**again, "machine": 0})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Death(0), r"faults\[0\].rank: found 0, expected a node that is no source: 1, 2"),
        (Stall(7, 1.0), r"faults\[0\].rank: found 7"),
        (Death(1, -1.0), r"at_seconds: found -1.0, expected at least 0"),
        (Death(1, math.nan), r"at_seconds: found nan"),
        (Stall(1, -0.5, 1.0), r"found Stall\(rank=1, .*\), expected a start of at least 0 s"),
        (Stall(1, 0.0, 0.0), "more than 0 s"),
    ],
)
def test_faults_that_cannot_happen_are_refused(fault: NodeFault, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_faults((fault,), LONE)

"""Where a task goes (A1)."""

from __future__ import annotations

from zpipe.policy.offload import Candidate, CheapestOffload, LocalOffload

NEAR, FAR = Candidate(1, 0.001, 0.010), Candidate(2, 0.008, 0.004)  # 11 and 12 ms


def test_local_keeps_whatever_it_hosts() -> None:
    assert LocalOffload().keep(input_length=99, output_length=0)
    assert LocalOffload().choose([NEAR, FAR], here_seconds=9.0) is None


def test_local_sends_what_it_must_to_the_cheapest() -> None:
    assert LocalOffload().choose([FAR, NEAR], here_seconds=None) is NEAR


def test_cheapest_keeps_only_when_idle() -> None:
    assert CheapestOffload().keep(input_length=0, output_length=5)
    assert not CheapestOffload().keep(input_length=1, output_length=0)


def test_cheapest_counts_the_way_and_the_queue_there() -> None:
    assert CheapestOffload().choose([FAR, NEAR], here_seconds=None) is NEAR
    assert CheapestOffload().choose([FAR, NEAR], here_seconds=0.012) is NEAR


def test_cheapest_stays_here_when_nobody_is_cheaper() -> None:
    """A tie stays: sending costs something that is not counted."""
    assert CheapestOffload().choose([FAR, NEAR], here_seconds=0.010) is None
    assert CheapestOffload().choose([NEAR], here_seconds=NEAR.cost_seconds) is None

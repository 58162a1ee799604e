"""Suspicion, missed frames, stuck planes, leaving, bans, other ways (C6, C7, R5-R8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.build import INTO, OUT, Driven, about, answer, lost, task
from tests.policy.test_links import LOAD, beat, of
from zpipe.model import Credit, Report
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import no_exit
from zpipe.policy.messages import (
    BanPeer,
    BlockedReceived,
    CreditReceived,
    DrainStarted,
    Event,
    Forward,
    GrantCredit,
    PeerLost,
    PeerUp,
    ReportReceived,
    ResetLink,
    Resolve,
    ResultReceived,
    RunStage,
    SampleSubmitted,
    SendBlocked,
    SendLost,
    SendReport,
    SendResults,
    StageFailed,
    TimerFired,
)
from zpipe.policy.state import NeighbourConfig

MakeNode = Callable[..., Driven]


def send_one(node: Driven, sample: int = 5, *, now: float = 0.0) -> None:
    node.receive(task(sample, 1, 0), now=now)
    node.complete(False, now=now)


# ---- silence (R5) --------------------------------------------------------------------------------


def test_a_neighbour_that_owes_reports_is_suspected_and_its_tasks_are_lost(middle: Driven) -> None:
    """R5: one interval and three more without a word; the connection stays."""
    send_one(middle)
    assert of(SendLost, beat(middle, until=0.39, heard=(0,))) == []
    commands = beat(middle, until=0.55, heard=(0,))
    assert of(SendLost, commands) == [SendLost(0, [lost(5, 1, "peer-silent: node 2: nothing heard for 0.5 s")])]
    assert of(ResetLink, commands) == []
    assert middle.counts.suspicions == 1


def test_nothing_is_sent_to_a_suspected_neighbour_until_its_next_word(middle: Driven) -> None:
    """R5."""
    send_one(middle)
    beat(middle, until=0.6, heard=(0,))
    middle.receive(task(6, 1, 1), now=0.6)
    assert of(Forward, middle.complete(False, now=0.61)) == []
    (forward,) = of(Forward, middle.tell(ReportReceived(2, LOAD), now=0.7))
    assert [sent.key.sample for sent in forward.tasks] == [6]


def test_an_idle_neighbour_has_more_time(middle: Driven) -> None:
    """R5: it reports once a second."""
    beat(middle, until=1.2, heard=(0,))
    assert middle.counts.suspicions == 0
    beat(middle, until=2.5, heard=(0,))
    assert middle.counts.suspicions == 1


def test_reports_that_come_late_make_patient(middle: Driven) -> None:
    """R5: every report 0.2 s late, so 0.2 s of lateness, four times."""
    busy = Report(1, 0, {2: 0.01}, {2: 0.01})
    for number in range(40):
        middle.tell(ReportReceived(2, busy), ReportReceived(0, LOAD), now=0.3 * number)
    since = 0.3 * 39
    send_one(middle, now=since)
    beat(middle, until=since + 1.0, heard=(0,))
    assert middle.counts.suspicions == 0
    beat(middle, until=since + 1.4, heard=(0,))
    assert middle.counts.suspicions == 1


def test_a_suspicion_is_over_with_the_connection(middle: Driven) -> None:
    """R5: who comes back is not blamed for what was."""
    send_one(middle)
    beat(middle, until=0.6, heard=(0,))
    middle.tell(PeerLost(2, outgoing=True, reason="gone"), now=0.7)
    assert not middle.policy.neighbour(2).suspected


# ---- what never arrived (C6, C7) -----------------------------------------------------------------


def test_a_missed_number_is_told_to_its_source_at_once(middle: Driven) -> None:
    """C7: number 0 of three was damaged."""
    for number in range(3):
        middle.receive(task(number, 1, number), now=0.01)
        middle.complete(False, now=0.01)
    commands = middle.tell(CreditReceived(2, Credit(OUT, 3, (1, 2), 5, missed=(0,))), now=0.05)
    assert of(SendLost, commands) == [SendLost(0, [lost(0, 1, "frame-lost: on the way to node 2")])]
    again = middle.tell(CreditReceived(2, Credit(OUT, 3, (1, 2), 5, missed=(0,))), now=0.06)
    assert of(SendLost, again) == []
    assert middle.counts.frames_missed == 1


def test_the_last_of_a_burst_is_asked_for(middle: Driven) -> None:
    """C6: no later number would show that it is missing."""
    send_one(middle)
    assert of(SendBlocked, beat(middle, until=0.15, heard=(0, 2))) == []
    assert of(SendBlocked, beat(middle, until=0.35, heard=(0, 2)))[0] == SendBlocked(2, OUT, 1)


def test_the_receiver_names_what_a_blocked_showed_missing(middle: Driven) -> None:
    """C6, C7."""
    (grant,) = of(GrantCredit, middle.tell(BlockedReceived(0, INTO, 2), now=0.01))
    assert grant.credit.missed == (0, 1)


def test_a_plane_that_answers_no_blocked_is_made_anew_each_time_later(middle: Driven) -> None:
    """R5: the neighbour is heard, its data plane is stuck."""
    send_one(middle)
    assert of(ResetLink, beat(middle, until=0.85, heard=(0, 2))) == []
    (reset,) = of(ResetLink, beat(middle, until=1.15, heard=(0, 2)))
    assert reset == ResetLink(2, "what we send there does not arrive")
    middle.tell(PeerUp(2, OUT + 1, outgoing=True), CreditReceived(2, Credit(OUT + 1, 0, (), 4)), now=2.0)
    middle.receive(task(6, 1, 1), now=2.0)
    middle.complete(False, now=2.0)
    assert of(ResetLink, beat(middle, until=3.55, heard=(0, 2))) == []
    assert len(of(ResetLink, beat(middle, until=3.85, heard=(0, 2)))) == 1


# ---- leaving (R6) --------------------------------------------------------------------------------


def test_a_draining_node_says_so_soon_and_finishes(middle: Driven) -> None:
    """R6."""
    middle.receive(task(5, 1, 0), now=0.0)
    assert middle.tell(DrainStarted(), now=0.01) == []
    assert middle.policy.next_wakeup() == pytest.approx(0.025)
    reports = of(SendReport, middle.tell(TimerFired(), now=0.03))
    assert {report.peer: report.report.accepting for report in reports} == {0: False, 2: False}
    assert not middle.policy.drained
    middle.complete(True, now=0.04)
    middle.tell(TimerFired(), now=0.2)
    assert middle.policy.drained


def test_who_leaves_grants_no_more_credit(middle: Driven) -> None:
    """R6: a neighbour that missed the Report, or connects anew, has nothing to send with."""
    middle.receive(task(5, 1, 0), now=0.0)
    (grant,) = of(GrantCredit, middle.tell(DrainStarted(), BlockedReceived(0, INTO, 1), now=0.01))
    assert (grant.credit.expected, grant.credit.limit) == (1, 4)  # as told before
    commands = middle.tell(PeerUp(0, INTO + 1, outgoing=False), now=0.02)
    commands += middle.complete(True, now=0.03) + middle.tell(TimerFired(), now=0.2)
    assert {granted.credit.limit for granted in of(GrantCredit, commands)} == {0}
    middle.receive(task(6, 1, 0), epoch=INTO + 1, now=0.3)
    assert middle.policy.held_count == 0


def test_who_leaves_still_tells_what_it_is_done_with(middle: Driven) -> None:
    """R6, C3: or its neighbours call lost, at its Bye, what it has handed over."""
    middle.receive(task(5, 1, 0), now=0.0)
    (held,) = of(GrantCredit, middle.tell(TimerFired(), now=0.1))
    assert held.credit.held == (0,)
    middle.tell(DrainStarted(), now=0.11)
    middle.tell(TimerFired(), now=0.14)
    middle.complete(False, now=0.15)
    assert not middle.policy.drained
    grants = of(GrantCredit, middle.tell(TimerFired(), now=0.25))
    assert [(grant.credit.held, grant.credit.limit) for grant in grants] == [((), 4)]
    assert middle.policy.drained


def test_nothing_is_sent_to_a_neighbour_that_does_not_accept(middle: Driven) -> None:
    """R6: until it accepts again."""
    middle.tell(ReportReceived(2, Report(0, 0, {}, {}, accepting=False)), now=0.0)
    middle.receive(task(5, 1, 0), now=0.0)
    assert of(Forward, middle.complete(False, now=0.01)) == []
    assert len(of(Forward, middle.tell(ReportReceived(2, LOAD), now=0.1))) == 1


def test_without_an_executor_tasks_go_elsewhere_or_back(make_node: MakeNode) -> None:
    """R6: stage 1 can be run by node 2, stage 2 by nobody else."""
    node = make_node(
        1,
        (1, 2),
        NeighbourConfig(0, lanes_in=(1, 2), window_in=8),
        NeighbourConfig(2, lanes_out=(1,), lanes_in=(), window_out=4),
        nearer={0: (0,)},
    )
    node.receive(task(0, 1, 0), task(1, 1, 1), task(2, 2, 2), now=0.0)
    commands = node.tell(StageFailed(node.last_run, "ExecutorLost: no device", executor_lost=True), now=0.01)
    assert [sent.key.sample for forward in of(Forward, commands) for sent in forward.tasks] == [0, 1]
    assert of(SendLost, commands) == [SendLost(0, [lost(2, 1, "executor-lost: node 1: ExecutorLost: no device")])]
    assert of(RunStage, commands) == []
    assert not node.policy.serving
    assert not node.policy.accepting


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (ReportReceived(1, Report(0, 0, {}, {}, accepting=False)), "node 1 takes no tasks: it leaves, or lost its executor"),
        (PeerLost(1, outgoing=True, reason="cut"), "node 1 is not connected"),
        (ReportReceived(1, LOAD), ""),
    ],
)
def test_an_expired_sample_names_whom_it_waited_for(make_node: MakeNode, event: Event, why: str) -> None:
    """R6, D3: it never left, so no Lost can say so."""
    node = source_node(make_node)
    node.tell(CreditReceived(1, Credit(OUT, 0, (), 0)), event, now=0.0)
    node.tell(SampleSubmitted(0, 0.5, 0.0), now=0.0)
    node.complete(False, now=0.01)
    (resolve,) = of(Resolve, node.tell(TimerFired(), now=0.5))
    assert resolve.cause == "no result after attempt 1" + (f" (waiting for stage 1: {why})" if why else "")


def test_an_expired_sample_names_the_executor_this_node_lost(make_node: MakeNode) -> None:
    """R6, D3."""
    node = source_node(make_node)
    node.tell(SampleSubmitted(0, 0.5, 0.0), now=0.0)
    node.tell(StageFailed(node.last_run, "ExecutorLost: no device", executor_lost=True), now=0.01)
    (resolve,) = of(Resolve, node.tell(TimerFired(), now=0.5))
    assert resolve.cause == "no result after attempt 1 (waiting for stage 0: this node lost its executor: ExecutorLost: no device)"


# ---- lies (R7) -----------------------------------------------------------------------------------


def test_credit_beyond_the_window_bans(middle: Driven) -> None:
    """R7: what is outstanding there is lost, and nothing is sent there unless the runtime lets it in again."""
    send_one(middle)
    commands = middle.tell(CreditReceived(2, Credit(OUT, 1, (), 6)), now=0.05)
    assert [command.peer for command in of(BanPeer, commands)] == [2]
    assert [row.key.sample for command in of(SendLost, commands) for row in command.rows] == [5]
    assert not middle.policy.neighbour(2).up
    assert of(BanPeer, middle.tell(CreditReceived(2, Credit(OUT, 1, (), 6)), now=0.06)) == []
    assert middle.counts.bans == 1


def source_node(make_node: MakeNode, *, alone: bool = True) -> Driven:
    config = SourceConfig(session=1, ladder=no_exit(3), admission="fixed")
    return make_node(0, (0,), NeighbourConfig(1, lanes_out=(1,), window_out=4, fed_by_us_alone=alone), source=config)


@pytest.mark.parametrize("sample", [0, 9], ids=["waits here", "never was"])
def test_a_result_for_what_never_left_bans(make_node: MakeNode, sample: int) -> None:
    """R7: of a neighbour that was given nothing but by us."""
    node = source_node(make_node)
    node.submit(0)
    commands = node.tell(ResultReceived(1, [answer(sample)]), now=0.01)
    assert [command.peer for command in of(BanPeer, commands)] == [1]
    assert node.policy.source is not None
    assert node.policy.source.open_count == 1


@pytest.mark.parametrize(("alone", "hops"), [(True, 1), (False, 0)], ids=["it passed it on", "others may give it tasks"])
def test_a_false_result_of_who_knows_whom_costs_its_bearer_nothing(make_node: MakeNode, alone: bool, hops: int) -> None:
    """R7: it is dropped and counted, and honest answers beside it are not."""
    node = source_node(make_node, alone=alone)
    node.submit(0)
    node.complete(False)
    commands = node.tell(ResultReceived(1, [replace(answer(9), hops=hops), answer(0)]), now=0.02)
    assert of(BanPeer, commands) == []
    assert [resolve.kind for resolve in of(Resolve, commands)] == ["result"]
    assert node.counts.false_results == 1


def test_who_passes_an_answer_on_adds_a_hop(middle: Driven) -> None:
    """R7."""
    commands = middle.tell(ResultReceived(2, [answer(1)]), now=0.01)
    assert commands == [SendResults(0, [replace(answer(1), hops=1)])]


def test_a_result_for_what_left_counts(make_node: MakeNode) -> None:
    """R7, D2: and a second one is no lie."""
    node = source_node(make_node)
    node.submit(0)
    node.complete(False)
    node.tell(ResultReceived(1, [answer(0)]), ResultReceived(1, [answer(0)]), now=0.02)
    assert (node.counts.bans, node.policy.source and node.policy.source.counts.second_results) == (0, 1)


# ---- other ways (R8) -----------------------------------------------------------------------------


def test_answers_go_beside_while_no_nearer_neighbour_is_up(make_node: MakeNode) -> None:
    """R8: but not what came from beside, or it would go in circles."""
    node = make_node(
        1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), NeighbourConfig(2), nearer={0: (0,)}, beside={0: (2,)}
    )
    node.tell(PeerUp(2, OUT, outgoing=True), now=0.0)
    assert node.tell(ResultReceived(2, [answer(1)]), now=0.01) == [SendResults(0, [replace(answer(1), hops=1)])]
    node.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.02)
    node.receive(task(5, 1, 0), epoch=INTO, now=0.03)
    node.tell(ResultReceived(2, [answer(2)]), now=0.04)
    assert [row.key.sample for _, row in node.policy._answers.stranded] == [2]
    commands = node.tell(PeerUp(0, INTO + 1, outgoing=False), now=0.05)
    assert of(SendResults, commands) == [SendResults(0, [replace(answer(2), hops=1)])]


def test_an_answer_found_here_goes_beside(make_node: MakeNode) -> None:
    """R8."""
    node = make_node(
        1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), NeighbourConfig(2), nearer={0: (0,)}, beside={0: (2,)}
    )
    node.tell(PeerUp(2, OUT, outgoing=True), now=0.0)
    node.receive(task(5, 1, 0), now=0.0)
    node.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.01)
    commands: list[Any] = of(SendResults, node.complete(True, now=0.02))
    assert [(command.peer, command.rows[0].key.sample) for command in commands] == [(2, 5)]
    assert commands[0].rows[0].service_seconds == about(0.02)

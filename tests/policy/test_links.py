"""Credit on its way, starving senders, silent neighbours (C5, C6, R5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.build import INTO, OUT, Driven, about, lost, task
from zpipe.model import Credit, Report
from zpipe.policy.messages import (
    BlockedReceived,
    CreditReceived,
    GrantCredit,
    PeerUp,
    ReportReceived,
    ResetLink,
    SendBlocked,
    SendLost,
    SendReport,
    TimerFired,
)
from zpipe.policy.state import NeighbourConfig

MakeNode = Callable[..., Driven]
LOAD = Report(0, 0, {}, {})


def of(kind: Any, commands: list[Any]) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


def test_a_new_connection_gets_credit_at_once(make_node: MakeNode) -> None:
    """C3, C5."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), up=False)
    assert node.tell(PeerUp(0, 10, outgoing=False), now=0.0)[0] == GrantCredit(0, Credit(10, 0, (), 4, {}, -1.0))


def test_credit_below_a_quarter_waits_for_the_report(make_node: MakeNode) -> None:
    """C5: window 8."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,)})
    node.receive(task(0, 1, 0), now=0.01)
    assert of(GrantCredit, node.complete(True, now=0.02)) == []
    assert node.policy.next_wakeup() == pytest.approx(0.1)
    commands = node.tell(TimerFired(), now=0.1)
    assert commands[0] == GrantCredit(0, Credit(INTO, 1, (), 9, {}, about(0.09)))
    assert node.policy.next_wakeup() == pytest.approx(1.1)


def starve(node: Driven, *, since: float) -> None:
    """Fills the window of 4 towards rank 2 and leaves one task waiting since then."""
    for number in range(5):
        node.receive(task(number, 1, number), now=since)
        node.complete(False, now=since)
    assert node.policy.output_length == 1


def test_a_starving_sender_says_so_after_one_interval_and_again_after_each(middle: Driven) -> None:
    """C6: Blocked names the next number."""
    starve(middle, since=0.05)
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.12)) == []
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.22)) == [SendBlocked(2, OUT, 4)]
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.33)) == [SendBlocked(2, OUT, 4)]
    assert middle.counts.blocked == 2


def test_credit_ends_the_starving(middle: Driven) -> None:
    """C6: even where it allows nothing new: the receiver is alive, and its window is full."""
    starve(middle, since=0.05)
    middle.tell(TimerFired(), now=0.12)
    middle.tell(CreditReceived(2, Credit(OUT, 4, (0, 1, 2, 3), 4)), now=0.2)
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.25)) == []
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.36)) == [SendBlocked(2, OUT, 4)]


def test_nobody_starves_with_nothing_to_send(middle: Driven) -> None:
    """C6: the waiting task was dropped, and what was sent is known to have arrived."""
    for number in range(5):
        middle.receive(task(number, 1, number, deadline=0.15), now=0.05)
        middle.complete(False, now=0.05)
    middle.tell(CreditReceived(2, Credit(OUT, 4, (0, 1, 2, 3), 4)), now=0.06)
    commands = middle.tell(TimerFired(), now=0.2)
    assert of(SendBlocked, commands) == []
    assert of(SendBlocked, middle.tell(TimerFired(), now=0.31)) == []
    assert middle.policy.output_length == 0


def test_blocked_is_answered_with_credit_at_once(middle: Driven) -> None:
    """C6: numbers 0 and 1 were lost; of another epoch it says nothing."""
    assert middle.tell(BlockedReceived(0, INTO + 1, 2), now=0.01) == []
    assert middle.tell(BlockedReceived(0, INTO, 2), now=0.01) == [GrantCredit(0, Credit(INTO, 2, (), 6, {}, -1.0, (0, 1)))]
    assert middle.tell(BlockedReceived(0, INTO, 2), now=0.02) == [GrantCredit(0, Credit(INTO, 2, (), 6, {}, -1.0, (0, 1)))]


# ---- silence -------------------------------------------------------------------------------------


def beat(node: Driven, *, until: float, heard: tuple[int, ...] = ()) -> list[Any]:
    """Runs whenever it wants to; every neighbour in `heard` is heard each time."""
    commands: list[Any] = []
    while (due := node.policy.next_wakeup()) is not None and due <= until:
        now = max(0.0, due)  # before its first turn it is due since ever
        commands += node.tell(*[ReportReceived(peer, LOAD) for peer in heard], TimerFired(), now=now)
    return commands


def test_a_silent_neighbour_is_reset_and_its_tasks_are_lost_in_the_same_turn(middle: Driven) -> None:
    """R5, R1: hang_seconds is 5."""
    middle.receive(task(5, 1, 0), now=0.0)
    middle.complete(False, now=0.0)
    beat(middle, until=4.95, heard=(0,))
    assert middle.counts.resets == 0
    commands = beat(middle, until=5.15, heard=(0,))
    assert of(ResetLink, commands) == [ResetLink(2, "nothing heard for 5.1 s")]
    assert of(SendLost, commands) == [SendLost(0, [lost(5, 1, "peer-lost: node 2: nothing heard for 5.1 s")])]
    assert middle.counts.resets == 1
    commands = beat(middle, until=20.0, heard=(0,))
    assert {command.peer for command in of(SendReport, commands)} == {0}
    assert of(ResetLink, commands) == []


def test_the_new_connection_gets_the_full_time(middle: Driven) -> None:
    """R5."""
    beat(middle, until=6.0, heard=(0,))
    middle.tell(PeerUp(2, OUT + 1, outgoing=True), now=6.5)
    assert of(ResetLink, beat(middle, until=11.5, heard=(0,))) == []
    assert [command.peer for command in of(ResetLink, beat(middle, until=12.6, heard=(0,)))] == [2]


def test_any_message_is_a_sign_of_life(middle: Driven) -> None:
    """R5: Credit, Blocked, a task."""
    for second in range(1, 20):
        now = float(second)
        middle.tell(CreditReceived(2, Credit(OUT, 0, (), 4)), BlockedReceived(0, INTO, 0), TimerFired(), now=now)
    assert middle.counts.resets == 0


def test_tasks_are_a_sign_of_life(middle: Driven) -> None:
    """R5."""
    for number in range(12):
        middle.receive(task(number, 1, number), now=number * 1.0)
        middle.complete(True, now=number + 0.01)
        middle.tell(ReportReceived(2, LOAD), TimerFired(), now=number + 0.5)
    assert middle.counts.resets == 0


def test_a_node_that_slept_does_not_blame_its_neighbours(middle: Driven) -> None:
    """R5: a minute in which it did not run itself."""
    beat(middle, until=3.0, heard=(0, 2))
    assert of(ResetLink, middle.tell(TimerFired(), now=63.0)) == []
    assert of(ResetLink, beat(middle, until=66.0, heard=(0,))) == []
    assert [command.peer for command in of(ResetLink, beat(middle, until=69.0, heard=(0,)))] == [2]


def test_a_neighbour_that_is_down_is_not_watched(make_node: MakeNode) -> None:
    """R5."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), up=False)
    assert beat(node, until=30.0) == []

"""Both ends of a link (L2, C1-C6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.build import OUT, Driven, task
from zpipe.model import Credit
from zpipe.policy.credit import IncomingLink, OutgoingLink
from zpipe.policy.messages import CreditReceived, SendCompleted
from zpipe.policy.state import NeighbourConfig


def sender(lanes: tuple[int, ...] = (1,), window: int = 4, *, limit: int | None = None, carried: Any = None) -> OutgoingLink:
    link = OutgoingLink(lanes, window)
    link.open(5)
    link.credit(Credit(5, 0, (), window if limit is None else limit, carried or {}), now=0.0)
    return link


def receiver(lanes: tuple[int, ...] = (1,), window: int = 4) -> IncomingLink:
    link = IncomingLink(lanes, window)
    link.open(5)
    link.credit(now=0.0)
    return link


def take(link: IncomingLink, *numbers: int, lane: int = 1) -> list[bool]:
    return [link.accept(task(number, lane, number), now=1.0) for number in numbers]


# ---- the sender ----------------------------------------------------------------------------------


def test_nothing_may_be_sent_before_the_first_credit() -> None:
    """C3."""
    link = OutgoingLink((1,), 4)
    assert not link.may_send(1)
    link.open(5)
    assert not link.may_send(1)
    link.check()


def test_the_limit_is_the_first_number_that_may_not_be_sent() -> None:
    """C3."""
    link = sender(limit=2)
    for sample in range(2):
        assert link.may_send(1)
        link.send(task(sample, 1), now=0.0)
    assert not link.may_send(1)
    assert list(link.outstanding) == [0, 1]
    link.check()


def test_each_lane_has_a_slot_that_the_others_cannot_take() -> None:
    """C2: window 3, lanes 1 and 2: one shared slot, and one each."""
    link = sender((1, 2), 3)
    link.send(task(0, 1), now=0.0)  # lane 1's own
    link.send(task(1, 1), now=0.0)  # the shared one
    assert not link.may_send(1)
    assert link.may_send(2)
    link.send(task(2, 2), now=0.0)
    assert not link.may_send(2)
    link.check()


def test_carried_tasks_count_for_their_lane() -> None:
    """C4: after a reconnection lane 1 still has two tasks there: its own slot and the shared one are taken."""
    link = sender((1, 2), 3, limit=1, carried={1: 2})
    assert not link.may_send(1)
    assert link.may_send(2)
    link.credit(Credit(5, 0, (), 2, {1: 1}), now=0.0)
    assert link.may_send(1)
    link.check()


def test_the_sender_forgets_what_is_below_expected_and_not_held() -> None:
    """C3: number 1 was released or lost, which is the same to the sender."""
    link = sender()
    for sample in range(4):
        link.send(task(sample, 1), now=0.0)
    link.credit(Credit(5, 3, (0, 2), 5), now=1.0)
    assert list(link.outstanding) == [0, 2, 3]
    assert link.may_send(1)
    link.check()


def test_a_repeated_or_older_credit_takes_nothing_back() -> None:
    """C3."""
    link = sender()
    link.send(task(0, 1), now=0.0)
    newer = Credit(5, 1, (), 5)
    link.credit(newer, now=1.0)
    assert link.credit(newer, now=1.0) == []
    assert link.credit(Credit(5, 0, (), 4), now=1.0) == []
    assert (link.limit, link.outstanding) == (5, {})
    link.check()


@pytest.mark.parametrize(
    ("credit", "believable"),
    [(Credit(5, 2, (), 6), False), (Credit(5, 0, (), 5), False), (Credit(5, 1, (), 5), True), (Credit(5, 0, (), 4), True)],
    ids=["expects more than was sent", "limit beyond the window", "all of it", "nothing new"],
)
def test_what_a_receiver_may_say(credit: Credit, believable: bool) -> None:
    """C3, R7."""
    link = sender()
    link.send(task(0, 1), now=0.0)
    assert link.believable(credit) == believable


def test_the_limit_of_credit_reaches_just_to_the_window() -> None:
    """C3: expected + window is believable, one more is not."""
    link = sender(limit=0)
    assert link.believable(Credit(5, 0, (), 4))
    assert not link.believable(Credit(5, 0, (), 5))


def test_round_trip_is_send_to_credit_less_the_holding_time() -> None:
    link = sender()
    link.send(task(0, 1), now=1.0)
    link.credit(Credit(5, 1, (0,), 4, {}, 0.3), now=1.5)
    assert link.round_trip_seconds == pytest.approx(0.2)
    link.send(task(1, 1), now=2.0)
    link.credit(Credit(5, 2, (0, 1), 4, {}, 0.0), now=2.6)
    assert link.round_trip_seconds == pytest.approx(0.2 + 0.4 / 8)


def test_a_credit_without_holding_time_measures_nothing() -> None:
    link = sender()
    link.send(task(0, 1), now=1.0)
    link.credit(Credit(5, 1, (0,), 4), now=1.5)
    assert link.round_trip_seconds == 0.0


def test_closing_returns_what_was_outstanding_and_ends_the_epoch() -> None:
    """R1, L1."""
    link = sender()
    for sample in range(2):
        link.send(task(sample, 1, attempt=3), now=0.0)
    assert [(sent.key.sample, sent.attempt) for sent in link.close()] == [(0, 3), (1, 3)]
    assert link.close() == []
    assert not link.may_send(1)
    link.open(6)
    assert (link.next_number, link.limit) == (0, 0)
    link.check()


# ---- the receiver --------------------------------------------------------------------------------


def test_a_repeat_is_dropped() -> None:
    """L2."""
    link = receiver()
    assert take(link, 0, 1, 1, 0) == [True, True, False, False]
    assert (link.repeats, link.held) == (2, {0: 1, 1: 1})
    link.check()


def test_a_gap_is_a_loss_and_costs_no_slot() -> None:
    """L2, C3: numbers 0 and 1 never came; their slots are free again."""
    link = receiver()
    assert take(link, 2) == [True]
    assert (link.gaps, link.expected, link.limit) == (2, 3, 6)
    assert link.due
    assert link.credit(now=1.0) == Credit(5, 3, (2,), 6, {}, 0.0, missed=(0, 1))
    link.check()


def test_a_number_at_the_told_limit_is_an_overrun() -> None:
    link = receiver()
    assert take(link, 4) == [False]
    assert take(link, 3) == [True]
    assert link.overruns == 1
    link.check()


def test_a_stage_that_is_no_lane_is_an_overrun() -> None:
    """L3."""
    link = receiver()
    assert take(link, 0, lane=2) == [False]
    assert (link.overruns, link.expected) == (1, 0)
    link.check()


def test_credit_waits_until_a_quarter_of_the_window_is_free() -> None:
    """C5: window 8."""
    link = receiver(window=8)
    take(link, *range(8))
    link.release(1, 0)
    assert not link.due
    assert link.credit_changed()
    link.release(1, 1)
    assert link.due
    assert link.credit(now=2.0) == Credit(5, 8, (2, 3, 4, 5, 6, 7), 10, {}, 1.0)
    assert not link.due
    assert not link.credit_changed()
    link.check()


def test_credit_is_due_at_once_when_a_lanes_last_task_goes_while_the_shared_slots_are_full() -> None:
    """C5: window 8, lanes 1 and 2: six shared."""
    link = receiver((1, 2), 8)
    take(link, *range(7), lane=1)
    take(link, 7, lane=2)
    link.release(1, 7)
    assert link.due


def test_credit_is_not_urgent_while_the_lane_has_more_tasks_or_shared_slots_are_left() -> None:
    """C5, the other side."""
    link = receiver((1, 2), 8)
    take(link, *range(6), lane=1)
    take(link, 6, 7, lane=2)
    link.release(1, 7)  # lane 2 still has number 6
    assert not link.due
    link = receiver((1, 2), 8)
    take(link, *range(6), lane=1)
    take(link, 6, lane=2)
    link.release(1, 6)  # five of six shared are taken
    assert not link.due


def test_after_a_reconnection_held_tasks_are_carried_and_keep_their_slots() -> None:
    """C4."""
    link = receiver((1, 2), 4)
    take(link, 0, 1, lane=1)
    take(link, 2, lane=2)
    link.open(6)
    assert link.due
    assert link.credit(now=1.0) == Credit(6, 0, (), 1, {1: 2, 2: 1}, -1.0)
    link.release(1, 0)
    assert link.due
    assert link.credit(now=1.0) == Credit(6, 0, (), 2, {1: 1, 2: 1}, -1.0)
    link.check()


def test_a_carried_task_that_goes_is_told_with_the_next_report() -> None:
    """C4, C5: below a quarter; a new one that came meanwhile hides nothing."""
    link = receiver(window=8)
    take(link, 0)
    link.open(6)
    link.credit(now=1.0)
    link.release(1, 0)
    take(link, 0)
    assert not link.due
    assert link.credit_changed()


def test_an_epoch_that_comes_again_does_not_mix_its_tasks_with_the_carried_ones() -> None:
    """A replayed Hello, or a peer whose clock went back; both tasks have number 0, and each frees its own slot."""
    link = receiver()
    take(link, 0)
    link.open(5)
    link.credit(now=1.0)
    assert take(link, 0) == [True]
    assert (len(link.held), len(link.carried)) == (1, 1)
    link.release(1, 0)
    assert (len(link.held), len(link.carried)) == (1, 0)
    link.release(2, 0)
    assert (len(link.held), len(link.carried)) == (0, 0)
    link.check()


def test_a_closed_link_owes_nobody_credit() -> None:
    link = receiver()
    take(link, 0, 1, 2, 3)
    link.close()
    link.release(1, 0)
    link.release(1, 1)
    assert not link.due
    assert not link.credit_changed()
    link.check()


def test_blocked_closes_the_gap_at_the_end() -> None:
    """C6: 0 came, 1 and 2 were lost, nothing behind them would show it."""
    link = receiver()
    take(link, 0)
    link.settle_blocked(3)
    assert (link.gaps, link.expected, link.limit) == (2, 3, 6)
    assert link.due
    link.check()


def test_blocked_without_a_gap_only_asks_for_credit() -> None:
    """C6."""
    link = receiver()
    take(link, 0)
    link.settle_blocked(1)
    assert (link.gaps, link.expected) == (0, 1)
    assert link.due
    link.check()


def test_a_blocked_beyond_the_limit_is_not_believed() -> None:
    """C6: nobody could have sent number 4; up to the limit itself is believed."""
    link = receiver()
    link.settle_blocked(5)
    assert (link.gaps, link.expected) == (0, 0)
    link.settle_blocked(4)
    assert (link.gaps, link.expected) == (4, 4)
    link.check()


def test_the_size_of_a_frame_reaches_its_links_estimate(make_node: Callable[..., Driven]) -> None:
    """A5: 4,000 bytes in a second instead of 400,000; of another epoch it means nothing."""
    for epoch, bits in ((OUT, 32_000.0), (OUT + 1, 3_200_000.0)):
        neighbour = NeighbourConfig(2, lanes_out=(2,), window_out=4, lane_bytes={2: 400_000.0}, bandwidth_bps=1.0)
        node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), neighbour, nearer={0: (0,)})
        node.receive(task(0, 1, 0))
        node.complete(False, now=0.0)
        node.tell(SendCompleted(2, epoch, 0, 1, 4_000))
        node.tell(CreditReceived(2, Credit(OUT, 1, (0,), 4, {}, 0.0)), now=1.0)
        link = node.policy.neighbour(2).outgoing
        assert link is not None
        assert link.bandwidth_bps == bits

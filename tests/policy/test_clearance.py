"""Clear to compute: slots of lower classes at a node that several may send to (C8)."""

from __future__ import annotations

from tests.policy.build import task
from zpipe.model import Credit
from zpipe.policy.clearance import Clearance
from zpipe.policy.credit import IncomingLink, OutgoingLink


def links(count: int, *, pool: int = 8, lower: tuple[int, ...] = (0,)) -> tuple[list[IncomingLink], Clearance]:
    made = [IncomingLink((1, 2), 16, highest=max(lower) + 1) for _ in range(count)]
    clearance = Clearance(lower, made, pool=pool)
    for link in made:
        link.open(5)
        link.credit(now=0.0)
    return made, clearance


def bring(link: IncomingLink, *numbers: int, priority: int = 0) -> None:
    for number in numbers:
        assert link.accept(task(number, 1, number, priority=priority), now=0.0)


def test_who_never_asked_is_told_nothing() -> None:
    (a, b), _ = links(2)
    assert (a.credit(now=0.0).clear, b.credit(now=0.0).clear) == ({0: 0}, {0: 0})


def test_a_task_on_a_reserved_slot_asks_and_alone_it_gets_all() -> None:
    (a, b), _ = links(2)
    bring(a, 0)
    assert (a.credit(now=0.0).clear, b.credit(now=0.0).clear) == ({0: 8}, {0: 0})


def test_two_that_asked_share_and_together_never_have_more_than_the_pool() -> None:
    (a, b), clearance = links(2)
    bring(a, 0)
    a.credit(now=0.0)
    bring(b, 0)
    assert b.credit(now=0.0).clear == {0: 0}, "all of it was told to the other"
    clearance.look_around()
    assert a.credit_changed()
    assert a.credit(now=0.1).clear == {0: 4}
    assert b.credit(now=0.1).clear == {0: 4}


def test_what_one_still_holds_is_not_told_to_the_other() -> None:
    (a, b), clearance = links(2)
    bring(a, 0)
    a.credit(now=0.0)
    bring(a, *range(1, 8))
    bring(b, 0)
    clearance.look_around()
    assert a.credit(now=0.1).clear == {0: 4}
    assert b.credit(now=0.1).clear == {0: 0}, "eight are here"
    for number in range(6):
        a.release(a.connection, number)
    assert b.credit(now=0.1).clear == {0: 4}


def test_who_stopped_asking_gives_its_share_back() -> None:
    (a, b), clearance = links(2)
    bring(a, 0)
    bring(b, 0)
    clearance.look_around()
    a.credit(now=0.1), b.credit(now=0.1)
    a.release(a.connection, 0)
    clearance.look_around()
    clearance.look_around()
    assert a.credit(now=0.3).clear == {0: 0}
    assert b.credit(now=0.3).clear == {0: 8}


def test_the_lower_of_several_classes_has_less_of_the_pool() -> None:
    (a,), _ = links(1, lower=(0, 1), pool=8)
    bring(a, 0)
    assert a.credit(now=0.0).clear == {0: 4, 1: 8}
    bring(a, 1, priority=1)
    assert (a.lower_held(0), a.lower_held(1)) == (1, 2)


def test_the_highest_class_takes_nothing_of_the_pool() -> None:
    (a,), _ = links(1)
    bring(a, 0, 1, 2, priority=1)
    assert a.lower == {}
    assert not a.asked


def test_a_slot_of_a_lower_class_that_came_free_is_told_before_a_quarter_of_the_window_did() -> None:
    (a,), _ = links(1)
    bring(a, 0, 1, 2)
    a.credit(now=0.0)
    a.release(a.connection, 0)
    assert not a.due
    a.release(a.connection, 1)
    assert a.due, "a quarter of what it is clear for"


def test_slots_of_an_earlier_connection_still_count() -> None:
    (a,), _ = links(1)
    bring(a, 0, 1)
    earlier = a.connection
    a.open(6)
    assert a.lower_held(0) == 2
    a.release(earlier, 0)
    assert a.lower_held(0) == 1
    a.check()


# ---- the sender --------------------------------------------------------------------------------


def sender() -> OutgoingLink:
    link = OutgoingLink((1, 2), 16, lower=(0,))
    link.open(5)
    link.credit(Credit(5, 0, (), 16), now=0.0)
    return link


def test_before_it_is_clear_one_of_each_lane_may_be_sent() -> None:
    link = sender()
    for lane in (1, 2):
        assert link.is_clear(lane, 0)
        link.send(task(lane, lane), now=0.0)
        assert not link.is_clear(lane, 0)
    assert link.is_clear(1, 1), "the highest class is always clear"


def test_who_is_owed_its_turn_may_ask_where_the_highest_class_fills_every_lane() -> None:
    """C8: one of it, and none more before that is gone or an answer came."""
    link = sender()
    for number, lane in enumerate((1, 2)):
        link.send(task(number, lane, priority=1), now=0.0)
    assert not link.is_clear(1, 0)
    assert link.is_clear(1, 0, owed=True)
    link.send(task(9, 1), now=0.0)
    assert not link.is_clear(2, 0, owed=True)
    link.credit(Credit(5, 3, (0, 1), 19), now=0.1)
    assert link.is_clear(2, 0, owed=True)


def test_it_sends_as_many_as_it_is_clear_for() -> None:
    link = sender()
    link.credit(Credit(5, 0, (), 16, clear={0: 3, 7: 9}), now=0.0)
    assert link.clear == {0: 3}, "of a class that no source has, it knows nothing"
    for number in range(3):
        assert link.is_clear(1, 0)
        link.send(task(number, 1), now=0.0)
    assert not link.is_clear(1, 0)
    link.send(task(9, 1, priority=1), now=0.0)
    link.credit(Credit(5, 4, (1, 2, 3), 20, clear={0: 3}), now=0.1)
    assert link.is_clear(1, 0)


def test_a_new_connection_is_clear_for_nothing_yet() -> None:
    link = sender()
    link.credit(Credit(5, 0, (), 16, clear={0: 3}), now=0.0)
    link.open(6)
    assert link.clear == {0: 0}

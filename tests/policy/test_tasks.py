"""Attempts that meet, and tasks nobody waits for (S1, S2, S5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.policy.build import Driven, lost, task
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import no_exit
from zpipe.policy.messages import Command, Discard, Forward, GrantCredit, PeerLost, RunStage, SendLost, StageFailed, TimerFired
from zpipe.policy.priority import PriorityOrder
from zpipe.policy.state import NeighbourConfig, NodeCounts
from zpipe.policy.tasks import TaskTable

MakeNode = Callable[..., Driven]


@pytest.fixture
def two(make_node: MakeNode) -> Driven:
    """Rank 1 hosts stages 1 and 2 of four; ranks 0 and 2 may send to both, rank 3 takes stage 3."""
    return make_node(
        1,
        (1, 2),
        NeighbourConfig(0, lanes_in=(1, 2), window_in=8),
        NeighbourConfig(2, lanes_in=(1, 2), window_in=8),
        NeighbourConfig(3, lanes_out=(3,), window_out=8),
        stage_count=4,
        nearer={0: (0,)},
    )


def running(node: Driven) -> list[tuple[int, int, int]]:
    return [(row.key.sample, row.stage, row.attempt) for run in node.policy._runs.values() for row in run.tasks]


# ---- S2 ------------------------------------------------------------------------------------------


def test_the_newcomer_at_an_earlier_stage_goes_and_leaves_its_attempt(two: Driven) -> None:
    """S2: the one here waits at stage 2."""
    two.receive(task(9, 1, 0))
    two.receive(task(0, 2, 1))
    assert Discard([777]) in two.receive(task(0, 1, 0, attempt=2, token=777), peer=2)
    assert (two.policy.held_count, two.counts.met_again) == (2, 1)
    two.complete(True)
    assert running(two) == [(0, 2, 2)]


def test_the_newcomer_at_the_same_stage_goes(two: Driven) -> None:
    """S2: also one of a lower attempt, which lowers nothing."""
    two.receive(task(0, 1, 0, attempt=3))
    two.receive(task(0, 1, 0, attempt=2), peer=2)
    assert running(two) == [(0, 1, 3)]
    assert (two.policy.held_count, two.policy.input_length) == (1, 0)


def test_the_newcomer_at_a_later_stage_replaces_one_that_waits(two: Driven) -> None:
    """S2: the waiting one's slot is free at once, its payload goes, its attempt lives on."""
    two.receive(task(9, 1, 0))
    two.receive(task(0, 1, 1, attempt=2, token=777))
    assert Discard([777]) in two.receive(task(0, 2, 0, attempt=1), peer=2)
    assert (two.policy.input_length, two.policy.held_count) == (1, 2)
    link = two.policy.neighbour(0).incoming
    assert link is not None
    assert link.held == {0: 1}
    two.complete(True)
    assert running(two) == [(0, 2, 2)]


def test_the_newcomer_at_a_later_stage_replaces_one_that_waits_for_a_neighbour(two: Driven) -> None:
    """S2, in O."""
    two.tell(PeerLost(3, outgoing=True, reason="cut"))
    two.receive(task(0, 2, 0))
    two.complete(False)
    assert two.policy.output_length == 1
    two.receive(task(0, 1, 0, attempt=2), peer=2)
    assert two.counts.met_again == 1
    assert (two.policy.output_length, two.policy.input_length) == (1, 0)


def test_the_newcomer_at_a_later_stage_lets_one_that_runs_end_quietly(two: Driven) -> None:
    """S2: the slot of the running one is free when its run is over."""
    two.receive(task(0, 1, 0, attempt=2, token=777))
    two.receive(task(0, 2, 0, attempt=1), peer=2)
    assert (two.policy.held_count, running(two)) == (1, [(0, 1, 2)])
    commands = two.complete(True)
    assert Discard([777]) in commands
    assert not any(isinstance(command, GrantCredit) and command.peer == 2 for command in commands)
    assert running(two) == [(0, 2, 2)]
    assert two.counts.stale == 1


def test_a_replaced_attempt_that_fails_is_no_loss(two: Driven) -> None:
    """S2, R4: attempt 2 lives on at stage 2."""
    two.receive(task(0, 1, 0, attempt=2))
    two.receive(task(0, 2, 0, attempt=1), peer=2)
    commands = two.tell(StageFailed(0, "boom"))
    assert [type(command) for command in commands] == [Discard, RunStage]


def test_a_replaced_attempt_in_a_failed_batch_does_not_run_again(make_node: MakeNode) -> None:
    """S2, R4."""
    node = make_node(
        1,
        (1, 2),
        NeighbourConfig(0, lanes_in=(1, 2), window_in=8),
        NeighbourConfig(2, lanes_in=(2,), window_in=8),
        max_batch=4,
        nearer={0: (0,)},
    )
    node.receive(task(0, 1, 0), task(1, 1, 1))
    node.receive(task(0, 2, 0), peer=2)
    node.tell(StageFailed(0, "boom"))
    assert running(node) == [(1, 1, 1)]
    node.complete(True)
    assert running(node) == [(0, 2, 1)]


def test_parts_of_a_sample_do_not_meet(two: Driven) -> None:
    """S2."""
    two.receive(task(0, 1, 0), task(0, 1, 1, part=1))
    assert (two.policy.held_count, two.counts.met_again) == (2, 0)


def test_the_one_that_stays_has_the_later_deadline(two: Driven) -> None:
    """S2, S5: each deadline is an estimate; the attempt the source counts on must not go with the other's."""
    two.receive(task(9, 1, 0))
    two.receive(task(0, 1, 1, deadline=0.05))
    two.receive(task(0, 1, 0, attempt=2, deadline=0.09), peer=2)
    two.complete(True, now=0.06)
    assert running(two) == [(0, 1, 2)]


# ---- S5 ------------------------------------------------------------------------------------------


def discards(commands: list[Command]) -> list[int]:
    return [token for command in commands if isinstance(command, Discard) for token in command.tokens]


def test_a_task_past_its_deadline_is_dropped_on_arrival(two: Driven) -> None:
    """S5: at the deadline itself too."""
    assert discards(two.receive(task(0, 1, 0, deadline=1.0), now=1.0)) == [100]
    assert two.counts.stale == 1


def test_a_task_below_oldest_is_dropped(two: Driven) -> None:
    """S5: a later task told that everything below 5 is over; 5 itself is open."""
    two.receive(task(9, 1, 0, oldest=5))
    assert discards(two.receive(task(4, 1, 1))) == [101]
    assert discards(two.receive(task(5, 1, 2))) == []


def test_oldest_never_falls(two: Driven) -> None:
    """S5: a task that overtook another."""
    two.receive(task(9, 1, 0, oldest=5), task(8, 1, 1, oldest=2))
    assert discards(two.receive(task(4, 1, 2))) == [102]


def test_oldest_counts_for_its_own_source_only(make_node: MakeNode) -> None:
    """S5."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,), 5: (0,)})
    node.receive(task(9, 1, 0, oldest=5))
    assert discards(node.receive(task(4, 1, 1, source=5))) == []


def test_a_newer_session_ends_the_older(two: Driven) -> None:
    """S1, S5: sample 3 of session 2 counts though 9 of session 1 was higher; session 1's tasks go."""
    two.receive(task(9, 1, 0, oldest=5))
    two.receive(task(3, 1, 1, session=2))
    assert discards(two.receive(task(10, 1, 2, oldest=6))) == [102]
    two.complete(False)  # sample 9 ran meanwhile
    assert running(two) == [(3, 1, 1)]


def test_waiting_tasks_nobody_waits_for_go_with_the_next_report(two: Driven) -> None:
    """S5: in I and in O, while the executor is busy."""
    two.tell(PeerLost(3, outgoing=True, reason="cut"))
    two.receive(task(0, 2, 0, deadline=0.15))
    two.complete(False)
    two.receive(task(1, 1, 1), task(2, 1, 2, deadline=0.15))
    assert (two.policy.input_length, two.policy.output_length) == (1, 1)
    commands = two.tell(TimerFired(), now=0.2)
    assert sorted(discards(commands)) == [100, 102]
    assert (two.policy.input_length, two.policy.output_length, two.policy.held_count) == (0, 0, 1)


def test_a_stale_head_does_not_go_out(two: Driven) -> None:
    """S5."""
    two.tell(PeerLost(3, outgoing=True, reason="cut"))
    two.receive(task(0, 2, 0, deadline=0.03), task(1, 2, 1))
    two.complete(False, now=0.01)
    two.complete(False, now=0.02)
    forwards = [command for command in two.connect(3, epoch=21, now=0.04) if isinstance(command, Forward)]
    assert [row.key.sample for forward in forwards for row in forward.tasks] == [1]


def test_a_source_is_forgotten_after_the_last_deadline_heard_of(two: Driven) -> None:
    """S5: a board without a clock of its own came back with a lower session."""
    two.receive(task(0, 1, 0, session=7, deadline=30.0), task(1, 1, 1, session=7, deadline=20.0))
    two.complete(True)
    two.complete(True)
    two.tell(TimerFired(), now=25.0)
    assert discards(two.receive(task(0, 1, 2, session=3, deadline=59.0), now=29.0)) == [102]
    two.tell(TimerFired(), now=30.0)
    assert discards(two.receive(task(0, 1, 3, session=3, deadline=60.0), now=30.5)) == []


def test_a_session_that_never_was_shuts_out_the_right_one_for_a_minute_at_most(two: Driven) -> None:
    """S5: whoever said it."""
    two.receive(task(0, 1, 0, session=2**63 - 1, deadline=1e9))
    two.complete(True)
    two.tell(TimerFired(), now=59.0)
    assert discards(two.receive(task(0, 1, 1, session=3), now=59.5)) == [101]
    two.tell(TimerFired(), now=61.0)
    assert discards(two.receive(task(0, 1, 2, session=3), now=61.5)) == []


def shut_out(commands: list[Command]) -> list[tuple[int, int]]:
    return [(row.key.sample, row.shut_out_by) for sent in commands if isinstance(sent, SendLost) for row in sent.rows]


def test_what_one_link_says_of_a_source_shuts_out_no_other_link(two: Driven) -> None:
    """S5: a liar can harm what it passes on itself, and no more."""
    two.receive(task(0, 1, 0, session=2**63 - 1), peer=2)
    assert discards(two.receive(task(1, 1, 0, session=3), peer=0)) == []


def test_what_comes_and_is_dropped_as_old_is_told_to_its_source(two: Driven) -> None:
    """S5: of an earlier session, or below the lowest open number; what is too late is no news."""
    two.receive(task(5, 1, 0, session=7, oldest=4))
    commands = two.receive(task(6, 1, 1, session=3), task(3, 1, 2, session=7), task(7, 1, 3, session=3, deadline=0.5), now=1.0)
    assert shut_out(commands) == [(6, 7), (3, 7)]


def test_what_was_held_and_grew_old_is_told_to_nobody(two: Driven) -> None:
    """S5: its source said so."""
    two.receive(task(0, 1, 0), task(1, 1, 1))
    assert shut_out(two.receive(task(5, 1, 2, oldest=5)) + two.tell(TimerFired(), now=1.0)) == []


def test_a_samples_own_source_drops_what_it_does_not_know(make_node: MakeNode) -> None:
    """S5: nobody submits at this node, or not any more."""
    node = make_node(0, (0, 2), NeighbourConfig(1, lanes_in=(2,), window_in=4))
    assert discards(node.receive(task(0, 2, 0), peer=1)) == [100]


def test_a_source_drops_its_own_tasks_of_an_older_session(make_node: MakeNode) -> None:
    """S1, S5: sample 0 is open in session 1; a ring brings sample 0 of session 0."""
    node = make_node(
        0, (0, 2), NeighbourConfig(1, lanes_in=(2,), window_in=4), source=SourceConfig(1, no_exit(3), admission="fixed")
    )
    node.submit(0)
    assert discards(node.receive(task(0, 2, 0, session=0), peer=1)) == [100]


@pytest.mark.parametrize(("wanted", "taken"), [((), 1), ((3,), 1), ((1, 2, 3), 3), ((1,), 2), ((2, 3), 1), ((1, 2), 3)])
def test_what_nobody_takes_is_taken_back_first_then_what_is_worth_least_to_a_link(wanted: tuple[int, ...], taken: int) -> None:
    """A3: lane 1 serves a link best, lane 3 worst; the head of lane 1 is the oldest."""
    table = TaskTable(rank=1, stages=(1, 2, 3), lanes_out=(1, 2, 3), incoming={}, is_current=lambda key: True, counts=NodeCounts())
    for lane in (1, 2, 3):
        row = task(lane, lane)
        table.hold(row)
        table.to_output(row, float(lane))
    assert table.take_back(lambda lane: lane in wanted)
    assert [stage for stage, queue in table.input.items() if queue] == [taken]
    assert (table.input_length, table.output_length) == (1, 2)


def test_what_another_node_must_run_is_not_taken_back() -> None:
    """A3."""
    table = TaskTable(rank=1, stages=(1,), lanes_out=(1, 2), incoming={}, is_current=lambda key: True, counts=NodeCounts())
    row = task(0, 2)
    table.hold(row)
    table.to_output(row, 0.0)
    assert not table.take_back(lambda lane: True)


def test_lost_rows_name_the_attempt_that_was_sent(two: Driven) -> None:
    """R1, S2."""
    two.receive(task(0, 2, 0, attempt=4))
    two.complete(False)
    (told,) = two.tell(PeerLost(3, outgoing=True, reason="cut"))
    assert told.rows == [lost(0, 4, "peer-lost: node 3: cut")]  # type: ignore[union-attr]


# ---- A3 where A7 orders ----------------------------------------------------------------------------


def _ranked(min_share: float) -> TaskTable:
    """Stages 0 and 1 hosted here and by a neighbour, classes 0, 1 and 2; a task of the highest waits in I."""
    table = TaskTable(
        rank=1,
        stages=(0, 1),
        lanes_out=(0, 1),
        incoming={},
        is_current=lambda key: True,
        counts=NodeCounts(),
        order=PriorityOrder((0, 1, 2), min_share=min_share, max_batch_low=0),
    )
    table.to_input(replace(task(0, 1), priority=2), 0.0)
    return table


def _classes(table: TaskTable) -> list[int]:
    return sorted(waiting.priority for queue in table.input.values() for waiting in queue)


def test_a_class_that_waits_in_o_alone_waits_here_too_where_it_is_owed_a_share() -> None:
    """A3, A7: one of each, whichever lane it is in; nobody else runs what O keeps for a neighbour that never has room."""
    table = _ranked(0.05)
    for sample, stage, priority in ((1, 1, 0), (2, 1, 0), (3, 1, 1), (4, 0, 1), (5, 1, 1)):
        table.to_output(replace(task(sample, stage), priority=priority), float(sample))
    for _ in range(2):  # the second time all are there
        table.take_back_ranked(8)
        assert _classes(table) == [0, 1, 2]
        assert (table.input_length, table.output_length) == (3, 3)
    assert {waiting.key.sample for queue in table.input.values() for waiting in queue} == {0, 1, 3}


def test_a_lower_class_alone_in_o_waits_here_too_though_only_the_highest_is_in_i() -> None:
    """A3, A7: else it would be owed nothing at a node where the highest class never ends."""
    table = _ranked(0.05)
    table.to_output(replace(task(1, 1), priority=0), 1.0)
    table.take_back_ranked(8)
    assert _classes(table) == [0, 2]


def test_of_a_class_that_waits_in_i_and_in_o_who_came_first_is_next_here() -> None:
    table = _ranked(0.05)
    for sample, since in ((1, 1.0), (2, 2.0), (3, 9.0)):
        table.to_output(replace(task(sample, 1), priority=0), since)
    table.to_input(replace(task(4, 1), priority=0), 3.0)
    for _ in range(2):
        table.take_back_ranked(8)
        assert sorted(waiting.key.sample for waiting in table.input[1]) == [0, 1, 4]


def test_where_nothing_is_owed_only_the_first_of_all_is_taken_back() -> None:
    table = _ranked(0.0)
    table.to_output(replace(task(1, 1), priority=0), 0.0)
    table.take_back_ranked(8)
    assert _classes(table) == [2]
    table.to_output(replace(task(2, 0), priority=2), -1.0)
    table.take_back_ranked(8)
    assert _classes(table) == [2, 2]

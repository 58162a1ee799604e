"""One node between samples of several classes: what it runs and sends first, and where to (A6-A9, C8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.build import OUT, Driven, DrivenSource, about, answer, task
from zpipe.model import Credit, Report
from zpipe.policy.messages import (
    Command,
    CreditReceived,
    Forward,
    GrantCredit,
    PeerLost,
    ReportReceived,
    RunStage,
    SendReport,
    SendResults,
    StageCompleted,
    TimerFired,
)
from zpipe.policy.state import NeighbourConfig

MakeNode = Callable[..., Driven]
FULL = {"reach": (1.0, 1.0, 1.0), "macs": (1.0, 1.0, 1.0)}
TO_2 = NeighbourConfig(2, lanes_out=(2,), window_out=16, lane_bytes={2: 1250.0}, bandwidth_bps=1e6, stages=(2,))  #: 10 ms a task


def make(make_node: MakeNode, *neighbours: NeighbourConfig, stages: tuple[int, ...] = (1,), **config: Any) -> Driven:
    """Rank 1 with an upstream neighbour 0, two classes, and these others; clear to send them 8 of the lower class."""
    defaults = {"offload": "pa-mdi", "order": "priority", "classes": (0, 1), "min_share": 0.0, "nearer": {0: (0,)}, **FULL}
    upstream = NeighbourConfig(0, lanes_in=stages, window_in=32, stages=(0,))
    node = make_node(1, stages, upstream, *neighbours, **{**defaults, **config})
    for neighbour in neighbours:
        node.tell(CreditReceived(neighbour.rank, Credit(OUT, 0, (), neighbour.window_out, clear={0: 8})))
    return node


def sent(commands: list[Command]) -> list[tuple[int, list[tuple[int, int]]]]:
    """[(peer, [(sample, class)])] of each frame."""
    return [
        (each.peer, [(task.key.sample, task.priority) for task in each.tasks]) for each in commands if isinstance(each, Forward)
    ]


def ran(commands: list[Command]) -> list[int]:
    return [task.key.sample for each in commands if isinstance(each, RunStage) for task in each.tasks]


# ---- order -------------------------------------------------------------------------------------


def test_what_runs_next_is_of_the_higher_class(make_node: MakeNode) -> None:
    """A7."""
    node = make(make_node, stages=(1, 2))
    assert ran(node.receive(task(0, 1, 0), task(1, 1, 1), task(2, 1, 2, priority=1))) == [2]
    node.receive(task(3, 2, 3, priority=1), now=0.001)
    order = [ran(node.complete(True, now=0.01 * step))[0] for step in (1, 2, 3)]
    assert order == [3, 0, 1]


def test_an_answer_says_how_long_it_waited_for_a_lower_class_which_is_no_congestion(make_node: MakeNode) -> None:
    """A7: the lower one runs from 0 to 0.30, the higher one came at 0.02; a window would halve for nothing."""
    node = make(make_node, stages=(2,), min_share=0.0)
    node.receive(task(0, 2, 0))
    node.receive(task(1, 2, 1, priority=1), now=0.02)
    node.complete(True, now=0.30)
    [row] = [row for each in node.complete(True, now=0.31) if isinstance(each, SendResults) for row in each.rows]
    assert (row.queued_seconds, row.yielded_seconds) == (about(0.28), about(0.28))
    driven = DrivenSource(admission="aimd", options={"window": 4.0})
    driven.submit(*range(4))
    driven.start()
    windows = [4.0]
    for sample, yielded in enumerate((0.28, 0.0)):
        row = answer(sample)
        row.queued_seconds, row.yielded_seconds = 0.28, yielded
        driven.source.result(row, now=0.4 + sample)
        windows.append(driven.source.admission.window_samples or 0.0)
    assert windows[1] > windows[0]
    assert windows[2] < windows[1]


def test_a_frame_is_of_one_class_and_the_higher_one_goes_first(make_node: MakeNode) -> None:
    """A7: all four wait for the link's first Credit."""
    node = make(make_node, TO_2, max_batch=4)
    node.tell(PeerLost(2, outgoing=True, reason="cut"))
    node.receive(*[task(sample, 1, sample, priority=sample % 2) for sample in range(4)])
    node.complete(False, False)
    node.complete(False, False, now=0.02)
    commands = node.connect(2, epoch=OUT + 1, now=0.03)
    assert sent(commands)[0] == (2, [(1, 1), (3, 1)])


def test_a_link_is_given_nothing_of_a_lower_class_before_it_is_done_with_what_it_has(make_node: MakeNode) -> None:
    """A7: 10 ms a task; the policy wakes when the link is free, and what is of the higher class does not wait."""
    node = make(make_node, TO_2)
    node.receive(*[task(sample, 1, sample) for sample in range(3)], task(9, 1, 3, priority=1))
    assert sent(node.complete(False, now=0.010)) == [(2, [(9, 1)])]
    assert sent(node.complete(False, now=0.011)) == []
    assert node.policy.next_wakeup() == about(0.020)
    assert sent(node.tell(TimerFired(), now=0.020)) == [(2, [(0, 0)])]


@pytest.mark.parametrize("clear", [8, 0])
def test_on_a_link_a_lower_class_gets_its_share(make_node: MakeNode, clear: int) -> None:
    """A7, C8: every tenth task, though the higher class always has some waiting, and whether or not a Credit clears it for more."""
    node = make(make_node, NeighbourConfig(2, lanes_out=(2,), window_out=4, stages=(2,)), min_share=0.1)
    queue, numbers, order = node.policy._tasks.output[2], iter(range(10_000)), list[int]()
    for step in range(100):
        now = 0.01 * step
        for priority in (1, 1, 1, 1, 1, 0):
            if sum(waiting.priority == priority for waiting in queue) < 5:
                sample = next(numbers)
                commands = node.receive(task(sample, 1, sample, priority=priority), now=now) + node.complete(False, now=now)
                order += [each for _, frame in sent(commands) for _, each in frame]
        credit = Credit(OUT, len(order), (), len(order) + 4, clear={0: clear})
        order += [each for _, frame in sent(node.tell(CreditReceived(2, credit), now=now)) for _, each in frame]
    assert len(order) > 300
    assert order.count(0) == pytest.approx(0.1 * len(order), abs=3)


def test_on_a_link_who_waited_long_enough_goes_before_the_higher_class(make_node: MakeNode) -> None:
    """A7, C8: 50 ms make up for a class; nothing is owed, and the one lane is the higher class's all the time."""
    node = make(make_node, NeighbourConfig(2, lanes_out=(2,), window_out=2, stages=(2,)), ageing_seconds=0.05)
    node.tell(CreditReceived(2, Credit(OUT, 0, (), 2, clear={0: 0})))
    order: list[int] = []
    for step in range(12):
        now = 0.01 * step
        commands = node.receive(task(step, 1, step, priority=int(step != 2)), now=now) + node.complete(False, now=now)
        if step > 3:
            commands += node.tell(CreditReceived(2, Credit(OUT, len(order), (len(order) - 1,), len(order) + 1)), now=now)
        order += [sample for _, frame in sent(commands) for sample, _ in frame]
    assert order == [0, 1, 3, 4, 5, 6, 2, 7, 8, 9]


def test_a_class_that_may_not_go_holds_up_none_below_it(make_node: MakeNode) -> None:
    """The higher class does better here; the lower one goes."""
    both = NeighbourConfig(2, lanes_out=(1, 2), window_out=16, stages=(1, 2))
    node = make(make_node, both, stages=(1, 2))
    slow = Report(0, 0, {1: 0.004, 2: 0.004}, {}, ahead_seconds={1: 0.006})
    node.tell(ReportReceived(2, slow))
    node.receive(*[task(sample, 1, sample) for sample in range(3)], task(9, 1, 3, priority=1))
    commands = node.complete(False, now=0.01)
    assert sent(commands) == []
    assert ran(commands) == [9], "its next stage, before anything lower"


def test_the_first_of_what_waits_in_o_is_taken_back_before_what_is_lower_in_i(make_node: MakeNode) -> None:
    """A3 where A7 orders."""
    node = make(make_node, NeighbourConfig(2, lanes_out=(1, 2), window_out=16, stages=(1, 2)), stages=(1, 2))
    node.tell(PeerLost(2, outgoing=True, reason="cut"))
    node.receive(*[task(sample, 1, sample) for sample in range(3)], task(9, 1, 3, priority=1))
    assert ran(node.complete(False, now=0.01)) == [9]


def test_the_second_of_two_runs_is_of_the_higher_class_too_where_that_waits_in_o(make_node: MakeNode) -> None:
    """A3 where A7 orders: with I alone in view it would be the lower one's."""
    node = make(make_node, NeighbourConfig(2, lanes_out=(1, 2), window_out=16, stages=(1, 2)), stages=(1, 2), runs=2)
    node.tell(PeerLost(2, outgoing=True, reason="cut"))
    node.receive(task(0, 1, 0, priority=1), task(1, 1, 1, priority=1), *[task(sample, 1, sample) for sample in (2, 3)])
    done = [StageCompleted(run, [False], [7], [0.9], 0.004) for run in node.policy._runs]
    assert ran(node.tell(*done, now=0.01)) == [0, 1]


# ---- where to ----------------------------------------------------------------------------------


def pair(make_node: MakeNode, *, ahead: tuple[dict[int, float], dict[int, float]], **config: Any) -> Driven:
    """Ranks 2 and 3 host what rank 1 hosts not."""
    node = make(make_node, *[NeighbourConfig(rank, lanes_out=(2,), window_out=16, stages=(2,)) for rank in (2, 3)], **config)
    for rank, seconds in zip((2, 3), ahead, strict=True):
        node.tell(ReportReceived(rank, Report(0, 0, {2: 0.01}, {}, ahead_seconds=seconds)))
    return node


@pytest.mark.parametrize(("priority", "peer"), [(0, 3), (1, 2)])
def test_only_what_is_of_its_class_or_above_goes_before_a_task(make_node: MakeNode, priority: int, peer: int) -> None:
    """A6: rank 2 has much of the lower class, rank 3 a little of the higher."""
    node = pair(make_node, ahead=({0: 0.5}, {1: 0.1}))
    node.receive(task(0, 1, 0, priority=priority))
    assert [to for to, _ in sent(node.complete(False, now=0.004))] == [peer]


def test_what_was_told_to_be_ahead_shrinks_as_time_goes_by(make_node: MakeNode) -> None:
    """A6: work is done there meanwhile."""
    node = pair(make_node, ahead=({1: 0.05}, {}))
    node.receive(*[task(sample, 1, sample, priority=1) for sample in range(8)])
    peers = [sent(node.complete(False, now=0.004 * step))[0][0] for step in range(1, 8)]
    assert peers[0] == 3
    assert 2 in peers, "its 50 ms were over, while those sent to 3 wait there"


def test_a_faster_node_is_worth_a_queue(make_node: MakeNode) -> None:
    """A6: 40 ms there, behind 20 ms, against 100 ms here at once: what a task takes itself counts."""
    node = make(
        make_node,
        NeighbourConfig(2, lanes_out=(1, 2), window_out=16, stages=(1, 2)),
        stages=(1, 2),
        service_seconds={1: 0.01, 2: 0.1},
    )
    node.tell(ReportReceived(2, Report(0, 0, {1: 0.004, 2: 0.04}, {}, ahead_seconds={0: 0.03})))
    node.receive(task(0, 1, 0))
    assert sent(node.complete(False, now=0.01)) == [(2, [(0, 0)])]


def test_who_withholds_a_stage_is_spared_where_there_is_another(make_node: MakeNode) -> None:
    """A8; and only for that class."""
    node = pair(make_node, ahead=({}, {0: 0.5, 1: 0.5}))
    node.tell(ReportReceived(2, Report(0, 0, {2: 0.01}, {}, withheld={0: 0b100})))
    node.receive(task(0, 1, 0), task(1, 1, 1, priority=1))
    assert sent(node.complete(False, now=0.004)) == [(2, [(1, 1)])]
    assert sent(node.complete(False, now=0.008)) == [(3, [(0, 0)])]


def test_who_alone_hosts_a_stage_gets_it_though_it_withholds_it(make_node: MakeNode) -> None:
    """A8: nothing is lost by it."""
    node = pair(make_node, ahead=({}, {}))
    node.tell(
        ReportReceived(2, Report(0, 0, {2: 0.01}, {}, withheld={0: 0b100})),
        PeerLost(3, outgoing=True, reason="cut"),
        PeerLost(3, outgoing=False, reason="cut"),
    )
    node.receive(task(0, 1, 0))
    assert sent(node.complete(False, now=0.004)) == [(2, [(0, 0)])]


def test_a_node_that_looks_ahead_tells_what_is_ahead_by_class(make_node: MakeNode) -> None:
    """A6: two wait, one runs; each has stages 1 and 2 left."""
    node = make(make_node, stages=(1, 2), service_seconds={1: 0.01, 2: 0.02})
    node.receive(task(0, 1, 0, priority=1), task(1, 1, 1), task(2, 2, 2))
    (report,) = [each.report for each in node.tell(TimerFired(), now=2.0) if isinstance(each, SendReport)]
    assert report.ahead_seconds == {0: about(0.05), 1: about(0.02)}, "what runs is nearly done with its first"


def test_who_is_not_clear_for_a_lower_class_asks_for_it(make_node: MakeNode) -> None:
    """C8, C6: a Credit that was lost is told again."""
    node = make(make_node, TO_2, max_batch=1)
    node.tell(CreditReceived(2, Credit(OUT, 0, (), 16, clear={0: 0})))
    node.receive(task(0, 1, 0), task(1, 1, 1))
    assert sent(node.complete(False, now=0.01)) == [(2, [(0, 0)])], "on the slot that every lane has"
    assert sent(node.complete(False, now=0.05)) == []
    kinds = [type(each).__name__ for each in node.tell(TimerFired(), now=0.3)]
    assert "SendBlocked" in kinds


def test_who_brought_a_lower_class_is_told_for_how_many_it_is_clear(make_node: MakeNode) -> None:
    """C8: with the Credit."""
    node = make(make_node, stages=(1, 2), max_batch=1)
    node.receive(task(0, 1, 0))
    (grant,) = [each for each in node.complete(True, now=0.01) if isinstance(each, GrantCredit)]
    assert grant.credit.clear == {0: 32 // 2 + 2}


# ---- chains ------------------------------------------------------------------------------------


def chained(make_node: MakeNode) -> Driven:
    """Rank 1 hosts all of six stages of a chain 0 - 1 - 2 of equal nodes, and is linked with rank 3 as well."""
    neighbours = [NeighbourConfig(rank, lanes_out=(2, 3, 4, 5), window_out=16, stages=tuple(range(6))) for rank in (2, 3)]
    node = make_node(
        1,
        tuple(range(6)),
        NeighbourConfig(0, lanes_in=tuple(range(6)), window_in=32, stages=tuple(range(6))),
        *neighbours,
        stage_count=6,
        offload="ar-mdi",
        macs=(1.0,) * 6,
        reach=(1.0,) * 6,
        chains={0: (0, 2)},
        nearer={0: (0,)},
        service_seconds=dict.fromkeys(range(6), 0.004),
    )
    for rank, rates in ((0, (250.0, 750.0)), (2, (750.0, 250.0))):
        node.tell(ReportReceived(rank, Report(0, 0, dict.fromkeys(range(6), 0.004), {}, rates={0: rates})))
    node.tell(TimerFired(), now=1.05)
    return node


def test_a_node_of_a_chain_runs_its_part_and_passes_the_rest_on(make_node: MakeNode) -> None:
    """A9: a third of six stages each; rank 3 is no further on the chain, however idle it is."""
    node = chained(make_node)
    node.receive(task(0, 2, 0), now=1.1)
    assert ran(node.complete(False, now=1.11)) == [0]
    assert sent(node.complete(False, now=1.12)) == [(2, [(0, 0)])]


def test_where_the_next_of_a_chain_is_gone_another_takes_it(make_node: MakeNode) -> None:
    """A9."""
    node = chained(make_node)
    node.tell(PeerLost(2, outgoing=True, reason="cut"), PeerLost(2, outgoing=False, reason="cut"), now=1.1)
    node.receive(task(0, 3, 0), now=1.1)
    assert sent(node.complete(False, now=1.11)) == [(3, [(0, 0)])]


def test_what_waits_for_the_next_of_a_chain_is_not_taken_back(make_node: MakeNode) -> None:
    """A9: it is another's part; the executor stays idle."""
    node = chained(make_node)
    node.tell(CreditReceived(2, Credit(OUT, 0, (), 16)), now=1.1)
    node.receive(*[task(sample, 3, sample) for sample in range(20)], now=1.1)
    for step in range(19):
        node.complete(False, now=1.1 + 0.01 * step)
    assert ran(node.complete(False, now=1.3)) == []
    assert node.policy.output_length == 7, "one slot is each other lane's"

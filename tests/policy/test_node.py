"""One node, events in and commands out (S, L, C, R, A)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.build import INTO, OUT, Driven, about, answer, gate, key, lost, task
from zpipe.model import Credit, Report, ResultRow
from zpipe.policy.answers import MOST_STRANDED
from zpipe.policy.delivery import SourceConfig
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import (
    CreditReceived,
    Discard,
    Event,
    Forward,
    GrantCredit,
    LostReceived,
    PeerLost,
    PeerUp,
    ReportReceived,
    ResetLink,
    Resolve,
    ResultReceived,
    RunStage,
    SampleCancelled,
    SampleSubmitted,
    SendFailed,
    SendLost,
    SendReport,
    SendResults,
    StageFailed,
    TimerFired,
)
from zpipe.policy.state import NeighbourConfig

MakeNode = Callable[..., Driven]

TO_1 = NeighbourConfig(1, lanes_out=(1,), window_out=4)


def source_config(**other: Any) -> SourceConfig:
    other.setdefault("admission", "fixed")
    return SourceConfig(session=1, ladder=ExitLadder(((0.5, 0.5, 0.5),), 0), **other)


@pytest.fixture
def first(make_node: MakeNode) -> Driven:
    """Rank 0, the source, with stage 0 of three; sends to rank 1."""
    return make_node(0, (0,), TO_1, source=source_config(), own_slots=2)


def kinds(commands: list[Any]) -> list[str]:
    return [type(command).__name__ for command in commands]


# ---- the path of a sample ------------------------------------------------------------------------


def test_a_submitted_sample_runs_at_once(first: Driven) -> None:
    """D4, S4: the gate has the operating point's threshold."""
    (run,) = first.submit(0)
    assert isinstance(run, RunStage)
    assert (run.run, run.stage, run.gate) == (0, 0, gate(1))
    (own,) = run.tasks
    assert (own.key, own.attempt, own.peer, own.oldest) == (key(0), 1, -1, 0)


def test_a_sample_that_exits_at_its_source_is_resolved(first: Driven) -> None:
    """S4, D2."""
    first.submit(0, now=0.0)
    (resolve,) = first.complete(True, now=0.02)
    row = ResultRow(key(0), 1, 0, 7, 0.9, 0.0, 0.02)
    assert resolve == Resolve(0, "result", 0.02, 1, row, "")
    assert first.policy.held_count == 0


def test_a_sample_that_stays_is_forwarded_and_frees_its_own_slot(first: Driven) -> None:
    """C1, S3: the next sample runs in the same turn, last of all commands."""
    first.submit(0, 1, 2)
    forward, run = first.complete(False)
    assert isinstance(forward, Forward)
    assert (forward.peer, forward.epoch, forward.stage) == (1, OUT, 1)
    (sent,) = forward.tasks
    assert (sent.key, sent.stage, sent.number, sent.thresholds) == (key(0), 1, 0, (0.5, 0.5))
    assert isinstance(run, RunStage)
    assert run.tasks[0].key == key(1)
    assert first.policy.held_count == 2


def test_a_forwarded_task_tells_the_lowest_open_number_of_now(first: Driven) -> None:
    """S5: sample 0 was resolved while 1 ran."""
    first.submit(0, 1)
    first.complete(True)
    forward, *_ = first.complete(False)
    assert isinstance(forward, Forward)
    assert forward.tasks[0].oldest == 1


def test_own_slots_bound_the_samples_held_here(first: Driven) -> None:
    """C1."""
    first.submit(*range(5))
    assert first.policy.held_count == 2
    assert first.policy.source is not None
    assert first.policy.source.waiting_count == 3


def test_a_received_task_runs_and_its_result_goes_towards_the_source(middle: Driven) -> None:
    """S4: the middle of a line of three."""
    row = task(5, 1, 0)
    assert middle.receive(row, now=0.01) == [RunStage(0, 1, (row,), gate(1))]
    grant, *rest = reversed(middle.complete(True, now=0.03))
    assert rest == [SendResults(0, [ResultRow(key(5), 1, 1, 7, 0.9, 0.0, about(0.02))])]
    assert grant == GrantCredit(0, Credit(INTO, 1, (), 5, {}, about(0.02)))


def test_time_in_queues_and_in_the_executor_is_added_up(middle: Driven) -> None:
    """What aimd steers by: 20 ms in I, 20 ms in the executor, 40 ms in O."""
    middle.tell(CreditReceived(2, Credit(OUT, 0, (), 4)), PeerLost(2, outgoing=True, reason="cut"), now=0.01)
    middle.receive(task(0, 1, 0), now=0.01)
    row = task(1, 1, 1, queued_seconds=1.0, service_seconds=2.0)
    middle.receive(row, now=0.01)
    middle.complete(True, now=0.03)
    middle.complete(False, now=0.05)
    middle.connect(2, epoch=21, now=0.09)
    assert (row.queued_seconds, row.service_seconds) == (about(1.06), about(2.02))


def test_the_last_stage_answers_whatever_the_mask_says(make_node: MakeNode) -> None:
    """S4."""
    last = make_node(2, (2,), NeighbourConfig(1, lanes_in=(2,), window_in=4), nearer={0: (1,)})
    (run,) = last.receive(task(0, 2, 0), peer=1)
    assert isinstance(run, RunStage)
    assert run.gate == gate(1, last=True)
    assert kinds(last.complete(False)) == ["SendResults", "GrantCredit"]


def test_batches_are_filled_with_what_is_there_and_split_into_frames_of_max_batch(make_node: MakeNode) -> None:
    """Four rows come back from one run; O held two more: frames of at most four."""
    node = make_node(
        1,
        (1,),
        NeighbourConfig(0, lanes_in=(1,), window_in=8),
        NeighbourConfig(2, lanes_out=(2,), window_out=8),
        max_batch=4,
        nearer={0: (0,)},
    )
    node.tell(PeerLost(2, outgoing=True, reason="cut"))
    node.receive(*[task(sample, 1, sample) for sample in range(6)])
    node.complete(False, False, False, False)
    node.complete(False, False)
    assert node.policy.output_length == 6
    forwards = [command for command in node.connect(2, epoch=21) if isinstance(command, Forward)]
    assert [[row.number for row in forward.tasks] for forward in forwards] == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("lane_bytes", "bits_per_second", "frames"),
    [
        (0.0, math.inf, [[0, 1, 2], [3, 4]]),
        (1e6, math.inf, [[0, 1, 2], [3, 4]]),
        (1e3, 12e6, [[0, 1, 2], [3, 4]]),  # three take the link 2 ms
        (1e3, 8e6, [[0, 1], [2, 3], [4]]),
        (1e3, 1e6, [[0], [1], [2], [3], [4]]),
    ],
)
def test_small_batches_share_frames_that_the_link_carries_quickly(
    make_node: MakeNode, lane_bytes: float, bits_per_second: float, frames: list[list[int]]
) -> None:
    """A2: five rows wait for a link, made one by one."""
    ahead = NeighbourConfig(2, lanes_out=(2,), window_out=8, lane_bytes={2: lane_bytes}, bandwidth_bps=bits_per_second)
    back = NeighbourConfig(0, lanes_in=(1,), window_in=8)
    node = make_node(1, (1,), back, ahead, max_batch=1, frame_rows={1: 8, 2: 3}, nearer={0: (0,)})
    node.tell(PeerLost(2, outgoing=True, reason="cut"))
    node.receive(*[task(sample, 1, sample) for sample in range(5)])
    for _ in range(5):
        node.complete(False)
    forwards = [command for command in node.connect(2, epoch=21) if isinstance(command, Forward)]
    assert [[row.number for row in forward.tasks] for forward in forwards] == frames


@pytest.mark.parametrize("stages", [(0, 1), ()])
def test_a_sample_that_ends_in_the_round_it_came_is_neither_run_nor_sent(make_node: MakeNode, stages: tuple[int, ...]) -> None:
    """Its input is gone with its outcome."""
    node = make_node(0, stages, NeighbourConfig(1, lanes_out=(0, 1, 2), window_out=4), source=source_config())
    assert kinds(node.tell(SampleSubmitted(0, 9.0, 0.0), SampleCancelled(0, "given up"), now=0.0)) == ["Resolve"]


# ---- queues (A) ----------------------------------------------------------------------------------


def test_a_node_that_hosts_the_next_stage_keeps_the_task(make_node: MakeNode) -> None:
    """A1, offload `local`."""
    node = make_node(0, (0, 1), NeighbourConfig(1, lanes_out=(1, 2), window_out=4), source=source_config())
    node.submit(0)
    (run,) = node.complete(False)
    assert isinstance(run, RunStage)
    assert run.stage == 1


def test_a_lane_without_credit_does_not_hold_up_another(make_node: MakeNode) -> None:
    """A2: lane 1 has its one slot taken, lane 3's is free."""
    node = make_node(
        0,
        (0, 2),
        NeighbourConfig(1, lanes_out=(1, 3), window_out=2),
        NeighbourConfig(2, lanes_in=(2,), window_in=4),
        stage_count=4,
        source=source_config(),
    )
    node.submit(0, 1)
    assert kinds(node.complete(False)) == ["Forward", "RunStage"]
    assert kinds(node.complete(False)) == []
    assert node.policy.output_length == 1
    node.receive(task(7, 2, 0, source=2), peer=2)
    (forward, *_) = node.complete(False)
    assert isinstance(forward, Forward)
    assert forward.stage == 3


def test_an_idle_executor_takes_back_what_waits_for_a_neighbour(make_node: MakeNode) -> None:
    """A3: a node with offload `cheapest` has no credit for its neighbour; nothing waits for ever."""
    node = make_node(
        0, (0, 1, 2), NeighbourConfig(1, lanes_out=(1, 2), window_out=4), offload="cheapest", source=source_config(), up=False
    )
    node.submit(0, 1)
    (run,) = node.complete(False)
    assert isinstance(run, RunStage)
    assert run.stage == 0  # sample 1; sample 0 went to O, since I was not empty
    assert node.policy.output_length == 1
    ran = []
    for _ in range(4):
        commands = node.complete(False)
        ran += [(command.tasks[0].key.sample, command.stage) for command in commands if isinstance(command, RunStage)]
    assert sorted(ran) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_among_neighbours_the_cheapest_with_credit_is_chosen(make_node: MakeNode) -> None:
    """A1: by D + backlog as last reported plus what was sent since."""
    node = make_node(
        0, (0,), *[NeighbourConfig(rank, lanes_out=(1,), window_out=4) for rank in (1, 2)], source=source_config(), own_slots=8
    )
    for rank, backlog in ((1, 0.010), (2, 0.0)):
        node.tell(ReportReceived(rank, Report(0, 0, {1: 0.004}, {1: backlog})))
    node.submit(*range(5))

    def peer_of_next() -> int:
        return next(command.peer for command in node.complete(False) if isinstance(command, Forward))

    assert [peer_of_next() for _ in range(4)] == [2, 2, 2, 1]
    for rank, arrived, backlog in ((2, 3, 0.008), (1, 1, 0.010)):
        node.tell(CreditReceived(rank, Credit(OUT, arrived, tuple(range(arrived)), 4)))
        node.tell(ReportReceived(rank, Report(0, 0, {1: 0.004}, {1: backlog})))
    assert peer_of_next() == 2


def test_a_report_cannot_know_of_tasks_still_on_their_way(make_node: MakeNode) -> None:
    """A5: three were sent to rank 2 and no Credit names them, so its empty queue is not believed; what is released is taken off."""
    node = make_node(
        0, (0,), *[NeighbourConfig(rank, lanes_out=(1,), window_out=8) for rank in (1, 2)], source=source_config(), own_slots=8
    )
    node.tell(ReportReceived(1, Report(9, 0, {1: 0.004}, {1: 0.009})))
    node.submit(*range(4))
    for _ in range(3):
        node.complete(False)
    two = node.policy.neighbour(2)
    assert two.input_length == 3
    node.tell(ReportReceived(2, Report(0, 0, {1: 0.004}, {1: 0.0})))
    assert two.input_length == 3
    assert two.backlog_seconds == pytest.approx(0.012)
    node.tell(CreditReceived(2, Credit(OUT, 3, (2,), 10)))
    assert two.input_length == 1
    assert two.backlog_seconds == pytest.approx(0.004)


# ---- MDI-Exit (A1, A4) ---------------------------------------------------------------------------


def mdi(make_node: MakeNode, *, output_threshold: int = 50, neighbours: int = 1, rng: random.Random | None = None) -> Driven:
    """Rank 0 hosts stages 0 and 1 of three, its neighbours 1 and 2; nothing is known of their load but that it is none."""
    node = make_node(
        0,
        (0, 1),
        *[NeighbourConfig(rank, lanes_out=(1, 2), window_out=8) for rank in range(1, 1 + neighbours)],
        source=source_config(),
        own_slots=8,
        offload="mdi",
        output_threshold=output_threshold,
        service_seconds={0: 0.01, 1: 0.01},
        rng=rng,
    )
    for rank in range(1, 1 + neighbours):
        node.tell(ReportReceived(rank, Report(0, 0, {1: 0.01}, {1: 0.0})))
    return node


def forwards(commands: list[Any]) -> list[tuple[int, list[int]]]:
    return [(c.peer, [task.key.sample for task in c.tasks]) for c in commands if isinstance(c, Forward)]


def test_mdi_keeps_at_an_idle_node(make_node: MakeNode) -> None:
    """A1: I is empty."""
    node = mdi(make_node)
    node.submit(0)
    (run,) = node.complete(False)
    assert isinstance(run, RunStage)
    assert run.stage == 1


def test_mdi_sends_where_the_way_and_the_queue_there_are_shorter(make_node: MakeNode) -> None:
    """A4: |O| = 1 > |I_m| = 0, and 0 < |I| * Gamma."""
    node = mdi(make_node)
    node.submit(0, 1, 2)
    assert forwards(node.complete(False)) == [(1, [0])]


def test_mdi_does_not_send_into_a_queue_as_long_as_its_own_output(make_node: MakeNode) -> None:
    """A4: the second head finds |O| = 1 and |I_m| = 1."""
    node = mdi(make_node)
    node.submit(*range(8))
    assert forwards(node.complete(False)) == [(1, [0])]
    assert forwards(node.complete(False)) == []
    assert forwards(node.complete(False)) == [(1, [1])], "|O| = 2"


def test_mdi_keeps_above_its_output_threshold(make_node: MakeNode) -> None:
    """A1: |O| > T_O."""
    node = mdi(make_node, output_threshold=1)
    node.tell(ReportReceived(1, Report(99, 0, {1: 0.01}, {1: 9.9})))
    node.submit(*range(8))
    for _ in range(3):
        node.complete(False)
    assert (node.policy.input_length, node.policy.output_length) == (5, 2), "four of stage 0 and the third of stage 1"


def test_mdi_offloads_what_waits_behind_a_running_task_though_nothing_is_in_its_input_queue(make_node: MakeNode) -> None:
    """A4: else a node whose tasks all wait in O, taken back one after the other, would never send any."""
    node = mdi(make_node)
    node.tell(ReportReceived(1, Report(9, 0, {1: 0.01}, {1: 0.09})))
    node.submit(*range(3))
    for _ in range(3):
        node.complete(False)
    assert (node.policy.input_length, node.policy.output_length) == (0, 2)
    node.tell(ReportReceived(1, Report(0, 0, {1: 0.01}, {1: 0.0})), now=0.0101)
    assert node.policy.output_length == 1


def test_dice_are_thrown_once_per_head_neighbour_and_report(make_node: MakeNode) -> None:
    """A4."""
    throws: list[float] = []

    class Dice(random.Random):
        def random(self) -> float:
            throws.append(1.0)
            return 0.999

    node = mdi(make_node, rng=Dice())
    node.tell(ReportReceived(1, Report(0, 0, {1: 0.01}, {1: 5.0})))
    node.submit(*range(4))
    node.complete(False)
    assert len(throws) == 1
    for _ in range(3):
        node.tell(TimerFired(), now=0.02)
    assert len(throws) == 1
    node.tell(ReportReceived(1, Report(0, 0, {1: 0.01}, {1: 5.0})), now=0.03)
    assert len(throws) == 2
    assert node.policy.output_length == 1


def test_the_dice_send_in_proportion_to_the_two_costs(make_node: MakeNode) -> None:
    """A4: three of stage 0 in I, whose Gamma is 0.9 * 10 + 0.1 * 4 ms after a batch, and the head itself, against 100 ms."""
    chance = (3 * 0.0094 + 0.01) / 0.1
    for dice, sent in ((chance - 0.01, True), (chance + 0.01, False)):

        class Dice(random.Random):
            value = dice

            def random(self) -> float:
                return self.value

        node = mdi(make_node, rng=Dice())
        node.tell(ReportReceived(1, Report(0, 0, {1: 0.01}, {1: 0.1})))
        node.submit(*range(4))
        assert node.policy.input_length == 3
        assert forwards(node.complete(False)) == ([(1, [0])] if sent else [])


def test_a_source_may_send_raw_inputs_on(make_node: MakeNode) -> None:
    """S3, A1: lane 0, under the same rule as any other."""
    node = make_node(
        0,
        (0, 1, 2),
        NeighbourConfig(1, lanes_out=(0, 1, 2), window_out=8),
        source=source_config(),
        own_slots=8,
        offload="mdi",
        farther={0: (1,)},
        service_seconds={0: 0.01},
    )
    node.tell(ReportReceived(1, Report(0, 0, {0: 0.01}, {})))
    commands = node.submit(*range(4))
    assert [task.stage for c in commands if isinstance(c, Forward) for task in c.tasks] == [0, 0]
    assert isinstance(commands[-1], RunStage)


def test_a_link_with_enough_to_carry_takes_nothing_that_could_run_here(make_node: MakeNode) -> None:
    """A2: 1 Mbit/s and tasks of 5 kB: the second would wait 40 ms for the link, the third 80, so it stays."""
    node = make_node(
        0,
        (0, 1),
        NeighbourConfig(1, lanes_out=(1,), window_out=8, lane_bytes={1: 5_000.0}, bandwidth_bps=1e6),
        source=source_config(),
        own_slots=16,
        offload="cheapest",
        service_seconds={0: 1.0, 1: 1.0},
    )
    node.tell(ReportReceived(1, Report(0, 0, {1: 0.01}, {1: 0.0})))
    node.submit(*range(10))
    sent = [sample for _ in range(4) for _, samples in forwards(node.complete(False)) for sample in samples]
    assert sent == [0, 1]


def test_a_lane_worth_less_waits_for_one_worth_more(make_node: MakeNode) -> None:
    """A2: both lanes could run here. Lane 1, worth more, has no slot left there, so lane 0 does not use its own."""
    node = make_node(
        0,
        (0, 1),
        NeighbourConfig(1, lanes_out=(0, 1), window_out=2),
        source=source_config(),
        own_slots=16,
        offload="cheapest",
        farther={0: (1,)},
        lane_order=(1, 0),
        service_seconds={0: 1.0, 1: 1.0},
    )

    def stages(commands: list[Any]) -> list[int]:
        return [c.stage for c in commands if isinstance(c, Forward)]

    assert stages(node.submit(*range(6))) == [0]
    assert [stages(node.complete(False)) for _ in range(2)] == [[1], []]
    assert stages(node.tell(CreditReceived(1, Credit(OUT, 2, (1,), 3)))) == [], "a slot of lane 0 came free, lane 1 waits"
    assert stages(node.tell(CreditReceived(1, Credit(OUT, 2, (), 4)))) == [1, 0]


def test_raw_inputs_in_output_count_as_input(make_node: MakeNode) -> None:
    """A1: a raw input waits in O only because it may go out; the node is not idle, so its next stage is offered, too."""
    node = make_node(
        0,
        (0, 1, 2),
        NeighbourConfig(1, lanes_out=(0, 1, 2), window_out=8),
        source=source_config(),
        own_slots=8,
        offload="mdi",
        farther={0: (1,)},
        service_seconds={0: 0.01},
    )
    node.tell(ReportReceived(1, Report(99, 0, {0: 0.01}, {0: 9.9})))
    node.submit(*range(4))
    assert (node.policy.input_length, node.policy.output_length) == (0, 3)
    node.complete(False)
    assert node.policy.output_length == 3, "one raw input runs, stage 1 of the first sample waits in O"


def test_raw_inputs_go_on_only_away_from_their_source(make_node: MakeNode) -> None:
    """S3: between rank 0 and rank 2, those of source 0 may go on to 2, those of source 2 run here."""
    node = make_node(
        1,
        (0, 1, 2),
        NeighbourConfig(0, lanes_in=(0, 1, 2), lanes_out=(0, 1, 2), window_in=8, window_out=8),
        NeighbourConfig(2, lanes_in=(0, 1, 2), lanes_out=(0, 1, 2), window_in=8, window_out=8),
        offload="ddi",
        farther={0: (2,)},
        nearer={0: (0,), 2: (2,)},
        service_seconds={0: 0.01},
    )
    for rank in (0, 2):
        node.tell(ReportReceived(rank, Report(0, 0, {0: 0.01}, {})))
    sent = node.receive(*[task(number, 0, number) for number in range(3)])
    sent += node.receive(*[task(number, 0, number, source=2) for number in range(3)], peer=2)
    assert [(c.peer, task.key.source) for c in sent if isinstance(c, Forward) for task in c.tasks] == [(2, 0), (2, 0)]


def test_a_change_of_a_quarter_is_told_before_the_interval_is_over(make_node: MakeNode) -> None:
    """A5: with a strategy that weighs it, after a quarter of the interval."""
    for offload, at in (("mdi", 0.025), ("local", 0.1)):
        node = make_node(1, (1, 2), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,)}, offload=offload)
        node.tell(TimerFired(), now=0.0)
        node.receive(*[task(number, 1, number) for number in range(5)], now=0.01)
        assert node.policy.next_wakeup() == pytest.approx(at)
        assert any(isinstance(c, SendReport) for c in node.tell(TimerFired(), now=at))


def test_an_idle_node_says_so_before_the_interval_is_over(make_node: MakeNode) -> None:
    """A5: else its neighbours count what it has done long ago."""
    node = make_node(1, (1, 2), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,)}, offload="mdi")
    node.receive(task(0, 1, 0), now=0.01)
    node.tell(TimerFired(), now=0.1)
    node.complete(True, now=0.11)
    assert node.policy.next_wakeup() == pytest.approx(0.125)
    commands = node.tell(TimerFired(), now=0.125)
    assert [c.report.input_length for c in commands if isinstance(c, SendReport)] == [0]


@pytest.mark.parametrize("how", ["lost", "reset"])
def test_the_load_of_a_neighbour_that_went_is_forgotten(make_node: MakeNode, how: str) -> None:
    """A1: it comes back empty."""
    node = make_node(0, (0,), *[NeighbourConfig(rank, lanes_out=(1,), window_out=4) for rank in (1, 2)], source=source_config())
    for rank, backlog in ((1, 0.010), (2, 1.0)):
        node.tell(ReportReceived(rank, Report(0, 0, {1: 0.004}, {1: backlog})))
    node.tell(PeerLost(2, outgoing=True, reason="cut") if how == "lost" else SendFailed(2, OUT))
    node.connect(2, epoch=21)
    node.submit(0)
    (forward,) = node.complete(False)
    assert isinstance(forward, Forward)
    assert forward.peer == 2


# ---- links (L, C) --------------------------------------------------------------------------------


def test_tasks_of_another_epoch_are_dropped_with_their_payloads(middle: Driven) -> None:
    """L1."""
    assert middle.receive(task(0, 1, 0), epoch=INTO + 1) == [Discard([100])]
    assert middle.receive(task(0, 1, 0), peer=7) == [Discard([100])]
    assert middle.receive(task(0, 1, 0), peer=2) == [Discard([100])]  # it may send us nothing
    assert (middle.counts.wrong_epoch, middle.policy.held_count) == (3, 0)


def test_a_repeated_frame_is_dropped_with_its_payload(middle: Driven) -> None:
    """L2."""
    middle.receive(task(0, 1, 0))
    assert middle.receive(task(0, 1, 0, token=555)) == [Discard([555])]
    assert middle.policy.held_count == 1


def test_a_task_for_a_stage_not_hosted_is_dropped_with_its_payload(middle: Driven) -> None:
    """L3."""
    assert middle.receive(task(0, 2, 0)) == [Discard([100])]
    assert middle.policy.held_count == 0


def test_lanes_to_stages_that_are_not_here_are_refused() -> None:
    """L3."""
    from random import Random

    from zpipe.policy.exits import ExitGates
    from zpipe.policy.node import NodePolicy
    from zpipe.policy.state import NodeConfig

    with pytest.raises(AssertionError, match="lanes"):
        NodePolicy(NodeConfig(1, (1,), ExitGates((1.0,) * 3), (NeighbourConfig(0, lanes_in=(2,), window_in=4),)), rng=Random(0))


def test_a_full_window_holds_the_output_queue(make_node: MakeNode) -> None:
    """C2, C3: two may go; the third waits for Credit."""
    node = make_node(0, (0,), NeighbourConfig(1, lanes_out=(1,), window_out=2), source=source_config(), own_slots=8)
    node.submit(0, 1, 2)
    assert [kinds(node.complete(False)) for _ in range(3)] == [["Forward", "RunStage"], ["Forward", "RunStage"], []]
    (forward,) = node.tell(CreditReceived(1, Credit(OUT, 1, (), 3)))
    assert isinstance(forward, Forward)
    assert forward.tasks[0].number == 2


def test_a_credit_of_another_epoch_or_from_nowhere_is_counted(first: Driven) -> None:
    """L1."""
    first.tell(CreditReceived(1, Credit(OUT - 1, 0, (), 4)), CreditReceived(9, Credit(OUT, 0, (), 4)))
    assert first.counts.wrong_epoch_credit == 2


# ---- repair (R) ----------------------------------------------------------------------------------


def run_and_send(node: Driven, *samples: int) -> None:
    for number, sample in enumerate(samples):
        node.receive(task(sample, 1, number), now=0.01)
        node.complete(False, now=0.02)


def test_a_lost_neighbour_is_told_to_the_source_in_the_same_turn(middle: Driven) -> None:
    """R1."""
    run_and_send(middle, 5, 6)
    commands = middle.tell(PeerLost(2, outgoing=True, reason="cut"), now=0.03)
    cause = "peer-lost: node 2: cut"
    assert commands == [SendLost(0, [lost(5, 1, cause), lost(6, 1, cause)])]
    assert middle.tell(PeerLost(2, outgoing=True, reason="cut"), now=0.03) == []


def test_what_credit_released_is_not_lost(middle: Driven) -> None:
    """R1, C3."""
    run_and_send(middle, 5, 6)
    middle.tell(CreditReceived(2, Credit(OUT, 2, (1,), 5)), now=0.03)
    (told,) = middle.tell(PeerLost(2, outgoing=True, reason="cut"), now=0.03)
    assert told == SendLost(0, [lost(6, 1, "peer-lost: node 2: cut")])


def test_the_source_submits_again_what_its_neighbour_lost(first: Driven) -> None:
    """R1, R2: the same turn, before any new sample."""
    first.submit(0)
    first.complete(False)
    (run,) = first.tell(PeerLost(1, outgoing=True, reason="cut"))
    assert isinstance(run, RunStage)
    assert (run.tasks[0].key, run.tasks[0].attempt) == (key(0), 2)


def test_loss_of_a_sender_loses_nothing(middle: Driven) -> None:
    """R1, C4: what it gave us runs on."""
    middle.receive(task(0, 1, 0), now=0.01)
    assert middle.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.02) == []
    assert middle.policy.held_count == 1
    assert kinds(middle.complete(False, now=0.03)) == ["Forward"]


def test_answers_wait_for_a_live_way(middle: Driven) -> None:
    """R8."""
    middle.receive(task(0, 1, 0), now=0.01)
    middle.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.02)
    assert middle.complete(True, now=0.03) == []
    middle.tell(LostReceived(2, [lost(1, 1, "x")]), now=0.03)
    commands = middle.tell(PeerUp(0, INTO + 1, outgoing=False), now=0.04)
    assert [row.key.sample for command in commands if isinstance(command, SendResults) for row in command.rows] == [0]
    assert [command.rows for command in commands if isinstance(command, SendLost)] == [[lost(1, 1, "x")]]
    assert middle.counts.unroutable == 0


def test_answers_that_wait_are_bounded(middle: Driven) -> None:
    """R8, R3: the oldest give way."""
    middle.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.02)
    middle.tell(LostReceived(2, [lost(sample, 1, "x") for sample in range(MOST_STRANDED + 5)]), now=0.03)
    assert middle.counts.unroutable == 5
    commands = middle.tell(PeerUp(0, INTO + 1, outgoing=False), now=0.04)
    (told,) = [command.rows for command in commands if isinstance(command, SendLost)]
    assert [row.key.sample for row in told] == list(range(5, MOST_STRANDED + 5))


def test_a_reconnection_without_a_loss_in_between_loses_what_was_outstanding(middle: Driven) -> None:
    """R1, L1."""
    run_and_send(middle, 5)
    (told,) = middle.tell(PeerUp(2, OUT + 1, outgoing=True), now=0.03)
    assert told == SendLost(0, [lost(5, 1, "peer-lost: it connected anew")])


def test_a_repeated_peer_up_changes_nothing(middle: Driven) -> None:
    """L1: outgoing, what is outstanding stays; incoming, what is held keeps its number."""
    run_and_send(middle, 5)
    middle.receive(task(6, 1, 1), now=0.02)
    assert middle.tell(PeerUp(2, OUT, outgoing=True), PeerUp(0, INTO, outgoing=False), now=0.03) == []
    assert middle.receive(task(6, 1, 1, token=9), now=0.03) == [Discard([9])]
    link = middle.policy.neighbour(0).incoming
    assert link is not None
    assert (link.held, link.carried) == ({1: 1}, {})
    middle.complete(True, now=0.04)
    assert link.held == {}


def test_a_task_that_runs_through_a_reconnection_keeps_its_slot_until_it_goes(middle: Driven) -> None:
    """C4: then the sender hears at once, or with the next report."""
    middle.receive(task(0, 1, 0), now=0.01)
    middle.tell(PeerLost(0, outgoing=False, reason="cut"), now=0.02)
    (grant,) = middle.tell(PeerUp(0, INTO + 1, outgoing=False), now=0.03)
    assert grant == GrantCredit(0, Credit(INTO + 1, 0, (), 3, {1: 1}, -1.0))
    assert GrantCredit(0, Credit(INTO + 1, 0, (), 4, {}, -1.0)) in middle.complete(False, now=0.04)


def test_peers_nobody_knows_change_nothing(middle: Driven) -> None:
    events: list[Event] = [
        PeerUp(9, 1, outgoing=True),
        PeerUp(9, 1, outgoing=False),
        PeerLost(9, outgoing=True, reason="x"),
        SendFailed(9, 1),
        ReportReceived(9, Report(0, 0, {}, {})),
    ]
    assert middle.tell(*events, now=0.01) == []


def test_a_refused_frame_resets_the_connection_once(middle: Driven) -> None:
    """R5, R1: a second SendFailed of the same epoch is old news; so is one of an older epoch."""
    run_and_send(middle, 5)
    commands = middle.tell(SendFailed(2, OUT), SendFailed(2, OUT), SendFailed(2, OUT - 1), now=0.03)
    reason = "a task could not be sent"
    assert commands == [ResetLink(2, reason), SendLost(0, [lost(5, 1, f"peer-lost: node 2: {reason}")])]
    assert middle.counts.resets == 1
    assert middle.tell(PeerLost(2, outgoing=True, reason="reset"), now=0.03) == []


def test_a_reset_gives_up_both_directions(make_node: MakeNode) -> None:
    """R5: until the connection is made anew nothing goes there, and nothing from there is believed."""
    node = make_node(
        1, (1, 3), NeighbourConfig(2, lanes_out=(2,), lanes_in=(3,), window_out=4, window_in=4), stage_count=4, nearer={0: (2,)}
    )
    node.tell(SendFailed(2, OUT), now=0.01)
    assert not node.policy.neighbour(2).up
    assert node.tell(TimerFired(), now=5.0) == []
    assert node.receive(task(0, 3, 0), peer=2, now=5.0) == [Discard([100])]


def test_a_loss_told_while_the_task_is_held_here_changes_nothing(first: Driven) -> None:
    """R2."""
    first.submit(0)
    assert first.tell(LostReceived(1, [lost(0, 1, "x")])) == []
    assert first.policy.source is not None
    assert first.policy.source.counts.resubmitted == 0


def test_a_failed_batch_runs_again_row_by_row_in_its_order(make_node: MakeNode) -> None:
    """R4: and rows that came meanwhile stay behind."""
    node = make_node(
        1,
        (1,),
        NeighbourConfig(0, lanes_in=(1,), window_in=8),
        NeighbourConfig(2, lanes_out=(2,), window_out=8),
        max_batch=4,
        nearer={0: (0,)},
    )
    node.tell(TimerFired(), now=0.0)
    node.receive(task(0, 1, 0))
    node.receive(*[task(sample, 1, sample) for sample in (1, 2)])
    node.complete(True)
    node.receive(task(3, 1, 3))
    node.tell(StageFailed(1, "boom"), now=0.02)
    order, forwarded = [], []
    for _ in range(3):
        (run,) = node.policy._runs.values()
        order.append([row.key.sample for row in run.tasks])
        commands = node.complete(*[False] * len(run.tasks), run=node.last_run, now=0.03)
        forwarded += [row for command in commands if isinstance(command, Forward) for row in command.tasks]
    assert order == [[1], [2], [3]]
    assert [row.alone for row in forwarded] == [False, False, False]


def test_a_row_that_fails_alone_is_lost_and_its_payload_goes(middle: Driven) -> None:
    """R4."""
    middle.receive(task(0, 1, 0), now=0.01)
    commands = middle.tell(StageFailed(0, "boom"), now=0.02)
    assert commands[0] == SendLost(0, [lost(0, 1, "stage-failed: stage 1 on node 1: boom")])
    assert commands[-1] == Discard([100])
    assert middle.policy.held_count == 0


def test_at_the_second_lone_failure_the_sample_fails(first: Driven) -> None:
    """R4."""
    first.submit(0)
    (run,) = first.tell(StageFailed(0, "boom"))
    assert isinstance(run, RunStage)
    assert run.tasks[0].attempt == 2
    (resolve,) = first.tell(StageFailed(1, "boom"))
    assert isinstance(resolve, Resolve)
    assert (resolve.kind, resolve.attempts) == ("failed", 2)


def test_failure_of_what_nobody_waits_for_is_no_loss(middle: Driven) -> None:
    """R4, S5."""
    middle.receive(task(0, 1, 0, deadline=0.015), now=0.01)
    commands = middle.tell(StageFailed(0, "boom"), now=0.02)
    assert "SendLost" not in kinds(commands)
    assert middle.counts.stale == 1


def test_results_and_losses_are_passed_on_towards_their_source(middle: Driven) -> None:
    row, loss = answer(3), lost(4, 1, "x")
    passed_on = [SendResults(0, [row.passed_on()]), SendLost(0, [loss])]
    assert middle.tell(ResultReceived(2, [row]), LostReceived(2, [loss]), now=0.01) == passed_on
    assert middle.counts.relayed == 1


def test_an_answer_drops_another_attempt_that_waits_here(first: Driven) -> None:
    """D2, S5: sample 1's attempt 2 waits behind sample 2."""
    first.submit(0)
    first.complete(False)
    first.submit(1)
    first.tell(PeerLost(1, outgoing=True, reason="cut"))  # sample 0 comes back behind sample 1
    assert first.policy.input_length == 1
    (resolve,) = first.tell(ResultReceived(1, [answer(0)]))
    assert isinstance(resolve, Resolve)
    assert (first.policy.input_length, first.policy.held_count) == (0, 1)


def test_an_answer_lets_another_attempt_that_runs_here_end_quietly(first: Driven) -> None:
    """D2, S5."""
    first.submit(0)
    first.complete(False)
    first.tell(PeerLost(1, outgoing=True, reason="cut"))
    first.tell(ResultReceived(1, [answer(0)]))
    assert first.policy.held_count == 0
    assert first.complete(False) == []
    assert first.counts.stale == 1


def test_a_cancelled_sample_fails_at_once_and_its_task_is_dropped_when_met(first: Driven) -> None:
    """D1, S5."""
    first.submit(0)
    (resolve,) = first.tell(SampleCancelled(0, "closed"), now=0.01)
    assert resolve == Resolve(0, "failed", 0.01, 1, None, "closed")
    assert first.complete(False, now=0.02) == []
    assert first.policy.held_count == 0


def test_a_ring_brings_an_attempt_home_and_the_next_one_stays_in(make_node: MakeNode) -> None:
    """S2: the source hosts stages 0 and 2; the attempt at stage 2 is further on and takes the higher number."""
    node = make_node(
        0, (0, 2), NeighbourConfig(1, lanes_out=(1,), lanes_in=(2,), window_out=4, window_in=4), source=source_config()
    )
    node.submit(0, 1)
    node.complete(False)  # sample 0 goes out; sample 1 runs
    node.tell(LostReceived(1, [lost(0, 1, "x")]), ResultReceived(1, []))
    assert node.policy.input_length == 1  # attempt 2 waits behind sample 1
    node.receive(task(0, 2, 0), peer=1)
    assert (node.policy.input_length, node.counts.met_again) == (1, 1)
    (run,) = [command for command in node.complete(True) if isinstance(command, RunStage)]
    assert (run.stage, run.tasks[0].attempt) == (2, 2)


def test_an_attempt_that_is_already_home_takes_the_number_of_the_next_one(make_node: MakeNode) -> None:
    """S2, C1: own slots were full, so attempt 2 had to wait; by then attempt 1 came round."""
    node = make_node(
        0,
        (0, 2),
        NeighbourConfig(1, lanes_out=(1,), lanes_in=(2,), window_out=4, window_in=4),
        source=source_config(),
        own_slots=1,
    )
    node.submit(0, 1)
    node.complete(False)
    node.tell(LostReceived(1, [lost(0, 1, "x")]))
    node.receive(task(0, 2, 0), peer=1)
    assert node.counts.met_again == 0
    (_, run) = node.complete(True)  # sample 1's slot is free: attempt 2 meets attempt 1
    assert node.counts.met_again == 1
    assert isinstance(run, RunStage)
    assert (run.stage, run.tasks[0].attempt, run.tasks[0].peer) == (2, 2, 1)
    assert node.policy._tasks.own_held == 0


# ---- one turn is enough --------------------------------------------------------------------------


def test_slots_freed_by_stale_tasks_are_filled_and_granted_in_the_same_turn(make_node: MakeNode) -> None:
    """S5, C5: three tasks of one frame wait, all past their deadline when the executor is free."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), nearer={0: (0,)}, stage_count=2)
    node.receive(task(0, 1, 0), *[task(sample, 1, sample, deadline=0.05) for sample in (1, 2, 3)], now=0.01)
    commands = node.complete(True, now=0.06)
    assert commands[1:] == [GrantCredit(0, Credit(INTO, 4, (), 8, {}, about(0.05))), Discard([101, 102, 103])]


def test_own_slots_freed_by_stale_tasks_are_filled_in_the_same_turn(first: Driven) -> None:
    """S5, D4: sample 1 expires while sample 0 runs; 2 and 3 wait for own slots."""
    first.tell(*[SampleSubmitted(sample, 0.02 if sample == 1 else math.inf, 0.0) for sample in range(4)], now=0.0)
    resolves = first.complete(True, now=0.03)
    assert kinds(resolves) == ["Resolve", "Resolve", "RunStage"]
    assert first.policy.source is not None
    assert first.policy.source.waiting_count == 0


def test_several_events_are_decided_on_once(middle: Driven) -> None:
    """A connection and two Credits of one turn; the slots the tasks leave are granted once."""
    middle.tell(PeerLost(2, outgoing=True, reason="cut"), now=0.01)
    run_and_send(middle, 5, 6)
    commands = middle.tell(
        PeerUp(2, OUT + 1, outgoing=True),
        CreditReceived(2, Credit(OUT + 1, 0, (), 1)),
        CreditReceived(2, Credit(OUT + 1, 0, (), 4)),
        now=0.04,
    )
    assert kinds(commands) == ["Forward", "Forward", "GrantCredit"]


def test_the_repr_shows_the_numbers(middle: Driven) -> None:
    run_and_send(middle, 5)
    assert repr(middle.policy) == "<Node 1 | stages (1,) | ready 0, running 0, out 0, credit ->2 3/4>"


# ---- reports and silence -------------------------------------------------------------------------


def test_a_node_at_work_reports_every_interval_and_an_idle_one_shows_that_it_lives(middle: Driven) -> None:
    report = SendReport(0, Report(0, 0, {}, {1: 0.0}))
    assert middle.policy.next_wakeup() == 1.0
    assert middle.tell(TimerFired(), now=0.99) == []
    assert report in middle.tell(TimerFired(), now=1.0)
    middle.receive(task(0, 1, 0), now=1.01)
    assert middle.policy.next_wakeup() == pytest.approx(1.1)
    assert middle.tell(TimerFired(), now=1.09) == []
    assert SendReport(0, Report(1, 0, {}, {1: 0.0})) in middle.tell(TimerFired(), now=1.11), "what runs counts in I"


def test_a_node_without_neighbours_has_no_timer(make_node: MakeNode) -> None:
    alone = make_node(0, (0, 1, 2), source=source_config())
    assert alone.policy.next_wakeup() is None
    alone.submit(0)
    assert alone.policy.next_wakeup() == pytest.approx(0.1)  # the control interval


def test_an_executor_that_takes_two_batches_is_given_two(make_node: MakeNode) -> None:
    """So that a GPU copies one while it computes the other; the third waits for whichever is done first."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,)}, runs=2)
    commands = node.receive(*[task(sample, 1, sample) for sample in range(3)])
    runs = [command for command in commands if isinstance(command, RunStage)]
    assert [(run.run, [row.key.sample for row in run.tasks]) for run in runs] == [(0, [0]), (1, [1])]
    assert commands[-2:] == runs
    (third,) = [command for command in node.complete(True, run=1) if isinstance(command, RunStage)]
    assert (third.run, third.tasks[0].key) == (2, key(2))


def test_a_second_batch_waits_for_the_device_until_the_first_is_done(make_node: MakeNode) -> None:
    """Its time in the executor counts from then on, in its row as in the backlog."""
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=8), nearer={0: (0,)}, runs=2, service_seconds={1: 0.4})
    node.receive(*[task(sample, 1, sample) for sample in range(2)])
    (report,) = [command.report for command in node.tell(TimerFired(), now=0.3) if isinstance(command, SendReport)]
    assert report.backlog_seconds == {1: about(0.1 + 0.4)}
    node.complete(True, run=0, now=0.5)
    (results,) = [command for command in node.complete(True, run=1, now=0.9) if isinstance(command, SendResults)]
    assert (results.rows[0].queued_seconds, results.rows[0].service_seconds) == (about(0.5), about(0.4))


def test_a_node_that_runs_a_batch_takes_nothing_back_for_a_second(make_node: MakeNode) -> None:
    """A3 is for an idle node."""
    node = make_node(
        0, (0, 1), NeighbourConfig(1, lanes_out=(1, 2), window_out=4), offload="cheapest", source=source_config(), up=False, runs=2
    )
    node.submit(0, 1, 2)
    node.complete(False, run=0)
    assert node.policy.output_length == 1
    assert "RunStage" not in kinds(node.complete(True, run=1))
    assert "RunStage" in kinds(node.complete(True, run=2))


def test_gamma_is_smoothed_and_told_with_the_backlog(make_node: MakeNode) -> None:
    node = make_node(1, (1,), NeighbourConfig(0, lanes_in=(1,), window_in=4), nearer={0: (0,)}, service_seconds={1: 0.01})
    node.receive(*[task(sample, 1, sample) for sample in range(3)], now=0.01)
    node.complete(True, now=0.02)
    assert node.policy.service_seconds == {1: pytest.approx(0.01 + 0.1 * (0.004 - 0.01))}
    reports = [command for command in node.tell(TimerFired(), now=0.2) if isinstance(command, SendReport)]
    assert reports[0].report == Report(2, 0, {1: about(0.0094)}, {1: about(0.0094)}), "one waits, one has run for longer than Gamma"

"""A source whose samples are shared out among students, rule by rule (F1-F6)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.build import OUT, Driven, key
from tests.policy.mesh import Mesh, Shape
from zpipe.model import Credit, LostRow, Report, ResultRow
from zpipe.policy.delivery import RESUBMIT_TRICKLE_SECONDS, SourceConfig
from zpipe.policy.exits import ExitGates, ExitLadder
from zpipe.policy.fanout import HEDGE_FREE, HEDGE_SHARE, FanoutConfig, FanoutSource
from zpipe.policy.messages import (
    Command,
    CreditReceived,
    Forward,
    LostReceived,
    PeerLost,
    ReportReceived,
    Resolve,
    ResultReceived,
    RunStage,
    SendBlocked,
    SendReport,
    SessionRaised,
    StageCompleted,
    StageFailed,
    TimerFired,
)
from zpipe.policy.node import NodePolicy
from zpipe.policy.state import NeighbourConfig, NodeConfig

#: Part 0 is hosted by ranks 1 and 2, part 1 by 3 and 4; one stage each. A class per set of parts that may be in (`Shape.scores`).
GROUPS = {1: 0, 2: 0, 3: 1, 4: 1}
SCORES = [array("f", [float(each >> part & 1) for each in range(4)]).tobytes() for part in (0, 1)]


class SharedSource(Driven):
    """Rank 0, connected to those of GROUPS, in the words of these tests."""

    @property
    def source(self) -> FanoutSource:
        assert isinstance(self.policy.source, FanoutSource)
        return self.policy.source

    def sent(self, commands: list[Command]) -> list[tuple[int, int, int, int]]:
        """(replica, sample, part, attempt) of each copy that left."""
        forwards = [command for command in commands if isinstance(command, Forward)]
        return [(each.peer, task.key.sample, task.part, task.attempt) for each in forwards for task in each.tasks]

    def answer(self, sample: int, part: int, *, attempt: int = 1, peer: int = 0, now: float = 0.01, **other: Any) -> list[Command]:
        row = ResultRow(key(sample), attempt, part, 3, 0.9, 0.0, 0.004, part, scores=SCORES[part])
        return self.tell(ResultReceived(peer or 1 + 2 * part, [replace(row, **other)]), now=now)

    def lose(
        self, sample: int, part: int, cause: str, *, attempt: int = 1, now: float = 0.01, shut_out_by: int = 0
    ) -> list[Command]:
        return self.tell(LostReceived(1, [LostRow(key(sample), attempt, cause, shut_out_by, part)]), now=now)

    def pass_time(self, until: float, *, silent: tuple[int, ...] = ()) -> list[Command]:
        """Timers fire; who is not silent reports meanwhile."""
        commands: list[Command] = []
        while (wakeup := self.policy.next_wakeup()) is not None and wakeup <= until:
            reports = [ReportReceived(rank, Report(0, 0, {}, {})) for rank in GROUPS if rank not in silent]
            commands += self.tell(TimerFired(), *reports, now=wakeup)
        return commands


Maker = Callable[..., SharedSource]


@pytest.fixture
def make() -> Maker:
    def make(
        redundancy: str = "failover", *, stages: tuple[int, ...] = (), window: int = 4, credit: int | None = None, **config: Any
    ) -> SharedSource:
        fanout = FanoutConfig((0, 1), (0, 1), (0.0, -0.5, -0.5, -1.0), (1.0,) * 4, redundancy)  # type: ignore[arg-type]
        source = SourceConfig(1, ExitLadder(((0.5, 0.5),), 0), admission="fixed", waiting=1000, fanout=fanout)
        neighbours = tuple(NeighbourConfig(rank, lanes_out=(part,), window_out=window) for rank, part in GROUPS.items())
        gates = ExitGates((1.0, 1.0), ends=(True, True), scores=True)
        policy = NodePolicy(NodeConfig(0, stages, gates, neighbours, source=source, **config), rng=random.Random(0))
        node = SharedSource(policy)
        for rank in GROUPS:
            node.connect(rank, credit=credit)
        return node

    return make


def outcome(commands: list[Command]) -> Resolve:
    """The one there is."""
    (resolve,) = [command for command in commands if isinstance(command, Resolve)]
    return resolve


def ended(commands: list[Command]) -> bool:
    return any(isinstance(command, Resolve) for command in commands)


# ---- F1, F2: copies, and what becomes of their answers -------------------------------------------


def test_a_sample_is_one_copy_per_part_and_ends_when_both_are_in(make: Maker) -> None:
    node = make()
    assert node.sent(node.submit(0)) == [(1, 0, 0, 1), (3, 0, 1, 1)]
    assert not ended(node.answer(0, 1))
    resolve = outcome(node.answer(0, 0, now=0.02))
    assert resolve.row is not None
    assert (resolve.kind, resolve.missing, resolve.attempts, resolve.latency_seconds) == ("result", 0, 1, 0.02)
    assert (resolve.row.label, resolve.row.part) == (3, 0)
    assert resolve.row.confidence == pytest.approx(0.387, abs=1e-3)  # softmax of 0, 0.5, 0.5, 1


def test_all_sends_each_replica_a_copy_and_the_first_answer_counts(make: Maker) -> None:
    node = make("all")
    assert node.sent(node.submit(0)) == [(1, 0, 0, 1), (2, 0, 0, 2), (3, 0, 1, 1), (4, 0, 1, 2)]
    node.answer(0, 0, attempt=2, peer=2)
    node.answer(0, 0)
    assert outcome(node.answer(0, 1)).attempts == 2
    node.answer(0, 1, attempt=2, peer=4)
    assert node.source.counts.second_results == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": b""},
        {"scores": array("f", [0.0, 1.0, float("nan"), 0.0]).tobytes()},
        {"scores": SCORES[0] + SCORES[0]},
        {"attempt": 2},
        {"exit_stage": 1},  # of the other student
    ],
)
def test_what_no_student_of_that_part_can_say_is_no_answer(make: Maker, wrong: dict[str, Any]) -> None:
    node = make()
    node.submit(0)
    node.answer(0, 0, **wrong)
    node.tell(ResultReceived(1, [ResultRow(key(0), 1, 0, 3, 0.9, 0.0, 0.0, 2, scores=SCORES[0])]))  # there are two parts
    assert node.source.counts.unsound == 2
    node.answer(0, 0)
    assert outcome(node.answer(0, 1)).missing == 0


def test_at_the_deadline_what_is_there_is_the_answer(make: Maker) -> None:
    node = make()
    node.submit(0, 1, deadline=0.2)
    node.answer(0, 1)
    resolves = [command for command in node.pass_time(0.2) if isinstance(command, Resolve)]
    assert [(each.sample, each.kind, each.missing) for each in resolves] == [(0, "result", 0b01), (1, "expired", 0)]
    assert resolves[0].row is not None
    assert resolves[0].row.label == 0b10
    assert "part 0 was sent 1 times; part 1 was sent 1 times" in resolves[1].cause
    assert node.source.counts.partial == 1


def test_a_part_without_credit_holds_up_no_other(make: Maker) -> None:
    node = make(credit=0, own_slots=2)
    for peer in (3, 4):
        node.tell(CreditReceived(peer, Credit(OUT, 0, (), 4)))
    assert node.sent(node.submit(0, 1, 2)) == [(3, 0, 1, 1), (4, 1, 1, 1)]
    assert node.source.in_flight == 2  # as many copies wait as may
    assert node.sent(node.tell(CreditReceived(2, Credit(OUT, 0, (), 1)))) == [(2, 0, 0, 1), (3, 2, 1, 1)]


def test_who_waits_for_credit_says_so(make: Maker) -> None:
    """C6: the outbox counts as what waits for a lane."""
    node = make(credit=0)
    node.submit(0)
    commands = node.pass_time(0.25)
    assert {command.peer for command in commands if isinstance(command, SendBlocked)} == {1, 2, 3, 4}


def test_copies_go_before_what_a_blocked_would_say_of_them(make: Maker) -> None:
    """C6: a Blocked comes with the Reports, and whatever was sent came before it."""
    node = make()
    node.tell(TimerFired())
    kinds = [type(command) for command in node.submit(0, now=1.5)]
    assert kinds == [Forward, Forward, SendReport, SendReport, SendReport, SendReport]


# ---- F3: missing ---------------------------------------------------------------------------------


def test_a_part_that_nobody_takes_is_missing_at_once(make: Maker) -> None:
    node = make()
    node.submit(0)
    node.answer(0, 0)
    assert not ended(node.tell(PeerLost(4, True, "gone")))
    resolve = outcome(node.tell(PeerLost(3, True, "gone")))
    assert (resolve.kind, resolve.missing) == ("result", 0b10)
    node.submit(1, now=0.02)
    assert outcome(node.answer(1, 0, now=0.03)).missing == 0b10


def test_silent_replicas_are_not_waited_for(make: Maker) -> None:
    node = make()
    node.pass_time(0.0)
    node.submit(0, deadline=9.0)
    node.answer(0, 0)
    resolve = outcome(node.pass_time(1.6, silent=(3, 4)))
    assert (resolve.kind, resolve.missing) == ("result", 0b10)
    assert resolve.latency_seconds < 1.6


def test_a_replica_that_comes_back_gets_what_is_still_open(make: Maker) -> None:
    node = make()
    node.submit(0)
    for peer in (3, 4):
        node.tell(PeerLost(peer, True, "gone"))
    assert node.sent(node.connect(4, epoch=50)) == [(4, 0, 1, 3)]
    node.answer(0, 1, attempt=3, peer=4)
    assert outcome(node.answer(0, 0)).missing == 0


def test_without_any_replica_samples_wait_for_admission(make: Maker) -> None:
    node = make()
    for peer in GROUPS:
        node.tell(PeerLost(peer, True, "gone"))
    assert node.submit(0, deadline=1.0) == []
    assert node.source.waiting_count == 1
    assert node.sent(node.connect(3, epoch=50)) == [(3, 0, 1, 1)]
    assert outcome(node.answer(0, 1)).missing == 0b01


# ---- F4: replicas --------------------------------------------------------------------------------


def test_a_lost_copy_goes_to_the_other_replica_at_once(make: Maker) -> None:
    node = make()
    node.submit(0)
    assert node.sent(node.lose(0, 1, "peer-lost: node 9")) == [(4, 0, 1, 2)]
    assert node.sent(node.lose(0, 1, "peer-lost: node 9")) == []  # known
    assert node.sent(node.tell(PeerLost(4, True, "gone"))) == [(3, 0, 1, 3)]  # the first one may have it again
    assert node.source.counts.resubmitted == 2


def test_no_copy_follows_a_lost_one_while_another_is_out(make: Maker) -> None:
    node = make("all")
    node.submit(0)
    assert node.sent(node.lose(0, 1, "peer-lost: node 9")) == []
    assert node.sent(node.lose(0, 1, "peer-lost: node 9", attempt=2)) == [(3, 0, 1, 3)]


def test_a_link_tells_which_part_it_lost(make: Maker) -> None:
    node = make()
    node.submit(0)
    assert node.sent(node.tell(PeerLost(3, True, "gone"))) == [(4, 0, 1, 2)]


def test_the_least_loaded_replica_is_chosen(make: Maker) -> None:
    node = make()
    node.tell(ReportReceived(1, Report(5, 0, {0: 0.01}, {0: 0.05})), ReportReceived(2, Report(0, 0, {0: 0.04}, {})))
    assert node.sent(node.submit(0))[0] == (2, 0, 0, 1)


def test_a_source_that_hosts_a_student_runs_it_where_that_is_cheapest(make: Maker) -> None:
    node = make(stages=(0,), service_seconds={0: 0.004})
    node.tell(*[ReportReceived(rank, Report(3, 0, {0: 0.004}, {0: 0.012})) for rank in (1, 2)])
    commands = node.submit(0)
    (run,) = [command for command in commands if isinstance(command, RunStage)]
    assert (run.stage, run.gate.last, run.gate.scores) == (0, True, True)
    assert node.sent(commands) == [(3, 0, 1, 1)]
    node.answer(0, 1)
    assert outcome(node.tell(StageCompleted(run.run, [True], [1], [0.9], 0.004, [0], [SCORES[0]]), now=0.02)).missing == 0


def test_what_a_source_cannot_run_any_more_goes_to_a_replica(make: Maker) -> None:
    node = make(stages=(0,), service_seconds={0: 0.004})
    node.tell(*[ReportReceived(rank, Report(30, 0, {0: 0.004}, {0: 0.12})) for rank in (1, 2)])
    node.submit(0, 1)
    commands = node.tell(StageFailed(node.last_run, "the device is gone", executor_lost=True), now=0.01)
    assert sorted(node.sent(commands)) == [(1, 0, 0, 2), (2, 1, 0, 2)]


def test_a_part_whose_stage_fails_twice_is_missing(make: Maker) -> None:
    node = make()
    node.submit(0)
    assert node.sent(node.lose(0, 1, "stage-failed: stage 1 on node 3: no")) == [(4, 0, 1, 2)]
    assert node.sent(node.lose(0, 1, "stage-failed: stage 1 on node 4: no", attempt=2)) == []
    resolve = outcome(node.answer(0, 0))
    assert (resolve.kind, resolve.missing) == ("result", 0b10)


def test_a_sample_has_failed_when_every_part_has(make: Maker) -> None:
    node = make("all")
    node.submit(0)
    for part, attempt in ((0, 1), (0, 2), (1, 1)):
        assert not ended(node.lose(0, part, f"stage-failed: stage {part}: no", attempt=attempt))
    resolve = outcome(node.lose(0, 1, "stage-failed: stage 1: no", attempt=2))
    assert (resolve.kind, resolve.cause) == ("failed", "stage-failed: stage 1: no")


def test_a_copy_that_nothing_is_heard_of_is_sent_again_by_its_timer(make: Maker) -> None:
    node = make()
    node.submit(0)
    for peer in GROUPS:
        node.tell(CreditReceived(peer, Credit(OUT, 1 if peer in (1, 3) else 0, (), 4)), now=0.01)
    assert node.sent(node.pass_time(0.74)) == []
    assert node.sent(node.pass_time(0.76)) == [(2, 0, 0, 2), (4, 0, 1, 2)]
    assert node.source.counts.by_timer == 2
    node.answer(0, 0, now=0.8)  # the first copy's answer still counts
    assert outcome(node.answer(0, 1, attempt=2, now=0.8)).kind == "result"


def test_a_later_session_sends_again_what_is_out(make: Maker) -> None:
    """S5: what is in stays in."""
    node = make()
    node.submit(0)
    node.answer(0, 0)
    commands = node.lose(0, 1, "shut-out: node 3", shut_out_by=7)
    assert [command.session for command in commands if isinstance(command, SessionRaised)] == [8]
    assert [name[2:] for name in node.sent(commands)] == [(1, 2)]


# ---- F5: hedging ---------------------------------------------------------------------------------


def measured(node: SharedSource, count: int = 20) -> int:
    """So many samples answered after 10 ms each; the number of the next."""
    for sample in range(count):
        commands = node.submit(sample, now=0.02 * sample)
        (first, second) = sorted(node.sent(commands), key=lambda name: name[2])
        now = 0.02 * sample + 0.01
        for rank, _, part, attempt in (first, second):
            node.answer(sample, part, attempt=attempt, peer=rank, now=now)
            node.tell(CreditReceived(rank, Credit(OUT, node.policy.neighbour(rank).outgoing.next_number, (), 1000)), now=now)  # type: ignore[union-attr]
    return count


def test_a_late_copy_is_followed_by_one_to_another_replica_that_stays_preferred(make: Maker) -> None:
    node = make("hedged", window=1000)
    sample = measured(node)
    now = 0.02 * sample
    ((slow, *_), (other, *_)) = sorted(node.sent(node.submit(sample, now=now)), key=lambda name: name[2])
    node.answer(sample, 1, peer=other, now=now + 0.01)
    quick = 3 - slow
    commands = node.pass_time(now + 0.02)
    assert node.sent(commands) == [(quick, sample, 0, 2)]
    assert node.source.late == {slow: 1}
    assert node.sent(node.submit(sample + 1, now=now + 0.02))[0] == (quick, sample + 1, 0, 1)
    assert outcome(node.answer(sample, 0, attempt=2, peer=quick, now=now + 0.025)).attempts == 2
    node.answer(sample, 0, attempt=1, peer=slow, now=now + 0.5)
    assert slow not in node.source.late
    assert node.source.counts.second_results == 1


def test_failover_waits_where_hedged_does_not(make: Maker) -> None:
    node = make("failover", window=1000)
    sample = measured(node)
    node.submit(sample, now=0.02 * sample)
    assert node.sent(node.pass_time(0.02 * sample + 0.5)) == []


def test_hedging_ends_with_its_budget(make: Maker) -> None:
    """Nothing comes back any more: half of the samples and 10, not twice the load."""
    node = make("hedged", window=1000)
    sample = measured(node)
    now = 0.02 * sample
    for late in range(60):
        node.submit(sample + late, now=now)
    node.pass_time(now + 0.5)
    assert node.source.counts.hedged == HEDGE_SHARE * 60 + HEDGE_FREE


def test_what_the_budget_put_off_is_due_when_its_timer_fires(make: Maker) -> None:
    """In floats 0.13 + 1 - 0.13 is below 1: a timer set anew to the present would never let go."""
    source = make("failover").source
    source.counts.resubmitted = 1000
    for last in (0.13, 0.4, 7.7):
        source._resubmitted_at = last
        assert source._may_resubmit(last + RESUBMIT_TRICKLE_SECONDS)


# ---- in virtual time -----------------------------------------------------------------------------


def p99_with_stalls(redundancy: str, *, samples: int = 400) -> float:
    """Two students on five boards each, of which one at a time stands still for most of a second: a fifth of all boards."""
    boards = 10
    shape = Shape(
        stages=((), *[(rank % 2,) for rank in range(boards)]),
        links=tuple((0, 1 + rank) for rank in range(boards)),
        students=(1, 1),
        redundancy=redundancy,
        own_slots=64,
        window=16,
    )
    mesh = Mesh(shape, seed=5)
    mesh.checked = False

    def service(rank: int, stage: int) -> float:
        turn, within = divmod(mesh.now, 0.8)
        return 0.004 + (0.8 - within if int(turn) % 5 == (rank - 1) // 2 else 0.0)

    mesh.service = service
    for sample in range(samples):
        mesh.submit_at(0.01 * sample, sample, deadline=30.0)
    mesh.run(until=100.0)
    assert mesh.kinds() == {sample: ["result"] for sample in range(samples)}
    assert all(resolve.missing == 0 for _, _, resolve in mesh.outcomes)
    return sorted(resolve.latency_seconds for _, _, resolve in mesh.outcomes)[int(0.99 * samples)]


def test_with_a_fifth_of_the_boards_stalling_hedged_takes_a_tenth_of_failover_at_the_99th_percentile() -> None:
    assert 10 * p99_with_stalls("hedged") < p99_with_stalls("failover")

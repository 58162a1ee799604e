"""The source's custody of its samples (D1-D4, R2-R4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.build import DrivenSource, lost
from zpipe.model import LostRow, SampleKey
from zpipe.policy.admission import Aimd
from zpipe.policy.messages import SessionRaised

MakeSource = Callable[..., DrivenSource]


@pytest.fixture
def source(make_source: MakeSource) -> DrivenSource:
    return make_source()


# ---- outcomes ------------------------------------------------------------------------------------


def test_the_first_result_of_any_attempt_is_the_outcome(source: DrivenSource) -> None:
    """D2: attempt 1 answers after attempt 2 was started; attempt 2's answer is a second result."""
    source.submit(0)
    source.start()
    source.lost(0)
    assert source.start() == [(0, 2)]
    source.result(0, 1)
    source.result(0, 2)
    assert source.outcomes() == [(0, "result")]
    assert (source.counts.results, source.counts.second_results, source.counts.strangers) == (1, 1, 0)


def test_an_outcome_tells_latency_attempts_and_answer(source: DrivenSource) -> None:
    source.submit(0, now=1.0)
    source.start(now=2.0)
    source.result(0, now=4.0)
    (resolve,) = source.resolves()
    assert (resolve.latency_seconds, resolve.attempts, resolve.cause) == (3.0, 1, "")
    assert resolve.row is not None
    assert resolve.row.label == 0


def test_an_answer_of_another_session_or_to_nothing_asked_is_a_stranger(source: DrivenSource) -> None:
    """S1, D2."""
    source.submit(0)
    source.result(0)  # it was not started
    source.start()
    source.result(0, session=2)
    source.result(5)
    assert source.outcomes() == []
    assert (source.counts.strangers, source.counts.second_results) == (3, 0)


def shut_out(sample: int, attempt: int, by: int, *, session: int = 1) -> LostRow:
    return LostRow(SampleKey(0, session, sample), attempt, "shut-out: node 1", by)


def test_a_source_that_is_shut_out_goes_on_under_a_later_session(source: DrivenSource) -> None:
    """S5: all that is in flight goes again, answers of the older session count, and nothing has two outcomes."""
    source.submit(0, 1)
    source.start()
    source.source.lost(shut_out(0, 1, 7), held=False, now=0.1)
    assert source.source.told == [SessionRaised(8, "shut-out: node 1")]
    task = source.source.next_task(now=0.1)
    assert task is not None
    assert (task.key, task.attempt) == (SampleKey(0, 8, 0), 2)
    assert source.start() == [(1, 2)]
    source.result(0, 1)
    source.result(0, 2, session=8)
    source.result(1, 2, session=7)
    assert source.outcomes() == [(0, "result")]
    assert (source.counts.strangers, source.counts.second_results, source.counts.sessions) == (1, 1, 1)


def test_a_raise_leaves_the_timers_their_budget(source: DrivenSource) -> None:
    """S5, R3: no loss was its cause."""
    source.submit(*range(40))
    source.start()
    source.source.lost(shut_out(0, 1, 7), held=False, now=0.1)
    source.start(now=0.1)
    source.tick(1.2)
    assert source.counts.by_timer == 10


def test_a_lie_about_the_present_session_is_answered_by_the_next(source: DrivenSource) -> None:
    """S5: somebody told of a lowest open number that never was."""
    source.submit(0)
    source.start()
    source.source.lost(shut_out(0, 1, 1), held=False, now=0.1)
    assert source.source.session == 2


@pytest.mark.parametrize(
    "row",
    [shut_out(0, 1, 0), shut_out(0, 2, 9), shut_out(9, 1, 9), shut_out(0, 1, 9, session=3)],
    ids=["an earlier session", "another attempt", "another sample", "another session"],
)
def test_what_shuts_nobody_out_raises_nothing(source: DrivenSource, row: LostRow) -> None:
    """S5."""
    source.submit(0)
    source.start()
    source.source.lost(row, held=False, now=0.1)
    assert source.source.session == 1


def test_sessions_are_raised_ever_more_seldom(source: DrivenSource) -> None:
    """S5: in between the timer tries again, and not at once, or a liar could keep the source busy."""
    source.submit(0)
    source.start()
    source.source.lost(shut_out(0, 1, 7), held=False, now=0.1)
    assert source.start() == [(0, 2)]
    source.source.lost(shut_out(0, 2, 20, session=8), held=False, now=1.0)
    assert (source.source.session, source.start()) == (8, [])
    source.source.lost(shut_out(0, 2, 20, session=8), held=False, now=1.2)
    assert (source.source.session, source.start()) == (21, [(0, 3)])
    source.source.lost(shut_out(0, 3, 30, session=21), held=False, now=3.1)
    assert source.source.session == 21
    source.source.lost(shut_out(0, 3, 30, session=21), held=False, now=3.3)
    assert source.source.session == 31


def test_a_session_that_cannot_be_outbid_is_left_to_the_timer(source: DrivenSource) -> None:
    """S5: at once it would come back the same."""
    source.submit(0)
    source.start()
    source.source.lost(shut_out(0, 1, 2**62), held=False, now=0.1)
    assert (source.source.session, source.start()) == (1, [])


def test_a_cancelled_sample_fails_once(source: DrivenSource) -> None:
    """D1: waiting, in flight, and one that is over."""
    source.submit(0, 1)
    source.start(most=1)
    for sample in (0, 1, 1, 7):
        source.source.cancel(sample, cause="closed", now=1.0)
    assert source.outcomes() == [(0, "failed"), (1, "failed")]
    assert (source.source.open_count, source.source.in_flight, source.source.waiting_count) == (0, 0, 0)


def test_only_the_timer_expires_a_sample(source: DrivenSource) -> None:
    """D3: one waits, one was admitted, one lost an attempt."""
    source.submit(0, 1, 2, deadline=1.0)
    source.start(most=2)
    source.lost(1, cause="peer-lost: cut")
    source.tick(0.999)
    assert source.outcomes() == []
    assert source.source.next_wakeup(slot_free=False) == 1.0
    source.tick(1.0)
    causes = {resolve.sample: resolve.cause for resolve in source.resolves() if resolve.kind == "expired"}
    assert causes == {
        0: "no result after attempt 1",
        1: "no result after attempt 1 (last loss: peer-lost: cut)",
        2: "it was still waiting for admission",
    }
    assert source.start(now=1.0) == []


def test_a_sample_past_its_deadline_at_submission_expires_at_once(source: DrivenSource) -> None:
    """D3."""
    source.submit(0, now=1.0, deadline=1.0)
    assert source.outcomes() == [(0, "expired")]


def test_numbers_that_do_not_rise_are_a_bug_of_the_caller(source: DrivenSource) -> None:
    """S1."""
    source.submit(3)
    with pytest.raises(AssertionError, match="rise"):
        source.submit(3)


def test_oldest_is_the_lowest_open_number(source: DrivenSource) -> None:
    """S5."""
    assert source.source.oldest == 0
    source.submit(0, 1, 4)
    source.start()
    source.result(1)
    assert source.source.oldest == 0
    source.result(0)
    assert source.source.oldest == 4
    source.result(4)
    assert source.source.oldest == 5
    assert not source.source.is_current(SampleKey(0, 1, 4))


def test_a_task_tells_the_lowest_open_number_and_carries_the_ladders_point(make_source: MakeSource) -> None:
    """S5, D4."""
    source = make_source()
    source.submit(0, 1, deadline=9.0)
    source.start(most=1)
    task = source.source.next_task(now=0.5)
    assert task is not None
    assert (task.oldest, task.attempt, task.stage, task.deadline, task.born, task.peer, task.token) == (0, 1, 0, 9.0, 0.0, -1, 0)
    assert task.thresholds == (1.0, 1.0, 1.0)


# ---- the room ------------------------------------------------------------------------------------


def test_a_full_room_turns_the_newcomer_away_in_block_mode(make_source: MakeSource) -> None:
    """D4."""
    source = make_source(waiting=2)
    source.submit(0, 1)
    assert not source.source.has_room
    source.submit(2)
    assert source.outcomes() == [(2, "rejected")]
    assert source.start() == [(0, 1), (1, 1)]


def test_a_full_room_drops_the_oldest_waiting_in_latest_mode(make_source: MakeSource) -> None:
    """D4: the default room keeps one frame, and what is in flight is not touched."""
    source = make_source(when_full="latest")
    source.submit(0)
    source.start()
    source.submit(1, 2, 3)
    assert source.outcomes() == [(1, "rejected"), (2, "rejected")]
    assert source.start() == [(3, 1)]


def test_a_full_room_turns_the_newcomer_away_in_deadline_mode(make_source: MakeSource) -> None:
    """D4."""
    source = make_source(when_full="deadline", waiting=1)
    source.submit(0, 1, deadline=9.0)
    assert source.outcomes() == [(1, "rejected")]


def slow_source(make_source: MakeSource, *, sojourn: float = 2.0) -> DrivenSource:
    """In deadline mode, with one sample in flight and `sojourn` measured: a margin of 1.5 times that."""
    source = make_source(when_full="deadline", waiting=100)
    source.submit(0, 1)
    source.start()
    source.result(0, now=sojourn)
    source.outcomes()
    return source


def test_live_video_aims_at_a_shorter_queue_unless_the_topology_says_more(make_source: MakeSource) -> None:
    def factor(**config: Any) -> float:
        strategy = make_source(admission="aimd", **config).source.admission
        assert isinstance(strategy, Aimd)
        strategy.resolved(queued_seconds=0.0, service_seconds=1.0, sojourn_seconds=1.0, in_flight=0, now=0.0)
        return strategy.target_seconds

    assert factor(when_full="block") == 2.0
    assert factor(when_full="latest") == 0.9
    assert factor(when_full="latest", options={"target_factor": 3.0}) == 3.0


def busy_source(make_source: MakeSource, *, in_flight: int) -> DrivenSource:
    """In deadline mode, ten results a second for three seconds, none of them slower than its queue; the time is 3.0."""
    source = make_source(when_full="deadline", waiting=100)
    source.submit(*range(30 + in_flight))
    source.start(most=in_flight)
    source.tick(0.0)
    for result in range(30):
        now = 0.1 * (result + 1)
        source.result(result, now=now)
        source.start(now=now, most=1)
        source.tick(now + 1e-9)
    source.source._forecast.margin_seconds = 0.0
    source.outcomes()
    return source


def test_deadline_mode_rejects_what_cannot_make_it(make_source: MakeSource) -> None:
    """D4: twenty are in flight, and ten come back a second."""
    source = busy_source(make_source, in_flight=20)
    source.submit(100, now=3.0, deadline=3.0 + 1.9)
    assert source.outcomes() == [(100, "rejected")]
    source.submit(101, now=3.0, deadline=3.0 + 2.1)
    assert source.outcomes() == []


def test_deadline_mode_looks_again_at_admission(make_source: MakeSource) -> None:
    """D4: it waited too long for a slot."""
    source = slow_source(make_source)
    source.submit(2, 3, now=2.0, deadline=5.0)
    assert source.start(now=2.5, most=1) == [(2, 1)]
    assert source.start(now=3.5) == []
    assert source.outcomes() == [(3, "rejected")]


def test_deadline_mode_counts_those_ahead(make_source: MakeSource) -> None:
    """D4: with five in the room before it, behind twenty in flight, it takes 2.5 seconds."""
    source = busy_source(make_source, in_flight=20)
    source.submit(*range(100, 105), now=3.0)
    source.submit(105, now=3.0, deadline=3.0 + 2.4)
    assert source.outcomes() == [(105, "rejected")]
    source.submit(106, now=3.0, deadline=3.0 + 2.6)
    assert source.outcomes() == []


def test_what_expires_in_flight_makes_the_margin_wider(make_source: MakeSource) -> None:
    """D4: only the fast ones come back, and they alone would make everything look fast."""
    source = make_source(when_full="deadline", waiting=100)
    source.submit(0, 1, deadline=1.0)
    source.start()
    source.result(0, now=0.1)
    before = source.source._forecast.margin_seconds
    source.tick(1.0)
    assert source.outcomes() == [(0, "result"), (1, "expired")]
    assert source.source._forecast.margin_seconds > before


def test_thresholds_hear_of_deadlines_that_press_before_one_is_missed(make_source: MakeSource) -> None:
    """D4: a forecast of 2 s in 2.4 s is enough for the strategy, and no reason to reject."""
    heard = []
    source = busy_source(make_source, in_flight=20)
    source.source.admission.adapt = lambda feedback: heard.append(feedback.pressed)  # type: ignore[method-assign]
    for sample, left in ((100, 9.0), (101, 2.4)):
        source.submit(sample, now=3.0 + sample, deadline=3.0 + sample + left)
        source.tick(3.0 + sample)
    assert source.outcomes() == []
    assert heard == [False, True]


def test_a_timer_waits_longer_when_the_load_grew_since(make_source: MakeSource) -> None:
    """R3: it was set for 1 s; now forty are in flight at ten a second, and even the youngest will be back in 4."""
    source = busy_source(make_source, in_flight=40)
    source.tick(3.9)
    source.tick(7.9)
    assert source.counts.by_timer == 0
    source.tick(11.1)
    assert source.counts.by_timer > 0


def test_deadline_mode_tries_again_when_nothing_is_in_flight(make_source: MakeSource) -> None:
    """D4: one slow answer must not turn everybody away for ever."""
    source = slow_source(make_source, sojourn=30.0)
    source.result(1, now=30.0)
    sample = 2
    for _ in range(60):
        now = 30.0 + sample
        source.submit(sample, sample + 1, now=now, deadline=now + 1.0)
        for started, attempt in source.start(now=now):
            source.result(started, attempt, now=now + 0.01)
        sample += 2
    source.outcomes()
    source.submit(sample, sample + 1, now=1000.0, deadline=1001.0)
    assert len(source.start(now=1000.0)) == 2
    assert source.outcomes() == []


def test_throughput_is_not_taken_from_idle_time(make_source: MakeSource) -> None:
    """D4: after a minute of nothing the nodes are as fast as before."""
    source = make_source(when_full="deadline", waiting=100)
    source.submit(*range(20))
    source.start()
    source.tick(0.0)
    for sample in range(20):
        source.result(sample, now=0.1)
    source.submit(20, now=0.1)
    source.start(now=0.1)
    source.tick(0.1)
    source.result(20, now=0.11)
    fast = source.source._forecast.throughput_hz
    assert fast > 50.0
    source.submit(*range(21, 60), now=60.0)
    source.start(now=60.0, most=4)
    source.tick(60.0)
    assert source.source._forecast.throughput_hz == fast


def test_admission_stops_at_max_open(make_source: MakeSource) -> None:
    """D4."""
    source = make_source(max_open=2)
    source.submit(0, 1, 2)
    assert source.start() == [(0, 1), (1, 1)]
    source.tick(0.0)
    assert source.source.next_wakeup(slot_free=True) == 0.1  # the control interval
    source.result(0)
    assert source.start() == [(2, 1)]


def test_the_pacer_wakes_the_owner_only_while_a_slot_is_free(make_source: MakeSource) -> None:
    """D4."""
    source = make_source(options={"rate_hz": 20.0})
    source.submit(0, 1)
    assert source.start(now=0.0) == [(0, 1)]
    source.tick(0.0)
    assert source.source.next_wakeup(slot_free=True) == pytest.approx(0.045)
    assert source.source.next_wakeup(slot_free=False) == pytest.approx(0.1)  # the control interval
    assert source.start(now=0.0449) == []
    assert source.start(now=0.0451) == [(1, 1)]


def test_the_rate_adapts_only_where_the_pacer_was_the_limit(make_source: MakeSource) -> None:
    """D4, Alg. 3."""
    source = make_source(admission="mdi-rate", options={"rate_hz": 50.0})
    source.submit(0)
    source.start(now=0.0)
    source.tick(0.0)
    assert source.source.admission.rate_hz == 50.0
    source.submit(1, 2, 3, now=0.02)
    source.start(now=0.02)
    source.tick(0.1)
    assert source.source.admission.rate_hz == pytest.approx(50.0 / 0.8)
    source.tick(0.2)  # nobody asked the pacer in this interval
    assert source.source.admission.rate_hz == pytest.approx(50.0 / 0.8)


def test_tables_are_cleared_of_what_is_over(source: DrivenSource) -> None:
    """D2: deadlines and timers lie far ahead, and one old sample stays open."""
    source.submit(0, deadline=1e6)
    source.start()
    for sample in range(1, 1000):
        source.submit(sample, deadline=1e6)
        source.start()
        source.result(sample)
    assert max(len(table) for table in (source.source._deadlines, source.source._retransmits, source.source._order)) <= 68
    assert source.source.oldest == 0
    source.outcomes()


def test_an_idle_source_needs_no_wakeup(source: DrivenSource) -> None:
    source.submit(0)
    source.start()
    source.result(0)
    source.outcomes()
    source.tick(1e9)
    assert source.source.next_wakeup(slot_free=True) == math.inf


# ---- losses --------------------------------------------------------------------------------------


def test_a_lost_attempt_is_submitted_again_before_new_samples(source: DrivenSource) -> None:
    """R2."""
    source.submit(0)
    source.start()
    source.submit(1)
    source.lost(0)
    assert source.start() == [(0, 2), (1, 1)]
    assert source.counts.resubmitted == 1


def test_loss_of_another_attempt_changes_nothing(source: DrivenSource) -> None:
    """R2."""
    source.submit(0)
    source.start()
    source.lost(0, attempt=1)
    source.start()
    source.lost(0, attempt=1)
    source.lost(0, attempt=3)
    assert source.start() == []


def test_loss_while_the_task_is_held_here_changes_nothing(source: DrivenSource) -> None:
    """R2."""
    source.submit(0)
    source.start()
    source.lost(0, held=True)
    assert source.start() == []


def test_loss_of_what_is_over_or_never_started_changes_nothing(source: DrivenSource) -> None:
    """R2."""
    source.submit(0, 1)
    source.start(most=1)
    source.result(0)
    source.lost(0)
    source.lost(1, attempt=0)
    assert source.start() == [(1, 1)]
    assert source.counts.resubmitted == 0


def test_loss_of_another_session_changes_nothing(source: DrivenSource) -> None:
    """S1, R2."""
    source.submit(0)
    source.start()
    source.source.lost(lost(0, 1, "peer-lost", session=2), held=False, now=0.1)
    assert source.start() == []


def test_an_answer_ends_a_sample_that_waits_to_be_submitted_again(source: DrivenSource) -> None:
    """D2, R2."""
    source.submit(0)
    source.start()
    source.lost(0)
    source.result(0)
    assert source.outcomes() == [(0, "result")]
    assert source.start() == []


def test_a_second_lone_failure_ends_the_sample(source: DrivenSource) -> None:
    """R4."""
    source.submit(0)
    source.start()
    source.lost(0, 1, "stage-failed: boom")
    assert source.start() == [(0, 2)]
    source.lost(0, 2, "stage-failed: boom")
    assert [(resolve.kind, resolve.cause) for resolve in source.resolves()] == [("failed", "stage-failed: boom")]


def test_a_loss_told_twice_counts_once(source: DrivenSource) -> None:
    """R4: a repeated frame is no second failure."""
    source.submit(0)
    source.start()
    source.lost(0, 1, "stage-failed: boom")
    source.lost(0, 1, "stage-failed: boom")
    assert source.outcomes() == []
    assert source.start() == [(0, 2)]


def test_losses_on_the_way_are_no_stage_failures(source: DrivenSource) -> None:
    """R4."""
    source.submit(0)
    for attempt in range(1, 5):
        assert source.start() == [(0, attempt)]
        source.lost(0, attempt, "peer-lost: cut")
    assert source.outcomes() == []


# ---- the timer -----------------------------------------------------------------------------------


def test_the_timer_starts_at_its_least_and_doubles(source: DrivenSource) -> None:
    """R3."""
    source.submit(0)
    source.start(now=0.0)
    due = []
    now = 0.0
    for _ in range(4):
        wakeup = source.source._retransmits[0][0]
        source.tick(wakeup - 1e-6)
        assert source.start(now=wakeup - 1e-6) == []
        source.tick(wakeup)
        assert len(source.start(now=wakeup)) == 1
        due.append(wakeup - now)
        now = wakeup
    assert due == pytest.approx([0.75, 1.5, 3.0, 6.0])
    assert (source.counts.by_timer, source.counts.resubmitted) == (4, 4)


def test_the_timer_follows_the_sojourn(source: DrivenSource) -> None:
    """R3: the first sojourn of 2 s gives 2 + 4 * 1."""
    source.submit(0)
    source.start(now=0.0)
    source.result(0, now=2.0)
    source.submit(1, now=2.0)
    source.start(now=2.0)
    assert source.source._retransmits[-1][0] == pytest.approx(2.0 + 6.0)


def test_the_timer_waits_as_long_as_samples_are_seen_to_take(source: DrivenSource) -> None:
    """R3: the bound on the forecast of a queue is none on a sojourn of 20 s, which gives 20 + 4 * 10."""
    source.submit(0)
    source.start(now=0.0)
    source.result(0, now=20.0)
    source.submit(1, now=20.0)
    source.start(now=20.0)
    assert source.source._retransmits[-1][0] == pytest.approx(20.0 + 60.0)


def test_the_timer_learns_only_from_first_attempts(source: DrivenSource) -> None:
    """R3: an answer numbered 2 may be the first attempt that met the second: since when it was under way nobody knows."""
    source.submit(0)
    source.start(now=0.0)
    source.tick(1.0)
    source.start(now=1.0)
    source.result(0, 2, now=1.1)
    assert source.source._sojourn == 0.0
    source.submit(1, now=2.0)
    source.start(now=2.0)
    source.tick(3.0)
    source.start(now=3.0)
    source.result(1, 1, now=5.0)
    assert source.source._sojourn == 3.0


def test_the_timer_lets_a_task_that_is_held_here_be(source: DrivenSource) -> None:
    """R3."""
    source.submit(0)
    source.start(now=0.0)
    source.tick(1.0, held=(0,))
    assert source.start(now=1.0) == []
    source.tick(2.0)
    assert source.start(now=2.0) == [(0, 2)]


def test_a_sample_that_waits_to_be_submitted_again_is_not_timed(source: DrivenSource) -> None:
    """R3: its Lost came first."""
    source.submit(0)
    source.start(now=0.0)
    source.lost(0, now=0.5)
    source.tick(1.0)
    assert source.counts.by_timer == 0
    assert source.start(now=1.0) == [(0, 2)]


def test_the_timer_of_an_earlier_attempt_is_void(source: DrivenSource) -> None:
    """R3: attempt 2 began at 0.5 and has the least time: nothing but timeouts doubles it."""
    source.submit(0)
    source.start(now=0.0)
    source.lost(0, now=0.5)
    source.start(now=0.5)
    source.tick(1.2)
    assert source.start(now=1.2) == []
    source.tick(1.25)
    assert source.start(now=1.25) == [(0, 3)]
    source.tick(2.7)
    assert source.start(now=2.7) == []
    source.tick(2.75)
    assert source.start(now=2.75) == [(0, 4)]


def test_timers_stay_within_the_budget_and_then_trickle(source: DrivenSource) -> None:
    """R3: ten free ones, then one a second."""
    source.submit(*range(30))
    source.start(now=0.0)
    source.tick(0.75)
    assert source.counts.by_timer == 10
    source.start(now=0.75)
    source.tick(1.5)
    assert source.counts.by_timer == 10
    source.tick(2.25)  # those that found no budget look again, one is let
    assert source.counts.by_timer == 11


def test_results_earn_budget(source: DrivenSource) -> None:
    """R3: forty results, four more resubmissions."""
    source.submit(*range(60))
    source.start(now=0.0)
    for sample in range(40):
        source.result(sample, now=0.01)
    source.tick(1.0)
    assert source.counts.by_timer == 14
    source.outcomes()

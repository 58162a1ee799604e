"""Service order and batches (R4)."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest

from tests.policy.build import task
from zpipe.model import Task
from zpipe.policy.priority import PriorityOrder, fill_batch, first_stage, insert_ranked


def queue(*tasks: Task) -> deque[Task]:
    return deque(tasks)


def samples(tasks: list[Task]) -> list[int]:
    return [each.key.sample for each in tasks]


def test_fifo_leads_with_the_longest_waiting_over_all_stages() -> None:
    early, late = task(0, 2, since=1.0), task(1, 1, since=2.0)
    assert first_stage({1: queue(late), 2: queue(early), 3: queue()}) == 2
    assert first_stage({1: queue(early), 2: queue(late)}) == 1
    assert first_stage({0: queue(), 2: queue(late)}) == 2


def test_a_batch_takes_what_is_there_and_never_more_than_max_batch() -> None:
    waiting = queue(*[task(sample, 1) for sample in range(5)])
    assert samples(fill_batch(waiting, max_batch=3, seconds_per_sample=0.0, now=0.0)) == [0, 1, 2]
    assert samples(fill_batch(waiting, max_batch=3, seconds_per_sample=0.0, now=0.0)) == [3, 4]
    assert not waiting


def test_a_batch_of_one_leaves_the_rest() -> None:
    waiting = queue(task(0, 1), task(1, 1))
    assert samples(fill_batch(waiting, max_batch=1, seconds_per_sample=0.01, now=0.0)) == [0]
    assert len(waiting) == 1


def test_a_batch_keeps_the_leaders_budget() -> None:
    waiting = queue(task(0, 1, deadline=0.035), *[task(sample, 1) for sample in range(1, 8)])
    assert samples(fill_batch(waiting, max_batch=8, seconds_per_sample=0.01, now=0.0)) == [0, 1, 2]


def test_a_leader_without_time_still_runs() -> None:
    waiting = queue(task(0, 1, deadline=0.001), task(1, 1))
    assert samples(fill_batch(waiting, max_batch=8, seconds_per_sample=0.01, now=0.0)) == [0]


def test_a_task_that_must_run_alone_does() -> None:
    """R4."""
    waiting = queue(task(0, 1, alone=True), task(1, 1), task(2, 1, alone=True), task(3, 1))
    batches = [samples(fill_batch(waiting, max_batch=8, seconds_per_sample=0.0, now=0.0)) for _ in range(4)]
    assert batches == [[0], [1], [2], [3]]


# ---- by class and age (A7) ---------------------------------------------------------------------


def ranked(*tasks: Task) -> deque[Task]:
    found: deque[Task] = deque()
    for each in tasks:
        insert_ranked(found, each)
    return found


def of(sample: int, stage: int, priority: int, since: float, *, alone: bool = False) -> Task:
    return task(sample, stage, priority=priority, since=since, alone=alone)


def take(order: PriorityOrder, queues: dict[int, deque[Task]], *, max_batch: int = 8, seconds: float = 0.0) -> list[int]:
    return samples(order.take(queues, max_batch=max_batch, service_seconds=dict.fromkeys(queues, seconds), now=0.0))


def order(
    *, classes: tuple[int, ...] = (0, 1), min_share: float = 0.0, max_batch_low: int = 0, ageing: float = 0.0
) -> PriorityOrder:
    return PriorityOrder(classes, min_share=min_share, max_batch_low=max_batch_low, ageing_seconds=ageing)


def test_a_ranked_queue_has_the_higher_class_first_and_in_a_class_who_came_first() -> None:
    waiting = ranked(of(0, 1, 0, 5.0), of(1, 1, 1, 9.0), of(2, 1, 0, 1.0), of(3, 1, 1, 2.0), of(4, 1, 1, 9.0))
    assert samples([*waiting]) == [3, 1, 4, 2, 0], "equal ones stay in the order they came"


def test_the_higher_class_goes_first_whatever_its_stage() -> None:
    queues = {1: ranked(of(0, 1, 0, 1.0), of(1, 1, 0, 2.0)), 2: ranked(of(2, 2, 1, 9.0))}
    assert [take(order(), queues) for _ in range(2)] == [[2], [0, 1]]


def test_of_one_class_who_came_first_goes_first_whatever_its_stage() -> None:
    queues = {1: ranked(of(0, 1, 0, 3.0)), 2: ranked(of(1, 2, 0, 1.0)), 3: ranked(of(2, 3, 0, 2.0))}
    assert [take(order(), queues) for _ in range(3)] == [[1], [2], [0]]


def test_a_batch_is_of_one_class() -> None:
    queues = {1: ranked(of(0, 1, 1, 1.0), of(1, 1, 1, 2.0), of(2, 1, 0, 0.0))}
    assert [take(order(), queues) for _ in range(2)] == [[0, 1], [2]]


def test_lower_classes_may_have_smaller_batches_than_the_highest() -> None:
    queues = {1: ranked(*[of(sample, 1, sample % 2, float(sample)) for sample in range(8)])}
    assert [take(order(max_batch_low=1), queues) for _ in range(3)] == [[1, 3, 5, 7], [0], [2]]


@pytest.mark.parametrize(("of_four", "batches"), [(0.040, [[0], [1], [2], [3]]), (0.012, [[0, 1, 2, 3]])])
def test_of_the_highest_class_a_batch_is_larger_only_where_that_pays(of_four: float, batches: list[list[int]]) -> None:
    by = order()
    by.ran(1, 1, 0.010)
    by.ran(1, 4, of_four)
    queues = {1: ranked(*[of(sample, 1, 1, float(sample)) for sample in range(4)])}
    assert [take(by, queues) for _ in batches] == batches
    low = {1: ranked(*[of(sample, 1, 0, float(sample)) for sample in range(4)])}
    assert take(by, low) == [0, 1, 2, 3], "who is lower is not spared its own batches"


def test_tasks_are_told_how_long_lower_classes_computed_while_they_waited() -> None:
    by = order(classes=(0, 1, 2))
    by.note_yielded([of(0, 1, 0, 0.0)], 1.0, 1.4)
    by.note_yielded([of(1, 1, 2, 1.0)], 1.4, 1.5)
    by.note_yielded([of(2, 1, 1, 1.0)], 1.5, 1.6)
    high, middle, late = (of(3, 1, 2, 1.1), of(4, 1, 1, 1.1), of(5, 1, 2, 1.6))
    by.note_yielded([high, late], 1.7, 1.8)
    by.note_yielded([middle], 1.8, 1.9)
    found = [each.yielded_seconds for each in (high, middle, late)]
    assert found == pytest.approx([0.3 + 0.1, 0.3, 0.0]), "not for its own class, nor for what ran before it came"


def test_where_there_is_one_class_batches_are_filled() -> None:
    by = order(classes=(0,))
    by.ran(1, 1, 0.010)
    by.ran(1, 4, 0.040)
    assert take(by, {1: ranked(*[of(sample, 1, 0, float(sample)) for sample in range(4)])}) == [0, 1, 2, 3]


def test_a_class_that_waits_gets_its_share_of_the_time_and_no_more() -> None:
    """Both classes always have work: of 1000 batches of 10 ms, a fifth is the lower one's, never two in a row."""
    by = order(min_share=0.2)
    queues = {
        1: ranked(*[of(sample, 1, 1, 0.0) for sample in range(1000)]),
        2: ranked(*[of(sample, 2, 0, 0.0) for sample in range(1000)]),
    }
    chosen = [by.take(queues, max_batch=1, service_seconds={1: 0.01, 2: 0.01}, now=0.0)[0].priority for _ in range(1000)]
    assert 195 <= chosen.count(0) <= 200
    assert not any(a == b == 0 for a, b in pairwise(chosen))


def test_without_a_share_the_lower_class_waits_for_ever() -> None:
    by = order(min_share=0.0)
    queues = {1: ranked(*[of(sample, 1, 1, 0.0) for sample in range(50)], of(99, 1, 0, 0.0))}
    assert all(99 not in take(by, queues, max_batch=1, seconds=0.01) for _ in range(50))


def test_each_of_several_lower_classes_has_its_own_share() -> None:
    by = order(classes=(0, 1, 2), min_share=0.1)
    queues = {stage: ranked(*[of(sample, stage, stage, 0.0) for sample in range(2000)]) for stage in (0, 1, 2)}
    chosen = [by.take(queues, max_batch=1, service_seconds=dict.fromkeys(queues, 0.01), now=0.0)[0].priority for _ in range(1000)]
    assert 95 <= chosen.count(0) <= 105
    assert 95 <= chosen.count(1) <= 105


def test_who_did_not_wait_is_owed_nothing() -> None:
    by = order(min_share=0.4)
    busy = {1: ranked(*[of(sample, 1, 1, 0.0) for sample in range(20)]), 2: ranked()}
    for _ in range(10):
        take(by, busy, max_batch=1, seconds=0.01)
    insert_ranked(busy[2], of(99, 2, 0, 0.0))
    assert take(by, busy, max_batch=1, seconds=0.01) != [99], "it came just now"


def test_with_ageing_a_class_is_worth_so_many_seconds_of_waiting() -> None:
    """Two seconds a class, and at a tie the higher one; a batch of who aged holds nobody else."""
    by = order(classes=(0, 1, 3), ageing=2.0)
    queues = {
        1: ranked(of(0, 1, 0, 0.0), of(1, 1, 0, 0.5), of(2, 1, 0, 9.0)),
        2: ranked(of(3, 2, 1, 1.9), of(4, 2, 1, 2.5), of(5, 2, 3, 6.5)),
    }
    assert [take(by, queues) for _ in range(5)] == [[3], [0], [5], [4], [1, 2]]


def test_with_ageing_one_class_by_itself_is_as_before() -> None:
    by = order(classes=(0, 1), ageing=2.0)
    assert take(by, {1: ranked(*[of(sample, 1, 0, float(sample)) for sample in range(4)])}) == [0, 1, 2, 3]


def test_what_must_run_alone_does_in_a_ranked_queue_too() -> None:
    queues = {1: deque([of(0, 1, 1, 0.0, alone=True), of(1, 1, 1, 1.0), of(2, 1, 1, 2.0, alone=True)])}
    assert [take(order(), queues) for _ in range(3)] == [[0], [1], [2]]

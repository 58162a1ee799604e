"""Service order and batches (R4)."""

from __future__ import annotations

from collections import deque

from tests.policy.build import task
from zpipe.model import Task
from zpipe.policy.priority import FifoOrder, fill_batch


def queue(*tasks: Task) -> deque[Task]:
    return deque(tasks)


def samples(tasks: list[Task]) -> list[int]:
    return [each.key.sample for each in tasks]


def test_fifo_leads_with_the_longest_waiting_over_all_stages() -> None:
    order = FifoOrder()
    early, late = task(0, 2, since=1.0), task(1, 1, since=2.0)
    assert order.leader({1: queue(late), 2: queue(early), 3: queue()}, now=3.0) == 2
    assert order.leader({1: queue(early), 2: queue(late)}, now=3.0) == 1
    assert order.leader({0: queue(), 2: queue(late)}, now=3.0) == 2


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

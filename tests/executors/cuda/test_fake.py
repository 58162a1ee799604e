"""The stand-in finds what it is there to find."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.executors.cuda.fake import STALE, UNSET, FakeDriver, FakeMemory, Misuse, Work
from tests.executors.cuda.kernels import Span
from zpipe.errors import ExecutorError, ExecutorLost


class Setup:
    """Two streams, pinned memory of ones, device memory."""

    def __init__(self, **options: Any) -> None:
        self.driver = FakeDriver(**options)
        self.one, self.two = self.driver.stream(), self.driver.stream()
        self.host, self.back = self.driver.pinned(64), self.driver.pinned(64)
        self.host.array[:] = 1
        self.memory = self.driver.allocate(64)

    def copy_in(self) -> None:
        self.driver.copy_in(self.memory.address, self.host, 64, self.one)


def test_what_is_read_without_waiting_is_stale() -> None:
    at = Setup()
    at.copy_in()
    at.driver.copy_out(at.back, at.memory.address, 64, at.one)
    assert (at.back.array == STALE).all()
    at.one.synchronize()
    assert (at.back.array == 1).all()
    assert at.driver.copied_out == 64


def test_streams_that_do_not_wait_for_each_other_read_what_was_before_sometimes() -> None:
    def read(seed: int, *, wait: bool) -> set[int]:
        at = Setup(seed=seed)
        at.copy_in()
        event = at.driver.event()
        event.record(at.one)
        if wait:
            at.driver.wait(at.two, event)
        at.driver.copy_out(at.back, at.memory.address, 64, at.two)
        at.two.synchronize()
        return set(at.back.array.tolist())

    assert {frozenset(read(seed, wait=False)) for seed in range(40)} == {frozenset({1}), frozenset({UNSET})}
    assert all(read(seed, wait=True) == {1} for seed in range(40))


def test_an_event_is_done_in_time_and_not_at_once() -> None:
    at = Setup()
    at.copy_in()
    event = at.driver.event()
    event.record(at.one)
    at.driver.running.clear()
    assert not any(event.done() for _ in range(100))
    at.driver.running.set()
    while not event.done():
        pass
    assert (at.memory.array == 1).all()


def late_write(at: Setup) -> None:
    at.copy_in()
    at.host.array[3] = 9
    at.one.synchronize()


def early_write(at: Setup) -> None:
    at.driver.copy_out(at.back, at.memory.address, 64, at.one)
    at.back.array[3] = 9
    at.one.synchronize()


def two_targets(at: Setup) -> None:
    at.driver.copy_out(at.back, at.memory.address, 64, at.one)
    at.driver.copy_out(at.back, at.memory.address, 32, at.two)
    at.one.synchronize()
    at.two.synchronize()


def freed_under_work(at: Setup) -> None:
    at.copy_in()
    at.memory.free()


def pinned_freed_under_work(at: Setup) -> None:
    at.copy_in()
    at.host.free()


def used_after_free(at: Setup) -> None:
    at.memory.free()
    at.copy_in()


def beyond_the_end(at: Setup) -> None:
    at.driver.copy_in(at.memory.address + 1, at.host, 64, at.one)


def beyond_the_pinned_end(at: Setup) -> None:
    at.driver.copy_in(at.memory.address, at.host, 64, at.one, offset=1)


def left_over(at: Setup) -> None:
    at.driver.close()


def after_close(at: Setup) -> None:
    for memory in tuple(at.driver.live):
        memory.free()
    at.driver.close()
    at.one.synchronize()


def graph_of_freed_memory(at: Setup) -> None:
    at.driver.begin_capture(at.one)
    at.copy_in()
    graph = at.driver.end_capture(at.one)
    at.memory.free()
    graph.launch(at.one)


MISUSES = {
    late_write: "changed before it was copied",
    early_write: "changed while a copy to it was under way",
    two_targets: "changed while a copy to it was under way",
    freed_under_work: "freed under copy_in",
    pinned_freed_under_work: "freed under copy_in",
    used_after_free: "not allocated",
    beyond_the_end: "not allocated",
    beyond_the_pinned_end: "bytes 1..65 of 64",
    left_over: "closed with 3 blocks",
    after_close: "synchronize after close",
    graph_of_freed_memory: "not allocated",
}


@pytest.mark.parametrize("act", MISUSES, ids=lambda act: act.__name__)
def test_misuse_is_found(act: Any) -> None:
    at = Setup()
    with pytest.raises(Misuse, match=MISUSES[act]):
        act(at)
    assert at.driver.misuses


def test_another_thread_may_not_call() -> None:
    at, found = Setup(), []

    def call() -> None:
        try:
            at.driver.event()
        except Misuse as exc:
            found.append(str(exc))

    thread = threading.Thread(target=call, name="stranger")
    thread.start()
    thread.join()
    assert found == ["event from thread stranger"]


def test_recorded_work_is_done_at_each_launch_and_not_before() -> None:
    at, done = Setup(), []
    at.driver.begin_capture(at.one)
    at.driver.queue(at.one, Work("count", lambda: done.append(1), [Span(at.memory.address, 64)]))
    with pytest.raises(ExecutorError, match="allocate while a stream records"):
        at.driver.allocate(1)
    graph = at.driver.end_capture(at.one)
    at.one.synchronize()
    assert done == []
    graph.launch(at.two)
    graph.launch(at.two)
    at.two.synchronize()
    assert done == [1, 1]


def test_faults_come_when_they_are_due_and_a_lost_device_stays_lost() -> None:
    at = Setup(faults={("event", 2): ExecutorError("once"), ("event", 4): ExecutorLost("gone")})
    at.driver.event()
    with pytest.raises(ExecutorError, match="once"):
        at.driver.event()
    at.driver.event()
    for call in (at.driver.event, at.driver.stream, at.copy_in):
        with pytest.raises(ExecutorLost, match="gone"):
            call()
    at.memory.free()
    assert FakeMemory not in {type(memory) for memory in at.driver.live if memory is at.memory}


def test_memory_is_aligned_and_begins_as_garbage() -> None:
    driver = FakeDriver()
    assert all(driver.allocate(nbytes).address % 256 == 0 for nbytes in (1, 255, 257))
    assert np.all(driver.allocate(100).array == UNSET)

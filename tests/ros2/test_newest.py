"""The thread that keeps no queue."""

from __future__ import annotations

import threading

from tests.test_cli import PATIENCE_SECONDS
from zpipe.ros2.newest import Newest


def test_what_waits_is_replaced_by_what_is_newer() -> None:
    begun, go_on, last = threading.Event(), threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_SECONDS)
        done.append(number)
        if number == 4:
            last.set()

    newest = Newest(work)
    assert not newest.put(1)
    assert begun.wait(PATIENCE_SECONDS)
    assert [newest.put(number) for number in (2, 3, 4)] == [False, True, True]
    go_on.set()
    assert last.wait(PATIENCE_SECONDS)
    newest.close()
    assert done == [1, 4]


def test_closing_waits_for_what_is_at_work_and_ends_the_thread() -> None:
    before = threading.enumerate()
    begun = threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        begun.set()
        done.append(number)

    newest = Newest(work)
    newest.put(1)
    assert begun.wait(PATIENCE_SECONDS)
    newest.close()
    newest.close()
    assert done == [1]
    assert threading.enumerate() == before

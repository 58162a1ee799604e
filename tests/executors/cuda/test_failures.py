"""What goes wrong on a device costs the batch it happened to, or the executor; never a thread, a slot or somebody else's batch."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.executors.cuda.engines import Bench, Make, assert_all_given_back, until
from tests.executors.cuda.fake import FakeDriver
from tests.executors.tiny import gate, host_rows, images, stay, tiny_bundle
from zpipe.errors import BackendUnavailable, BundleError, ExecutorError, ExecutorLost
from zpipe.executors import StageOutput
from zpipe.executors.cuda.passage import Passage
from zpipe.executors.onnx import OnnxExecutor

#: Calls that a batch makes, or that are made for it.
CALLS = ("copy_in", "copy_out", "copy_across", "enqueue", "launch", "record", "wait", "done", "event_synchronize", "synchronize")

#: Calls that loading and warming up make beyond these.
LOADING = ("allocate", "pinned", "stream", "event", "load", "begin_capture", "end_capture")


def check_answer(output: StageOutput, rows: int) -> None:
    expected = OnnxExecutor(tiny_bundle(), [0]).run(0, images(rows), gate(rows))
    assert output.labels == expected.labels
    assert stay(host_rows(output), output.exited) == pytest.approx(stay(host_rows(expected), expected.exited), abs=1e-5)


def attempts(executor: Any, count: int) -> list[tuple[type[Exception], str]]:
    """Chains of two stages from two threads; how each ended that did not end well."""

    def one(rows: int) -> list[tuple[type[Exception], str]]:
        try:
            output: StageOutput = executor.run(0, images(rows), gate(rows))
            if rows % 2:
                host_rows(output)
            if len(output.activation or ()):
                executor.run(1, output.activation, gate(len(output.activation or ()), stage=1))
        except Exception as exc:
            return [(type(exc), str(exc))]
        return []

    with ThreadPoolExecutor(2) as pool:
        return [end for ended in pool.map(one, [1 + number % 7 for number in range(count)]) for end in ended]


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("time", [1, 2, 9])
def test_a_call_that_fails_once_costs_a_batch_or_two(bench: Bench, make: Make, call: str, time: int) -> None:
    bench.faults = {(call, time): ExecutorError("once")}
    executor = make([0, 1])
    assert attempts(executor, 20) in ([], [(ExecutorError, "once")])  # with some timings nobody slept, or looked so often
    bench.driver.heal()
    assert_all_given_back(executor, collect=False)  # an error's traceback keeps nothing
    check_answer(executor.run(0, images(5), gate(5)), 5)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("time", [1, 2, 9])
def test_a_device_that_is_lost_is_lost_for_all_and_says_why(bench: Bench, make: Make, call: str, time: int) -> None:
    bench.faults = {(call, time): ExecutorLost("an illegal address")}
    executor = make([0, 1])
    failed = set(attempts(executor, 20))
    if bench.driver.counts[call] < time:
        return  # with this timing nobody slept, or looked so often
    assert failed == {(ExecutorLost, "an illegal address")}
    for _ in range(2):
        with pytest.raises(ExecutorLost, match="an illegal address"):
            executor.run(0, images(1), gate(1))


@pytest.mark.parametrize("call", [*LOADING, *CALLS])
@pytest.mark.parametrize("error", [ExecutorError, ExecutorLost])
@pytest.mark.parametrize("time", [1, 3])
def test_a_failure_while_loading_leaves_nothing_behind(
    bench: Bench, make: Make, call: str, error: type[ExecutorError], time: int
) -> None:
    bench.faults = {(call, time): error("out of something")}
    executor = make([0, 1])
    said = ""
    try:
        executor.warm_up(4)
    except ExecutorError as exc:
        said = f"{type(exc).__name__}: {exc}"
    assert said in ("", f"{error.__name__}: out of something")
    if error is ExecutorError:
        bench.driver.heal()
        executor.warm_up(4)
        check_answer(executor.run(0, images(5), gate(5)), 5)
    executor.close()
    executor._owner.join()
    assert bench.driver.live == set()


@pytest.mark.parametrize("time", range(1, 16))
def test_memory_that_runs_out_at_any_allocation_is_freed_and_said(bench: Bench, make: Make, time: int) -> None:
    bench.faults = {("allocate", time): ExecutorLost("found 1 MiB free, expected 2; host fewer stages")}
    executor = make([0, 1, 2])
    with pytest.raises(ExecutorLost, match="host fewer stages"):
        executor.warm_up(4)
    with pytest.raises(ExecutorLost, match="host fewer stages"):
        executor.run(0, images(1), gate(1))


def test_an_engine_that_refuses_or_breaks_on_a_batch_takes_the_next(bench: Bench, make: Make) -> None:
    bench.engine["refuses"] = lambda batch: ValueError("no fives") if batch == 5 else None
    bench.engine["breaks"] = lambda batch: ExecutorError("no sevens") if batch == 7 else None
    executor = make([0])
    for _ in range(3):
        with pytest.raises(ValueError, match="no fives"):
            executor.run(0, images(5), gate(5))
        with pytest.raises(ExecutorError, match="no sevens"):
            executor.run(0, images(7), gate(7))
        check_answer(executor.run(0, images(6), gate(6)), 6)
    assert_all_given_back(executor)


def test_a_device_that_is_lost_in_the_midst_of_a_kernel_is_lost(bench: Bench, make: Make) -> None:
    bench.engine["breaks"] = lambda batch: ExecutorLost("an illegal address") if batch == 7 else None
    executor = make([0])
    check_answer(executor.run(0, images(6), gate(6)), 6)
    for rows in (7, 6):
        with pytest.raises(ExecutorLost, match="an illegal address"):
            executor.run(0, images(rows), gate(rows))


def test_a_library_that_is_missing_is_said_each_time_and_found_when_it_is_there(
    bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = True

    def open_driver(self: Bench) -> FakeDriver:
        if missing:
            raise BackendUnavailable("found no libcuda.so.1, expected NVIDIA's driver; install it")
        return opened(self)

    opened = Bench.open
    monkeypatch.setattr(Bench, "open", open_driver)
    executor = make([0])
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="libcuda"):
            executor.run(0, images(1), gate(1))
    missing = False
    check_answer(executor.run(0, images(3), gate(3)), 3)


def test_an_engine_that_cannot_be_loaded_raises_its_own_error(bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> Any:
        raise BundleError("found no plan")

    monkeypatch.setattr(Bench, "load", load)
    with pytest.raises(BundleError, match="found no plan"):
        make([0]).warm_up(4)


def test_an_engine_with_other_outputs_than_the_manifest_is_refused_and_closed(bench: Bench, make: Make) -> None:
    bench.engine["headless"] = True
    with pytest.raises(ExecutorError, match="stage 0: found an engine without logits, expected one with"):
        make([0]).run(0, images(1), gate(1))


def test_decisions_of_another_batch_are_refused(bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they would be read by somebody who does not wait."""
    executor = make([0])
    executor.warm_up(4)
    monkeypatch.setattr("tests.executors.cuda.fake.FakeEvent.done", lambda self: True)
    with pytest.raises(ExecutorError, match="found -842150451 survivors of 4 rows"):
        executor.run(0, images(4), gate(4))
    monkeypatch.undo()
    check_answer(executor.run(0, images(4), gate(4)), 4)


def test_a_posted_call_that_fails_after_all_ends_every_batch_and_not_the_thread(
    bench: Bench, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise KeyError("a region given back twice")

    executor = make([0])
    executor.warm_up(4)
    launched = bench.driver.counts["graph_launch"]
    bench.driver.running.clear()
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(executor.run, 0, images(4), gate(4))
        until(lambda: bench.driver.counts["graph_launch"] > launched)
        executor._owner.post(fails)
        with pytest.raises(
            ExecutorLost, match=r"^CUDA thread: found KeyError \('a region given back twice'\), expected none; make"
        ):
            under_way.result(20.0)
        bench.driver.running.set()
    with pytest.raises(ExecutorLost, match="KeyError"):
        executor.run(0, images(4), gate(4))
    assert [record.message for record in caplog.records] == ["the CUDA thread's own fault"]


class Interrupted(threading.Event):
    """A person presses Ctrl-C at the first wait; at the second the batch ends."""

    def __init__(self, batch: Passage) -> None:
        super().__init__()
        self.batch, self.waits = batch, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt
        self.batch.answer(None, 1.0, 0.0)
        return super().wait(timeout)


def test_ctrl_c_waits_until_the_device_is_through_with_the_slot() -> None:
    nothing: Any = None
    batch = Passage(nothing, nothing, 1, gate(1), [])
    batch._answered = Interrupted(batch)
    with pytest.raises(KeyboardInterrupt):
        batch.wait()
    assert batch._answered.is_set()

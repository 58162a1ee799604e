"""What every executor on a GPU does, on a device that does nothing until it must (fake.py)."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.executors.cuda.compiled import need_compiled_gate
from tests.executors.cuda.engines import Bench, Make, assert_all_given_back, until
from tests.executors.tiny import STAGES, gate, host_rows, images, stay, tiny_bundle
from zpipe.codecs import make_codec
from zpipe.errors import ExecutorError
from zpipe.executors.cuda.passage import Passage
from zpipe.executors.cuda.rows import DeviceRows
from zpipe.executors.cuda.runner import common_batches
from zpipe.executors.onnx import OnnxExecutor
from zpipe.model import NEVER_EXIT, GateRule, GateSpec

ROW_BYTES = 256  #: of stage 0's activation
RULES: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")


def random_gate(rng: np.random.Generator, stage: int, rows: int) -> GateSpec:
    thresholds = rng.choice([0.0, 0.4, 0.5, 0.6, NEVER_EXIT], size=rows).tolist()
    head = STAGES[stage].exit_head
    rule = RULES[rng.integers(3)]
    return GateSpec(rule, head.temperature if head else 1.0, tuple(thresholds), last=STAGES[stage].output is None)


# ---- the answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stages", [(0,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_answers_are_those_of_onnx_runtime_whatever_the_order_on_the_device(
    bench: Bench, make: Make, stages: tuple[int, ...], seed: int, kernels: str
) -> None:
    bench.seed = seed
    bench.gate = need_compiled_gate() if kernels == "compiled" else None
    executor, reference = make(stages, max_batch=8), OnnxExecutor(tiny_bundle(), range(3))

    def chain(first: int) -> None:
        rng = np.random.default_rng((seed, first))
        rows = int(rng.integers(1, 9))
        given: Any = images(64)[first : first + rows]
        plain: Any = given
        for stage in stages:
            spec = random_gate(rng, stage, len(plain))
            found, expected = executor.run(stage, given, spec), reference.run(stage, plain, spec)
            assert found.exited == expected.exited
            assert found.labels == expected.labels
            assert found.confidences == pytest.approx(expected.confidences, abs=1e-5)
            if expected.activation is None:
                assert found.activation is None
                return
            given, plain = found.activation, host_rows(expected)[~np.array(expected.exited)]
            assert given.shape == plain.shape
            if rng.random() < 0.5 or stage + 1 not in stages:
                np.testing.assert_allclose(np.asarray(given), plain, atol=1e-5)
            if not len(plain):
                return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(chain, range(20)))
    assert_all_given_back(executor)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
def test_survivors_leave_in_the_bytes_of_the_links_codec(bench: Bench, make: Make, codec: str, kernels: str) -> None:
    bench.gate = need_compiled_gate() if kernels == "compiled" else None
    executor = make([0], max_batch=8)
    executor.warm_up(8)
    plain = executor.run(0, images(20), gate(20))
    assert executor.encode(0, codec)
    coder = make_codec(codec, STAGES[1].input)
    before = bench.driver.copied_out
    found = executor.run(0, images(20), gate(20))  # in three pieces
    assert 0 < found.exited.count(True) < 20
    assert (found.exited, found.labels, found.confidences) == (plain.exited, plain.labels, plain.confidences)
    np.testing.assert_array_equal(found.activation, coder.encode(host_rows(plain)))
    assert bench.driver.copied_out - before == 3 * 16 + 20 * 16 + found.exited.count(False) * coder.row_bytes
    assert_all_given_back(executor)


def test_what_cannot_be_coded_stays_as_it_is(make: Make) -> None:
    executor = make([0, 1, 2])
    assert not executor.encode(0, "fp16"), "not loaded yet"
    executor.warm_up(4)
    assert not executor.encode(0, "fp16"), "its survivors stay here"
    assert not executor.encode(1, "fp16"), "it has no exit head"
    assert not executor.encode(2, "fp16"), "it is the last"
    alone = make([0])
    alone.warm_up(4)
    assert not alone.encode(0, "bottleneck")
    assert not alone.encode(0, "none")


def test_logits_may_be_half_precision(bench: Bench, make: Make) -> None:
    bench.engine["logits"] = "float16"
    found = make([0]).run(0, images(8), gate(8))
    expected = OnnxExecutor(tiny_bundle(), [0]).run(0, images(8), gate(8))
    assert found.labels == expected.labels
    assert found.confidences == pytest.approx(expected.confidences, abs=5e-3)
    assert found.confidences != expected.confidences


def test_a_row_that_is_not_finite_fails_the_last_stage_and_exits_no_other(bench: Bench, make: Make) -> None:
    inputs = np.zeros((5, 8, 2, 2), np.float32)
    inputs[3, 0] = np.nan
    reference = OnnxExecutor(tiny_bundle(), [2])
    executor = make([2])
    for last in (True, False):
        spec = GateSpec("max-probability", 1.0, (0.0,) * 5, last=last)
        if last:
            with pytest.raises(ExecutorError) as wanted:
                reference.run(2, inputs, spec)
            with pytest.raises(ExecutorError) as found:
                executor.run(2, inputs, spec)
            assert str(found.value) == str(wanted.value)
        else:
            assert executor.run(2, inputs, spec).exited == [True, True, True, False, True]


@pytest.mark.parametrize("rows", [9, 16, 21])
def test_more_rows_than_an_engine_takes_run_in_pieces(bench: Bench, make: Make, rows: int) -> None:
    executor, reference = make([0, 1, 2], max_batch=8), OnnxExecutor(tiny_bundle(), range(3))
    given: Any = images(rows)
    plain: Any = given
    for stage in range(3):
        spec = gate(len(plain), stage=stage, last=stage == 2)
        found, expected = executor.run(stage, given, spec), reference.run(stage, plain, spec)
        assert (found.exited, found.labels) == (expected.exited, expected.labels)
        if stage < 2:
            given, plain = found.activation, stay(host_rows(expected), expected.exited)
            np.testing.assert_allclose(np.asarray(given), plain, atol=1e-5)
    assert {batch for _, batch in bench.engines[0].seen} == {8, rows % 8} - {0}


def test_a_failing_row_is_counted_from_the_first_of_the_whole_batch(make: Make) -> None:
    inputs = np.zeros((20, 8, 2, 2), np.float32)
    inputs[13] = np.inf
    with pytest.raises(ExecutorError, match="logits finite in row 13"):
        make([2], max_batch=8).run(2, inputs, GateSpec("max-probability", 1.0, (), last=True))


# ---- what crosses, and when --------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, NEVER_EXIT])
@pytest.mark.parametrize("rows", [1, 7, 16])
def test_decisions_cross_first_and_then_exactly_the_survivors(bench: Bench, make: Make, rows: int, threshold: float) -> None:
    executor = make([0])
    executor.warm_up(16)
    driver = bench.driver
    before = driver.copied_out
    driver.calls.clear()
    output = executor.run(0, images(rows), gate(rows, threshold))
    survivors = output.exited.count(False)
    assert driver.copied_out - before == survivors * ROW_BYTES + 16 + 16 * rows
    crossed = [nbytes for name, nbytes in driver.calls if name == "copy_out"]
    assert crossed == [16 + 16 * rows, *([survivors * ROW_BYTES] if survivors else [])]
    assert [nbytes for name, nbytes in driver.calls if name == "copy_in"] == [-(-rows * 192 // 256) * 256 + 4 * rows]
    assert host_rows(output).shape == (survivors, 4, 4, 4)


def test_of_rows_that_stay_on_the_device_only_decisions_cross(bench: Bench, make: Make) -> None:
    executor = make([0, 1, 2])
    first = executor.run(0, images(8), gate(8, NEVER_EXIT))
    assert isinstance(first.activation, DeviceRows)
    assert bench.driver.copied_out == 16 + 16 * 8
    second: Any = executor.run(1, first.activation, gate(8, stage=1)).activation
    assert isinstance(second, DeviceRows)
    assert bench.driver.copied_out == 16 + 16 * 8, "a stage without an exit head decides nothing"
    bench.driver.calls.clear()
    executor.run(2, second, gate(8, stage=2, last=True))
    assert bench.driver.copied_out == 2 * (16 + 16 * 8)
    assert not any(name == "copy_in" for name, _ in bench.driver.calls), "not even thresholds, which the last stage has none of"


def test_all_rows_exited_leave_an_activation_of_none(make: Make) -> None:
    for stages in ([0], [0, 1]):
        activation = host_rows(make(stages).run(0, images(3), gate(3, 0.0)))
        assert activation.shape == (0, 4, 4, 4)
        assert activation.dtype == np.float32


@pytest.mark.parametrize("stages", [(0, 0), (0, 1)], ids=["one stage", "two stages"])
def test_a_second_batch_is_launched_while_the_first_is_under_way(bench: Bench, make: Make, stages: tuple[int, int]) -> None:
    executor = make([0, 1])
    inputs: dict[int, npt.NDArray[Any]] = {0: images(4), 1: np.zeros((4, 4, 4, 4), np.float32)}
    executor.warm_up(4)
    driver = bench.driver
    launched = driver.counts["graph_launch"]
    driver.running.clear()  # from here on nothing is done on the device
    with ThreadPoolExecutor(2) as pool:
        outputs = [pool.submit(executor.run, stage, inputs[stage], gate(4, stage=stage)) for stage in stages]
        until(lambda: driver.counts["graph_launch"] == launched + 2)
        assert not any(output.done() for output in outputs)
        driver.running.set()
        assert [len(output.result().exited) for output in outputs] == [4, 4]


@pytest.mark.parametrize(("stages", "sleeps"), [((0,), True), ((0, 1), False)], ids=["host", "device"])
def test_it_sleeps_with_the_device_only_while_nobody_else_has_anything_to_ask(
    bench: Bench, make: Make, stages: tuple[int, ...], sleeps: bool
) -> None:
    """Two batches under way are as many as there are callers; rows that lie on the device may be asked for at any time."""
    executor = make(stages)
    executor.warm_up(4)
    waiting = executor.run(0, images(4), gate(4, NEVER_EXIT))
    driver = bench.driver
    driver.counts.clear()
    driver.running.clear()
    with ThreadPoolExecutor(2) as pool:
        outputs = [pool.submit(executor.run, 0, images(4), gate(4)) for _ in range(2)]
        until(lambda: driver.counts["graph_launch"] == 2)
        looked = driver.counts["done"]
        until(lambda: driver.counts["event_synchronize"] > 0 or driver.counts["done"] > looked + 20)
        assert (driver.counts["event_synchronize"] > 0) == sleeps
        driver.running.set()
        assert all(output.result().exited for output in outputs)
    assert len(host_rows(waiting)) == 4


def test_more_callers_than_slots_all_get_their_answers(make: Make) -> None:
    executor = make([0], slots=2)
    expected = [OnnxExecutor(tiny_bundle(), [0]).run(0, images(32)[i : i + 3], gate(3)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: executor.run(0, images(32)[i % 8 : i % 8 + 3], gate(3)), range(160)))
    for i, output in enumerate(found):
        assert output.exited == expected[i % 8].exited
        np.testing.assert_allclose(host_rows(output), stay(host_rows(expected[i % 8]), output.exited), atol=1e-5)


def test_time_behind_another_batch_is_not_this_ones() -> None:
    nothing: Any = None
    batch = Passage(nothing, nothing, 1, gate(1), [], launched_at=10.0)
    batch.answer(None, 15.0, 12.0)
    assert batch.wall_seconds == 3.0
    batch.answer(None, 15.0, 8.0)
    assert batch.wall_seconds == 5.0


def test_time_on_the_device_is_counted_once(make: Make) -> None:
    executor = make([0])
    executor.warm_up(4)
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: executor.run(0, images(4), gate(4)), range(50)))
    assert sum(output.wall_seconds for output in outputs) <= time.perf_counter() - began
    assert all(output.wall_seconds > 0.0 for output in outputs)
    assert all(output.cpu_seconds > 0.0 for output in outputs)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_warm_executor_allocates_nothing(bench: Bench, make: Make, count: int) -> None:
    bench.haste = 100
    executor = make([0, 1, 2])
    executor.warm_up(8)
    driver = bench.driver
    wanted = ("allocate", "pinned", "stream", "event", "begin_capture", "load")
    before, live = {name: driver.counts[name] for name in wanted}, len(driver.live)
    batches = 0
    while batches < count:
        rows = 1 + batches % 8
        given: Any = images(64)[batches % 50 :][:rows]
        for stage in range(3):
            given = executor.run(stage, given, gate(len(given), 0.5, stage=stage, last=stage == 2)).activation
            batches += 1
            if given is None or not len(given):
                break
    assert {name: driver.counts[name] for name in wanted} == before
    assert len(driver.live) == live
    assert executor.spilled == 0
    given = None
    assert_all_given_back(executor)


# ---- graphs ------------------------------------------------------------------------------------------


def test_common_batches_are_powers_of_two_and_the_largest() -> None:
    assert common_batches(1) == [1]
    assert common_batches(8) == [1, 2, 4, 8]
    assert common_batches(12) == [1, 2, 4, 8, 12]


def test_common_batches_replay_graphs_and_others_are_queued(bench: Bench, make: Make) -> None:
    executor, plain = make([0]), OnnxExecutor(tiny_bundle(), [0])
    executor.warm_up(6)
    driver = bench.driver
    for rows in range(1, 7):
        replays, queued = driver.counts["graph_launch"], driver.counts["enqueue"]
        found, expected = executor.run(0, images(rows), gate(rows)), plain.run(0, images(rows), gate(rows))
        assert found.labels == expected.labels
        common = rows in (1, 2, 4, 6)
        assert (driver.counts["graph_launch"] - replays, driver.counts["enqueue"] - queued) == (common, not common)
    assert driver.graphs == 4 * 2


@pytest.mark.parametrize("rounds_up", [True, False], ids=["the engine would run it", "or the batch as it is"])
def test_a_batch_of_another_size_is_run_by_the_graph_of_the_next(bench: Bench, make: Make, rounds_up: bool) -> None:
    bench.engine |= {"max_batch": 64, "sizes": (1, 2, 4, 8, 16, 32, 64), "rounds_up": rounds_up}
    executor, plain = make([0]), OnnxExecutor(tiny_bundle(), [0])
    cold = executor.run(0, images(3), gate(3))  # no graph yet
    assert {batch for _, batch in bench.engines[0].seen} == {4 if rounds_up else 3}
    executor.warm_up(6)
    driver = bench.driver
    assert sorted(executor._lanes[0].slots[0].graphs) == [1, 2, 4, 8]
    queued = driver.counts["enqueue"]
    for rows in (6, 1, 5, 2, 7, 3, 8, 4):  # what is left of larger batches lies behind the smaller ones
        found, expected = executor.run(0, images(20)[rows:][:rows], gate(rows)), plain.run(0, images(20)[rows:][:rows], gate(rows))
        assert (found.exited, found.labels) == (expected.exited, expected.labels)
        np.testing.assert_allclose(host_rows(found), stay(host_rows(expected), expected.exited), atol=1e-5)
    assert driver.counts["enqueue"] == queued
    assert cold.labels == plain.run(0, images(3), gate(3)).labels


@pytest.mark.parametrize("fault", [("begin_capture", 1), ("enqueue", 2), ("end_capture", 2)], ids=str)
def test_an_engine_that_cannot_be_recorded_runs_as_it_is_and_says_so_once(
    bench: Bench, make: Make, caplog: pytest.LogCaptureFixture, fault: tuple[str, int]
) -> None:
    bench.faults = {fault: ExecutorError("operation not permitted when stream is capturing")}
    executor = make([0])
    executor.warm_up(4)
    assert [record.message for record in caplog.records] == [
        "stage 0 runs without CUDA graphs: operation not permitted when stream is capturing"
    ]
    assert executor.run(0, images(4), gate(4)).labels == OnnxExecutor(tiny_bundle(), [0]).run(0, images(4), gate(4)).labels
    assert bench.driver.counts["graph_launch"] == 0
    executor.warm_up(4)
    assert len(caplog.records) == 1


def test_an_engine_that_says_so_is_never_recorded(bench: Bench, make: Make) -> None:
    bench.engine["capturable"] = False
    make([0]).warm_up(4)
    assert bench.driver.counts["begin_capture"] == 0


# ---- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "rows"), [((), 6), ((1, 2, 4, 8, 16, 32, 64), 8)], ids=["an engine for any size", "an engine for common sizes"]
)
def test_memory_is_taken_for_the_batches_asked_for_not_for_all_that_an_engine_takes(sizes: tuple[int, ...], rows: int) -> None:
    def taken(asked: int, **options: Any) -> int:
        bench = Bench(engine=options)
        executor = bench.executor(tiny_bundle(), [0, 1])
        executor.warm_up(asked)
        nbytes = sum(memory.nbytes for memory in bench.driver.live)
        reference = OnnxExecutor(tiny_bundle(), [0]).run(0, images(20), gate(20))
        assert executor.run(0, images(20), gate(20)).labels == reference.labels, "more run in pieces"
        executor.close()
        bench.check()
        return nbytes

    assert taken(6, max_batch=64, sizes=sizes) == taken(rows)


# ---- loading and closing -----------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_run(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    assert bench.drivers == []
    executor.run(1, np.zeros((1, 4, 4, 4), np.float32), gate(1, stage=1))
    assert [engine.stage for engine in bench.engines] == [1]
    executor.run(0, images(1), gate(1))
    assert (len(bench.drivers), [engine.stage for engine in bench.engines]) == (1, [1, 0])


def test_an_executor_never_used_closes_without_a_device(bench: Bench, make: Make) -> None:
    make([0]).close()
    assert bench.drivers == []


def test_close_waits_for_runs_under_way(bench: Bench, make: Make) -> None:
    executor = make([0])
    executor.warm_up(4)
    launched = bench.driver.counts["graph_launch"]
    bench.driver.running.clear()
    with ThreadPoolExecutor(3) as pool:
        output = pool.submit(executor.run, 0, images(4), gate(4, NEVER_EXIT))
        until(lambda: bench.driver.counts["graph_launch"] > launched)
        closes = [pool.submit(executor.close) for _ in range(2)]
        until(lambda: executor._closed)
        with pytest.raises(ExecutorError, match="closed executor"):
            executor.run(0, images(4), gate(4))
        assert not bench.driver.closed
        bench.driver.running.set()
        assert host_rows(output.result()).shape == (4, 4, 4, 4)
        assert [close.result() for close in closes] == [None, None]


def test_an_activation_outlives_its_executor(bench: Bench, make: Make) -> None:
    executor = make([0])
    kept: npt.NDArray[Any] = host_rows(executor.run(0, images(4), gate(4, NEVER_EXIT)))[1:]
    expected = host_rows(OnnxExecutor(tiny_bundle(), [0]).run(0, images(4), gate(4, NEVER_EXIT)))[1:]
    executor.close()
    looked = threading.Event()
    executor._owner.post(looked.set)
    assert looked.wait(20.0), "its thread is there until the last of its memory is back"
    np.testing.assert_allclose(kept, expected, atol=1e-5)
    assert not bench.driver.closed, "the memory is in use"
    assert len(bench.driver.live) == 1
    del kept
    gc.collect()
    executor._owner.join()
    assert bench.driver.closed

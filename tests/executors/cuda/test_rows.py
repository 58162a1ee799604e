"""Activations after their batch: nobody's memory is given to another while anyone looks at it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zmq

from tests.executors.cuda.engines import Bench, Make, assert_all_given_back, on_owner, until
from tests.executors.tiny import gate, host_rows, images, tiny_bundle
from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.base import Batch, ResidentRows
from zpipe.executors.cuda.rows import DeviceRows
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.cuda.slots import HELD_BATCHES
from zpipe.executors.onnx import OnnxExecutor
from zpipe.model import NEVER_EXIT
from zpipe.runtime.payloads import join


def expected(first: int, rows: int) -> npt.NDArray[Any]:
    """Stage 0's activation of some images."""
    executor = OnnxExecutor(tiny_bundle(), [0])
    return host_rows(executor.run(0, images(64)[first : first + rows], gate(rows)))


def survivors(executor: CudaStages, first: int, rows: int) -> Any:
    return executor.run(0, images(64)[first : first + rows], gate(rows, NEVER_EXIT)).activation


# ---- over pinned memory ------------------------------------------------------------------------------


def test_arrays_keep_their_values_and_go_to_ordinary_memory_when_the_arena_is_full(bench: Bench, make: Make) -> None:
    executor = make([0], max_batch=8)
    kept = [survivors(executor, first, 8) for first in range(HELD_BATCHES + 3)]
    assert executor.spilled == 3
    for first, array in enumerate(kept):
        np.testing.assert_allclose(array, expected(first, 8), atol=1e-5)
    del kept, array
    on_owner(executor)
    before = executor.spilled
    assert survivors(executor, 0, 8).shape == (8, 4, 4, 4)
    assert executor.spilled == before
    assert_all_given_back(executor)


def test_few_survivors_take_little_of_the_arena(bench: Bench, make: Make) -> None:
    executor = make([0], max_batch=16)
    kept = [survivors(executor, first, 1) for first in range(HELD_BATCHES * 16)]
    assert executor.spilled == 0
    assert len({array.ctypes.data for array in kept}) == len(kept)


@pytest.mark.parametrize("stages", [(0,), (0, 1)], ids=["host", "device"])
def test_memory_comes_back_though_nothing_else_happens(make: Make, stages: tuple[int, ...]) -> None:
    """The owner's thread, which waits for the next batch, does not hold on to the last."""
    executor = make(stages)
    rows = survivors(executor, 0, 4)
    lane = executor._lanes[0]
    assert len(lane.kept) + len(lane.pinned) == 1
    assert np.asarray(rows).shape == (4, 4, 4, 4)
    del rows
    until(lambda: len(lane.kept) + len(lane.pinned) == 0)


@pytest.mark.parametrize("look", [lambda a: a[2:], lambda a: a.view(np.uint8)[1:, ..., :3], lambda a: memoryview(a[1:]).cast("B")])
def test_any_view_keeps_the_whole_array(bench: Bench, make: Make, look: Any) -> None:
    executor = make([0], max_batch=8)
    view = look(survivors(executor, 0, 8))
    gc.collect()
    before = bytes(view)
    others = [survivors(executor, first, 8) for first in range(1, 8)]
    assert bytes(view) == before
    del view, others
    assert_all_given_back(executor)


@pytest.fixture
def sockets() -> Iterator[Any]:
    """`(transport) -> (sender, receiver)`."""
    context = zmq.Context()

    def pair(transport: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        sender, receiver = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        sender.copy_threshold = 0  # what is small goes without a copy, too
        address = "inproc://rows" if transport == "inproc" else f"tcp://127.0.0.1:{receiver.bind_to_random_port('tcp://127.0.0.1')}"
        if transport == "inproc":
            receiver.bind(address)
        sender.connect(address)
        made.extend((sender, receiver))
        return sender, receiver

    made: list[zmq.Socket[bytes]] = []
    yield pair
    for socket in made:
        socket.close(0)
    context.term()


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_memory_comes_back_when_zeromq_is_done_with_it_and_not_before(
    bench: Bench, make: Make, sockets: Any, transport: str
) -> None:
    executor = make([0], max_batch=16)
    sender, receiver = sockets(transport)
    array = survivors(executor, 0, 16)
    lane = executor._lanes[0]
    assert len(lane.pinned) == 1
    tracker = sender.send(array[1:].data.cast("B"), copy=False, track=True)
    del array
    if transport == "inproc":  # the message that is received is the memory that was sent
        on_owner(executor)
        assert not tracker.done
        assert len(lane.pinned) == 1
        others = [survivors(executor, first, 16) for first in range(1, 8)]
        del others
    frame = receiver.recv(copy=False)
    np.testing.assert_allclose(np.frombuffer(frame.buffer, np.float32).reshape(15, 4, 4, 4), expected(0, 16)[1:], atol=1e-5)
    del frame
    gc.collect()
    tracker.wait(20)
    until(lambda: executor._owner.call(lambda: len(lane.pinned)) == 0)  # pyzmq's own thread lets go a moment later


# ---- on the device -----------------------------------------------------------------------------------


def test_rows_are_copied_to_the_host_once_and_only_when_asked_for(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    rows = survivors(executor, 3, 6)
    before = bench.driver.copied_out
    assert isinstance(rows, ResidentRows)
    assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (6, (6, 4, 4, 4), np.dtype(np.float32), 6 * 256)
    assert repr(rows) == "<DeviceRows float32 [6, 4, 4, 4] | parts 1>"
    assert bench.driver.copied_out == before
    np.testing.assert_allclose(np.asarray(rows), expected(3, 6), atol=1e-5)
    part: Any = join([(rows, 5), (rows, 0)])
    np.testing.assert_allclose(np.asarray(part), expected(3, 6)[[5, 0]], atol=1e-5)
    assert bench.driver.copied_out - before == 6 * 256
    assert np.asarray(rows, np.float64).dtype == np.float64
    assert np.array(rows).flags.owndata
    with pytest.raises(ValueError, match="without a copy"):
        rows.__array__(copy=False)


def test_more_than_fits_the_way_to_the_host_goes_in_pieces(bench: Bench, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.executors.cuda.runner._BOUNCE_BYTES", 1000)
    executor = make([0, 1])
    np.testing.assert_allclose(np.asarray(survivors(executor, 0, 9)), expected(0, 9), atol=1e-5)
    assert [nbytes for name, nbytes in bench.driver.calls if name == "copy_out"][1:] == [1000, 1000, 304]


def test_rows_in_a_row_are_one_copy_within_the_device(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    one, two = survivors(executor, 0, 4), survivors(executor, 4, 4)
    picks: list[tuple[list[tuple[Batch, int]], list[int]]] = [
        ([(one, 0), (one, 1), (one, 2), (one, 3)], [4]),
        ([(one, 1), (one, 2), (two, 0), (two, 1), (two, 3)], [2, 2, 1]),
        ([(one, 3), (one, 2)], [1, 1]),
    ]
    for rows, copies in picks:
        bench.driver.calls.clear()
        executor.run(1, join(rows), gate(len(rows), stage=1))  # type: ignore[arg-type]
        crossed = [nbytes // 256 for name, nbytes in bench.driver.calls if name == "copy_across"]
        assert crossed == copies
        assert not any(name in ("copy_in", "copy_out") for name, _ in bench.driver.calls if name == "copy_in")


def test_a_row_of_joined_rows_is_found_and_one_beyond_is_not(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    one, two = survivors(executor, 0, 4), survivors(executor, 4, 4)
    joined: Any = join([(one, 1), (two, 2), (expected(8, 2), 0)])
    again: Any = join([(joined, 2), (joined, 0), (joined, 1)])
    wanted = [expected(8, 2)[0], expected(0, 4)[1], expected(4, 4)[2]]
    np.testing.assert_allclose(np.asarray(again), wanted, atol=1e-5)
    with pytest.raises(IndexError, match="no row"):
        joined.join([(joined, 3)])


def test_rows_of_another_executor_come_over_the_host(bench: Bench, make: Make) -> None:
    one, two = make([0, 1]), make([0, 1])
    rows = survivors(one, 0, 4)
    expected_rows = host_rows(one.run(1, rows, gate(4, stage=1)))
    np.testing.assert_allclose(host_rows(two.run(1, rows, gate(4, stage=1))), expected_rows, atol=1e-5)
    mixed = survivors(two, 0, 4).join([(rows, 2), (rows, 3)])
    np.testing.assert_allclose(host_rows(two.run(1, mixed, gate(2, stage=1))), expected_rows[2:], atol=1e-5)


def test_survivors_go_to_the_host_when_the_device_has_no_room(bench: Bench, make: Make) -> None:
    executor = make([0, 1], max_batch=8)
    kept = [survivors(executor, first, 8) for first in range(HELD_BATCHES + 2)]
    assert [type(rows) for rows in kept] == [DeviceRows] * HELD_BATCHES + [np.ndarray] * 2
    assert executor.spilled == 2
    for first, rows in enumerate(kept):
        np.testing.assert_allclose(np.asarray(rows), expected(first, 8), atol=1e-5)
    del kept, rows
    assert_all_given_back(executor)
    assert isinstance(survivors(executor, 0, 8), DeviceRows)


def test_room_of_rows_that_left_is_there_for_others(bench: Bench, make: Make) -> None:
    executor = make([0, 1], max_batch=8)
    kept = [executor.run(0, images(8), gate(8)).activation for _ in range(HELD_BATCHES + 1)]
    assert [len(rows or ()) for rows in kept] == [5] * (HELD_BATCHES + 1)
    assert executor.spilled == 0


def test_rows_not_copied_in_time_are_gone_with_their_executor(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    rows, copied = survivors(executor, 0, 4), survivors(executor, 0, 4)
    host = np.asarray(copied)
    executor.close()
    assert np.asarray(copied) is host
    with pytest.raises(ExecutorError, match="rows on the device: found a closed executor"):
        np.asarray(rows)
    with pytest.raises(ExecutorError, match="closed executor"):
        executor.run(1, rows, gate(4, stage=1))


def test_rows_of_a_lost_device_say_so(bench: Bench, make: Make) -> None:
    executor = make([0, 1])
    rows = survivors(executor, 0, 4)
    bench.engines[0].breaks = lambda batch: ExecutorLost("the device is gone")
    with pytest.raises(ExecutorLost):
        executor.run(0, images(1), gate(1))
    with pytest.raises(ExecutorLost, match="the device is gone"):
        np.asarray(rows)

"""What must hold of `PycudaDriver` over the real pycuda: each function a case, run by test_pycuda.py on the stand-in.

python -m tests.executors.cuda.pycuda_cases NAME...
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost
from zpipe.executors.cuda.gate import Gate, decisions_bytes, read_decisions
from zpipe.executors.cuda.images import load_kernels
from zpipe.executors.cuda.pycuda import PycudaDriver
from zpipe.executors.gate import evaluate_gate
from zpipe.model import GateRule, GateSpec

NOTHING = "memory 0, pinned 0, streams 0, events 0, modules 0, graphs 0, mistakes 0, retained 0, pushed 0"
ROWS, CLASSES = 7, 10

PTX = b"""//
.version %s
.target sm_75
.address_size 64
.visible .entry zpipe_gather_1( ) { ret; }
"""


def report() -> str:
    """What is alive on the stand-in and what was done wrong; `NOTHING` after a clean end."""
    text = ctypes.create_string_buffer(400)
    ctypes.CDLL("libcuda.so.1").standin_report(text, ctypes.c_size_t(400))
    return text.value.decode()


@contextmanager
def opened() -> Iterator[PycudaDriver]:
    driver = PycudaDriver()
    try:
        yield driver
    finally:
        driver.close()
    assert report() == NOTHING


def in_a_thread(work: Callable[[], None]) -> None:
    """Runs it in another thread to its end; what it raises is raised here."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as exc:
            raised.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    for exc in raised:
        raise exc


# ---- memory, streams, events --------------------------------------------------------------------


def driver_says_what_the_device_is() -> None:
    with opened() as driver:
        assert (driver.device, driver.name, driver.capability, driver.version) == (0, "Stand-in 0", (8, 6), 12040)
        assert "open" in repr(driver)
    assert "closed" in repr(driver)


def copies_go_in_across_and_out_in_the_order_of_the_stream() -> None:
    with opened() as driver:
        stream, source, target = driver.stream(), driver.pinned(1000), driver.pinned(1000)
        first, second = driver.allocate(1000), driver.allocate(1000)
        source.array[:] = np.arange(1000) % 251
        target.array[:] = 0
        driver.copy_in(first.address, source, 900, stream, offset=100)
        driver.copy_across(second.address, first.address, 900, stream)
        driver.copy_out(target, second.address, 800, stream, offset=50)
        assert not target.array.any()  # nothing is done before somebody waits
        stream.synchronize()
        assert (target.array[50:850] == source.array[100:900]).all()
        assert not target.array[:50].any()
        assert not target.array[850:].any()
        assert target.array.dtype == np.uint8
        assert (target.nbytes, first.nbytes) == (1000, 1000)
        assert first.address % 256 == 0


def event_is_done_when_all_before_it_is() -> None:
    with opened() as driver:
        stream, event, source, memory = driver.stream(), driver.event(), driver.pinned(64), driver.allocate(64)
        assert event.done()  # never recorded
        driver.copy_in(memory.address, source, 64, stream)
        event.record(stream)
        assert not event.done()
        event.synchronize()
        assert event.done()


def stream_waits_for_another_streams_event() -> None:
    with opened() as driver:
        before, after, event = driver.stream(), driver.stream(), driver.event()
        source, target, memory = driver.pinned(64), driver.pinned(64), driver.allocate(64)
        source.array[:] = 7
        driver.copy_in(memory.address, source, 64, before)
        event.record(before)
        driver.wait(after, event)
        driver.copy_out(target, memory.address, 64, after)
        after.synchronize()
        assert (target.array == 7).all()


def seconds_lie_between_two_timed_events() -> None:
    with opened() as driver:
        stream, first, second, untimed = driver.stream(), driver.event(timing=True), driver.event(timing=True), driver.event()
        first.record(stream)
        second.record(stream)
        untimed.record(stream)
        with pytest.raises(ExecutorError, match="not ready"):
            second.seconds_since(first)
        stream.synchronize()
        assert 0 <= second.seconds_since(first) < 1
        with pytest.raises(ExecutorError, match="invalid resource handle"):
            untimed.seconds_since(first)


def copy_beyond_the_pinned_memory_is_refused() -> None:
    with opened() as driver:
        stream, source, memory = driver.stream(), driver.pinned(64), driver.allocate(128)
        with pytest.raises(ExecutorError, match=r"found bytes 32\.\.96, expected them within the 64 there are"):
            driver.copy_in(memory.address, source, 64, stream, offset=32)
        with pytest.raises(ExecutorError, match="within the 64"):
            driver.copy_out(source, memory.address, 65, stream)
        with pytest.raises(ExecutorError, match=r"invalid argument \(CUDA error 1 of cuMemcpyHtoDAsync_v2\)"):
            driver.copy_in(memory.address + 100, source, 64, stream)
        source.free()
        with pytest.raises(ExecutorError, match="within the 0"):
            driver.copy_in(memory.address, source, 64, stream)


def freed_memory_can_be_freed_again_and_is_gone() -> None:
    with opened() as driver:
        memory, pinned = driver.allocate(64), driver.pinned(64)
        view = pinned.array[:8]
        for _ in range(2):
            memory.free()
            pinned.free()
        assert report().startswith("memory 0, pinned 0")
        assert pinned.array.nbytes == 0
        del view


def what_does_not_fit_is_lost_to_the_executor_and_not_to_the_driver() -> None:
    with opened() as driver:
        with pytest.raises(ExecutorLost, match=r"GPU 0: found out of memory \(CUDA error 2 of cuMemAlloc.*host fewer stages"):
            driver.allocate(1 << 40)
        driver.allocate(1 << 20)


# ---- kernels, graphs ----------------------------------------------------------------------------


def gate_of(driver: PycudaDriver, logits: npt.NDArray[np.float32]) -> tuple[Callable[[GateSpec], None], npt.NDArray[np.uint8]]:
    """(queues and waits for one decision, the record it is in), with the thresholds copied first as a slot does it."""
    rows, classes = logits.shape
    gate, stream = Gate(driver), driver.stream()
    pinned, out = driver.pinned(logits.nbytes + 4 * rows), driver.pinned(decisions_bytes(rows))
    device = driver.allocate(pinned.nbytes)
    decisions = driver.allocate(out.nbytes)
    pinned.array[: logits.nbytes] = logits.view(np.uint8).ravel()

    def queue(spec: GateSpec) -> None:
        driver.copy_in(device.address, pinned, pinned.nbytes, stream)
        gate.decide(
            rule=spec.rule,
            temperature=spec.temperature,
            logits=device.address,
            dtype="float32",
            rows=rows,
            classes=classes,
            thresholds=device.address + logits.nbytes,
            last=spec.last,
            decisions=decisions.address,
            stream=stream,
        )
        driver.copy_out(out, decisions.address, out.nbytes, stream)

    graphs = {}

    def decide(spec: GateSpec) -> None:
        key = (spec.rule, spec.temperature, spec.last)
        if key not in graphs:
            driver.begin_capture(stream)
            queue(spec)
            graphs[key] = driver.end_capture(stream)
        out.array[:] = 0
        pinned.array[logits.nbytes :] = np.asarray(spec.thresholds, np.float32).view(np.uint8)
        graphs[key].launch(stream)
        stream.synchronize()

    def free() -> None:
        for graph in graphs.values():
            graph.free()
            graph.free()

    decide.free = free  # type: ignore[attr-defined]
    return decide, out.array


def gate_decides_as_numpy_does_and_a_graph_takes_other_thresholds() -> None:
    rng = np.random.default_rng(5)
    rules: tuple[GateRule, ...] = ("max-probability", "entropy", "margin")
    logits = (3 * rng.normal(size=(ROWS, CLASSES))).astype(np.float32)
    with opened() as driver:
        decide, record = gate_of(driver, logits)
        for rule in rules:
            for _ in range(5):
                thresholds = tuple(rng.random(ROWS, np.float32).tolist())
                spec = GateSpec(rule, 1.5, thresholds, last=False)
                decide(spec)
                found, expected = read_decisions(record, ROWS, last=False), evaluate_gate(logits, spec)
                assert (found.exited, found.labels) == (expected.exited, expected.labels)
                assert np.allclose(found.confidences, expected.confidences, atol=1e-6)
        decide.free()  # type: ignore[attr-defined]


def gather_leaves_the_survivors_in_the_order_of_the_input() -> None:
    with opened() as driver:
        stream, gate = driver.stream(), Gate(driver)
        activation, out = np.arange(4 * 24, dtype=np.uint8).reshape(4, 24), driver.pinned(4 * 24)
        record = np.array([[2, -1, 0, 2], [1, 0, 0, -1], [0, 0, 0, 0], [1, 0, 0, -1], [0, 0, 0, 1]], np.int32)
        source, device = driver.pinned(activation.nbytes + record.nbytes), driver.allocate(activation.nbytes + record.nbytes)
        packed = driver.allocate(out.nbytes)
        source.array[:] = np.concatenate([activation.ravel(), record.view(np.uint8).ravel()])
        driver.copy_in(device.address, source, source.nbytes, stream)
        gate.gather(
            activation=device.address,
            row_bytes=24,
            rows=4,
            decisions=device.address + activation.nbytes,
            out=packed.address,
            stream=stream,
        )
        driver.copy_out(out, packed.address, 48, stream)
        stream.synchronize()
        assert (out.array[:48].reshape(2, 24) == activation[[1, 3]]).all()


def image_that_the_driver_refuses_is_an_error_of_one_line() -> None:
    with opened() as driver:
        for image, said in (
            (b"neither", "device kernel image is invalid"),
            (
                PTX % b"9.0",
                r"unsupported toolchain\. ptxas application ptx input, line 9; fatal : Unsupported \.version 9\.0 ptxas fatal",
            ),
        ):
            with pytest.raises(ExecutorError, match=said) as raised:
                driver.load(image, ["zpipe_gather_1"])
            assert "\n" not in str(raised.value)
            assert not isinstance(raised.value, ExecutorLost)
        driver.load(PTX % b"8.4", ["zpipe_gather_1"])
        with pytest.raises(ExecutorError, match="named symbol not found"):
            driver.load(PTX % b"8.4", ["zpipe_other"])


def arguments_that_a_kernel_does_not_take_are_found() -> None:
    with opened() as driver:
        (gather,) = load_kernels(driver, ["zpipe_gather_1"]).values()
        launch = partial(driver.launch, gather, block=(32, 1, 1), stream=driver.stream())
        with pytest.raises(ExecutorError, match="invalid argument"):
            launch(grid=(0, 1, 1), arguments=[ctypes.c_uint64(0)] * 4)


def call_that_a_recording_cannot_hold_spoils_it_and_not_the_stream() -> None:
    with opened() as driver:
        stream, pinned, memory = driver.stream(), driver.pinned(64), driver.allocate(64)
        driver.begin_capture(stream)
        driver.copy_in(memory.address, pinned, 64, stream)
        with pytest.raises(ExecutorError, match="not permitted when stream is capturing"):
            driver.allocate(64)
        with pytest.raises(ExecutorError, match="previous error during capture"):
            driver.end_capture(stream)
        driver.copy_in(memory.address, pinned, 64, stream)
        stream.synchronize()


# ---- a context that is lost ---------------------------------------------------------------------


def lost_context_fails_every_call_and_ends_quietly() -> None:
    """Run with STANDIN_FAIL: the first work on the device is an illegal access."""
    driver = PycudaDriver()
    stream, event, pinned, memory = driver.stream(), driver.event(), driver.pinned(64), driver.allocate(64)
    driver.copy_in(memory.address, pinned, 64, stream)
    for call in (
        stream.synchronize,
        event.done,
        partial(event.record, stream),
        partial(driver.allocate, 64),
        partial(driver.copy_in, memory.address, pinned, 64, stream),
        partial(driver.begin_capture, stream),
    ):
        with pytest.raises(
            ExecutorLost, match=r"an illegal memory access was encountered \(CUDA error 700 of cu.*restart the node"
        ):
            call()
    memory.free()
    pinned.free()
    driver.close()
    assert report().endswith("retained 0, pushed 0")


def work_that_fails_at_the_end_is_found_by_close() -> None:
    """Run with STANDIN_FAIL: the work fails, and nobody waits for it but `close`."""
    driver = PycudaDriver()
    stream, pinned, memory = driver.stream(), driver.pinned(64), driver.allocate(64)
    driver.copy_in(memory.address, pinned, 64, stream)
    driver.close()
    assert report().endswith("mistakes 0, retained 0, pushed 0")


# ---- the end ------------------------------------------------------------------------------------


def close_gives_back_what_is_left_and_waits_for_its_work() -> None:
    driver = PycudaDriver()
    held = [driver.stream(), driver.event(), driver.pinned(64), driver.allocate(64), Gate(driver)]
    stream, pinned, memory = driver.stream(), driver.pinned(64), driver.allocate(64)
    driver.copy_in(memory.address, pinned, 64, stream)
    driver.close()
    driver.close()
    assert report() == NOTHING
    pinned.free()
    memory.free()
    in_a_thread(held.clear)  # the collector drops things in any thread
    gc.collect()
    assert report() == NOTHING


def what_is_dropped_in_another_thread_is_given_back_by_the_owner() -> None:
    with opened() as driver:
        held = [driver.stream(), driver.event(), driver.pinned(64), driver.allocate(64), Gate(driver)]
        in_a_thread(held.clear)
        gc.collect()
        driver.event()
        assert report().startswith("memory 0, pinned 0, streams 0, events 1, modules 0")


def driver_is_closed_where_it_was_made() -> None:
    with opened() as driver, pytest.raises(ExecutorError, match=r"found close\(\) in another thread"):
        in_a_thread(driver.close)


def two_drivers_in_one_thread_close_in_any_order() -> None:
    for order in ((0, 1), (1, 0)):
        drivers = [PycudaDriver(), PycudaDriver()]
        for driver in drivers:
            driver.allocate(64)
        drivers[order[0]].close()
        other = drivers[order[1]]
        stream, pinned, memory = other.stream(), other.pinned(64), other.allocate(64)
        other.copy_in(memory.address, pinned, 64, stream)
        stream.synchronize()
        other.close()
        assert report() == NOTHING


def thread_that_ends_with_its_driver_open_harms_nobody() -> None:
    held: list[object] = []

    def forget() -> None:
        driver = PycudaDriver()
        held.extend([driver, driver.allocate(64)])

    in_a_thread(forget)
    assert report().startswith("memory 1,")
    held.clear()  # nothing can be given back any more, and nobody complains
    gc.collect()
    with closing(PycudaDriver()):
        assert "mistakes 0, retained 2, pushed 1" in report()


def interpreter_that_ends_closes_the_main_threads_driver() -> None:
    driver = PycudaDriver()
    globals()["kept"] = (driver, driver.stream(), driver.event(), driver.pinned(64), driver.allocate(64), Gate(driver))


def interpreter_ends_while_an_owner_still_waits() -> None:
    opened_, forever = threading.Event(), threading.Event()

    def own() -> None:
        globals()["kept"] = (driver := PycudaDriver(), driver.stream(), driver.allocate(64))
        opened_.set()
        forever.wait()

    threading.Thread(target=own, daemon=True).start()
    opened_.wait()


def two_drivers_on_one_device_work_side_by_side() -> None:
    first_open, second_done = threading.Event(), threading.Event()

    def first() -> None:
        driver = PycudaDriver()
        first_open.set()
        decide, record = gate_of(driver, np.eye(3, dtype=np.float32))
        second_done.wait()
        decide(GateSpec("max-probability", 1.0, (0.9, 0.1, 0.9), last=False))  # the other's end did not hurt
        assert read_decisions(record, 3, last=False).exited == [False, True, False]
        decide.free()  # type: ignore[attr-defined]
        driver.close()

    def second() -> None:
        first_open.wait()
        driver = PycudaDriver()
        assert "retained 2, pushed 1" in report()
        driver.allocate(64)
        driver.close()
        second_done.set()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report() == NOTHING


def primary_context_of_another_library_lives_on() -> None:
    """As torch in the same process and thread has it: retained and current already, with memory of its own."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, address = ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxPushCurrent_v2(context) == 0
    assert cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(64)) == 0
    driver = PycudaDriver()
    driver.allocate(64)
    driver.close()
    assert report().startswith("memory 1,")
    assert report().endswith("mistakes 0, retained 1, pushed 1")
    assert cuda.cuMemFree_v2(address) == 0


# ---- what is not there --------------------------------------------------------------------------


def device_that_is_not_there_is_named_with_those_that_are() -> None:
    for device in (1, -1):
        with pytest.raises(BackendUnavailable, match=rf"GPU {device}: found .*Stand-in 0.*expected a device 0\.\.0"):
            PycudaDriver(device)
    assert report() == NOTHING


def device_that_gives_no_context_is_unavailable() -> None:
    """Run with STANDIN_FAIL: another process has the device for itself."""
    with pytest.raises(BackendUnavailable, match=r"GPU 0: found none that can be used .*busy or unavailable.*nvidia-smi"):
        PycudaDriver()
    assert report() == NOTHING
    with opened():
        pass  # later it is free


def driver_without_a_device_is_unavailable() -> None:
    """Run with STANDIN_DEVICES=0."""
    with pytest.raises(BackendUnavailable, match="GPU 0: found"):
        PycudaDriver()


#: Case -> its settings of the stand-in.
CASES: dict[Callable[[], None], dict[str, str]] = {
    driver_says_what_the_device_is: {},
    copies_go_in_across_and_out_in_the_order_of_the_stream: {},
    event_is_done_when_all_before_it_is: {},
    stream_waits_for_another_streams_event: {},
    seconds_lie_between_two_timed_events: {},
    copy_beyond_the_pinned_memory_is_refused: {},
    freed_memory_can_be_freed_again_and_is_gone: {},
    what_does_not_fit_is_lost_to_the_executor_and_not_to_the_driver: {},
    gate_decides_as_numpy_does_and_a_graph_takes_other_thresholds: {},
    gather_leaves_the_survivors_in_the_order_of_the_input: {},
    image_that_the_driver_refuses_is_an_error_of_one_line: {},
    arguments_that_a_kernel_does_not_take_are_found: {},
    call_that_a_recording_cannot_hold_spoils_it_and_not_the_stream: {},
    lost_context_fails_every_call_and_ends_quietly: {"STANDIN_FAIL": "execute:1:700"},
    work_that_fails_at_the_end_is_found_by_close: {"STANDIN_FAIL": "execute:1:700"},
    close_gives_back_what_is_left_and_waits_for_its_work: {},
    what_is_dropped_in_another_thread_is_given_back_by_the_owner: {},
    driver_is_closed_where_it_was_made: {},
    two_drivers_in_one_thread_close_in_any_order: {},
    thread_that_ends_with_its_driver_open_harms_nobody: {},
    interpreter_that_ends_closes_the_main_threads_driver: {},
    interpreter_ends_while_an_owner_still_waits: {},
    two_drivers_on_one_device_work_side_by_side: {},
    primary_context_of_another_library_lives_on: {},
    device_that_is_not_there_is_named_with_those_that_are: {},
    device_that_gives_no_context_is_unavailable: {"STANDIN_FAIL": "cuDevicePrimaryCtxRetain:1:46"},
    driver_without_a_device_is_unavailable: {"STANDIN_DEVICES": "0"},
}

#: Which leave something behind, or need the interpreter's end.
ALONE = (
    interpreter_that_ends_closes_the_main_threads_driver,
    interpreter_ends_while_an_owner_still_waits,
    thread_that_ends_with_its_driver_open_harms_nobody,
    primary_context_of_another_library_lives_on,
)


def run_named(cases: Iterable[Callable[[], None]]) -> None:
    """Those that the command line names, one after the other, each said before it begins."""
    known = {case.__name__: case for case in cases}
    for name in sys.argv[1:]:
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        known[name]()


if __name__ == "__main__":
    run_named(CASES)

"""What must hold of `TorchDriver`: each function a case, run by test_torch.py in a process of its own.

The CUDA driver is the stand-in, torch a pretended one: what it does with a device is not what is tried here.

python -m tests.executors.cuda.torch_cases NAME
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests.executors.cuda import pretend_torch, pycuda_cases, stages_cases
from tests.executors.cuda.pycuda_cases import NOTHING, opened, report
from tests.executors.cuda.torch_stages import TorchStages
from zpipe.errors import BackendUnavailable, ExecutorError, ExecutorLost
from zpipe.executors.cuda import torch as torch_driver
from zpipe.executors.cuda.torch import TorchDriver, translated

#: Cases of the seam, whoever keeps it: they open the driver by a name that is replaced below.
OF_EVERY_DRIVER: dict[Callable[[], None], dict[str, str]] = {
    case: pycuda_cases.CASES[case]
    for case in (
        pycuda_cases.driver_says_what_the_device_is,
        pycuda_cases.copies_go_in_across_and_out_in_the_order_of_the_stream,
        pycuda_cases.event_is_done_when_all_before_it_is,
        pycuda_cases.stream_waits_for_another_streams_event,
        pycuda_cases.seconds_lie_between_two_timed_events,
        pycuda_cases.copy_beyond_the_pinned_memory_is_refused,
        pycuda_cases.freed_memory_can_be_freed_again_and_is_gone,
        pycuda_cases.what_does_not_fit_is_lost_to_the_executor_and_not_to_the_driver,
        pycuda_cases.gate_decides_as_numpy_does_and_a_graph_takes_other_thresholds,
        pycuda_cases.gather_leaves_the_survivors_in_the_order_of_the_input,
        pycuda_cases.image_that_the_driver_refuses_is_an_error_of_one_line,
        pycuda_cases.arguments_that_a_kernel_does_not_take_are_found,
        pycuda_cases.call_that_a_recording_cannot_hold_spoils_it_and_not_the_stream,
        pycuda_cases.lost_context_fails_every_call_and_ends_quietly,
        pycuda_cases.work_that_fails_at_the_end_is_found_by_close,
        pycuda_cases.close_gives_back_what_is_left_and_waits_for_its_work,
        pycuda_cases.driver_is_closed_where_it_was_made,
        pycuda_cases.two_drivers_on_one_device_work_side_by_side,
        pycuda_cases.primary_context_of_another_library_lives_on,
        pycuda_cases.device_that_is_not_there_is_named_with_those_that_are,
        pycuda_cases.device_that_gives_no_context_is_unavailable,
    )
}


#: Cases of a whole executor, likewise.
OF_EVERY_EXECUTOR: dict[Callable[[], None], dict[str, str]] = {
    case: stages_cases.CASES[case]
    for case in (
        stages_cases.two_executors_share_one_device,
        stages_cases.hundreds_of_batches_leave_nothing_behind,
        stages_cases.device_that_is_lost_fails_every_batch_and_ends_quietly,
        stages_cases.stage_that_finds_no_room_leaves_none_taken,
    )
}


def device_is_torchs_in_this_thread_and_has_computed_before_it_is_used() -> None:
    with opened():
        assert pretend_torch.asked == ["init", "set_device 0", "computed on cuda:0"]
    assert pretend_torch.asked[3:] == ["empty_cache"]


def recording_takes_its_memory_from_the_streams_own_pool() -> None:
    with opened() as driver:
        pretend_torch.asked.clear()
        first, second = driver.stream(), driver.stream()
        graphs = []
        for stream in (first, second, first):
            driver.begin_capture(stream)
            graphs.append(driver.end_capture(stream))
        assert pretend_torch.asked == ["pool 1", "pool 1 left", "pool 2", "pool 2 left", "pool 1", "pool 1 left"]
        for graph in graphs:
            graph.free()


def recording_that_does_not_begin_leaves_the_pool() -> None:
    """Run with STANDIN_FAIL: the first recording is refused."""
    with opened() as driver:
        stream = driver.stream()
        with pytest.raises(ExecutorError, match="cuStreamBeginCapture_v2"):
            driver.begin_capture(stream)
        driver.begin_capture(stream)
        driver.end_capture(stream).free()
        assert pretend_torch.asked.count("pool 1") == pretend_torch.asked.count("pool 1 left") == 2


def spoiled_recording_leaves_the_pool() -> None:
    pycuda_cases.call_that_a_recording_cannot_hold_spoils_it_and_not_the_stream()
    assert pretend_torch.asked.count("pool 1") == pretend_torch.asked.count("pool 1 left") == 1


def torch_whose_pools_take_every_threads_memory_records_nothing() -> None:
    sys.modules["torch"].__version__ = "2.7.1+cu126"  # type: ignore[attr-defined]
    with opened() as driver:
        stream = driver.stream()
        with pytest.raises(ExecutorError, match=r"found torch 2\.7\.1\+cu126, expected 2\.8 or later to record with; run: "):
            driver.begin_capture(stream)


def memory_that_torch_only_keeps_is_given_back_before_there_is_none() -> None:
    """Run with STANDIN_FAIL: the first allocation fails."""
    with opened() as driver:
        pretend_torch.asked.clear()
        assert driver.allocate(64).nbytes == 64
        assert pretend_torch.asked == ["empty_cache"]


def many_objects_come_and_go() -> None:
    with opened() as driver:
        assert isinstance(driver, TorchDriver)
        for _ in range(1000):
            for each in (driver.allocate(64), driver.pinned(64), driver.stream(), driver.event()):
                each.free()
        assert not driver.held
        assert report().startswith("memory 0, pinned 0, streams 0, events 0")


def calls_that_queue_keep_the_gil() -> None:
    """Another thread never gets its turn between two of them; one that waits gives it."""
    with opened() as driver:
        stream, pinned, memory, event = driver.stream(), driver.pinned(64), driver.allocate(64), driver.event()
        turns = 0
        stop = threading.Event()

        def count() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1
                time.sleep(0)  # gives the GIL back, and wants it again

        before = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)  # so a thread that holds the GIL keeps it until it waits
        other = threading.Thread(target=count)
        try:
            other.start()
            seen = turns
            for _ in range(100):
                driver.copy_in(memory.address, pinned, 64, stream)
                event.record(stream)
                driver.wait(stream, event)
                event.done()
            assert turns == seen
        finally:
            sys.setswitchinterval(before)
            stop.set()
            other.join()


# ---- what torch says ----------------------------------------------------------------------------


def errors_of_torch_are_ours() -> None:
    torch = sys.modules["torch"]
    with opened():
        lost = translated(RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"), 0)
        assert isinstance(lost, ExecutorLost)
        assert str(lost) == (
            "GPU 0: found an illegal memory access was encountered (CUDA error 700 of torch), expected a GPU that works; "
            "restart the node, and see nvidia-smi and dmesg"
        )
        full = translated(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), 0)
        assert isinstance(full, ExecutorLost)
        assert "Tried to allocate 2.00 GiB" in str(full)
        assert "\n" not in str(full)
        for said in ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"):
            refused = translated(RuntimeError(said), 0)
            assert type(refused) is ExecutorError
            assert "STATUS_EXECUTION_FAILED" in str(refused)
        assert translated(RuntimeError("shapes cannot be multiplied"), 0) is None
        assert translated(ValueError("CUDA error: none of torch's"), 0) is None


def torch_without_cuda_is_unavailable() -> None:
    pretend_torch.install(cuda=None)
    with pytest.raises(
        BackendUnavailable, match=r"torch: found 2\.13\.0, built without CUDA, expected one with it; take the command"
    ):
        TorchDriver()
    assert report() == NOTHING


def torch_that_cannot_use_the_device_is_unavailable() -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    pretend_torch.install(init=init)
    with pytest.raises(
        BackendUnavailable, match=r"GPU 0: found none that torch 2\.13\.0 can use \(The NVIDIA driver .* 11040\)\.\)"
    ):
        TorchDriver()
    assert report() == NOTHING


def torch_that_does_not_load_is_unavailable() -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "torch":
                raise OSError("libcudart.so.13: cannot open shared object file")

    del sys.modules["torch"]
    setattr(torch_driver, "installed", lambda name: True)  # noqa: B010 - it looks the same way
    sys.meta_path.insert(0, Broken())
    with pytest.raises(
        BackendUnavailable, match=r"torch: found one that does not load \(libcudart.so.13: .*--force-reinstall torch"
    ):
        TorchDriver()


def no_torch_is_unavailable() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    with pytest.raises(BackendUnavailable, match=r"torch: found no torch, expected it installed, with CUDA; .*'zpipe\[train\]'"):
        TorchDriver()


#: Case -> its settings of the stand-in.
CASES: dict[Callable[[], None], dict[str, str]] = (
    OF_EVERY_DRIVER
    | OF_EVERY_EXECUTOR
    | {
        device_is_torchs_in_this_thread_and_has_computed_before_it_is_used: {},
        recording_takes_its_memory_from_the_streams_own_pool: {},
        recording_that_does_not_begin_leaves_the_pool: {"STANDIN_FAIL": "cuStreamBeginCapture_v2:1:900"},
        spoiled_recording_leaves_the_pool: {},
        torch_whose_pools_take_every_threads_memory_records_nothing: {},
        memory_that_torch_only_keeps_is_given_back_before_there_is_none: {"STANDIN_FAIL": "cuMemAlloc_v2:1:2"},
        many_objects_come_and_go: {},
        calls_that_queue_keep_the_gil: {},
        errors_of_torch_are_ours: {},
        torch_without_cuda_is_unavailable: {},
        torch_that_cannot_use_the_device_is_unavailable: {},
        torch_that_does_not_load_is_unavailable: {},
        no_torch_is_unavailable: {},
    }
)

#: Which change the process beyond mending.
LAST = (pycuda_cases.primary_context_of_another_library_lives_on, torch_that_does_not_load_is_unavailable, no_torch_is_unavailable)

if __name__ == "__main__":
    setattr(pycuda_cases, "PycudaDriver", TorchDriver)  # noqa: B010 - what its cases open
    setattr(stages_cases, "PycudaStages", TorchStages)  # noqa: B010
    for name in sys.argv[1:]:
        pretend_torch.install()
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        next(case for case in CASES if case.__name__ == name)()

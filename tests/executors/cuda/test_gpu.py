"""What must hold on a real GPU of each executor that runs there, on the bundle that is shipped.

Skipped without a GPU. So that they are right before they meet one, the same tests run on an executor over the real pycuda, with
the stand-in as its driver (test_pycuda.py starts that session).
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from tests.executors.tiny import host_rows
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import BackendUnavailable
from zpipe.executors import StageExecutor, make_executor
from zpipe.model import NEVER_EXIT, GateRule, GateSpec

pytestmark = pytest.mark.gpu

REHEARSAL = "STANDIN_KERNELS" in os.environ

MAX_BATCH = 32
#: Nearer to a threshold, or to a second label, two correct devices may decide differently.
NEAR = 1e-4
#: What other processes on the device, and the interpreter, may take or give meanwhile. A leak of one row a batch is 1 GB.
SLACK_BYTES = 32 << 20
#: The bundle's operating point under which samples leave at every stage.
POINT = "t0.98"


@dataclass(frozen=True)
class Subject:
    """An executor under test.

    Attributes:
        device: as a topology gives it.
        exact: whether it computes in float32, so that it decides as ONNX Runtime does.
    """

    name: str
    device: str = "0"
    exact: bool = True

    def make(self, bundle: Bundle, *stages: int) -> StageExecutor:
        """A new one, warm; skips the test where what it needs is not here."""
        try:
            executor = make_executor(self.name, bundle, stages, device=self.device)
            executor.warm_up(MAX_BATCH)
        except BackendUnavailable as exc:
            pytest.skip(str(exc))
        return executor


SUBJECTS = {
    "trt": Subject("trt"),
    "trt-fp16": Subject("trt", "0/fp16", exact=False),
    "torch-cuda": Subject("torch-cuda"),
    "torch-cuda-fp16": Subject("torch-cuda", "0/fp16", exact=False),
}
if REHEARSAL:
    SUBJECTS = {"rehearsal": Subject("tests.executors.cuda.pycuda_stages:PycudaStages")}


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("digits-mobilenetv2")


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> npt.NDArray[np.uint8]:
    return bundle.evaluation().images[: 200 if REHEARSAL else None]


@pytest.fixture(scope="module")
def thresholds(bundle: Bundle) -> tuple[float, ...]:
    return next(point.thresholds for point in bundle.operating_points if point.name == POINT)


@dataclass
class Fates:
    """Where samples left, with which label; how near that was to another fate (infinite where nobody asked)."""

    stages: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    nearness: npt.NDArray[np.float64]

    def differ(self, other: Fates) -> npt.NDArray[np.bool_]:
        differing: npt.NDArray[np.bool_] = (self.stages != other.stages) | (self.labels != other.labels)
        return differing


def fates(
    hosts: Callable[[int], StageExecutor],
    bundle: Bundle,
    rows: npt.NDArray[Any],
    thresholds: tuple[float, ...],
    *,
    near: bool = False,
) -> Fates:
    """Samples through the chain in batches; `near` asks for the nearness, at the cost of another run per stage."""
    count, last = len(rows), len(bundle.stages) - 1
    found = Fates(np.full(count, -1), np.full(count, -1), np.full(count, np.inf))
    for begin in range(0, count, MAX_BATCH):
        staying = np.arange(begin, min(begin + MAX_BATCH, count))
        batch: Any = rows[staying]
        for spec in bundle.stages:
            host, limits = hosts(spec.index), (thresholds[spec.index],) * len(staying)
            output = host.run(spec.index, batch, gate(bundle, spec.index, limits))
            if near:
                margin = host.run(spec.index, batch, gate(bundle, spec.index, limits, rule="margin")).confidences
                distance = np.abs(np.subtract(output.confidences, limits)) if spec.index < last else np.inf
                found.nearness[staying] = np.minimum.reduce(
                    [found.nearness[staying], np.broadcast_to(distance, len(staying)), np.asarray(margin)]
                )
            exited = np.array(output.exited)
            found.stages[staying[exited]] = spec.index
            found.labels[staying[exited]] = np.array(output.labels)[exited]
            staying = staying[~exited]
            if not len(staying):
                break
            assert output.activation is not None
            batch = output.activation if len(output.activation) == len(staying) else host_rows(output)[~exited]
    return found


def gate(bundle: Bundle, stage: int, thresholds: tuple[float, ...], *, rule: GateRule = "max-probability") -> GateSpec:
    head = bundle.stages[stage].exit_head
    return GateSpec(rule, 1.0 if head is None else head.temperature, thresholds, last=stage == len(bundle.stages) - 1)


@pytest.fixture(scope="module")
def reference(bundle: Bundle, images: npt.NDArray[np.uint8], thresholds: tuple[float, ...]) -> Fates:
    with closing(make_executor("onnx", bundle, range(len(bundle.stages)))) as onnx:
        return fates(lambda stage: onnx, bundle, images, thresholds, near=True)


def free_bytes() -> int:
    """Of the device, as the driver says; by a context that this leaves again."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    codes = [
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxPushCurrent_v2(context),
        cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
        cuda.cuCtxPopCurrent_v2(ctypes.byref(context)),
        cuda.cuDevicePrimaryCtxRelease_v2(0),
    ]
    assert codes == [0] * len(codes)
    return free.value


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


# ---- the tests ----------------------------------------------------------------------------------


def test_samples_leave_where_and_as_they_do_in_onnx_runtime(
    subject: Subject,
    bundle: Bundle,
    images: npt.NDArray[np.uint8],
    thresholds: tuple[float, ...],
    reference: Fates,
    record_property: Callable[[str, object], None],
) -> None:
    assert set(reference.stages) == set(range(len(bundle.stages))), "the point lets nobody leave somewhere: choose another"
    with closing(subject.make(bundle, *range(len(bundle.stages)))) as executor:
        found = fates(lambda stage: executor, bundle, images, thresholds)
    differing, near = found.differ(reference), reference.nearness < NEAR
    record_property("differing", int(differing.sum()))
    record_property("near", int(near.sum()))
    if subject.exact:
        assert np.flatnonzero(differing & ~near).tolist() == []
        assert near.mean() < 0.005
    else:
        assert differing.mean() <= 0.005


@pytest.mark.parametrize("stages", [(0,), (0, 1)], ids=["to-the-host", "on-the-device"])
def test_survivors_keep_the_order_of_the_input(
    stages: tuple[int, ...], subject: Subject, bundle: Bundle, images: npt.NDArray[np.uint8]
) -> None:
    rng = random.Random(11)
    with closing(subject.make(bundle, *stages)) as executor:
        for rows in (1, 2, 7, 31, MAX_BATCH):
            batch = images[:rows]
            whole = host_rows(executor.run(0, batch, gate(bundle, 0, (NEVER_EXIT,) * rows)))
            leaving = np.array([rng.random() < 0.5 for _ in range(rows)])
            some = executor.run(0, batch, gate(bundle, 0, tuple(np.where(leaving, 0.0, NEVER_EXIT).tolist())))
            assert some.exited == leaving.tolist()
            assert len(host_rows(some)) == rows - leaving.sum()
            np.testing.assert_array_equal(host_rows(some), whole[~leaving])


def test_ten_thousand_batches_leave_nothing_behind(
    subject: Subject, bundle: Bundle, images: npt.NDArray[np.uint8], thresholds: tuple[float, ...]
) -> None:
    rng = random.Random(13)

    def run(batches: int) -> None:
        for _ in range(batches):
            begin = rng.randrange(len(images) - MAX_BATCH)
            rows = rng.randint(1, MAX_BATCH)
            one = executor.run(0, images[begin : begin + rows], gate(bundle, 0, (thresholds[0],) * rows))
            staying = one.exited.count(False)
            if staying:
                activation: Any = one.activation
                executor.run(1, activation, gate(bundle, 1, (thresholds[1],) * staying))

    with closing(subject.make(bundle, 0, 1)) as executor:
        run(20 if REHEARSAL else 500)
        device, host = free_bytes(), resident_bytes()
        run(100 if REHEARSAL else 10_000)
        assert device - free_bytes() < SLACK_BYTES
        assert resident_bytes() - host < SLACK_BYTES


def test_executor_that_closes_gives_the_device_back(subject: Subject, bundle: Bundle) -> None:
    free = []
    for _ in range(4):
        subject.make(bundle, 0, 1, 2).close()
        free.append(free_bytes())
    # The first leaves what its libraries load once.
    assert all(before - after < SLACK_BYTES for before, after in pairwise(free[1:]))


def test_executors_of_two_nodes_share_the_device(
    subject: Subject, bundle: Bundle, images: npt.NDArray[np.uint8], thresholds: tuple[float, ...], reference: Fates
) -> None:
    parts = np.array_split(np.arange(len(images)), 4)
    with ExitStack() as opened, ThreadPoolExecutor(4) as callers:
        first, second = (opened.enter_context(closing(subject.make(bundle, *stages))) for stages in ((0, 1), (2, 3, 4)))
        found = list(
            callers.map(lambda part: fates(lambda stage: first if stage < 2 else second, bundle, images[part], thresholds), parts)
        )
    for part, each in zip(parts, found, strict=True):
        wanted = Fates(reference.stages[part], reference.labels[part], reference.nearness[part])
        differing = each.differ(wanted) & (wanted.nearness >= NEAR)
        assert differing.mean() <= (0.0 if subject.exact else 0.02)


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch with CUDA")
    yield torch
    torch.cuda.empty_cache()


def test_torch_beside_it_lives_on(
    subject: Subject, torch: Any, bundle: Bundle, images: npt.NDArray[np.uint8], thresholds: tuple[float, ...]
) -> None:
    numbers = torch.arange(1 << 20, device="cuda", dtype=torch.int64)
    with closing(subject.make(bundle, 0)) as executor:
        rows = images[:MAX_BATCH]
        before = executor.run(0, rows, gate(bundle, 0, (thresholds[0],) * len(rows)))
        doubled = 2 * numbers  # its kernels between ours
        after = executor.run(0, rows, gate(bundle, 0, (thresholds[0],) * len(rows)))
        assert (before.exited, before.labels) == (after.exited, after.labels)
    assert int(doubled.sum()) == (1 << 20) * ((1 << 20) - 1)
    assert int((numbers + torch.ones_like(numbers)).sum()) == (1 << 20) * ((1 << 20) + 1) // 2


_ILLEGAL = """
import ctypes
from zpipe.errors import ExecutorLost
from zpipe.executors.cuda.images import load_kernels
from zpipe.executors.cuda.pycuda import PycudaDriver

driver = PycudaDriver()
stream, event, memory = driver.stream(), driver.event(), driver.allocate(64)
(gather,) = load_kernels(driver, ["zpipe_gather_1"]).values()
nowhere = [ctypes.c_uint64(16) for _ in range(3)]
driver.launch(gather, grid=(1, 1, 1), block=(32, 1, 1), arguments=[*nowhere, ctypes.c_uint64(64)], stream=stream)
for call in (stream.synchronize, event.done, lambda: driver.allocate(64)):
    try:
        call()
    except ExecutorLost as exc:
        print(exc)
memory.free()
driver.close()
"""


@pytest.mark.skipif(REHEARSAL, reason="needs a real device: the stand-in runs kernels in its own process")
def test_illegal_access_loses_the_driver_and_not_the_process() -> None:
    """What CUDA gives is sticky in the process, so this has one of its own."""
    pytest.importorskip("pycuda", reason="needs pycuda")
    done = subprocess.run([sys.executable, "-c", _ILLEGAL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("restart the node") == 3, done.stdout + done.stderr

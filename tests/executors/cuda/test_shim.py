"""The shim finds the mistakes that it says it finds: without that, agreement on the CPU would say little of a GPU."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from tests.executors.cuda.compiled import CompiledGate, KernelError, compiled_gate, need_compiled_gate
from tests.executors.cuda.ground import Ground, record_of
from tests.executors.cuda.host import host_driver
from zpipe.executors.cuda.gate import read_decisions
from zpipe.executors.cuda.images import SOURCE
from zpipe.model import GateSpec

BARRIER = "    __syncthreads();\n"
DIVIDING = "    total = sum_of_warp(total);\n"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> CompiledGate:
    """gate.cu without its barriers, and of half-precision logits one lane goes its own way."""
    need_compiled_gate()
    text = SOURCE.read_text()
    assert (text.count(BARRIER), text.count(DIVIDING)) == (2, 1)
    source = tmp_path_factory.mktemp("faulty") / "gate.cu"
    source.write_text(
        text.replace(BARRIER, "").replace(DIVIDING, f"    if (sizeof(Logit) == 2 && lane == 7) return {{}};\n{DIVIDING}")
    )
    made = compiled_gate(source)
    assert made is not None
    return made


def test_a_missing_barrier_shows_in_the_decisions(faulty: CompiledGate) -> None:
    logits = np.full((64, 3), [9.0, 0.0, 0.0], np.float32)
    record = Ground(host_driver(faulty)).decide(logits, GateSpec("margin", 1.0, (0.5,) * 64))
    assert record.view(np.int32).reshape(-1, 4)[1:, 1].tolist() != [0] * 64


def test_a_missing_barrier_shows_in_a_channels_peak(faulty: CompiledGate) -> None:
    values = np.ones((1, 1, 4096), np.float32)
    coded, right = (
        Ground(host_driver(each)).gather(values, record_of(np.zeros(1, np.bool_)), encoding="int8")
        for each in (faulty, need_compiled_gate())
    )
    assert coded.tolist() != right.tolist()


def test_a_lane_that_misses_a_shuffle_ends_the_launch_and_harms_no_later_one(faulty: CompiledGate) -> None:
    ground, gate = Ground(host_driver(faulty)), GateSpec("margin", 1.0, (0.5,))
    with pytest.raises(KernelError, match="lanes of a warp part before the collective in line"):
        ground.decide(np.ones((1, 3), np.float16), gate)
    record = ground.decide(np.array([[0.0, 9.0, 0.0]], np.float32), gate)
    assert read_decisions(record, 1, last=False).labels == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((ctypes.c_uint32(0), *[ctypes.c_uint64(0)] * 3), "found arguments of \\[4, 8, 8, 8\\] bytes, expected \\[8, 8, 8, 8\\]"),
        ((ctypes.c_uint64(8), *[ctypes.c_uint64(0)] * 3), "an address that is no multiple of 16"),
    ],
)
def test_arguments_that_do_not_fit_the_kernel_are_refused(arguments: tuple[ctypes.c_uint64, ...], said: str) -> None:
    with pytest.raises(KernelError, match=said):
        need_compiled_gate().launch("zpipe_gather_16", (1, 1, 1), (32, 1, 1), arguments)


@pytest.mark.parametrize("block", [(0, 1, 1), (33, 1, 1), (1024, 2, 1), (32, 1, 2)])
def test_blocks_that_no_device_takes_are_refused(block: tuple[int, int, int]) -> None:
    with pytest.raises(KernelError, match="a block of other than 1"):
        need_compiled_gate().launch("zpipe_gather_16", (1, 1, 1), block, [ctypes.c_uint64(0)] * 4)


def test_a_kernel_that_does_not_exist_is_named() -> None:
    with pytest.raises(KernelError, match="no kernel zpipe_decode"):
        need_compiled_gate().launch("zpipe_decode", (1, 1, 1), (32, 1, 1), [])

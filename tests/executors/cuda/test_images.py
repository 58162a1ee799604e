"""The shipped images of the gate: of the present source, for the devices that are promised, and the right one is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from tests.executors.cuda.conftest import GPU_DRIVERS, gpu_driver
from tests.executors.cuda.ground import Ground
from zpipe.errors import ExecutorError, ExecutorLost
from zpipe.executors.cuda.driver import Driver
from zpipe.executors.cuda.gate import KERNELS, read_decisions
from zpipe.executors.cuda.images import FOLDER, MANIFEST, Image, fitting_images, load_kernels, shipped_images, source_digest
from zpipe.executors.gate import evaluate_gate
from zpipe.model import GateSpec

CUBINS = [image for image in shipped_images() if not image.ptx]
(PTX,) = (image for image in shipped_images() if image.ptx)

#: A block of 1024 threads runs on every device if a thread takes no more: 65536 registers a multiprocessor.
MOST_REGISTERS = 64


class Loading:
    """A driver that refuses the first images it is given."""

    name = "NVIDIA Thing"

    def __init__(self, capability: tuple[int, int], version: int, refusals: Sequence[Exception] = ()) -> None:
        self.capability, self.version = capability, version
        self._refusals = list(refusals)
        self.loaded: list[bytes] = []

    def load(self, image: bytes, kernels: Sequence[str]) -> dict[str, str]:
        self.loaded.append(image)
        if self._refusals:
            raise self._refusals.pop(0)
        return {name: name for name in kernels}


def load(driver: Loading) -> Any:
    return load_kernels(cast("Driver", driver), KERNELS)


def names(capability: tuple[int, int], version: int) -> list[str]:
    return [image.file for image in fitting_images(shipped_images(), capability, version)]


def test_images_are_of_the_present_source() -> None:
    compiled_from = json.loads(MANIFEST.read_text())["source"]
    assert compiled_from == source_digest(), "gate.cu has changed: run python -m zpipe.executors.cuda.compile"


def test_every_image_listed_is_there_and_no_other() -> None:
    assert {image.file for image in shipped_images()} == {path.name for path in FOLDER.glob("*.z")}


def test_devices_from_volta_to_blackwell_have_their_own_code() -> None:
    promised = {(7, 2), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (11, 0), (12, 0), (12, 1)}
    assert promised <= {image.capability for image in CUBINS}


@pytest.mark.parametrize("image", CUBINS, ids=lambda image: image.file)
def test_a_cubin_is_an_elf_file_for_cuda_with_all_kernels(image: Image) -> None:
    code = image.code()
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 190  # EM_CUDA
    assert all(f".text.{kernel}\0".encode() in code for kernel in KERNELS)


@pytest.mark.parametrize("image", CUBINS, ids=lambda image: image.file)
def test_no_kernel_spills_registers_and_all_fit_a_full_block(image: Image) -> None:
    assert set(image.registers) == set(KERNELS)
    assert image.spill_bytes == 0
    assert max(image.registers.values()) <= MOST_REGISTERS


def test_the_ptx_keeps_ieee_arithmetic() -> None:
    text = PTX.code().decode()
    assert ".version 7.8" in text
    assert ".target sm_75" in text
    assert set(re.findall(r"\bdiv\.\S+", text)) == {"div.rn.f32"}
    # The one instruction that flushes subnormals is in the middle of expf, which scales its result afterwards.
    assert set(re.findall(r"\S+\.(?:ftz|approx|full)\S*", text)) == {"ex2.approx.ftz.f32"}
    assert all(f".entry {kernel}(" in text for kernel in KERNELS)


@pytest.mark.parametrize(
    ("capability", "version", "files"),
    [
        ((8, 6), 13000, ["gate-86.cubin.z", "gate-75.ptx.z"]),
        ((8, 7), 12060, ["gate-87.cubin.z", "gate-75.ptx.z"]),  # JetPack 6
        ((7, 2), 11040, ["gate-72.cubin.z"]),  # JetPack 5: its driver is too old for the PTX, not for the cubin
        ((12, 0), 12080, ["gate-75.ptx.z"]),  # no cubin of CUDA 12
        ((12, 0), 13000, ["gate-120.cubin.z", "gate-75.ptx.z"]),
        ((13, 0), 14000, ["gate-75.ptx.z"]),
        ((6, 1), 12060, []),
        ((8, 6), 10020, []),
    ],
)
def test_the_devices_own_code_goes_before_ptx_where_the_driver_takes_it(
    capability: tuple[int, int], version: int, files: list[str]
) -> None:
    assert names(capability, version) == files


def test_an_image_that_the_driver_refuses_is_followed_by_the_next() -> None:
    driver = Loading((8, 6), 13000, [ExecutorError("invalid image")])
    assert set(load(driver)) == set(KERNELS)
    assert driver.loaded[1] == PTX.code()


def test_a_lost_device_is_not_asked_again() -> None:
    driver = Loading((8, 6), 13000, [ExecutorLost("gone")])
    with pytest.raises(ExecutorLost):
        load(driver)
    assert len(driver.loaded) == 1


def test_a_device_without_an_image_is_named_with_what_would_do() -> None:
    with pytest.raises(ExecutorError) as info:
        load(Loading((6, 1), 12060))
    assert str(info.value) == (
        "gate: found NVIDIA Thing of compute capability 6.1 and a driver for CUDA 12.6, "
        "expected 7.0 or later and CUDA 11.8 or later; update the driver or run on another device"
    )


def test_an_image_that_is_refused_says_why() -> None:
    with pytest.raises(ExecutorError, match=r"\(gate-72.cubin.z: no kernel image\); update"):
        load(Loading((7, 2), 11040, [ExecutorError("no kernel image")]))


@pytest.mark.gpu
@pytest.mark.parametrize("library", GPU_DRIVERS)
def test_every_image_that_fits_a_gpu_decides_as_numpy(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(1).normal(size=(70, 10)).astype(np.float32)
    gate = GateSpec("entropy", 1.3, (0.3,) * 70)
    driver = gpu_driver(library)
    images = fitting_images(shipped_images(), driver.capability, driver.version)
    assert PTX in images
    expected = evaluate_gate(logits, gate)
    for image in images:
        monkeypatch.setattr("zpipe.executors.cuda.images.shipped_images", lambda image=image: (image,))
        got = read_decisions(Ground(driver).decide(logits, gate), 70, last=False)
        assert got.labels == expected.labels
        np.testing.assert_allclose(got.confidences, expected.confidences, rtol=0, atol=1e-6)
    driver.close()

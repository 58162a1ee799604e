"""What is here for an executor on a GPU: seen without importing it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.executors.cuda import pretend
from zpipe.errors import BackendUnavailable
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.presence import Gpu, Gpus, Missing, gpus, missing_for, require


@pytest.fixture
def no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of NVIDIA's, whatever this machine has."""
    monkeypatch.setattr(presence, "LIBCUDA", "libno-such-driver.so.1")
    monkeypatch.setattr(presence, "_DEVICE_FILES", (tmp_path / "nvidia0",))
    monkeypatch.setattr(presence, "_PCI", tmp_path / "pci")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", str(pretend.driver(tmp_path)))
    monkeypatch.setattr(presence, "JETSON", tmp_path / "nv_tegra_release")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules that Python finds: what a test puts in."""
    there: set[str] = set()
    monkeypatch.setattr(presence, "installed", there.__contains__)
    return there


def pci_device(tmp_path: Path, vendor: str, kind: str) -> None:
    folder = tmp_path / "pci" / "0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def found(executor: str) -> str:
    missing = missing_for(executor)
    assert missing is not None
    return missing.found


# ---- the driver --------------------------------------------------------------------------------


@pytest.mark.usefixtures("driver")
def test_driver_tells_its_version_and_devices() -> None:
    seen = gpus()
    assert seen == Gpus(12060, (Gpu("Orin", (8, 7)),))
    assert str(seen) == "CUDA 12.6: Orin (capability 8.7)"


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FAKE_CUDA_INIT", "100", "an NVIDIA driver that gives error 100 (CUDA_ERROR_NO_DEVICE)"),
        ("FAKE_CUDA_INIT", "77", "an NVIDIA driver that gives error 77 (unknown to it)"),
        ("FAKE_CUDA_GPUS", "0", "an NVIDIA driver that shows no GPU"),
    ],
)
def test_driver_without_a_usable_gpu_says_why(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    seen = gpus()
    assert isinstance(seen, Missing)
    assert seen.found == says
    assert "CUDA_VISIBLE_DEVICES" in seen.remedy


def test_library_that_is_no_driver_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub to link with, say. Whoever asks goes on without."""
    library = pretend.library(tmp_path, "int nothing(void) { return 0; }")
    monkeypatch.setattr(presence, "LIBCUDA", str(library))
    missing = presence.gpus()
    assert isinstance(missing, presence.Missing)
    assert re.fullmatch(r"a .*libcuda.so.1 that is no driver \(.*undefined symbol: cuInit\)", missing.found)
    assert missing.remedy.startswith("install NVIDIA's")
    assert presence.missing_for("torch-cuda") == missing


@pytest.mark.usefixtures("no_driver")
def test_machine_without_a_gpu_is_told_apart_from_one_without_a_driver(tmp_path: Path) -> None:
    seen = gpus()
    assert isinstance(seen, Missing)
    assert seen.found == "no NVIDIA GPU"
    (tmp_path / "nvidia0").touch()
    seen = gpus()
    assert isinstance(seen, Missing)
    assert seen.found == "an NVIDIA GPU but no NVIDIA driver (libno-such-driver.so.1)"


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize(
    ("vendor", "kind", "a_gpu"), [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)]
)
def test_gpu_on_pci_is_a_display_device_of_nvidia(tmp_path: Path, vendor: str, kind: str, a_gpu: bool) -> None:
    pci_device(tmp_path, vendor, kind)
    seen = gpus()
    assert isinstance(seen, Missing)
    assert ("no NVIDIA driver" in seen.found) is a_gpu


# ---- what an executor needs --------------------------------------------------------------------


@pytest.mark.usefixtures("no_driver")
def test_first_answer_is_the_gpu_whatever_else_is_missing(modules: set[str]) -> None:
    assert found("trt") == found("torch-cuda") == "no NVIDIA GPU"
    modules |= {"tensorrt", "torch"}
    assert found("trt") == found("torch-cuda") == "no NVIDIA GPU"


@pytest.mark.usefixtures("no_driver")
def test_owner_of_pycuda_is_told_of_the_driver(modules: set[str]) -> None:
    modules.add("pycuda")
    assert found("trt") == "pycuda but no NVIDIA driver (libno-such-driver.so.1)"
    assert found("torch-cuda") == "no NVIDIA GPU"


@pytest.mark.usefixtures("driver")
def test_libraries_are_missed_in_the_order_in_which_one_installs_them(modules: set[str]) -> None:
    assert found("trt") == "a driver (CUDA 12.6: Orin (capability 8.7)) but no pycuda"
    modules.add("pycuda")
    assert found("trt") == "a driver (CUDA 12.6: Orin (capability 8.7)) but no TensorRT"
    modules.add("tensorrt_rtx")
    assert missing_for("trt") is None
    assert found("torch-cuda").endswith("but no torch")
    modules.add("torch")
    assert found("torch-cuda").endswith("but no onnx")
    modules.add("onnx")
    assert missing_for("torch-cuda") is None


@pytest.mark.usefixtures("driver")
def test_jetson_has_tensorrt_beside_its_system(tmp_path: Path, modules: set[str]) -> None:
    modules.add("pycuda")
    missing = missing_for("trt")
    assert missing is not None
    assert "pip install 'zpipe[rtx]'" in missing.remedy
    (tmp_path / "nv_tegra_release").touch()
    missing = missing_for("trt")
    assert missing is not None
    assert "--system-site-packages" in missing.remedy


@pytest.mark.parametrize("executor", ["onnx", "emulated", "robot.vision:Engine"])
def test_other_executors_miss_nothing(executor: str) -> None:
    assert missing_for(executor) is None


@pytest.mark.usefixtures("no_driver")
def test_require_is_one_line_with_found_expected_and_remedy() -> None:
    with pytest.raises(BackendUnavailable, match=r"^executor trt: found .*, expected .*; .*$") as caught:
        require("trt")
    assert "\n" not in str(caught.value)


def test_looking_imports_nothing() -> None:
    before = set(sys.modules)
    missing_for("trt")
    missing_for("torch-cuda")
    assert {"pycuda", "tensorrt", "tensorrt_rtx", "torch"} & (set(sys.modules) - before) == set()

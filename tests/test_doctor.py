"""`zpipe doctor`: what it says where something is missing, old or broken. Nothing here needs a GPU or the network."""

from __future__ import annotations

import ctypes
import io
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zpipe import doctor
from zpipe.doctor import DEPENDENCIES, EXTRAS, Dependency, Extra, Finding, diagnose, render_findings

ROOT = Path(__file__).parent.parent


def rendered(findings: list[Finding], *, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_findings(findings))
    return console.export_text()


# ---- the whole ---------------------------------------------------------------------------------


def test_everything_that_is_required_works_in_this_environment() -> None:
    findings = diagnose(loopback=lambda: "a round trip")
    assert [finding for finding in findings if finding.required and finding.status != "ok"] == []
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert {"python", "onnxruntime", "digits bundle", "its stages", "ZeroMQ loopback", "cores", "memory", "clock"} <= set(names)
    for finding in findings:
        assert finding.found
        assert bool(finding.remedy) == (finding.status != "ok"), finding
        assert "\n" not in finding.remedy + finding.found


def test_loopback_can_be_left_out() -> None:
    assert "ZeroMQ loopback" not in [finding.name for finding in diagnose(loopback=None)]


def test_the_dependencies_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, flags=re.DOTALL | re.MULTILINE)
    stated = re.findall(r'"([A-Za-z]+)>=([\d.]+)', block)
    assert [(each.distribution, each.least) for each in DEPENDENCIES] == stated


def test_every_extra_that_a_remedy_names_is_one_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for each in EXTRAS:
        (name,) = re.findall(r"zpipe\[(\w+)\]", each.remedy)
        assert re.search(rf"^{name} = \[", text, flags=re.MULTILINE), name


def test_the_command_runs_where_onnxruntime_and_zeromq_cannot_be_imported() -> None:
    absent = "import sys; sys.modules['onnxruntime'] = sys.modules['zmq'] = None"
    code = f"{absent}; from zpipe.cli import main; sys.argv = ['zpipe', 'doctor']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "pip install 'onnxruntime>=1.17'" in done.stdout
    assert "pip install 'pyzmq>=26'" in done.stdout
    assert "zpipe does not run until these are mended" in done.stdout
    assert "zpipe runs here" not in done.stdout


# ---- libraries ---------------------------------------------------------------------------------


def test_absent_library_is_missing_with_the_command_that_installs_it() -> None:
    finding = doctor.dependency(Dependency("no-such-thing", "no_such_thing", "2"))
    assert (finding.status, finding.found, finding.required) == ("missing", "not installed", True)
    assert finding.remedy.endswith("pip install 'no-such-thing>=2'")


def test_old_library_is_a_warning_that_names_both_versions() -> None:
    finding = doctor.dependency(Dependency("numpy", "numpy", "999.1"))
    assert finding.status == "warning"
    assert finding.found.endswith(", expected 999.1 or later")


def test_library_that_does_not_import_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_at_import.py").write_text("raise OSError('libsodium.so.23:\\ncannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.dependency(Dependency("breaks-at-import", "breaks_at_import", "1"))
    assert finding.status == "missing"
    assert "libsodium.so.23: cannot open" in finding.found


def test_uvloop_is_wanted_but_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    finding = doctor.dependency(Dependency("uvloop", "uvloop", "0.19"))
    assert (finding.status, finding.required) == ("missing", False)


def test_onnxruntime_without_its_cpu_provider_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.executors.onnx.available_providers", lambda: ["AzureExecutionProvider"])
    finding = doctor.dependency(Dependency("onnxruntime", "onnxruntime", "1.17"))
    assert (finding.status, finding.required) == ("missing", True)
    assert "with Azure, expected CPU among them" in finding.found


def test_versions_compare_by_their_numbers() -> None:
    assert doctor._numbers("1.31.1rc2") == (1, 31, 1)
    assert doctor._numbers("2.10") > doctor._numbers("2.9.1")
    assert doctor._numbers("unknown version") == ()


@pytest.mark.parametrize(
    ("module", "status", "found"),
    [
        ("print('2.1', 'with\\n1 GPU')", "ok", "2.1 with 1 GPU"),
        ("raise ImportError('libcuda.so.1: cannot open')", "warning", "there is no NVIDIA driver"),
        ("raise RuntimeError('no device')", "warning", "does not work: RuntimeError: no device"),
        ("import os; os.abort()", "warning", "it ended with exit code -6"),
    ],
)
def test_extra_is_imported_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, status: str, found: str
) -> None:
    (tmp_path / "fragile_library.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.extra(Extra("fragile_library", "import fragile_library", "for this test", "pip install fragile"))
    assert finding.status == status
    assert found in finding.found
    assert "fragile_library" not in sys.modules


def test_no_probe_makes_a_cuda_context_by_itself() -> None:
    assert all("autoinit" not in each.code for each in EXTRAS)


# ---- the bundle --------------------------------------------------------------------------------


def test_missing_bundle_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BUNDLE", "no-such-bundle")
    finding = doctor.bundle()
    assert (finding.status, finding.required) == ("missing", True)
    assert finding.remedy == "git checkout -- engines/no-such-bundle"


def test_changed_file_of_the_bundle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(ROOT / "engines" / "digits-mobilenetv2-half", folder)
    with (folder / "stage1.onnx").open("ab") as file:
        file.write(b"!")
    monkeypatch.setattr(doctor, "BUNDLE", str(folder))
    finding = doctor.bundle()
    assert finding.status == "missing"
    assert "digests.stage1.onnx" in finding.found


def test_loopback_that_fails_gives_its_reason() -> None:
    def broken() -> str:
        raise TimeoutError

    finding = doctor.zeromq(broken)
    assert (finding.status, finding.found, finding.required) == ("missing", "TimeoutError", True)


# ---- the machine -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("governor", "driver", "status"),
    [
        ("powersave", "acpi-cpufreq", "warning"),
        ("powersave", "intel_pstate", "ok"),
        ("schedutil", "cppc_cpufreq", "ok"),
        ("performance", "acpi-cpufreq", "ok"),
    ],
)
def test_governor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, governor: str, driver: str, status: str) -> None:
    (tmp_path / "scaling_governor").write_text(f"{governor}\n")
    (tmp_path / "scaling_driver").write_text(f"{driver}\n")
    monkeypatch.setattr(doctor, "GOVERNOR", tmp_path / "scaling_governor")
    (finding,) = doctor.governor()
    assert finding.status == status


def test_governor_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "GOVERNOR", tmp_path / "scaling_governor")
    assert doctor.governor() == []


def test_coarse_clock_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_clock_steps", lambda count: iter([0.004] * count))
    assert doctor.clock().status == "warning"


@pytest.mark.parametrize(
    ("limit", "status", "found"),
    [
        ((1024, 1024), "warning", "1024 for a process, expected 4096"),
        ((1024, 524_288), "ok", "1024 for a process, which a node raises to 65536"),
        ((20_000, 20_000), "ok", "20000 for a process"),
    ],
)
def test_descriptors(monkeypatch: pytest.MonkeyPatch, limit: tuple[int, int], status: str, found: str) -> None:
    monkeypatch.setattr(doctor, "limits", lambda: limit)
    (finding,) = doctor.descriptors()
    assert finding.status == status
    assert finding.found.startswith(found)


def test_descriptors_without_a_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpipe.descriptors.resource", None)
    assert doctor.descriptors() == []


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=2e8, total=1e9))
    finding = doctor.memory()
    assert finding.status == "warning"
    assert finding.found.startswith("0.2 of 1.0 GB free, expected 500 MB")


# ---- NVIDIA's driver, played by a stand-in -----------------------------------------------------


class FakeCuda:
    """The five calls of libcuda that the doctor makes."""

    def __init__(self, *, init: int = 0, devices: int = 1) -> None:
        self.init, self.devices = init, devices

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


@pytest.mark.parametrize(
    ("cuda", "status", "found"),
    [
        (FakeCuda(), "ok", "CUDA 12.6: Orin (capability 8.7)"),
        (FakeCuda(devices=2), "ok", "CUDA 12.6: Orin (capability 8.7), Orin (capability 8.7)"),
        (FakeCuda(init=100), "warning", "libcuda is there and gives error 100"),
        (FakeCuda(devices=0), "warning", "libcuda is there, but no GPU"),
    ],
)
def test_nvidia_driver(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, status: str, found: str) -> None:
    monkeypatch.setattr(doctor, "_libcuda", lambda: cuda)
    finding = doctor.nvidia_driver()
    assert (finding.status, finding.found) == (status, found)


def test_no_nvidia_driver_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_libcuda", absent)
    assert doctor.nvidia_driver().status == "ok"


# ---- the table ---------------------------------------------------------------------------------

MIXED = [
    Finding("python", "ok", "3.11.7", required=True),
    Finding("pyzmq", "missing", "not installed [at all]", "pip install 'pyzmq>=26'", required=True),
    Finding("CPU governor", "warning", "powersave", "sudo cpupower frequency-set -g performance"),
    Finding("torch", "missing", "not installed (for `zpipe train`)", "pip install 'zpipe[train]'"),
]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_remedies_stand_under_what_they_mend_with_nothing_cut(width: int) -> None:
    text = rendered(MIXED, width=width)
    assert "…" not in text
    assert "not installed [at all]" in text
    order = [
        "✗  pyzmq",
        "until these are mended",
        "pip install 'pyzmq>=26'",
        "better after",
        "cpupower",
        "not needed",
        "'zpipe[train]'",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "zpipe runs here" not in text


def test_working_machine_is_told_what_to_do_next() -> None:
    text = rendered([MIXED[0], MIXED[3]])
    assert "zpipe runs here: zpipe bench --topology line4.yaml" in text
    assert "until these are mended" not in text

"""GPUs as the doctor sees them: pretended machines, engines that were built, and what `auto` takes. Nothing here needs a GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.executors.cuda import pretend
from zpipe.bundle import Bundle, load_bundle
from zpipe.doctor import gpu as doctor
from zpipe.doctor.finding import Finding
from zpipe.doctor.gpu import EXTRAS, Extra, Library
from zpipe.executors.cuda.presence import NO_GPU, Gpu, Gpus, Missing
from zpipe.executors.tensorrt.manifest import SCHEMA, Accuracy, Engine, EngineKey, stage_digest

ROOT = Path(__file__).parents[2]
HALF = ROOT / "engines" / "digits-mobilenetv2-half"
ORIN = Gpus(12060, (Gpu("Orin", (8, 7)),))
NONE = Missing(NO_GPU, "one with its driver (libcuda.so.1)", "executor onnx does without")


FRAGILE = Extra("fragile_library", "import fragile_library", "for this test", "pip install fragile", "pip install anew")


def test_every_extra_that_a_remedy_names_is_one_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for each in EXTRAS:
        (name,) = re.findall(r"zpipe\[(\w+)\]", each.remedy)
        assert re.search(rf"^{name} = \[", text, flags=re.MULTILINE), name


@pytest.mark.parametrize(
    ("module", "status", "found"),
    [
        ("print('2.1', 'with\\n1 GPU')", "ok", "2.1 with 1 GPU"),
        ("raise ImportError('libcuda.so.1: cannot open')", "broken", "there is no NVIDIA driver"),
        ("raise RuntimeError('no device')", "broken", "does not work: RuntimeError: no device"),
        ("import os; os.abort()", "broken", "it ended with exit code -6"),
    ],
)
def test_extra_is_imported_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, status: str, found: str
) -> None:
    (tmp_path / "fragile_library.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = doctor.extra(FRAGILE)
    assert finding.status == status
    assert found in finding.found
    if found.startswith(("does", "it")):
        assert finding.remedy.endswith(" install anew")  # it is installed
    assert "fragile_library" not in sys.modules


def test_no_probe_makes_a_cuda_context_by_itself() -> None:
    assert all("autoinit" not in each.code for each in EXTRAS)


# ---- four machines, and one where all is well --------------------------------------------------


def doctors_words(environment: dict[str, str]) -> str:
    """What `zpipe doctor` prints, its spaces made one."""
    done = subprocess.run(
        [sys.executable, "-m", "zpipe", "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**environment, "COLUMNS": "250"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return " ".join(done.stdout.split())


@pretend.WITHOUT_GPU
def test_machine_without_a_gpu_is_fine(tmp_path: Path) -> None:
    said = doctors_words(pretend.environment(tmp_path, {}, with_driver=False))
    assert "✓ ok NVIDIA driver none, and no NVIDIA GPU; stages run on the CPU" in said
    assert "✓ ok executor auto takes onnx; not trt or torch-cuda: no NVIDIA GPU" in said


@pretend.WITHOUT_GPU
def test_pycuda_without_a_driver_is_told_to_install_it(tmp_path: Path) -> None:
    said = doctors_words(pretend.environment(tmp_path, pretend.PYCUDA_WITHOUT_DRIVER, with_driver=False))
    assert "✗ broken pycuda installed, but there is no NVIDIA driver (ImportError: libcuda.so.1: cannot open" in said
    assert "pycuda install NVIDIA's driver; in a container: docker run --gpus all" in said
    assert (
        "✓ ok executor auto takes onnx; not trt: pycuda but no NVIDIA driver (libcuda.so.1); not torch-cuda: no NVIDIA GPU" in said
    )


def test_driver_without_pycuda_is_told_how_to_get_it(tmp_path: Path) -> None:
    said = doctors_words(pretend.environment(tmp_path, pretend.TENSORRT_RTX, with_driver=True))
    assert "✓ ok NVIDIA driver CUDA 12.6: Orin (capability 8.7)" in said
    assert "– missing pycuda not installed (for executor trt)" in said
    assert "pycuda pip install 'zpipe[cuda]'" in said
    assert (
        "✓ ok executor auto takes onnx; not trt: a driver (CUDA 12.6: Orin (capability 8.7)) but no pycuda; not torch-cuda" in said
    )


def test_driver_without_tensorrt_is_told_how_to_get_it(tmp_path: Path) -> None:
    said = doctors_words(pretend.environment(tmp_path, pretend.PYCUDA, with_driver=True))
    assert "✓ ok pycuda 2026.1 with 1 GPU" in said
    assert "– missing tensorrt_rtx not installed (for executor trt)" in said
    assert "tensorrt_rtx pip install 'zpipe[rtx]'" in said
    assert "✓ ok executor auto takes onnx; not trt: a driver (CUDA 12.6: Orin (capability 8.7)) but no TensorRT; not torch" in said


def test_tensorrt_that_does_not_list_the_gpu_says_so(tmp_path: Path) -> None:
    said = doctors_words(pretend.environment(tmp_path, pretend.TENSORRT_RTX, with_driver=True))
    assert "! warning tensorrt_rtx 1.7.1.116, builds for capability 8.6, 12.0, not for Orin (capability 8.7)" in said


# ---- the driver --------------------------------------------------------------------------------


def test_driver_that_fails_is_broken_and_none_is_not() -> None:
    fails = Missing("an NVIDIA driver that gives error 100 (CUDA_ERROR_NO_DEVICE)", "a GPU", "see nvidia-smi")
    finding = doctor.nvidia_driver(fails)
    assert (finding.status, finding.remedy) == ("broken", "see nvidia-smi")
    assert finding.found == "found an NVIDIA driver that gives error 100 (CUDA_ERROR_NO_DEVICE), expected a GPU"
    assert doctor.nvidia_driver(NONE).status == "ok"
    assert doctor.nvidia_driver(ORIN).found == "CUDA 12.6: Orin (capability 8.7)"


# ---- engines -----------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The only bundle that a name finds."""
    shutil.copytree(HALF, tmp_path / "half", ignore=shutil.ignore_patterns("trt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("zpipe.bundle.bundle_folders", lambda: [tmp_path / "half"])
    return load_bundle(tmp_path / "half", verify=False)


def built(bundle: Bundle, stage: int, *, target: str = "8.7", flavour: str = "rtx1.7.1.116", onnx: str = "") -> Engine:
    """An engine's files; no library could load the plan."""
    from hashlib import sha256

    key = EngineKey(stage, "fp16", 64, flavour, target, onnx or stage_digest(bundle, stage))
    folder = bundle.path / "trt"
    folder.mkdir(exist_ok=True)
    plan = folder / f"{key.name}.plan"
    plan.write_bytes(b"a plan")
    engine = Engine(key, plan, f"sha256:{sha256(b'a plan').hexdigest()}", 6, 0.1, Accuracy())
    engine.write()
    return engine


RTX = {"rtx": Library("1.7.1.116", ("8.6", "8.7"))}
PYCUDA = Finding("pycuda", "ok", "2026.1 with 1 GPU")


def test_no_engines_are_no_finding(bundle: Bundle) -> None:
    assert doctor.engines(ORIN, RTX, PYCUDA) == []


def test_engines_for_this_gpu_run_here(bundle: Bundle) -> None:
    for stage in range(5):
        built(bundle, stage)
    (finding,) = doctor.engines(ORIN, RTX, PYCUDA)
    assert (finding.name, finding.status) == (f"engines of {bundle.name}", "ok")
    assert finding.found == "stages 0, 1, 2, 3, 4: fp16 up to batch 64 by rtx1.7.1.116 for capability 8.7, runs here"


def test_engines_for_another_machine_are_listed_where_they_were_built(bundle: Bundle) -> None:
    for stage in range(2):
        built(bundle, stage, target="8.6")
    (finding,) = doctor.engines(NONE, RTX, PYCUDA)
    assert finding.status == "ok"
    assert finding.found == "stages 0, 1: fp16 up to batch 64 by rtx1.7.1.116 for capability 8.6, not used here: no NVIDIA GPU"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"target": "8.6"}, "the GPU is Orin (capability 8.7)"),
        ({"flavour": "rtx1.6.1.1"}, "rtx1.6.1.1 is not the library here"),
        ({"onnx": "sha256:" + 64 * "0"}, "the stage's ONNX is another one now"),
    ],
)
def test_engine_that_does_not_fit_says_why_and_how_to_build_one(bundle: Bundle, wrong: dict[str, str], why: str) -> None:
    built(bundle, 0, **wrong)
    (finding,) = doctor.engines(ORIN, RTX, PYCUDA)
    assert finding.status == "warning"
    assert finding.found.endswith(f", not used here: {why}")
    assert finding.remedy == f"zpipe build --bundle {bundle.name}"


def test_damaged_plan_is_not_used(bundle: Bundle) -> None:
    engine = built(bundle, 0)
    engine.plan.write_bytes(b"another")
    (finding,) = doctor.engines(ORIN, RTX, PYCUDA)
    assert "is damaged" in finding.found


def test_engine_for_any_gpu_runs_here_and_one_that_does_is_enough(bundle: Bundle) -> None:
    built(bundle, 0, target="any")
    built(bundle, 0, target="8.6")
    (finding,) = doctor.engines(ORIN, RTX, PYCUDA)
    assert finding.status == "ok"
    assert "for any GPU, runs here" in finding.found
    assert "for capability 8.6, not used here" in finding.found
    assert json.loads(next((bundle.path / "trt").glob("*.json")).read_text())["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("capability", "verdict", "status"),
    [
        ((6, 1), "not used here: the GPU is a card (capability 6.1)", "warning"),
        ((8, 6), "runs here", "ok"),
        ((9, 0), "only a trial can tell whether it runs here", "ok"),
    ],
)
def test_engine_for_any_gpu_runs_where_the_library_lists_it(
    capability: tuple[int, int], verdict: str, status: str, bundle: Bundle
) -> None:
    built(bundle, 0, target="any")
    (finding,) = doctor.engines(Gpus(13000, (Gpu("a card", capability),)), RTX, PYCUDA)
    assert finding.found.endswith(f"for any GPU, {verdict}")
    assert finding.status == status


@pytest.mark.parametrize(
    ("pycuda", "libraries", "why", "remedy"),
    [
        (Finding("pycuda", "missing", "", "install it"), RTX, "pycuda is not installed", "install it"),
        (Finding("pycuda", "broken", "", "mend it"), RTX, "pycuda is installed, but does not work", "mend it"),
        (PYCUDA, {}, "no TensorRT is installed that loads", "pip install 'zpipe[rtx]'"),
    ],
)
def test_engine_without_what_runs_it_is_not_told_to_be_built(
    pycuda: Finding, libraries: dict[str, Library], why: str, remedy: str, bundle: Bundle
) -> None:
    built(bundle, 0)
    (finding,) = doctor.engines(ORIN, libraries, pycuda)
    assert finding.status == "warning"
    assert finding.remedy.endswith(remedy)
    assert finding.found.endswith(f", not used here: {why}")


def test_tensorrt_is_recommended_as_what_installs_everywhere() -> None:
    for each in doctor.FLAVOURS.values():
        assert each.remedy.startswith("pip install 'zpipe[rtx]'")


def test_tensorrt_is_not_asked_for_where_the_one_for_rtx_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "JETSON", Path("/no/such/file"))
    monkeypatch.setattr(doctor, "installed", lambda module: module == "tensorrt_rtx")
    assert doctor.extra(doctor.FLAVOURS["trt"]).remedy.startswith("not needed beside tensorrt_rtx; ")


def test_pycuda_for_another_driver_is_compiled_anew(tmp_path: Path) -> None:
    broken = {**pretend.PYCUDA, "pycuda.driver": "raise ImportError('libcuda.so.1: undefined symbol: cuGreenCtxCreate')"}
    said = doctors_words(pretend.environment(tmp_path, broken, with_driver=True))
    assert "✗ broken pycuda installed, but does not work: ImportError: libcuda.so.1: undefined symbol" in said
    assert "install --force-reinstall --no-cache-dir --no-deps pycuda, with a CUDA toolkit no newer than the driver" in said


# ---- what auto takes ---------------------------------------------------------------------------


def test_auto_that_fails_is_broken_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_AUTO", "raise OSError('no onnxruntime')")
    finding = doctor.auto()
    assert (finding.status, finding.found) == ("broken", "OSError: no onnxruntime")

"""`executor: auto`: the first that works, and a line that says why. Candidates are played; nothing here needs a GPU."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from tests.executors.tensorrt.device import FakeTrtExecutor
from tests.executors.tensorrt.fake import RTX
from tests.executors.tiny import DATA, STAGES, tiny_bundle
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import BackendUnavailable, ConfigError, EngineMismatchError, ExecutorError, ExecutorLost
from zpipe.executors import GateSpec, StageExecutor, StageOutput, auto, make_executor
from zpipe.executors.auto import PREFERENCE, Candidate, Choice, _options, _smoke, choose
from zpipe.executors.base import EXECUTORS, executor_name
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.rows import DeviceRows
from zpipe.executors.tensorrt.manifest import Accuracy, Engine, EngineKey, stage_digest

NO_GPU = "no NVIDIA GPU"
HALF = Path(__file__).parents[2] / "engines" / "digits-mobilenetv2-half"


class Played:
    """An executor that does what a test wants of its warm-up."""

    inline = False
    stages: tuple[int, ...] = (0, 1, 2)

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.warmed: list[int] = []
        self.closed = 0

    def warm_up(self, max_batch: int) -> dict[int, float]:
        self.warmed.append(max_batch)
        if self.error is not None:
            raise self.error
        return {}

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        raise AssertionError("nobody runs it here")

    def close(self) -> None:
        self.closed += 1


def candidate(name: str, made: Played | Exception, lacks: str = "") -> Candidate:
    def make() -> StageExecutor:
        if isinstance(made, Exception):
            raise made
        return made

    return Candidate(name, lambda: lacks, make)


def agrees(executor: StageExecutor) -> str | None:
    return None


def test_best_is_taken_where_it_works_and_the_others_are_not_even_made() -> None:
    best, refused = Played(), AssertionError("made")
    choice = choose(
        [candidate("trt", best), candidate("torch-cuda", refused), candidate("onnx", refused)], max_batch=16, smoke=agrees
    )
    assert (choice.name, choice.executor) == ("trt", best)
    assert (best.warmed, best.closed) == ([16], 0)
    assert str(choice) == "executor auto takes trt, which gives the bundle's answers here"


def test_what_is_missing_is_not_made_and_said_once_for_all_it_concerns() -> None:
    refused, last = AssertionError("made"), Played()
    choice = choose(
        [candidate("trt", refused, NO_GPU), candidate("torch-cuda", refused, NO_GPU), candidate("onnx", last)],
        max_batch=8,
        smoke=agrees,
    )
    assert choice.executor is last
    assert last.warmed == []
    assert str(choice) == "executor auto takes onnx; not trt or torch-cuda: no NVIDIA GPU"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BackendUnavailable("executor trt: found no TensorRT, expected one"), "found no TensorRT, expected one"),
        (EngineMismatchError("stage 0: found an engine for 8.6, expected 9.0"), "stage 0: found an engine for 8.6, expected 9.0"),
        (ExecutorLost("GPU 0: found out of memory"), "GPU 0: found out of memory"),
        (RuntimeError("a library's\nown"), "RuntimeError: a library's own"),
    ],
)
def test_one_that_does_not_load_is_closed_and_the_next_one_tried(error: Exception, said: str) -> None:
    broken, second = Played(error), Played()
    choice = choose(
        [candidate("trt", broken), candidate("torch-cuda", second), candidate("onnx", Played())], max_batch=8, smoke=agrees
    )
    assert (choice.executor, second.closed, broken.closed) == (second, 0, 1)
    assert str(choice) == f"executor auto takes torch-cuda, which gives the bundle's answers here; not trt: {said}"


def test_one_that_cannot_even_be_closed_is_passed_over() -> None:
    class Stuck(Played):
        def close(self) -> None:
            raise ExecutorLost("GPU 0: found an illegal address")

    last = Played()
    choice = choose([candidate("trt", Stuck(ExecutorLost("no device"))), candidate("onnx", last)], max_batch=8, smoke=agrees)
    assert choice.executor is last
    assert choice.passed_over == (("trt", "no device"),)


def test_one_that_cannot_be_made_is_passed_over() -> None:
    last = Played()
    choice = choose([candidate("trt", ExecutorError("no engine")), candidate("onnx", last)], max_batch=8, smoke=agrees)
    assert choice.executor is last
    assert choice.passed_over == (("trt", "no engine"),)


def test_one_with_other_answers_than_the_bundle_is_passed_over() -> None:
    wrong, right = Played(), Played()

    def smoke(executor: StageExecutor) -> str | None:
        return "stage 1: found label 3 in row 0, expected 4" if executor is wrong else None

    choice = choose(
        [candidate("trt", wrong), candidate("torch-cuda", right), candidate("onnx", Played())], max_batch=8, smoke=smoke
    )
    assert choice.executor is right
    assert (wrong.closed, right.closed) == (1, 0)
    assert choice.passed_over == (("trt", "stage 1: found label 3 in row 0, expected 4"),)


def test_last_one_needs_no_trial_and_its_error_is_the_answer() -> None:
    missing = BackendUnavailable("executor onnx: found no onnxruntime")
    with pytest.raises(BackendUnavailable, match="found no onnxruntime"):
        choose([candidate("trt", Played(), NO_GPU), candidate("onnx", missing)], max_batch=8, smoke=agrees)


# ---- with TensorRT on a device that is played, too -----------------------------------------------


class Confused(FakeTrtExecutor):
    """Its engines run, and are wrong."""

    def run(self, stage: int, inputs: npt.NDArray[Any] | DeviceRows, gate: GateSpec) -> StageOutput:
        output = super().run(stage, inputs, gate)
        return replace(output, confidences=[1.0 - confidence for confidence in output.confidences])


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The tiny one, in a folder that takes its engines."""
    for spec in STAGES:
        shutil.copy(DATA / spec.file, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_bundle(path=tmp_path)


def chosen(bundle: Bundle, kind: type[FakeTrtExecutor], *, rebuild: bool = True) -> Choice:
    """Between it and ONNX Runtime, by the smoke inference that a node makes."""
    stages = range(len(bundle.stages))
    trt = Candidate("trt", lambda: "", lambda: kind(bundle, stages, rebuild=rebuild))
    onnx = Candidate("onnx", lambda: "", lambda: make_executor("onnx", bundle, stages))
    return choose([trt, onnx], max_batch=8, smoke=partial(_smoke, bundle=bundle, max_batch=8))


def test_tensorrt_that_gives_the_bundles_answers_is_taken_and_its_engines_built(bundle: Bundle) -> None:
    choice = chosen(bundle, FakeTrtExecutor)
    assert str(choice) == "executor auto takes trt, which gives the bundle's answers here"
    assert len(list(bundle.path.glob("trt/*.plan"))) == 3
    choice.executor.close()


def test_tensorrt_with_other_answers_is_not(bundle: Bundle) -> None:
    choice = chosen(bundle, Confused)
    assert choice.name == "onnx"
    assert re.fullmatch(r"stage 0: found confidence .* in row 0, expected .* within 0.01", choice.passed_over[0][1])
    choice.executor.close()


def engine_for_another_gpu(bundle: Bundle) -> None:
    key = EngineKey(0, "fp32", 8, f"rtx{RTX}", "12.1", stage_digest(bundle, 0))
    (bundle.path / "trt").mkdir()
    plan = bundle.path / "trt" / f"{key.name}.plan"
    plan.write_bytes(b"another GPU's")
    Engine(key, plan, "sha256:0", 13, 0.1, Accuracy()).write()


def test_engines_for_another_gpu_do_not_keep_it_from_building_its_own(bundle: Bundle) -> None:
    engine_for_another_gpu(bundle)
    choice = chosen(bundle, FakeTrtExecutor)
    assert str(choice) == "executor auto takes trt, which gives the bundle's answers here"
    assert len(list(bundle.path.glob("trt/*.plan"))) == 1 + 3
    choice.executor.close()


def test_it_asks_tensorrt_to_build_beside_what_is_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(auto, "make_executor", lambda name, bundle, stages, **options: asked.append({name: options}))
    for name in PREFERENCE:
        auto._make(name, bundle, [0], "fp16")
    assert asked == [{"trt": {"device": "fp16", "rebuild": True}}, {"torch-cuda": {"device": "fp16"}}, {"onnx": {}}]


def test_engines_for_another_gpu_are_named_with_the_command_that_builds_others_where_it_was_asked_for(bundle: Bundle) -> None:
    engine_for_another_gpu(bundle)
    choice = chosen(bundle, FakeTrtExecutor, rebuild=False)
    assert choice.name == "onnx"
    ((_, reason),) = choice.passed_over
    assert reason.startswith(f"stage 0: found an engine for fp32 up to batch 8 by rtx{RTX} for capability 12.1, expected fp32 by ")
    assert "zpipe build --bundle " in reason
    choice.executor.close()


# ---- as a topology names it --------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", "libno-such-driver.so.1")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_the_onnx_executor_itself(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    with caplog.at_level(logging.INFO, "zpipe.node"):
        executor = make_executor("auto", tiny_bundle(), [0, 2], max_batch=4, note=lines.append)
        quiet = make_executor("auto", tiny_bundle(), [0])
    assert (executor_name(executor), executor.stages) == ("onnx", (0, 2))
    assert len(lines) == 1
    assert lines[0].startswith("executor auto takes onnx; not trt")
    assert [record.getMessage() for record in caplog.records] == lines  # only what nobody took the note of
    executor.close()
    quiet.close()


@pytest.mark.usefixtures("no_gpu")
def test_device_of_an_emulated_board_does_not_concern_it() -> None:
    executor = make_executor("auto", tiny_bundle(), [0], device="raspberry-pi-4")
    assert executor_name(executor) == "onnx"
    executor.close()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["banana", "cuda;1/fp16", "cuda:1/fp8", "jetson-nano/0"])
def test_device_that_is_neither_a_gpu_nor_a_board_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"^executor auto: device: found '{device}', expected a GPU, .*; correct `device`$"):
        make_executor("auto", tiny_bundle(), [0], device=device)


@pytest.mark.parametrize("device", ["", "1", "cuda:1/fp16", "fp16"])
def test_executors_on_a_gpu_are_told_the_device(device: str) -> None:
    assert _options("trt", device) == _options("torch-cuda", device) == {"device": device}
    assert _options("onnx", device) == {}


@pytest.mark.parametrize("device", ["jetson-nano/8", "raspberry-pi-4"])
def test_executors_on_a_gpu_are_not_told_of_an_emulated_board(device: str) -> None:
    assert _options("trt", device) == _options("torch-cuda", device) == {}


@pytest.mark.gpu
def test_on_a_gpu_with_torch_the_cpu_is_not_taken(tmp_path: Path) -> None:
    """TensorRT may not know the GPU; torch for it does."""
    missing = presence.missing_for("torch-cuda")
    if missing is not None:
        pytest.skip(str(missing))
    folder = tmp_path / HALF.name
    shutil.copytree(HALF, folder, ignore=shutil.ignore_patterns("trt"))
    lines: list[str] = []
    executor = make_executor("auto", load_bundle(folder, verify=False), range(5), max_batch=8, note=lines.append)
    assert executor_name(executor) in ("trt", "torch-cuda"), lines
    assert ", which gives the bundle's answers here" in lines[0]
    executor.close()


def test_its_last_choice_is_there_without_a_gpu() -> None:
    assert PREFERENCE[-1] == "onnx"
    assert set(PREFERENCE) <= set(EXECUTORS)

"""`build_engines` on stand-ins for the libraries, and with TensorRT for RTX where it is installed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.executors.cuda.engines import Bench
from tests.executors.tensorrt.device import networks
from tests.executors.tensorrt.fake import RTX, FakeTrt, installed
from tests.executors.tiny import tiny_emulation
from zpipe.bundle import Bundle, load_bundle
from zpipe.errors import BackendUnavailable, BundleError, ConfigError, ExecutorError, ExecutorLost
from zpipe.executors import trt
from zpipe.executors.cuda import presence
from zpipe.executors.tensorrt import build, check, manifest
from zpipe.executors.tensorrt.build import BuiltEngine, build_engines, choose
from zpipe.executors.tensorrt.convert import Converted
from zpipe.executors.tensorrt.flavour import load_flavour
from zpipe.executors.tensorrt.manifest import locked, read_engine
from zpipe.model import TensorSpec


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Three tiny stages with an evaluation set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bundle").mkdir()
    return tiny_emulation(tmp_path / "bundle").real


@pytest.fixture
def rtx(bundle: Bundle) -> Any:
    module = FakeTrt(RTX, networks(bundle))
    with installed(rtx=module):
        yield module


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "gpus", lambda **_: presence.Missing("no NVIDIA GPU", "one with its driver", "buy one"))


def with_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    there = presence.Gpus(13000, tuple(presence.Gpu(f"GPU {at}", each) for at, each in enumerate(capabilities)))
    monkeypatch.setattr(presence, "gpus", lambda **_: there)


def run(bundle: Bundle, **changes: Any) -> list[BuiltEngine]:
    return build_engines(bundle, **{"target": "8.6", "max_batch": 16, **changes})


def files(bundle: Bundle) -> list[str]:
    return sorted(file.name for file in (bundle.path / "trt").glob("*.*") if not file.name.startswith("."))


def converted_to(graph_of: dict[int, int], monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """A conversion after which a stage computes what another's file says."""
    paths = [bundle.stage_path(spec.index) for spec in bundle.stages]

    def convert(path: Path, precision: str, calibration: Any) -> Converted:
        stage = paths.index(path)
        return Converted(path.read_bytes(), paths[graph_of.get(stage, stage)].read_bytes())

    monkeypatch.setattr(build, "convert", convert)


# ---- what is written ---------------------------------------------------------------------------


def test_each_stage_gets_a_plan_and_a_manifest_that_says_what_it_is(bundle: Bundle, rtx: FakeTrt) -> None:
    lines: list[tuple[str, float]] = []
    built = run(bundle, progress=lambda line, done: lines.append((line, done)))
    assert [each.kept for each in built] == [False] * 3
    assert files(bundle) == sorted(f"{each.engine.key.name}{suffix}" for each in built for suffix in (".json", ".plan"))
    for stage, each in enumerate(built):
        engine = each.engine
        assert engine.whole()
        assert read_engine(engine.plan.with_suffix(".json")) == engine
        assert (engine.key.stage, engine.key.flavour, engine.key.target, engine.key.max_batch) == (stage, f"rtx{RTX}", "8.6", 16)
        assert engine.key.onnx == check_digest(bundle, stage)
        assert (engine.profile, engine.bundle, engine.accuracy.by) == ((1, 4, 16), "tiny", "none")
        assert engine.machine["python"]
    assert built[0].engine.tensors == {
        "input": {"dtype": "uint8", "shape": [-1, 3, 8, 8]},
        "activation": {"dtype": "float32", "shape": [-1, 4, 4, 4]},
        "logits": {"dtype": "float32", "shape": [-1, 3]},
    }
    assert [done for _, done in lines] == sorted(done for _, done in lines)
    assert lines[-1] == (f"3 engines written to {bundle.path / 'trt'}", 1.0)


def check_digest(bundle: Bundle, stage: int) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(bundle.stage_path(stage).read_bytes()).hexdigest()}"


def test_what_is_there_is_built_again_only_where_it_is_damaged_or_forced(bundle: Bundle, rtx: FakeTrt) -> None:
    first = run(bundle)
    rtx.calls.clear()
    assert [each.kept for each in run(bundle)] == [True] * 3
    assert not rtx.calls
    first[1].engine.plan.write_bytes(b"damaged")
    first[1].engine.compiled.write_bytes(b"of the old plan")
    assert [each.kept for each in run(bundle)] == [True, False, True]
    assert not first[1].engine.compiled.exists()
    first[2].engine.plan.with_suffix(".json").write_text("{")
    assert [each.kept for each in run(bundle)] == [True, True, False]
    assert [each.kept for each in run(bundle, force=True)] == [False] * 3
    assert [each.kept for each in run(bundle, max_batch=8)] == [False] * 3


def test_only_the_stages_asked_for_are_built(bundle: Bundle, rtx: FakeTrt) -> None:
    assert [each.engine.key.stage for each in run(bundle, stages=[2, 1, 2])] == [1, 2]


def test_who_waits_for_another_process_finds_its_engines(bundle: Bundle, rtx: FakeTrt) -> None:
    (bundle.path / "trt").mkdir()
    results: list[list[BuiltEngine]] = []
    lines: list[str] = []
    told = threading.Event()

    def progress(line: str, done: float) -> None:
        lines.append(line)
        told.set()

    with locked(bundle.path / "trt", lambda: None):
        waiting = threading.Thread(target=lambda: results.append(run(bundle, progress=progress)))
        waiting.start()
        assert told.wait(30.0)
        engines = build._made(bundle, *choose("8.6", None, "fp32"), keys(bundle), {}, bundle.path / "trt", False, build._silent)
    waiting.join()
    assert len(engines) == 3
    assert [each.kept for each in results[0]] == [True] * 3
    assert lines == [f"waiting for another build in {bundle.path / 'trt'}", "engines are there already"]


def keys(bundle: Bundle) -> dict[int, Any]:
    library, target = choose("8.6", None, "fp32")
    return {stage: build._key(bundle, stage, "fp32", 16, library, target) for stage in range(3)}


def test_timings_are_kept_for_the_next_build_on_this_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTrt("10.3.0", networks(bundle))
    with_gpus(monkeypatch, (8, 7))
    with installed(trt=module):
        run(bundle, target="current")
        run(bundle, target="8.7", force=True)
    assert [call[1] for call in module.calls if call[0] == "timing_cache"] == [b""] + [b"timings of 10.3.0"] * 5
    assert (bundle.path / "trt" / "timing-trt10.3.0-8.7.cache").read_bytes() == b"timings of 10.3.0"


def test_failed_build_leaves_nothing(bundle: Bundle, rtx: FakeTrt) -> None:
    del rtx.networks[bundle.stage_path(2).read_bytes()]
    with pytest.raises(ExecutorError, match=r"stage2.onnx in fp32: found a network that TensorRT-RTX .* does not take"):
        run(bundle)
    assert files(bundle) == []


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {name: (bundle.path / "trt" / name).read_bytes() for name in files(bundle)}


def test_forced_build_that_finds_the_disk_full_leaves_what_was_there(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle)[0].engine.compiled.write_bytes(b"kernels")
    before, write = contents(bundle), manifest.write_whole

    def full(file: Path, content: bytes) -> None:
        if file.name.startswith("stage2") and file.suffix == ".plan":
            raise ConfigError(f"{file}: found that it cannot be written (No space left on device)")
        write(file, content)

    monkeypatch.setattr(build, "write_whole", full)
    with pytest.raises(ConfigError, match="No space left"):
        run(bundle, force=True)
    assert contents(bundle) == before
    assert not (bundle.path / "trt" / ".new").exists()


def test_forced_engines_that_answer_worse_leave_what_was_there(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(bundle)
    before = contents(bundle)
    with_gpus(monkeypatch, (8, 6))
    monkeypatch.setattr(presence, "missing_for", lambda executor: None)

    def lost(*args: Any) -> Any:
        raise ExecutorLost("GPU 0: found it gone")

    monkeypatch.setattr(trt, "answers", lost)
    with pytest.raises(ExecutorLost):
        run(bundle, force=True)
    assert contents(bundle) == before


def test_file_that_is_not_what_the_manifest_says_is_refused(bundle: Bundle, rtx: FakeTrt) -> None:
    wrong = replace(bundle.stages[0], output=TensorSpec("float32", (4, 4, 5)))
    with pytest.raises(
        BundleError, match=r"stage0.onnx: activation: found float32 \[-1, 4, 4, 4\], expected float32 \[-1, 4, 4, 5\]"
    ):
        run(replace(bundle, stages=(wrong, *bundle.stages[1:])))
    assert files(bundle) == []


# ---- the precision -----------------------------------------------------------------------------


def test_calibration_and_check_share_no_original(bundle: Bundle) -> None:
    evaluation = load_bundle("digits-mobilenetv2", verify=False).evaluation()
    parts = check.parts(evaluation)
    assert len(parts.calibration) + len(parts.check) == len(evaluation)
    assert not set(evaluation.digit[parts.calibration]) & set(evaluation.digit[parts.check])
    assert 300 < len(parts.calibration) < 500


def test_precision_is_measured_on_what_did_not_calibrate(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    converted_to({}, monkeypatch, bundle)
    accuracy = run(bundle, precision="fp16")[0].engine.accuracy
    assert (accuracy.by, accuracy.samples) == ("onnxruntime", 56)
    rows = check.parts(bundle.evaluation()).check
    right = bundle.replay().labels[rows] == bundle.evaluation().labels[rows][:, None]
    assert accuracy.before == accuracy.after == (right[:, 0].mean(), None, right[:, 2].mean())
    assert accuracy.worst == 0.0


def test_bundle_without_stored_answers_is_asked_itself(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    converted_to({}, monkeypatch, bundle)
    stored = run(bundle, precision="fp16")[0].engine.accuracy
    assert run(replace(bundle, replay_file=None), precision="fp16", force=True)[0].engine.accuracy == stored


def losing(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """After the conversion the first exit is wrong wherever it was right."""
    converted_to({}, monkeypatch, bundle)
    real = check.answers

    def answers(*args: Any) -> Any:
        labels = real(*args)
        labels[:, 0] = (labels[:, 0] + 1) % 3
        return labels

    monkeypatch.setattr(check, "answers", answers)
    truth = bundle.evaluation()
    monkeypatch.setattr(Bundle, "evaluation", lambda self: replace_labels(truth, bundle))


def replace_labels(evaluation: Any, bundle: Bundle) -> Any:
    return replace(evaluation, labels=bundle.replay().labels[:, 0].astype(np.int64))


def test_precision_that_loses_too_much_is_refused_before_anything_is_written(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, bundle)
    with pytest.raises(ExecutorError, match=r"int8: .* falls by 100.0 points at stage 0, expected .*; .* --force") as info:
        run(bundle, precision="int8")
    assert "\n" not in str(info.value)
    assert files(bundle) == []
    assert "build" not in rtx.names()
    accuracy = run(bundle, precision="int8", force=True)[0].engine.accuracy
    assert accuracy.worst == pytest.approx(100.0)


def test_engines_that_answer_worse_than_their_onnx_do_not_stay(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, (8, 6))
    monkeypatch.setattr(presence, "missing_for", lambda executor: None)
    right = bundle.replay().labels.astype(np.int64)
    rows = check.parts(bundle.evaluation()).check
    truth = bundle.evaluation().labels[rows]
    wrong = np.where(right[rows] == truth[:, None], (truth[:, None] + 1) % 3, right[rows])
    monkeypatch.setattr(trt, "answers", lambda *args: wrong)
    with pytest.raises(ExecutorError, match="--precision fp32: found an accuracy that falls by"):
        run(bundle)
    assert files(bundle) == []
    assert run(bundle, force=True)[0].engine.accuracy.by == "engine"


def test_engines_stay_untried_where_pycuda_is_broken(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_gpus(monkeypatch, (8, 6))
    monkeypatch.setattr(presence, "missing_for", lambda executor: None)

    def broken(*args: Any) -> Any:
        raise BackendUnavailable("found no context")

    monkeypatch.setattr(trt, "answers", broken)
    assert run(bundle)[0].engine.accuracy.by == "none"
    assert "the engines were not tried here: found no context" in caplog.text


def test_engines_stay_untried_where_the_driver_is_too_old_for_the_library(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be for another machine."""
    with_gpus(monkeypatch, (8, 6))
    monkeypatch.setattr(presence, "missing_for", lambda executor: None)
    bench = Bench()
    monkeypatch.setattr(trt, "_open", lambda ordinal: bench.open())
    rtx.refuses, rtx.invalidity = {"plan"}, 4
    assert [each.engine.whole() for each in run(bundle)] == [True] * 3
    assert "the engines were not tried here: stage 0" in caplog.text
    assert "update the driver" in caplog.text


def test_precision_needs_an_evaluation_set(bundle: Bundle, rtx: FakeTrt) -> None:
    bare = replace(bundle, evaluation_file=None, replay_file=None)
    with pytest.raises(BundleError, match=r"found no evaluation set, expected one .*; take fp32, or --force"):
        run(bare, precision="int8")
    assert run(bare)[0].engine.accuracy.by == "none"


def test_forced_precision_needs_none_unless_it_calibrates(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    converted_to({}, monkeypatch, bundle)
    bare = replace(bundle, evaluation_file=None, replay_file=None)
    assert run(bare, precision="fp16", force=True)[0].engine.accuracy.by == "none"
    with pytest.raises(BundleError, match="found no evaluation set"):
        run(bare, precision="int8", force=True)


# ---- library and target ------------------------------------------------------------------------


def test_target_decides_which_library_builds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(target: str, flavour: str | None = None) -> tuple[str, Any]:
        library, capability = choose(target, flavour, "fp32")
        return library.key, capability

    with installed(trt=FakeTrt("10.3.0"), rtx=FakeTrt(RTX)):
        with_gpus(monkeypatch, (8, 7), (8, 6))
        assert chosen("current") == ("trt", (8, 7))
        assert chosen("8.7") == ("trt", (8, 7))
        assert chosen("8.6") == ("rtx", (8, 6))  # the full library builds for the GPU whose context is current, whatever it is told
        assert choose("8.6", None, "fp32", at_hand=(8, 6))[0].key == "trt"
        with pytest.raises(ConfigError, match=r"found 8.6, expected one of: 8.7 by TensorRT 10.3.0; choose"):
            chosen("8.6", "trt")
        assert chosen("8.9") == ("rtx", (8, 9))
        assert chosen("any") == ("rtx", None)
        assert chosen("current", "rtx") == ("rtx", None)  # 8.7 is in no list of it, so only a run can say
        assert chosen("8.6", "rtx") == ("rtx", (8, 6))


def test_current_needs_a_gpu(bundle: Bundle, rtx: FakeTrt, no_gpu: None) -> None:
    with pytest.raises(BackendUnavailable, match=r"--target current: found no NVIDIA GPU, .* as in --target 8\.6"):
        run(bundle, target="current")


def test_target_that_nothing_builds_for_lists_those_there_are(bundle: Bundle, no_gpu: None) -> None:
    with installed(trt=FakeTrt("10.3.0"), rtx=FakeTrt(RTX)):
        with pytest.raises(
            ConfigError, match=r"--target: found 9.0, expected one of: no GPU here by TensorRT 10.3.0; 7.5, 8.0, .* 12.0 by"
        ) as info:
            run(bundle, target="9.0")
        assert "or `any` for a GPU from 8.0 on" in str(info.value)
        with pytest.raises(ConfigError, match=r"no GPU here by TensorRT 10\.3\.0; choose one of these$"):
            run(bundle, target="8.6", flavour="trt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "--precision: found 'fp8', expected one of fp32, fp16, bf16, int8"),
        ({"max_batch": 0}, "--max-batch: found 0, expected 1 to 1024"),
        ({"max_batch": 1025}, "--max-batch: found 1025, expected 1 to 1024"),
        ({"stages": [3]}, r"stages: found \[3\], expected some of 0 to 2"),
        ({"stages": []}, "stages: found none, expected some of 0 to 2"),
        ({"target": "sm_86"}, "--target: found 'sm_86', expected a compute capability"),
        ({"flavour": "lean"}, "--flavour: found 'lean'"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(changes: dict[str, Any], message: str, bundle: Bundle, rtx: FakeTrt) -> None:
    with pytest.raises(ConfigError, match=message):
        run(bundle, **changes)
    assert not rtx.calls


def test_precision_the_library_lacks_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, (8, 7))
    with (
        installed(trt=FakeTrt("8.6.2", networks(bundle))),
        pytest.raises(ConfigError, match="found bf16, expected one of fp32, fp16, int8 as"),
    ):
        run(bundle, precision="bf16", target="current")


def test_absent_file_is_a_bundle_error(bundle: Bundle, rtx: FakeTrt) -> None:
    bundle.stage_path(1).unlink()
    with pytest.raises(BundleError, match=r"stage1.onnx: found no such file, expected the ONNX of stage 1"):
        run(bundle)


# ---- the real one ------------------------------------------------------------------------------


def test_rtx_builds_every_stage_of_the_digits_bundle_for_8_6_on_a_cpu(tmp_path: Path, no_gpu: None) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'zpipe[rtx]'", exc_type=ImportError)
    here = load_bundle("digits-mobilenetv2", verify=False)
    for spec in here.stages:
        (tmp_path / spec.file).symlink_to(here.stage_path(spec.index).resolve())
    bundle = replace(here, path=tmp_path)
    built = build_engines(bundle, target="8.6", max_batch=64)
    for spec, each in zip(bundle.stages, built, strict=True):
        engine = each.engine
        assert engine.key.flavour == load_flavour("rtx").tag
        expected = {"input": spec.input, **({} if spec.output is None else {"activation": spec.output})}
        shapes = {name: {"dtype": tensor.dtype, "shape": [-1, *tensor.shape]} for name, tensor in expected.items()}
        assert engine.tensors == {**shapes, "logits": {"dtype": "float32", "shape": [-1, 10]}}
        assert engine.profile == (1, 16, 64)
        # Its weights and little more.
        weights = bundle.stage_path(spec.index).stat().st_size
        assert weights < engine.plan_bytes < weights + 1_500_000


def test_rtx_builds_a_precision_that_was_converted_and_checked(bundle: Bundle, no_gpu: None) -> None:
    for module in ("tensorrt_rtx", "onnx"):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'zpipe[rtx]'", exc_type=ImportError)
    # 1.6.1 has no int8 convolutions, 1.7.1 has.
    recent = tuple(map(int, load_flavour("rtx").version.split(".")[:2])) >= (1, 7)
    for precision in ("fp16", "bf16", *(["int8"] if recent else [])):
        built = run(bundle, precision=precision, force=True)
        assert [each.kept for each in built] == [False] * 3
        assert built[0].engine.accuracy.samples == 56
        assert built[0].engine.tensors["activation"] == {"dtype": "float32", "shape": [-1, 4, 4, 4]}

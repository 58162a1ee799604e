"""Which engine a stage gets on a GPU, and what the library is told when it is loaded and run; test_contract.py runs it all."""

from __future__ import annotations

import logging
import os
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.executors.cuda.engines import Bench
from tests.executors.tensorrt.device import FakeTrtExecutor, networks, running
from tests.executors.tensorrt.fake import RTX, FakeTrt, installed
from tests.executors.tiny import DATA, STAGES, images, tiny_bundle
from zpipe.bundle import Bundle
from zpipe.errors import BackendUnavailable, BundleError, ConfigError, EngineMismatchError, ExecutorError
from zpipe.executors import make_executor, trt
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.device import parse_device
from zpipe.executors.onnx import OnnxExecutor
from zpipe.executors.tensorrt.build import build_engines
from zpipe.executors.tensorrt.convert import PRECISIONS
from zpipe.executors.tensorrt.engine import TrtEngine, find_engine
from zpipe.executors.tensorrt.flavour import load_flavour
from zpipe.executors.tensorrt.loaded import LoadedEngine
from zpipe.executors.tensorrt.manifest import Engine, engines_of, read_engine
from zpipe.executors.trt import answers
from zpipe.model import NEVER_EXIT, GateSpec, TensorSpec


@dataclass
class Memory:
    """Of a device that only counts."""

    address: int
    nbytes: int
    freed: bool = False

    def free(self) -> None:
        self.freed = True


class Device:
    """What an engine asks of a driver."""

    def __init__(self) -> None:
        self.memory: list[Memory] = []

    def allocate(self, nbytes: int) -> Memory:
        self.memory.append(Memory(0x1000 * (len(self.memory) + 1), nbytes))
        return self.memory[-1]

    def stream(self) -> Any:
        return SimpleNamespace(handle=99)


def stream(handle: int) -> Any:
    return SimpleNamespace(handle=handle)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for spec in STAGES:
        shutil.copy(DATA / spec.file, tmp_path)
    return tiny_bundle(path=tmp_path)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of capability 8.7."""
    there = presence.Gpus(13000, (presence.Gpu("Orin", (8, 7)),))
    monkeypatch.setattr(presence, "gpus", lambda **_: there)


@pytest.fixture
def rtx(bundle: Bundle) -> Iterator[FakeTrt]:
    module = FakeTrt(RTX, networks(bundle))
    with installed(rtx=module):
        yield module


def built(bundle: Bundle, **changes: Any) -> list[Engine]:
    return [each.engine for each in build_engines(bundle, **{"target": "8.6", "max_batch": 16, **changes})]


def find(bundle: Bundle, stage: int = 0, **changes: Any) -> Engine:
    wanted: dict[str, Any] = {"capability": (8, 6), "precision": "fp32", "max_batch": 8, "hosted": (0, 1, 2), **changes}
    return find_engine(bundle, stage, **wanted).engine


def load(bundle: Bundle, module: FakeTrt, device: Any = None, *, key: str = "rtx", stage: int = 0) -> TrtEngine:
    engine = built(bundle, target="8.7" if key == "trt" else "8.6")[stage]
    module.calls.clear()
    driver: Any = device or Device()
    return TrtEngine(driver, bundle.stages[stage], engine, load_flavour(key), "run here: zpipe build")


# ---- which engine ------------------------------------------------------------------------------


def test_engine_that_is_there_is_taken(bundle: Bundle, rtx: FakeTrt) -> None:
    engines = built(bundle)
    rtx.calls.clear()
    assert [find(bundle, stage) for stage in range(3)] == engines
    assert "build" not in rtx.names()


def test_without_any_all_hosted_stages_are_built_at_once(bundle: Bundle, rtx: FakeTrt, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "zpipe.tensorrt"):
        engine = find(bundle, 1, hosted=(1, 2), max_batch=8)
    assert (engine.key.stage, engine.key.target, engine.key.max_batch) == (1, "8.6", 8)
    assert [each.key.stage for each in engines_of(bundle)] == [1, 2]
    assert [record.message.partition(" in ")[0] for record in caplog.records] == [
        "stage 1: found no fp32 engine: building one for 8.6, which may take minutes",
        "engines of stages 1, 2 built",
    ]


def test_gpu_in_no_list_gets_what_is_built_without_being_told(
    bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "gpus", lambda **_: presence.Gpus(13000, (presence.Gpu("H100", (9, 0)),)))
    assert find(bundle, capability=(9, 0)).key.target == "any"
    assert "capability" not in rtx.names()


def test_smaller_engine_runs_large_batches_in_pieces_and_says_so(
    bundle: Bundle, rtx: FakeTrt, caplog: pytest.LogCaptureFixture
) -> None:
    built(bundle, max_batch=4)
    with caplog.at_level(logging.INFO, "zpipe.tensorrt"):
        assert find(bundle, max_batch=8).key.max_batch == 4
    assert "batches over 4 run in pieces; run here: zpipe build --bundle" in caplog.text
    assert "--max-batch 8" in caplog.text


@pytest.mark.parametrize(
    ("capability", "change", "found", "expected"),
    [
        ((8, 9), None, "fp32 up to batch 16 by rtx1.7.1.116 for capability 8.6", "by rtx1.7.1.116 for capability 8.9"),
        ((8, 6), "version", "by rtx1.6.1 for capability 8.6", "by rtx1.7.1.116 for capability 8.6"),
        ((8, 6), "onnx", r"from another ONNX \([0-9a-f]{12}\)", "from the ONNX that is here"),
    ],
)
def test_engine_for_another_gpu_version_or_onnx_names_both_and_the_command(
    capability: tuple[int, int], change: str | None, found: str, expected: str, bundle: Bundle, rtx: FakeTrt
) -> None:
    if change == "version":
        load_flavour("rtx").tag = "rtx1.6.1"
    built(bundle)
    load_flavour("rtx").tag = f"rtx{RTX}"
    if change == "onnx":
        bundle.stage_path(0).write_bytes(bundle.stage_path(1).read_bytes())
    command = f"run here: zpipe build --bundle .* --precision fp32 --target {capability[0]}.{capability[1]} --max-batch 8$"
    pattern = rf"stage 0: found an engine for .*{found}.*, expected fp32 .*{expected}; {command}"
    with pytest.raises(EngineMismatchError, match=pattern) as info:
        find(bundle, capability=capability)
    assert "\n" not in str(info.value)


def test_where_nobody_asked_for_it_one_is_built_beside_those_that_do_not_fit(
    bundle: Bundle, rtx: FakeTrt, caplog: pytest.LogCaptureFixture
) -> None:
    others = built(bundle)
    with caplog.at_level(logging.INFO, "zpipe.tensorrt"):
        engine = find(bundle, capability=(8, 9), rebuild=True)
    assert (engine.key.target, engine.key.max_batch) == ("8.9", 8)
    assert {each.key for each in engines_of(bundle)} > {each.key for each in others}
    assert caplog.records[0].message == (
        f"stage 0: found an engine for {others[0].key}: building one for 8.9, which may take minutes"
    )


def test_where_nobody_asked_for_it_a_damaged_one_is_built_anew(bundle: Bundle, rtx: FakeTrt) -> None:
    damaged = built(bundle, max_batch=8)[0]
    damaged.plan.write_bytes(b"other")
    assert find(bundle, rebuild=True).whole()


def test_command_builds_for_the_gpu_that_is_meant(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one, of another capability: what `current` and the full library build for is the first."""
    there = presence.Gpus(13000, (presence.Gpu("A10", (8, 6)), presence.Gpu("L4", (8, 9))))
    monkeypatch.setattr(presence, "gpus", lambda **_: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    built(bundle)

    def told(capability: tuple[int, int]) -> str:
        with pytest.raises(EngineMismatchError) as info:
            find(bundle, capability=capability)
        return str(info.value).partition("; run here: ")[2].replace(f"--bundle {bundle.path}", "...")

    assert told((8, 9)) == "zpipe build ... --precision fp32 --target 8.9 --max-batch 8"
    with installed(trt=FakeTrt("10.3.0", networks(bundle))):
        assert told((8, 6)) == "zpipe build ... --precision fp32 --target 8.6 --max-batch 8"
        assert told((8, 9)) == "CUDA_VISIBLE_DEVICES=1 zpipe build ... --precision fp32 --target 8.9 --max-batch 8"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        assert told((8, 9)).startswith("CUDA_VISIBLE_DEVICES=5 zpipe build")
        # Without any, the full library builds for the GPU that the caller's context is on.
        assert find(bundle, capability=(8, 9), rebuild=True, hosted=(0,)).key.flavour == "trt10.3.0"


def test_engine_of_the_other_library_is_taken_where_that_is_installed(bundle: Bundle, rtx: FakeTrt, gpu: None) -> None:
    engine = built(bundle)[0]
    full = FakeTrt("10.3.0", networks(bundle))
    with installed(trt=full, rtx=rtx):
        assert find_engine(bundle, 0, capability=(8, 6), precision="fp32", max_batch=8, hosted=(0,)).engine == engine
    with installed(trt=full), pytest.raises(EngineMismatchError, match=r"by rtx1.7.1.116 .*expected fp32 by trt10.3.0"):
        find(bundle)


# ---- loading -----------------------------------------------------------------------------------


def test_changed_plan_is_refused(bundle: Bundle, rtx: FakeTrt) -> None:
    engine = built(bundle)[0]
    engine.plan.write_bytes(b"other")
    with pytest.raises(EngineMismatchError, match="found another file than was built, expected its sha256; run here: zpipe build"):
        find_engine(bundle, 0, capability=(8, 6), precision="fp32", max_batch=8, hosted=(0,)).load(Device())  # type: ignore[arg-type]


def test_plan_the_library_does_not_take_says_why_and_is_built_anew(bundle: Bundle, rtx: FakeTrt, gpu: None) -> None:
    rtx.refuses, rtx.invalidity = {"plan"}, 1
    with pytest.raises(
        EngineMismatchError,
        match=r"stage 0 \(fp32 .*\): found an engine that .* this GPU \(version mismatch\), .*; run here: zpipe build",
    ):
        load(bundle, rtx)


#: What the library says of a plan that fits, where no plan does: bits of `tensorrt_rtx`, or words in the log.
@pytest.mark.parametrize(
    ("invalidity", "complaint", "found", "remedy"),
    [
        (2, "", r"TensorRT-RTX 1\.7\.1\.116 does not run on this GPU \(unsupported cc\)", "take executor torch-cuda, or another"),
        (
            4,
            "",
            r"driver for CUDA 13\.0 that is too old for .* \(old cuda driver\)",
            "update the driver, or take executor torch-cuda",
        ),
        (
            0,
            "CUDA initialization failure with error: 35. CUDA driver version is insufficient for CUDA runtime version",
            r"driver for CUDA 13\.0 that is too old for .* \(CUDA initialization failure with error: 35\.",
            "update the driver, or take executor torch-cuda",
        ),
        (0, "Target GPU SM 61 is not supported by this TensorRT release.", "does not run on this GPU", "take executor torch-cuda"),
    ],
)
def test_library_that_takes_no_plan_here_is_not_told_to_build_another(
    invalidity: int, complaint: str, found: str, remedy: str, bundle: Bundle, rtx: FakeTrt, gpu: None
) -> None:
    rtx.refuses, rtx.invalidity, rtx.complaint = {"plan"}, invalidity, complaint
    with pytest.raises(BackendUnavailable, match=rf"^stage 0 \(fp32 .*\): found .*{found}.*, expected .*; {remedy}") as info:
        load(bundle, rtx)
    assert "zpipe build" not in str(info.value)
    assert "\n" not in str(info.value)


def test_command_for_a_plan_the_library_does_not_take_builds_what_would_be_kept(bundle: Bundle, rtx: FakeTrt, gpu: None) -> None:
    built(bundle, max_batch=8)
    found = find_engine(bundle, 0, capability=(8, 6), precision="fp32", max_batch=8, hosted=(0,))
    rtx.refuses, rtx.invalidity = {"plan"}, 1
    with pytest.raises(EngineMismatchError, match=r"; run here: zpipe build .* --target 8\.6 --max-batch 8 --force$"):
        found.load(Device())  # type: ignore[arg-type]


def test_executor_whose_library_takes_no_plan_here_says_so_at_its_warm_up(bundle: Bundle, gpu: None) -> None:
    executor = FakeTrtExecutor(bundle, [0, 1])
    executor.trt.refuses, executor.trt.invalidity = {"plan"}, 4
    with pytest.raises(BackendUnavailable, match=r"update the driver, or take executor torch-cuda$"):
        executor.warm_up(8)
    executor.close()


def test_full_library_says_why_by_its_log(bundle: Bundle, gpu: None) -> None:
    module = FakeTrt("10.3.0", networks(bundle))
    module.refuses = {"plan"}
    with installed(trt=module), pytest.raises(EngineMismatchError, match=r"\(Version tag does not match\)"):
        load(bundle, module, key="trt")


def test_library_without_a_runtime_is_not_available(bundle: Bundle, rtx: FakeTrt) -> None:
    rtx.refuses = {"Runtime"}
    with pytest.raises(BackendUnavailable, match="found no Runtime to be had"):
        load(bundle, rtx)


def test_engine_of_other_tensors_is_refused_and_its_memory_freed(bundle: Bundle, rtx: FakeTrt) -> None:
    engine, device = built(bundle)[0], Device()
    spec = replace(bundle.stages[0], output=TensorSpec("float32", (4, 4, 5)))
    with pytest.raises(BundleError, match=r"activation: found float32 \[-1, 4, 4, 4\], expected float32 \[-1, 4, 4, 5\]"):
        TrtEngine(device, spec, engine, load_flavour("rtx"), "")  # type: ignore[arg-type]
    assert [memory.freed for memory in device.memory] == [True]


def test_no_context_is_an_error_of_one_line(bundle: Bundle, rtx: FakeTrt) -> None:
    rtx.refuses = {"context"}
    with pytest.raises(ExecutorError, match="found no execution context to be had"):
        load(bundle, rtx)


@pytest.mark.parametrize(("version", "scratch"), [("8.6.2", 1000), ("10.3.0", 2000), (RTX, 2000)])
def test_contexts_work_in_one_piece_of_memory_that_is_ours(version: str, scratch: int, bundle: Bundle, gpu: None) -> None:
    module, device = FakeTrt(version, networks(bundle)), Device()
    key = "rtx" if version == RTX else "trt"
    with installed(**{key: module}):
        engine = load(bundle, module, device, key=key)
        for rows in (1, 2):
            engine.enqueue(rows, {"input": 1, "activation": 2, "logits": 3}, stream(7))
    assert [memory.nbytes for memory in device.memory] == [scratch]
    asked = {repr(call[1]) for call in module.calls if call[0] == "context"}
    assert len(asked) == 1
    assert "USER_MANAGED" in asked.pop() or version == "8.6.2"
    if version != "8.6.2":
        assert {call[1:] for call in module.calls if call[0] == "scratch"} == {(0x1000, scratch)}
    engine.close()
    engine.close()
    assert device.memory[0].freed


def test_capturable_is_what_the_library_says(bundle: Bundle, rtx: FakeTrt, gpu: None) -> None:
    assert load(bundle, rtx).capturable
    rtx.capturable = False
    assert not load(bundle, rtx).capturable
    full = FakeTrt("10.3.0", networks(bundle))
    with installed(trt=full):
        assert load(bundle, full, key="trt").capturable


def test_stream_is_there_while_the_library_looks_at_it(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        handle = 99

    made: list[weakref.ref[Held]] = []
    seen: list[bool] = []

    def fresh(self: Device) -> Any:
        made.append(weakref.ref(it := Held()))
        return it

    def capturable(self: LoadedEngine, handle: int) -> bool:
        seen.append(made[-1]() is not None)
        return True

    monkeypatch.setattr(Device, "stream", fresh)
    monkeypatch.setattr(LoadedEngine, "capturable", capturable)
    load(bundle, rtx)
    assert seen == [True]


# ---- running -----------------------------------------------------------------------------------


def test_context_of_a_size_on_a_stream_is_told_once_and_never_again(bundle: Bundle, rtx: FakeTrt) -> None:
    engine = load(bundle, rtx)
    addresses = {"input": 10, "activation": 20, "logits": 30}
    rtx.calls.clear()
    for rows in (4, 2, 4, 2):
        engine.enqueue(rows, addresses, stream(7))
    engine.enqueue(4, {**addresses, "input": 11}, stream(8))
    told = [call for call in rtx.calls if call[0] in ("shape", "address", "execute")]
    first = told[0][1]

    def all_of(number: int, rows: int, taken: int) -> list[Any]:
        names = {"input": taken, "activation": 20, "logits": 30}
        return [("shape", number, (rows, 3, 8, 8)), *(("address", number, name, at) for name, at in names.items())]

    assert told == [
        *all_of(first, 4, 10),
        ("execute", first, 7),
        *all_of(first + 1, 2, 10),
        ("execute", first + 1, 7),
        ("execute", first, 7),
        ("execute", first + 1, 7),
        *all_of(first + 2, 4, 11),
        ("execute", first + 2, 8),
    ]


def test_sizes_beyond_sixteen_share_a_context(bundle: Bundle, gpu: None) -> None:
    module = FakeTrt("10.3.0", networks(bundle))
    with installed(trt=module):
        (engine, *_) = built(bundle, target="8.7", max_batch=64)
        loaded = TrtEngine(Device(), bundle.stages[0], engine, load_flavour("trt"), "")  # type: ignore[arg-type]
    module.calls.clear()
    for rows in (*range(1, 21), 18, 3):
        loaded.enqueue(rows, {"input": 1, "activation": 2, "logits": 3}, stream(7))
    assert module.names().count("context") == 17
    shapes = [call[1:] for call in module.calls if call[0] == "shape"]
    assert [shape[0] for shape in shapes[16:]] == [shapes[16][0]] * 5  # 17, 18, 19, 20, 18 again; 3 has its own


def test_rtx_runs_few_sizes_and_keeps_what_it_compiled(bundle: Bundle, rtx: FakeTrt) -> None:
    engine = load(bundle, rtx)
    assert (engine.max_batch, engine.logits) == (16, "float32")
    addresses = {"input": 1, "activation": 2, "logits": 3}
    for rows in (3, 5, 16, 4):
        engine.enqueue(rows, addresses, stream(7))
    assert [call[2][0] for call in rtx.calls if call[0] == "shape"][1:] == [4, 8, 16]  # the first: is it capturable?
    assert [engine.runs_as(rows) for rows in (1, 3, 4, 5, 16)] == [1, 4, 4, 8, 16]
    engine.close()
    (kernels,) = (bundle.path / "trt").glob("stage0*.kernels")
    assert kernels.read_bytes() == b"+"
    again = load(bundle, rtx)
    assert ("known_kernels", b"+") in rtx.calls
    again.enqueue(1, addresses, stream(7))
    assert kernels.read_bytes() == b"++"


def test_kernels_on_a_full_disk_leave_no_piece_of_a_file(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(bundle, rtx)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    before = sorted((bundle.path / "trt").iterdir())
    monkeypatch.setattr(os, "fsync", full)
    engine.enqueue(1, {"input": 1, "activation": 2, "logits": 3}, stream(7))
    assert sorted((bundle.path / "trt").iterdir()) == before


def test_kernels_that_cannot_be_kept_cost_nothing_else(bundle: Bundle, rtx: FakeTrt) -> None:
    engine = load(bundle, rtx)
    shutil.rmtree(bundle.path / "trt")
    engine.enqueue(1, {"input": 1, "activation": 2, "logits": 3}, stream(7))


def test_refused_batch_is_one_line(bundle: Bundle, rtx: FakeTrt) -> None:
    engine = load(bundle, rtx)
    rtx.refuses = {"enqueue"}
    with pytest.raises(ExecutorError, match=r"stage 0 .*: found batch 2 refused by TensorRT-RTX .*, expected it to run"):
        engine.enqueue(2, {"input": 1, "activation": 2, "logits": 3}, stream(7))


# ---- the executor ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, "fp32")),
        ("1", (1, "fp32")),
        ("cuda", (0, "fp32")),
        ("cuda:2", (2, "fp32")),
        ("fp16", (0, "fp16")),
        ("cuda:1/int8", (1, "int8")),
        ("0/bf16", (0, "bf16")),
    ],
)
def test_device_names_gpu_and_precision(text: str, expected: tuple[int, str]) -> None:
    assert parse_device(text, executor="trt", precisions=PRECISIONS) == expected


@pytest.mark.parametrize("text", ["raspberry-pi-4", "cuda:x", "fp8", "1/fp8", "cuda:", "cuda/", "1fp16"])
def test_device_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"executor trt: device: found '.*', expected a GPU"):
        parse_device(text, executor="trt", precisions=PRECISIONS)


def test_without_a_gpu_it_says_what_is_missing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LIBCUDA", "libcuda.so.none")
    with pytest.raises(BackendUnavailable, match=r"executor trt: found .*no NVIDIA"):
        make_executor("trt", bundle, [0])


def test_answers_of_engines_are_those_of_the_onnx(bundle: Bundle, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    running(rtx, bench)
    monkeypatch.setattr(trt, "_open", lambda ordinal: bench.open())
    told: list[float] = []
    labels = answers(bundle, load_flavour("rtx"), built(bundle), 0, images(40), told.append)
    bench.check()
    reference, values = OnnxExecutor(bundle, range(3)), images(40)
    for spec in bundle.stages:
        last = spec.output is None
        output = reference.run(spec.index, values, GateSpec("max-probability", 1.0, (NEVER_EXIT,) * 40, last=last))
        assert labels[:, spec.index].tolist() == output.labels
        values = output.activation  # type: ignore[assignment]
    assert told == sorted(told)


def test_precision_is_measured_by_the_engines_where_they_run(tmp_path: Path, rtx: FakeTrt, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.executors.tiny import tiny_emulation

    (tmp_path / "whole").mkdir()
    whole = tiny_emulation(tmp_path / "whole").real
    bench = Bench()
    running(rtx, bench)
    monkeypatch.setattr(trt, "_open", lambda ordinal: bench.open())
    monkeypatch.setattr(presence, "gpus", lambda **_: presence.Gpus(13000, (presence.Gpu("A10", (8, 6)),)))
    monkeypatch.setattr(presence, "missing_for", lambda executor: None)
    engines = built(whole, target="current")
    bench.check()
    assert {(engine.accuracy.by, engine.accuracy.samples) for engine in engines} == {("engine", 56)}
    assert engines[0].accuracy.lost == (0.0, None, 0.0)
    assert read_engine(engines[0].plan.with_suffix(".json")).accuracy == engines[0].accuracy

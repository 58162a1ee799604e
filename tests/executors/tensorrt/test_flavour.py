"""The adapter: what each library is told, on stand-ins; and TensorRT for RTX itself where it is installed."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.executors.tensorrt.fake import RTX, FakeTrt, installed
from tests.executors.tiny import STAGES
from zpipe.errors import BackendUnavailable, ConfigError, ExecutorError
from zpipe.executors.cuda import presence
from zpipe.executors.tensorrt.flavour import Built, Flavour, Tensor, flavours, load_flavour

ONNX = b"stage 0"


def make(version: str) -> tuple[FakeTrt, Flavour]:
    module = FakeTrt(version, {ONNX: STAGES[0]})
    return module, Flavour("rtx" if version == RTX else "trt", module)


def build(flavour: Flavour, onnx: bytes = ONNX, **changes: Any) -> Built:
    settings: dict[str, Any] = {
        "what": "stage 0",
        "outputs": ["activation", "logits"],
        "precision": "fp32",
        "target": None,
        "max_batch": 64,
        **changes,
    }
    return flavour.build(onnx, **settings)


@pytest.mark.parametrize(
    ("version", "precision", "network", "flags"),
    [
        ("8.6.2", "fp32", 1 << 0, []),
        ("8.6.2", "fp16", 1 << 0, ["FP16"]),
        ("8.6.2", "int8", 1 << 0, ["INT8"]),
        ("10.3.0", "fp16", 1 << 1, []),
        ("11.4.0", "bf16", 1 << 0, []),
        (RTX, "int8", 1 << 0, ["REQUIRE_USER_ALLOCATION"]),
    ],
)
def test_types_come_from_the_onnx_where_networks_are_strongly_typed_and_from_flags_elsewhere(
    version: str, precision: str, network: int, flags: list[str]
) -> None:
    module, flavour = make(version)
    build(flavour, precision=precision)
    assert ("create_network", network) in module.calls
    assert ("build", flags) in module.calls


def test_profile_reaches_from_one_row_to_the_largest_batch() -> None:
    module, flavour = make("10.3.0")
    built = build(flavour, max_batch=64)
    assert ("set_shape", "input", (1, 3, 8, 8), (16, 3, 8, 8), (64, 3, 8, 8)) in module.calls
    assert built.profile == (1, 16, 64)
    assert build(flavour, max_batch=1).profile == (1, 1, 1)


def test_outputs_that_nobody_reads_are_dropped() -> None:
    _, flavour = make("10.3.0")
    assert build(flavour).tensors == (
        Tensor("input", False, "uint8", (-1, 3, 8, 8)),
        Tensor("activation", True, "float32", (-1, 4, 4, 4)),
        Tensor("logits", True, "float32", (-1, 3)),
    )


def test_only_rtx_is_told_a_capability_and_only_the_others_keep_timings() -> None:
    rtx, flavour = make(RTX)
    assert flavour.targets == ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0))
    assert build(flavour, target=(12, 0), timing_cache=b"x").timing_cache == b""
    assert ("capability", "SM120") in rtx.calls
    assert "timing_cache" not in rtx.names()
    full, flavour = make("10.3.0")
    assert flavour.targets == ()
    assert build(flavour, target=(8, 7)).timing_cache == b"timings of 10.3.0"
    assert "capability" not in full.names()


def test_timings_of_another_version_are_dropped() -> None:
    module, flavour = make("10.3.0")
    build(flavour, timing_cache=b"timings of 8.6.2")
    build(flavour, timing_cache=b"timings of 10.3.0")
    assert [call[1] for call in module.calls if call[0] == "timing_cache"] == [b"timings of 8.6.2", b"", b"timings of 10.3.0"]


def test_contexts_share_the_profile_which_only_8_6_is_told() -> None:
    assert [version for version in ("8.6.2", "10.3.0", "11.4.0", RTX) if _builds(version).count("preview")] == ["8.6.2"]


def _builds(version: str) -> list[str]:
    module, flavour = make(version)
    build(flavour)
    return module.names()


def test_rtx_builds_without_graphs_what_it_cannot_build_for_them() -> None:
    module, flavour = make(RTX)
    module.refuses = {"capturable"}
    assert build(flavour).plan
    assert [call[1] for call in module.calls if call[0] == "build"] == [["REQUIRE_USER_ALLOCATION"], []]


def test_8_6_has_no_bfloat16() -> None:
    assert make("8.6.2")[1].precisions == ("fp32", "fp16", "int8")
    assert "bf16" in make("10.3.0")[1].precisions


def test_progress_is_that_of_the_outermost_phase() -> None:
    seen: list[float] = []
    build(make("10.3.0")[1], progress=seen.append)
    assert seen == [0.5, 1.0]
    build(make("8.6.2")[1], progress=seen.append)
    assert len(seen) == 2


def test_interrupt_ends_the_build_and_is_raised_after_it() -> None:
    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    _, flavour = make("10.3.0")
    with pytest.raises(KeyboardInterrupt):
        build(flavour, progress=interrupt)
    assert build(flavour).plan


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", RTX])
def test_interrupt_that_the_library_would_drop_ends_the_build(version: str) -> None:
    module, flavour = make(version)
    module.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        build(flavour)
    assert module.names().count("build") == 1
    module.interrupted = False
    assert build(flavour).plan
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_build_outside_the_main_thread_leaves_the_handler_alone() -> None:
    seen: list[Any] = []
    _, flavour = make("10.3.0")
    thread = threading.Thread(target=lambda: build(flavour, progress=lambda done: seen.append(signal.getsignal(signal.SIGINT))))
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler] * 2


def test_network_it_does_not_take_is_one_line_with_the_reason() -> None:
    for version, reason in (("8.6.2", "Plugin not found: no Foo"), ("10.3.0", "Foo: Plugin not found: no Foo")):
        with pytest.raises(ExecutorError) as info:
            build(make(version)[1], b"other")
        assert f"stage 0: found a network that TensorRT {version} does not take ({reason}), expected" in str(info.value)
        assert "\n" not in str(info.value)


def test_failed_build_names_the_first_error() -> None:
    module, flavour = make("10.3.0")
    module.refuses = {"build"}
    with pytest.raises(ExecutorError, match=r"found no engine from TensorRT 10.3.0 \(Could not find any implementation\)"):
        build(flavour)


def test_builder_without_a_gpu_says_so() -> None:
    module, flavour = make("10.3.0")
    module.refuses = {"Builder"}
    with pytest.raises(BackendUnavailable, match=r"found no Builder to be had \(CUDA .*: 35\), expected a GPU"):
        build(flavour)


def test_builder_on_a_driver_that_is_too_old_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "gpus", lambda **_: presence.Gpus(12040, (presence.Gpu("A10", (8, 6)),)))
    module, flavour = make(RTX)
    module.refuses = {"Builder"}
    with pytest.raises(
        BackendUnavailable, match=r"found an NVIDIA driver for CUDA 12.4 that is too old .*; update the driver, or "
    ):
        build(flavour)


def test_missing_libraries_say_how_they_are_installed() -> None:
    with installed():
        with pytest.raises(BackendUnavailable, match=r"expected it installed; run: pip install 'zpipe\[rtx\]'"):
            flavours()
        with pytest.raises(BackendUnavailable, match="JetPack brings it"):
            load_flavour("trt")
    with pytest.raises(ConfigError, match="--flavour: found 'lean', expected one of trt, rtx"):
        load_flavour("lean")


def test_full_library_is_preferred() -> None:
    with installed(rtx=FakeTrt(RTX), trt=FakeTrt("10.3.0")):
        assert [flavour.key for flavour in flavours()] == ["trt", "rtx"]
    with installed(rtx=FakeTrt(RTX)):
        assert [str(flavour) for flavour in flavours()] == [f"TensorRT-RTX {RTX}"]


# ---- the real one ------------------------------------------------------------------------------

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'zpipe[rtx]'", exc_type=ImportError)
    return load_flavour("rtx")


def test_rtx_builds_for_another_gpu_without_one(rtx: Flavour) -> None:
    seen: list[float] = []
    built = build(rtx, (DATA / "stage0.onnx").read_bytes(), target=(8, 6), progress=seen.append)
    assert (8, 6) in rtx.targets
    assert built.tensors == build(make(RTX)[1]).tensors
    assert len(built.plan) > 10_000
    assert seen == sorted(seen)
    assert seen


def test_rtx_says_what_it_does_not_take(rtx: Flavour) -> None:
    with pytest.raises(ExecutorError, match="Failed to parse the ONNX model") as info:
        build(rtx, b"junk", target=(8, 6))
    assert "\n" not in str(info.value)


def test_rtx_interrupted_stops(rtx: Flavour) -> None:
    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(rtx, (DATA / "stage0.onnx").read_bytes(), target=(8, 6), progress=interrupt)

"""What executor torch-cuda says before it has touched torch; tests/executors/torch holds what needs torch."""

from __future__ import annotations

import sys

import pytest

from tests.executors.tiny import tiny_bundle
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.executors import make_executor
from zpipe.executors.base import executor_options
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.device import parse_device
from zpipe.executors.cuda.presence import Gpu, Gpus, Missing
from zpipe.executors.torch_cuda import PRECISIONS, TorchCudaExecutor


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "gpus", lambda beside="": Gpus(12060, (Gpu("a card", (9, 0)),)))


def test_no_gpu_is_said_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "gpus", lambda beside="": Missing("no NVIDIA GPU", "one", "take executor onnx"))
    with pytest.raises(BackendUnavailable, match=r"^executor torch-cuda: found no NVIDIA GPU, expected one; take executor onnx$"):
        make_executor("torch-cuda", tiny_bundle(), [0])


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(("there", "missing"), [((), "torch"), (("torch",), "onnx")])
def test_missing_library_is_named_with_the_command(there: tuple[str, ...], missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "installed", lambda name: name in there)
    with pytest.raises(BackendUnavailable, match=rf"^executor torch-cuda: found .*no {missing}, .*'zpipe\[train\]'"):
        make_executor("torch-cuda", tiny_bundle(), [0])


@pytest.mark.usefixtures("one_gpu")
def test_making_it_loads_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    executor = make_executor("torch-cuda", tiny_bundle(), [2, 0], device="cuda:0/fp16")
    assert executor.stages == (0, 2)
    executor.close()


def test_device_is_its_only_option() -> None:
    assert executor_options("torch-cuda") == ("device",)


def test_device_says_which_gpu_and_what_it_computes_in() -> None:
    said = {
        "": (0, "fp32"),
        "1": (1, "fp32"),
        "cuda": (0, "fp32"),
        "cuda:2": (2, "fp32"),
        "fp16": (0, "fp16"),
        "1/fp16": (1, "fp16"),
        "cuda:0/fp16": (0, "fp16"),
        "cuda/fp32": (0, "fp32"),
    }
    assert {text: parse_device(text, executor="torch-cuda", precisions=PRECISIONS) for text in said} == said


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "-1", "jetson-nano", "cuda:0/int8", "float16", "fp16/1", "cuda:", "0fp16"])
def test_device_that_is_none_of_it_is_refused(device: str) -> None:
    with pytest.raises(
        ConfigError, match=f"torch-cuda: device: found '{device}', expected a GPU, what it computes in .fp32, fp16."
    ):
        TorchCudaExecutor(tiny_bundle(), [0], device=device)

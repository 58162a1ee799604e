"""All of `executor: trt` without a GPU: a stand-in for TensorRT runs its engines' ONNX on a stand-in for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from tests.executors.cuda.engines import Bench
from tests.executors.cuda.fake import FakeDriver, Work
from tests.executors.cuda.kernels import Span
from tests.executors.tensorrt.fake import RTX, FakeTrt, installed
from zpipe.bundle import Bundle
from zpipe.executors.cuda.driver import Driver
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.tensorrt.bindings import outputs_of
from zpipe.executors.tensorrt.engine import TrtEngine
from zpipe.executors.trt import TrtExecutor


def networks(bundle: Bundle) -> dict[bytes, Any]:
    """What a stand-in for TensorRT must know of a bundle."""
    return {bundle.stage_path(spec.index).read_bytes(): spec for spec in bundle.stages}


def running(trt: FakeTrt, bench: Bench) -> None:
    """Makes engines of a stand-in compute, in the memory of the device that was opened last."""
    sessions: dict[bytes, Any] = {}

    def runs(onnx: bytes, rows: int, addresses: Mapping[str, int], stream: int) -> None:
        spec, driver = trt.networks[onnx], bench.driver
        tensors = {"input": spec.input, **outputs_of(spec)}
        assert set(addresses) == set(tensors)
        spans = {name: Span(addresses[name], rows * tensor.bytes) for name, tensor in tensors.items()}
        if onnx not in sessions:
            sessions[onnx] = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])

        def run() -> None:
            inputs = driver.bytes_at(spans["input"]).view(spec.input.dtype).reshape(rows, *spec.input.shape)
            names = [name for name in spans if name != "input"]
            for name, values in zip(names, sessions[onnx].run(names, {"input": inputs}), strict=True):
                driver.bytes_at(spans[name])[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

        driver.queue(driver._streams[stream - 1], Work("engine", run, list(spans.values())))

    trt.runs = runs


class FakeTrtExecutor(TrtExecutor):
    """As a topology names it: `tests.executors.tensorrt.device:FakeTrtExecutor`."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "", rebuild: bool = False) -> None:
        self.bench, self.trt = Bench(seed=len(stages)), FakeTrt(RTX, networks(bundle))
        running(self.trt, self.bench)
        self.precision, self._rebuild = "fp32", rebuild
        CudaStages.__init__(self, bundle, stages, driver=self.bench.open, engine=self._load_engine, max_batch=16)

    def _load_engine(self, driver: Driver, stage: int, max_batch: int) -> TrtEngine:
        assert isinstance(driver, FakeDriver)
        with installed(rtx=self.trt):
            return super()._load_engine(driver, stage, max_batch)

    def close(self) -> None:
        super().close()
        self.bench.check()

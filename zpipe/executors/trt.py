"""Stages on an NVIDIA GPU by TensorRT: `executor: trt`.

`CudaStages` does the work, over pycuda, with engines that `zpipe build` made or that are built at the first start. Nothing of it
was run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zpipe.executors.base import open_gate
from zpipe.executors.cuda import presence
from zpipe.executors.cuda.device import parse_device
from zpipe.executors.cuda.driver import Driver
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.tensorrt.check import Told
from zpipe.executors.tensorrt.convert import PRECISIONS
from zpipe.executors.tensorrt.engine import TrtEngine, find_engine
from zpipe.executors.tensorrt.flavour import Flavour
from zpipe.executors.tensorrt.manifest import Engine
from zpipe.model import NEVER_EXIT

if TYPE_CHECKING:
    from zpipe.bundle import Bundle


#: Samples per run where engines are compared with the bundle's answers.
_ANSWER_BATCH = 32


class TrtExecutor(CudaStages):
    """The stages one node hosts, on TensorRT engines; see `CudaStages` for how they run.

    Args:
        bundle: a real one.
        stages: hosted stages, each within the bundle.
        device: which GPU, and after a slash what its engines compute in: `1`, `cuda:1`, `fp16`, `cuda:0/fp16`. GPU 0 and fp32 if
            not said.
        rebuild: build engines where those that are there do not fit this GPU, library or ONNX, instead of refusing; `auto` does,
            for which nobody asked for TensorRT.

    Attributes:
        precision: what its engines compute in.

    Raises:
        BackendUnavailable: no GPU or driver, no pycuda, or no TensorRT, in this order.
        ConfigError: there is no such device or precision.
    """

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "", rebuild: bool = False) -> None:
        presence.require("trt")
        ordinal, self.precision = parse_device(device, executor="trt", precisions=PRECISIONS)
        self._rebuild = rebuild
        super().__init__(bundle, stages, driver=partial(_open, ordinal), engine=self._load_engine)

    def _load_engine(self, driver: Driver, stage: int, max_batch: int) -> TrtEngine:
        return find_engine(
            self._bundle,
            stage,
            capability=driver.capability,
            precision=self.precision,
            max_batch=max_batch,
            hosted=self.stages,
            rebuild=self._rebuild,
        ).load(driver)


def answers(
    bundle: Bundle, library: Flavour, engines: Sequence[Engine], ordinal: int, images: npt.NDArray[Any], told: Told
) -> npt.NDArray[np.int64]:
    """What engines answer on a GPU: `[samples, stages]` labels, -1 where a stage has no exit; no sample leaves early.

    Raises:
        EngineMismatchError: the library does not take them.
        BackendUnavailable: it takes none there, for the GPU or its driver.
        ExecutorError: a run failed.
    """

    def load(driver: Driver, stage: int, max_batch: int) -> TrtEngine:
        return TrtEngine(driver, bundle.stages[stage], engines[stage], library, "run: zpipe build --target any")

    labels = np.full((len(images), len(bundle.stages)), -1, np.int64)
    executor = CudaStages(bundle, range(len(bundle.stages)), driver=partial(_open, ordinal), engine=load)
    try:
        for start in range(0, len(images), _ANSWER_BATCH):
            values: Any = images[start : start + _ANSWER_BATCH]
            for spec in bundle.stages:
                gate = open_gate(spec, len(values))
                closed = replace(gate, thresholds=(NEVER_EXIT,) * len(values))
                output = executor.run(spec.index, values, closed)
                labels[start : start + len(values), spec.index] = output.labels
                values = output.activation
            told((start + _ANSWER_BATCH) / (len(images) + _ANSWER_BATCH))
    finally:
        executor.close()
    return labels


def _open(ordinal: int) -> Driver:
    from zpipe.executors.cuda.pycuda import PycudaDriver

    return PycudaDriver(ordinal)

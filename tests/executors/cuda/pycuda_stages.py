"""A whole executor over the real pycuda on the stand-in: what it lacks of a GPU is the engine, ONNX Runtime as work of a stream."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from zpipe.bundle import Bundle
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.pycuda import PycudaDriver
from zpipe.executors.cuda.runner import CudaStages

_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class HostEngine:
    """One stage's ONNX, run when the stream comes to it, on memory that is the host's."""

    capturable = True

    def __init__(self, bundle: Bundle, driver: Driver, stage: int, max_batch: int) -> None:
        self.max_batch = max_batch
        self._spec = bundle.stages[stage]
        self.logits = None if self._spec.exit_head is None else "float32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(bundle.stage_path(stage)), options)
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._functions: dict[Any, Callable[[int], None]] = {}  #: by batch and addresses; a recording names them

    def runs_as(self, batch: int) -> int:
        return batch

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        key = (batch, *addresses.items())
        if key not in self._functions:
            self._functions[key] = _HOST_FUNCTION(partial(self._run, batch, dict(addresses)))
        assert self._cuda.cuLaunchHostFunc(ctypes.c_void_p(stream.handle), self._functions[key], None) == 0

    def close(self) -> None:
        self._functions.clear()

    def _run(self, batch: int, addresses: Mapping[str, int], _: object) -> None:
        spec = self._spec.input
        inputs = _memory(addresses["input"], batch * spec.bytes).view(spec.dtype).reshape(batch, *spec.shape)
        names = [name for name in ("activation", "logits") if name in addresses]
        for name, values in zip(names, self._session.run(names, {"input": inputs.copy()}), strict=True):
            _memory(addresses[name], values.nbytes)[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)


class PycudaStages(CudaStages):
    """As a topology names it: `tests.executors.cuda.pycuda_stages:PycudaStages`."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "") -> None:
        super().__init__(bundle, stages, driver=PycudaDriver, engine=partial(HostEngine, bundle), max_batch=16)


def _memory(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

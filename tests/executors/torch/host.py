"""The executor `torch-cuda` on a device that is not there: torch computes on the CPU, when the fake device says so."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tests.executors.cuda.engines import Bench
from tests.executors.cuda.fake import FakeDriver, FakeStream, Work
from tests.executors.cuda.kernels import Span
from zpipe.bundle import Bundle
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.runner import CudaStages
from zpipe.executors.torch_cuda import TorchEngine
from zpipe.model import TensorSpec


class HostEngine(TorchEngine):
    """All of the engine but what makes torch use a GPU: stream, settling, and the look at an address."""

    device_type = "cpu"

    def __init__(self, bundle: Bundle, driver: Driver, stage: int, max_batch: int, *, half: bool = False) -> None:
        assert isinstance(driver, FakeDriver)
        self.driver = driver
        super().__init__(bundle, driver, stage, max_batch, half=half)

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        assert isinstance(stream, FakeStream)
        spans = [Span(addresses[name], batch * spec.bytes) for name, spec in self._tensors.items()]
        self.driver.queue(stream, Work("torch", lambda: super(HostEngine, self).enqueue(batch, addresses, stream), spans))

    @contextlib.contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        yield

    def _settle(self) -> None:
        pass

    def _tensor_at(self, address: int, shape: tuple[int, ...], spec: TensorSpec) -> Any:
        count = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
        array = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
        return self._torch.from_numpy(array.view(spec.dtype).reshape(shape))


class TorchOnHost(CudaStages):
    """The whole executor."""

    def __init__(self, bundle: Bundle, stages: Sequence[int], precision: str = "fp32", max_batch: int = 16) -> None:
        self.bench = Bench(seed=len(stages))
        engine = partial(HostEngine, bundle, half=precision == "fp16")
        super().__init__(bundle, stages, driver=self.bench.open, engine=engine, max_batch=max_batch)

    def close(self) -> None:
        super().close()
        self.bench.check()

"""`executor: torch-cuda`: a bundle's ONNX stages in torch on an NVIDIA GPU, for GPUs that no TensorRT at hand supports.

The slots, the owner's thread and the exit gate are those of TensorRT (`cuda.runner`); torch brings its kernels. Batches of common
sizes are recorded as CUDA graphs at the warm-up, so that hundreds of launches from Python become one; any other size is run by the
graph of the next, which computes a few rows for nobody. Before a warm-up, a batch runs as it is, and waits for Python.

What the process does with torch beside this is left alone: the context is the one torch has, streams and memory pools are our own,
and no flag of the process is changed, with one exception. Matrix products know no flag of their own; where the process has allowed
TF32 for them, it is off, in all threads, while a batch of a float32 stage is queued or recorded (not while a graph runs).

Not yet run on a GPU: what a test on the CPU cannot show is whether torch's recording holds what `TorchEngine` queues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zpipe.errors import BundleError, ExecutorError
from zpipe.executors.cuda.device import parse_device
from zpipe.executors.cuda.driver import Driver, Stream
from zpipe.executors.cuda.runner import CudaStages, common_batches
from zpipe.executors.cuda.torch import TorchDriver, translated
from zpipe.model import TensorSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

PRECISIONS = ("fp32", "fp16")


class TorchCudaExecutor(CudaStages):
    """The stages one node hosts, in torch on one GPU.

    Args:
        bundle: the network; its ONNX files are all that is needed.
        stages: hosted stages, each within the bundle.
        device: which GPU, and after a slash what it computes in: `1`, `cuda:1`, `fp16`, `cuda:0/fp16`. `fp32` is without TF32; with
            `fp16` float32 operators compute in float16, and what travels stays as the bundle says. GPU 0 and fp32 if not said.

    Attributes:
        precision: what it computes in.

    Raises:
        ConfigError: there is no such device or precision.
    """

    def __init__(self, bundle: Bundle, stages: Sequence[int], device: str = "") -> None:
        ordinal, self.precision = parse_device(device, executor="torch-cuda", precisions=PRECISIONS)
        load = partial(TorchEngine, bundle, half=self.precision == "fp16")
        super().__init__(bundle, stages, driver=partial(TorchDriver, ordinal), engine=load)


class TorchEngine:
    """One stage in torch (`driver.StageEngine`).

    Args:
        bundle: where the stage's file and shapes come from.
        driver: of the device.
        stage: which.
        max_batch: the largest batch.
        half: compute in float16.

    Raises:
        BundleError: the file does not hold what the manifest says.
        ExecutorError: it holds an operator that is not known, or torch refused it.
        ExecutorLost: there is not enough memory.
    """

    capturable = True
    #: Where it computes; a test on the CPU says otherwise.
    device_type = "cuda"

    def __init__(self, bundle: Bundle, driver: Driver, stage: int, max_batch: int, *, half: bool = False) -> None:
        import torch

        from zpipe.executors.torch_onnx import OnnxModule

        self._torch, self._ordinal, self._half = torch, driver.device, half
        self._device = torch.device(self.device_type, driver.device)
        self.max_batch = max_batch
        spec = bundle.stages[stage]
        self.logits = None if spec.exit_head is None else "float32"
        #: What lies at each address, without the batch.
        self._tensors = {"input": spec.input}
        if spec.output is not None:
            self._tensors["activation"] = spec.output
        if spec.exit_head is not None:
            self._tensors["logits"] = TensorSpec("float32", (spec.exit_head.classes,))
        self._views: dict[tuple[str, int], Any] = {}  #: {(name, address): `[max_batch, ...]` over it}
        path = bundle.stage_path(stage)
        with self._errors(), torch.inference_mode():
            self._module: Any = OnnxModule(path, device=self._device, half=half)
            # The first kernels of torch in this process load here, not while a batch waits for them.
            outputs = self._module(torch.zeros((1, *spec.input.shape), dtype=_dtype(torch, spec.input), device=self._device))
            self._settle()
        self._check_outputs(str(path), outputs)
        # An index out of range, which a row that is nobody's may hold, ends the context. So where rows hold indices they run alone.
        sizes = range(1, max_batch + 1) if self._module.picks_by_data else common_batches(max_batch)
        #: {rows asked for: rows of the graph that runs them}
        self._rows = {rows: next(size for size in sizes if size >= rows) for rows in range(1, max_batch + 1)}

    def __repr__(self) -> str:
        return f"<TorchEngine {self._device} | batch {self.max_batch}, {'fp16' if self._half else 'fp32'}>"

    def runs_as(self, batch: int) -> int:
        """The next common size: a few rows more cost less than hundreds of launches."""
        return self._rows[batch]

    def enqueue(self, batch: int, addresses: Mapping[str, int], stream: Stream) -> None:
        """Queues one batch; see `driver.StageEngine.enqueue`."""
        with self._errors(), ExitStack() as stack:
            stack.enter_context(self._on(stream))
            stack.enter_context(self._torch.inference_mode())
            if not self._half:
                stack.enter_context(_full_float32(self._torch.backends.cuda.matmul))
            self.compute(batch, addresses)

    def compute(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Reads the input where it lies, writes the outputs where they are wanted."""
        if self._module is None:
            raise ExecutorError("engine: found a closed one, expected an open one; make a new executor")
        outputs = self._module(self._view("input", addresses)[:batch])
        for name in self._tensors:
            if name == "input":
                continue
            target = self._view(name, addresses)[:batch]
            if outputs[name].shape != target.shape:  # a copy would repeat what is too small
                found, expected = list(outputs[name].shape), list(target.shape)
                raise ExecutorError(
                    f"{self._module.path}: {name}: found {found} for batch {batch}, expected {expected}; export the stage again"
                )
            target.copy_(outputs[name])

    def close(self) -> None:
        """Frees the weights, for torch to keep or to give back. Idempotent."""
        self._module = None
        self._views = {}

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        """What torch queues in this thread goes to this stream."""
        torch = self._torch
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle, device=self._device)):
            yield

    def _settle(self) -> None:
        """Streams of ours do not wait for the default one, on which the weights were made."""
        self._torch.cuda.synchronize(self._device)

    def _view(self, name: str, addresses: Mapping[str, int]) -> Any:
        """The tensor at an address; kept, as asking the driver about an address has no place in a recording."""
        key = (name, addresses[name])
        if key not in self._views:
            spec = self._tensors[name]
            self._views[key] = self._tensor_at(addresses[name], (self.max_batch, *spec.shape), spec)
        return self._views[key]

    def _tensor_at(self, address: int, shape: tuple[int, ...], spec: TensorSpec) -> Any:
        return self._torch.as_tensor(_Region(address, shape, np.dtype(spec.dtype).str), device=self._device)

    def _check_outputs(self, path: str, outputs: Mapping[str, Any]) -> None:
        for name, spec in self._tensors.items():
            if name == "input":
                continue
            if name not in outputs:
                have = ", ".join(outputs) or "nothing"
                raise BundleError(f"{path}: {name}: found {have}, expected a tensor of that name; export the stage again")
            found, expected = list(outputs[name].shape), [1, *spec.shape]
            if found != expected:
                raise BundleError(f"{path}: {name}: found {found} for batch 1, expected {expected}; export the stage again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """torch's errors become ours."""
        try:
            yield
        except RuntimeError as exc:
            error = translated(exc, self._ordinal)
            if error is None:
                raise
            raise error from exc


class _Region:
    """Memory of the device, as torch looks at it without a copy (the CUDA array interface of Numba)."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 2}


@contextmanager
def _full_float32(matmul: Any) -> Iterator[None]:
    """Matrix products without TF32: nothing to do but where the process has allowed it. `Conv` says so per call."""
    # torch 2.9 has a setting with a name in place of the flag, and refuses to read the flag once the other was used.
    flag, off = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, flag)
    if before in (False, "ieee", "none"):
        yield
        return
    setattr(matmul, flag, off)
    try:
        yield
    finally:
        setattr(matmul, flag, before)


def _dtype(torch: Any, spec: TensorSpec) -> Any:
    return getattr(torch, spec.dtype)

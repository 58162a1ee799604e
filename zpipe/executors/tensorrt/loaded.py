"""An engine of TensorRT on a device: deserialized, its execution contexts, and what a run tells them.

A recorded CUDA graph holds a context's state, so a context that was recorded must never be told another batch or address: each
batch size on each stream has its own. They all work in the same scratch memory, as whoever runs an engine lets one batch end
before the next begins.

On `tensorrt_rtx` kernels are compiled when a batch size first runs. Strategy EAGER: then and there, so that a recorded graph holds
the compiled kernels (LAZY would swap them in later, behind the graph's back, and can't be recorded). What was compiled is kept in
a file for the next start. Its own CUDA graphs stay off: they hold for one set of addresses and are made anew when these change.

Source: NVIDIA's documentation of both libraries; none of this was seen on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zpipe.errors import ConfigError, EngineMismatchError, ExecutorError
from zpipe.executors.cuda.driver import Memory
from zpipe.executors.tensorrt.flavour import Flavour, Tensor, dtype_name
from zpipe.executors.tensorrt.manifest import write_whole
from zpipe.executors.tensorrt.refusal import unavailable

log = logging.getLogger("zpipe.tensorrt")

#: Batch sizes that get a context of their own on one stream; those that come later share one and must not be recorded. The sizes
#: worth a graph are run first, and are fewer: powers of two.
_OWN_CONTEXTS = 16


class LoadedEngine:
    """A plan on the device whose context is current; all calls from the thread that made it, one run at a time.

    Args:
        flavour: the library that built it.
        plan: its bytes.
        allocate: gives device memory.
        what: of the engine, for messages.
        remedy: "expected ...; run: ..." where the plan does not fit.
        compiled: file for the kernels that `tensorrt_rtx` compiles.

    Attributes:
        tensors: inputs and outputs.

    Raises:
        EngineMismatchError: the library does not take the plan.
        BackendUnavailable: the library has no runtime here, or takes no plan on this GPU or with this driver.
    """

    def __init__(
        self, flavour: Flavour, plan: bytes, *, allocate: Callable[[int], Memory], what: str, remedy: str, compiled: Path
    ) -> None:
        self._flavour, self._what, self._compiled = flavour, what, compiled
        self._runtime = flavour.make("Runtime")
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            bits, first = self._invalidity(plan), flavour.logger.first
            hopeless = unavailable(str(flavour), bits, *flavour.logger.said, what=what)
            raise hopeless or EngineMismatchError(
                f"{what}: found an engine that {flavour} does not load on this GPU ({bits or first}), {remedy}"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = tuple(self._tensor(name) for name in names)
        (self._input,) = (tensor for tensor in self.tensors if not tensor.output)
        self._config, self._kernels = self._runtime_config()
        self._contexts: dict[tuple[int, int], _Context] = {}  #: by stream and rows; rows 0: shared by those without one
        self._sizes: set[int] = set()  #: that ran
        scratch = getattr(self._engine, "device_memory_size_v2", None)
        self._scratch_bytes: int = max(1, self._engine.device_memory_size if scratch is None else scratch)
        self._scratch = allocate(self._scratch_bytes)

    def __repr__(self) -> str:
        return (
            f"<LoadedEngine {self._what} | {self._flavour} | {len(self._contexts)} contexts, {self._scratch_bytes} scratch bytes>"
        )

    def capturable(self, stream: int) -> bool:
        """Whether a run may be recorded into a CUDA graph, once a batch of its size has run on that stream."""
        context = self._new_context()
        if not hasattr(context, "is_stream_capturable"):
            return True
        context.set_input_shape(self._input.name, (1, *self._input.shape[1:]))
        return bool(context.is_stream_capturable(stream))

    def enqueue(self, rows: int, addresses: Mapping[str, int], stream: int) -> None:
        """Queues one run of so many rows on a stream.

        Raises:
            ExecutorError: the library refused.
        """
        self._flavour.logger.forget()
        if not self._context(stream, rows).run(rows, addresses, stream):
            raise ExecutorError(
                f"{self._what}: found batch {rows} refused by {self._flavour} ({self._flavour.logger.first}), expected it to run; "
                f"`zpipe build --force` builds the engine anew"
            )
        if rows not in self._sizes:
            self._sizes.add(rows)
            self._keep_kernels()

    def close(self) -> None:
        """Frees contexts, engine and scratch memory, in this order. Idempotent."""
        if self._engine is not None:
            self._contexts = {}
            self._config = self._kernels = self._engine = self._runtime = None
            self._scratch.free()

    def _tensor(self, name: str) -> Tensor:
        engine = self._engine
        output = engine.get_tensor_mode(name) == self._flavour.module.TensorIOMode.OUTPUT
        return Tensor(name, output, dtype_name(engine.get_tensor_dtype(name)), tuple(engine.get_tensor_shape(name)))

    def _context(self, stream: int, rows: int) -> _Context:
        context = self._contexts.get((stream, rows))
        if context is not None:
            return context
        if sum(of == stream for of, _ in self._contexts) >= _OWN_CONTEXTS:
            rows = 0
        if (stream, rows) not in self._contexts:
            self._contexts[stream, rows] = _Context(self._new_context(), self._input)
        return self._contexts[stream, rows]

    def _new_context(self) -> Any:
        """One that works in our scratch memory."""
        trt, engine = self._flavour.module, self._engine
        if self._config is not None:
            context = engine.create_execution_context(self._config)
        elif hasattr(trt, "ExecutionContextAllocationStrategy"):
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise ExecutorError(
                f"{self._what}: found no execution context to be had ({self._flavour.logger.first}), expected one; "
                f"free memory of the GPU, or host fewer stages here"
            )
        for setter in ("set_device_memory_v2", "set_device_memory"):
            if hasattr(context, setter):
                getattr(context, setter)(self._scratch.address, self._scratch_bytes)
                return context
        context.device_memory = self._scratch.address
        return context

    def _invalidity(self, plan: bytes) -> str:
        """Why `tensorrt_rtx` thinks so; "" if it does not say."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        _, bits = self._runtime.get_engine_validity(plan)
        members = self._flavour.module.EngineInvalidityDiagnostics.__members__
        return ", ".join(name.lower().replace("_", " ") for name, member in members.items() if int(bits) & int(member))

    def _runtime_config(self) -> tuple[Any, Any]:
        """(configuration of every context, compiled kernels); (None, None) where kernels come with the plan."""
        trt = self._flavour.module
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return None, None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        kernels = config.create_runtime_cache()
        if self._compiled.is_file():
            known = kernels.deserialize(self._compiled.read_bytes())
            log.debug("%s: kernels compiled before are %s", self._what, "used" if known else "another GPU's or version's")
        config.set_runtime_cache(kernels)
        return config, kernels

    def _keep_kernels(self) -> None:
        """After each size that ran for the first time, which took far longer than this: a node may be killed."""
        if self._kernels is None:
            return
        try:
            write_whole(self._compiled, bytes(self._kernels.serialize()))
        except ConfigError as exc:  # costs the next start its time, and nothing else
            log.debug("compiled kernels not kept: %s", exc)


class _Context:
    """An execution context, and what it was last told."""

    __slots__ = ("_addresses", "_rows", "_taken", "context")

    def __init__(self, context: Any, taken: Tensor) -> None:
        self.context = context
        self._taken = taken  #: the input
        self._rows = 0
        self._addresses: dict[str, int] = {}

    def run(self, rows: int, addresses: Mapping[str, int], stream: int) -> bool:
        """Whether the library took it."""
        context = self.context
        if rows != self._rows:
            self._rows = 0
            if not context.set_input_shape(self._taken.name, (rows, *self._taken.shape[1:])):
                return False
            self._rows = rows
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                if not context.set_tensor_address(name, address):
                    return False
                self._addresses[name] = address
        return bool(context.execute_async_v3(stream))

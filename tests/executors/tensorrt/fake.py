"""Stand-ins for the TensorRT libraries: what `zpipe.executors.tensorrt` calls, as each version has it; every call is written down.

An engine is the text of its network and settings; it is deserialized by the same version alone.
"""

from __future__ import annotations

import enum
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from zpipe.executors.tensorrt import flavour as flavours
from zpipe.executors.tensorrt.bindings import outputs_of
from zpipe.executors.tensorrt.flavour import Flavour
from zpipe.model import StageSpec

#: Members of the enumerations that matter, by version.
FLAGS = {
    "8.6.2": ("FP16", "INT8", "TF32"),
    "10.3.0": ("FP16", "BF16", "INT8", "TF32"),
    "11.4.0": ("TF32",),
    "1.7.1.116": ("TF32", "REQUIRE_USER_ALLOCATION"),
}
NETWORKS = {
    "8.6.2": ("EXPLICIT_BATCH", "EXPLICIT_PRECISION"),
    "10.3.0": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    "11.4.0": ("STRONGLY_TYPED",),
    "1.7.1.116": ("STRONGLY_TYPED",),
}
RTX = "1.7.1.116"

Runs = Callable[[bytes, int, Mapping[str, int], int], None]


def _members(names: Any, start: int = 1) -> Any:
    return enum.IntEnum("Members", names, start=start)


class FakeTrt:
    """A module `tensorrt` or `tensorrt_rtx`.

    Attributes:
        networks: {ONNX bytes: stage}; others are not parsed.
        calls: what was called, in order.
        refuses: "Builder", "Runtime": that constructor fails as without a GPU; "build", "plan", "context", "enqueue": that step
            does; "capturable": the build, with the flag for it.
        interrupted: Ctrl-C comes at the first line of a callback while it builds, and the library drops the exception.
        invalidity: bits that `tensorrt_rtx` gives for a plan it refuses.
        complaint: what the log says of a plan that is refused.
        capturable: what contexts of `tensorrt_rtx` say.
        runs: does what is executed: (ONNX bytes, rows, {tensor: address}, stream).
    """

    def __init__(self, version: str, networks: Mapping[bytes, StageSpec] | None = None) -> None:
        self.__version__ = version
        self.networks = dict(networks or {})
        self.calls: list[Any] = []
        self.refuses: set[str] = set()
        self.interrupted = False
        self.invalidity = 2
        self.complaint = "Version tag\ndoes not match"
        self.capturable = True
        self.runs: Runs | None = None
        rtx = version == RTX
        self.ILogger: Any = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2, "__init__": lambda self: None})
        self.NetworkDefinitionCreationFlag = _members(NETWORKS[version], start=0)
        self.BuilderFlag = _members(FLAGS[version])
        dtypes = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8")
        self.DataType = _members(dtypes if version == "8.6.2" else (*dtypes, "BF16", "INT64"), start=0)
        self.MemoryPoolType = _members(("WORKSPACE",))
        self.TensorIOMode = _members(("INPUT", "OUTPUT"))
        if version != "11.4.0":
            self.PreviewFeature = _members(("PROFILE_SHARING_0806",))
        if version != "8.6.2":
            self.IProgressMonitor: Any = type("IProgressMonitor", (), {"__init__": lambda self: None})
            self.ExecutionContextAllocationStrategy = _members(("STATIC", "USER_MANAGED"))
        if rtx:
            self.ComputeCapability = _members(("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"))
            self.DynamicShapesKernelSpecializationStrategy = _members(("LAZY", "EAGER", "NONE"))
            self.EngineInvalidityDiagnostics = _members({"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4})

    def names(self) -> list[str]:
        """Of the calls."""
        return [call[0] for call in self.calls]

    # ---- what the library has ------------------------------------------------------------------

    def Builder(self, logger: Any) -> Any:
        self._need("Builder", logger)
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=lambda: FakeConfig(self),
            create_optimization_profile=lambda: SimpleNamespace(
                shapes={}, set_shape=lambda name, low, best, high: self._done("set_shape", name, low, best, high)
            ),
            build_serialized_network=lambda network, config: self._build(logger, network, config),
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse(onnx: bytes) -> bool:
            spec = self.networks.get(onnx)
            if spec is None:
                return False
            network.set(self, spec, onnx)
            return True

        error = SimpleNamespace(desc=lambda: "Plugin not found:\n no Foo")
        if self.__version__ != "8.6.2":
            error.node_operator = lambda: "Foo"
        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda index: error)

    def Runtime(self, logger: Any) -> Any:
        self._need("Runtime", logger)

        def deserialize(plan: bytes) -> Any:
            document = json.loads(plan)
            if document["version"] != self.__version__ or "plan" in self.refuses:
                logger.log(self.ILogger.ERROR, self.complaint)
                return None
            return FakeEngine(self, document)

        runtime = SimpleNamespace(deserialize_cuda_engine=deserialize)
        if self.__version__ == RTX:
            runtime.get_engine_validity = lambda plan: (2, self.invalidity)
        return runtime

    # ---- inside --------------------------------------------------------------------------------

    def _done(self, *call: Any) -> None:
        self.calls.append(call)

    def _create_network(self, flags: int) -> FakeNetwork:
        self._done("create_network", flags)
        return FakeNetwork()

    def _need(self, thing: str, logger: Any) -> None:
        if thing in self.refuses:
            logger.log(self.ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def _build(self, logger: Any, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        self._done("build", sorted(config.flags))
        monitor = config.progress_monitor
        if self.interrupted:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        if monitor is not None:
            monitor.phase_start("Building", None, 2)
            monitor.phase_start("Inner", "Building", 5)
            if not all(monitor.step_complete(name, step) for name, step in (("Inner", 0), ("Building", 0), ("Building", 1))):
                return None
            monitor.phase_finish("Building")
        if "build" in self.refuses or ("capturable" in self.refuses and "REQUIRE_USER_ALLOCATION" in config.flags):
            logger.log(self.ILogger.ERROR, "Could not find any\nimplementation")
            logger.log(self.ILogger.ERROR, "and so it goes on")
            return None
        tensors = [[each.name, each.output, each.dtype.name, list(each.shape)] for each in network.tensors()]
        return json.dumps({"version": self.__version__, "tensors": tensors, "onnx": network.onnx.hex()}).encode()


class FakeNetwork:
    """A parsed stage, with an output that nobody asked for."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.onnx = b""

    def set(self, trt: FakeTrt, spec: StageSpec, onnx: bytes) -> None:
        self.onnx = onnx
        names = {"float32": "FLOAT", "uint8": "UINT8", "float16": "HALF"}

        def tensor(name: str, dtype: str, shape: Iterable[int], output: bool) -> Any:
            return SimpleNamespace(name=name, dtype=trt.DataType[names[dtype]], shape=(-1, *shape), output=output)

        self.inputs = [tensor("input", spec.input.dtype, spec.input.shape, False)]
        self.outputs = [tensor(name, each.dtype, each.shape, True) for name, each in outputs_of(spec).items()]
        self.outputs.append(tensor("extra", "float32", (1,), True))

    def tensors(self) -> list[Any]:
        return [*self.inputs, *self.outputs]

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    def unmark_output(self, tensor: Any) -> None:
        self.outputs.remove(tensor)


class FakeConfig:
    """A builder's configuration."""

    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.flags = {"TF32"}
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.trt._done("workspace", size)

    def set_preview_feature(self, feature: Any, on: bool) -> None:
        self.trt._done("preview", feature.name, on)

    def add_optimization_profile(self, profile: Any) -> None:
        self.trt._done("add_profile")

    def set_compute_capability(self, capability: Any, index: int) -> None:
        assert index < self.num_compute_capabilities
        self.trt._done("capability", capability.name)

    def create_timing_cache(self, known: bytes) -> Any:
        self.trt._done("timing_cache", known)
        return SimpleNamespace(known=known, serialize=lambda: b"timings of " + self.trt.__version__.encode())

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.known in (b"", b"timings of " + self.trt.__version__.encode())


class FakeEngine:
    """A deserialized plan."""

    def __init__(self, trt: FakeTrt, document: Any) -> None:
        self.trt = trt
        self.onnx = bytes.fromhex(document["onnx"])
        self.tensors = {name: (output, dtype, shape) for name, output, dtype, shape in document["tensors"]}
        self.num_io_tensors = len(self.tensors)
        if trt.__version__ == "8.6.2":
            self.device_memory_size = 1000
            self.create_execution_context_without_device_memory = lambda: self._context("8.6")
        else:
            self.device_memory_size_v2 = 2000
        self.create_runtime_config = lambda: FakeRuntimeConfig(trt)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.OUTPUT if self.tensors[name][0] else self.trt.TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[self.tensors[name][1]]

    def get_tensor_shape(self, name: str) -> Any:
        return self.tensors[name][2]

    def create_execution_context(self, how: Any) -> Any:
        return self._context(how)

    def _context(self, how: Any) -> Any:
        if "context" in self.trt.refuses:
            return None
        self.trt._done("context", how)
        return FakeContext(self)


class FakeRuntimeConfig:
    """How contexts of `tensorrt_rtx` are made."""

    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.allocation: Any = None
        self.cache: Any = None

    def __repr__(self) -> str:
        return f"{self.allocation!r} {self.dynamic_shapes_kernel_specialization_strategy!r}"

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Any:
        kernels = SimpleNamespace(known=b"")

        def deserialize(blob: bytes) -> bool:
            self.trt._done("known_kernels", blob)
            kernels.known = blob
            return True

        kernels.deserialize = deserialize
        kernels.serialize = lambda: kernels.known + b"+"
        return kernels

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


class FakeContext:
    """An execution context that writes down what it is told."""

    def __init__(self, engine: FakeEngine) -> None:
        self.trt = trt = engine.trt
        self.onnx = engine.onnx
        self.number = trt.names().count("context")
        self.rows = 0
        self.addresses: dict[str, int] = {}
        self.device_memory = 0
        if trt.__version__ == RTX:
            self.is_stream_capturable = lambda stream: trt.capturable
        if trt.__version__ != "8.6.2":
            self.set_device_memory = lambda address, size: trt._done("scratch", address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.trt._done("shape", self.number, shape)
        self.rows = shape[0]
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.trt._done("address", self.number, name, address)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.trt._done("execute", self.number, stream)
        if self.trt.runs is not None:
            self.trt.runs(self.onnx, self.rows, self.addresses, stream)
        return "enqueue" not in self.trt.refuses


@contextmanager
def installed(**modules: FakeTrt) -> Iterator[dict[str, Flavour]]:
    """These flavours load, no other; by key."""
    before = dict(flavours._loaded), dict(flavours.MODULES)
    flavours._loaded.clear()
    flavours._loaded.update({key: Flavour(key, module) for key, module in modules.items()})
    flavours.MODULES.update({key: f"no_such_module_{key}" for key in flavours.MODULES if key not in modules})
    try:
        yield dict(flavours._loaded)
    finally:
        flavours._loaded.clear()
        flavours._loaded.update(before[0])
        flavours.MODULES.update(before[1])

"""One thin adapter over the libraries that call themselves TensorRT: `tensorrt` 8.6, 10.x and 11.x, and `tensorrt_rtx`.

What differs, and is settled here:

| | tensorrt 8.6 | 10.x | 11.x | tensorrt_rtx |
|---|---|---|---|---|
| builds for | the GPU it runs on | the same | the same | any of its list of capabilities, without a GPU |
| types of the network | flags FP16, INT8 | STRONGLY_TYPED | always strong | always strong |
| batch axis | EXPLICIT_BATCH | always | always | always |
| kernels are chosen | while building: timing cache | the same | the same | at run time: runtime cache (`loaded.py`) |
| progress | - | IProgressMonitor | the same | the same |

`tensorrt_rtx` has a timing cache, too, but it does nothing and asks for a GPU; for capability 7.5 it builds fp16 alone. TF32 is
off everywhere: an engine of precision fp32 computes in float32, so that its exits can be compared with ONNX Runtime's. Several
execution contexts share the one optimisation profile, which 8.6 has to be told.

Source: NVIDIA's Python API references and migration guides. tensorrt_rtx 1.6.1 and 1.7.1 built engines with this; other branches
ran against stand-ins alone.
"""

from __future__ import annotations

import importlib
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zpipe.errors import BackendUnavailable, ConfigError, ExecutorError, one_line
from zpipe.executors.tensorrt.refusal import unavailable
from zpipe.executors.tensorrt.watching import Progress, interrupt_held, make_logger, make_monitor, said, unwatched

log = logging.getLogger("zpipe.tensorrt")

#: Module of each flavour, the preferred first: the full library tunes its kernels on the GPU at hand.
MODULES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
#: What zpipe tells people to do where one is missing.
INSTALL = {
    "trt": "on a Jetson JetPack brings it (python3 -m venv --system-site-packages .venv), elsewhere take TensorRT for RTX "
    "(run: pip install 'zpipe[rtx]'), or install it as docs.nvidia.com/deeplearning/tensorrt says",
    "rtx": "run: pip install 'zpipe[rtx]'",
}

#: Scratch memory a layer may ask for: a board with 4 GB shared by CPU and GPU must go on living. Without a limit it is all memory.
_WORKSPACE_BYTES = 1 << 30

#: Flag of `tensorrt_rtx`: runs can be recorded into CUDA graphs, or it does not build; then it may without. Contexts of such an
#: engine must be given their scratch memory, as `loaded.py` does with all.
_CAPTURABLE = "REQUIRE_USER_ALLOCATION"

#: DataType's names as NumPy's.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}

#: (major, minor) of a GPU.
Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a network: `shape` with -1 for the batch, `dtype` in NumPy's words."""

    name: str
    output: bool
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine.

    Attributes:
        plan: its bytes.
        tensors: inputs, then outputs.
        profile: batch at least, at best, at most.
        seconds: building took.
        timing_cache: what the builder measured, for the next build; b"" where the flavour keeps none.
    """

    plan: bytes
    tensors: tuple[Tensor, ...]
    profile: tuple[int, int, int]
    seconds: float
    timing_cache: bytes


class Flavour:
    """One of the libraries, imported.

    Args:
        key: `trt` or `rtx`.
        module: the library.

    Attributes:
        version: of the library; plans are valid for exactly one.
        tag: key and version, as file names carry it.
    """

    def __init__(self, key: str, module: Any) -> None:
        self.key = key
        self.module = module
        self.version: str = module.__version__
        self.tag = f"{key}{self.version}"
        self.logger = make_logger(module)

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.key == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def targets(self) -> tuple[Capability, ...]:
        """The capabilities it builds for wherever it runs, ascending; () where it builds for the GPU at hand only."""
        names = dir(self.module.ComputeCapability) if self.key == "rtx" else ()
        found = (re.fullmatch(r"SM(\d+)(\d)", name) for name in names)
        return tuple(sorted((int(match[1]), int(match[2])) for match in found if match))

    @property
    def strongly_typed(self) -> bool:
        """Whether each tensor keeps the type the ONNX gives it; otherwise flags allow types."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def precisions(self) -> tuple[str, ...]:
        """What engines may compute in."""
        return ("fp32", "fp16", "bf16", "int8") if hasattr(self.module.DataType, "BF16") else ("fp32", "fp16", "int8")

    def build(
        self,
        onnx: bytes,
        *,
        what: str,
        outputs: Sequence[str],
        precision: str,
        target: Capability | None,
        max_batch: int,
        timing_cache: bytes = b"",
        progress: Progress | None = None,
    ) -> Built:
        """Build an engine for batches of 1 to `max_batch`.

        Args:
            onnx: the network; it has one input, `input`, whose first axis is free.
            what: of it, for messages.
            outputs: those to keep; others are dropped.
            precision: one of `precisions`; where networks are strongly typed the ONNX already is of it.
            target: one of `targets`; None = whatever the library builds without being told: `tensorrt` for the GPU at hand,
                `tensorrt_rtx` for capability 8.0 and later.
            max_batch: the profile's upper end.
            timing_cache: of an earlier build on this GPU with this version; anything else is passed over.
            progress: called as it goes, where the library tells.

        Raises:
            ExecutorError: it does not take the network, or failed.
            BackendUnavailable: it needs a GPU and finds none.
            KeyboardInterrupt: Ctrl-C, at the next step of the build.
        """
        start = time.monotonic()
        trt, monitor = self.module, None
        with interrupt_held() as interrupted:
            builder = self.make("Builder")
            network = builder.create_network(self._network_flags())
            parser = trt.OnnxParser(network, self.logger)
            if not parser.parse(onnx):
                reasons = "; ".join(dict.fromkeys(_reason(parser.get_error(i)) for i in range(parser.num_errors)))
                raise ExecutorError(
                    f"{what}: found a network that {self} does not take ({one_line(reasons) or self.logger.first}), "
                    f"expected operators it knows; run this stage with executor onnx"
                )
            _drop_other_outputs(network, outputs)
            config = builder.create_builder_config()
            profile = _add_profile(builder, network, config, max_batch)
            self._configure(config, precision, target)
            cache = self._attach_timing_cache(config, timing_cache)
            if hasattr(trt, "IProgressMonitor"):
                config.progress_monitor = monitor = make_monitor(trt, progress or unwatched, interrupted)
            serialized = builder.build_serialized_network(network, config)
            if serialized is None and not interrupted() and self.logger.interrupt is None and hasattr(trt.BuilderFlag, _CAPTURABLE):
                config.clear_flag(getattr(trt.BuilderFlag, _CAPTURABLE))
                serialized = builder.build_serialized_network(network, config)
        for watcher in (self.logger, monitor):
            if watcher is not None and watcher.interrupt is not None:
                raise watcher.interrupt
        if serialized is None:
            raise ExecutorError(
                f"{what}: found no engine from {self} ({self.logger.first}), expected one; "
                f"take another --precision or target, or executor onnx, which needs none"
            )
        measured = bytes(cache.serialize()) if cache is not None else b""
        return Built(bytes(serialized), _tensors(network), profile, time.monotonic() - start, measured)

    def _network_flags(self) -> int:
        flags = self.module.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH)

    def _configure(self, config: Any, precision: str, target: Capability | None) -> None:
        trt = self.module
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        config.clear_flag(trt.BuilderFlag.TF32)
        if not self.strongly_typed:
            for flag in {"fp16": ("FP16",), "int8": ("INT8",)}.get(precision, ()):
                config.set_flag(getattr(trt.BuilderFlag, flag))
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if hasattr(trt.BuilderFlag, _CAPTURABLE):
            config.set_flag(getattr(trt.BuilderFlag, _CAPTURABLE))
        if target is not None and self.targets:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target[0]}{target[1]}"), 0)

    def _attach_timing_cache(self, config: Any, known: bytes) -> Any:
        """The cache in use; None where kernels are chosen at run time."""
        if self.key == "rtx":
            return None
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):
            log.debug("%s: the timing cache is another version's or GPU's and is made anew", self)
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def make(self, thing: str) -> Any:
        """A `Builder` or a `Runtime`; without a GPU the full library's constructors raise a TypeError.

        Raises:
            BackendUnavailable: the library refuses.
        """
        self.logger.forget()
        try:
            return getattr(self.module, thing)(self.logger)
        except (TypeError, RuntimeError) as exc:
            raise unavailable(str(self), *self.logger.said) or BackendUnavailable(
                f"{self}: found no {thing} to be had ({self.logger.first}), expected a GPU it works with; "
                f"`zpipe doctor` says what is missing"
            ) from exc


def load_flavour(key: str) -> Flavour:
    """Import one of the libraries.

    Raises:
        ConfigError: there is none of that name.
        BackendUnavailable: it is not installed, or does not load here.
    """
    if key not in MODULES:
        raise ConfigError(f"--flavour: found {key!r}, expected one of {', '.join(MODULES)}; choose one of these")
    if key not in _loaded:
        try:
            module = importlib.import_module(MODULES[key])
            _loaded[key] = Flavour(key, module)
        except Exception as exc:  # a stub's own error, a missing library of the system's
            found = f"no {MODULES[key]} that loads ({one_line(said(f'{type(exc).__name__}: {exc}'))})"
            raise BackendUnavailable(f"TensorRT: found {found}, expected it installed; {INSTALL[key]}") from exc
    return _loaded[key]


def flavours() -> tuple[Flavour, ...]:
    """Those that load here, the preferred first.

    Raises:
        BackendUnavailable: none does.
    """
    tried = [_try_flavour(key) for key in MODULES]
    found = tuple(each for each in tried if isinstance(each, Flavour))
    if not found:
        raise next(each for each in reversed(tried) if isinstance(each, BackendUnavailable))
    return found


def _try_flavour(key: str) -> Flavour | BackendUnavailable:
    try:
        return load_flavour(key)
    except BackendUnavailable as exc:
        return exc


#: By key. A process imports each library once, and the library keeps the first logger it is given.
_loaded: dict[str, Flavour] = {}


def _drop_other_outputs(network: Any, outputs: Sequence[str]) -> None:
    """An output that nobody reads would still want an address at every run."""
    others = [tensor for tensor in map(network.get_output, range(network.num_outputs)) if tensor.name not in outputs]
    for tensor in others:
        network.unmark_output(tensor)


def _add_profile(builder: Any, network: Any, config: Any, max_batch: int) -> tuple[int, int, int]:
    """Kernels are chosen for the middle batch: a quarter of the most, as a busy node's batches mostly are part-filled."""
    batches = (1, max(1, max_batch // 4), max_batch)
    profile = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    config.add_optimization_profile(profile)
    return batches


def _tensors(network: Any) -> tuple[Tensor, ...]:
    inputs = [(network.get_input(i), False) for i in range(network.num_inputs)]
    outputs = [(network.get_output(i), True) for i in range(network.num_outputs)]
    return tuple(Tensor(each.name, output, dtype_name(each.dtype), tuple(each.shape)) for each, output in (*inputs, *outputs))


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a DataType."""
    name: str = dtype.name
    return _DTYPES.get(name, name.lower())


def _reason(error: Any) -> str:
    """Of a parser; since 10.0 it knows the operator."""
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"{operator}: {said(error.desc())}" if operator else said(error.desc())

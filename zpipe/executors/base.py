"""What a stage executor is, and the registry that finds one by name.

An executor owns the engines of the stages one node hosts. It is told what to run (a stage, a batch, a gate) and answers with
activations and exit decisions; it knows nothing of queues, links or samples. The same contract holds for ONNX Runtime, for
replayed decisions and for TensorRT, and one set of tests checks it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError, ExecutorError
from zpipe.model import DTYPE_BYTES, GateSpec, StageSpec, TensorSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

#: name in a topology -> `module:class`. Modules are imported on first use, so a node needs only the backend it runs.
EXECUTORS = {
    "emulated": "zpipe.executors.emulated:EmulatedExecutor",
    "onnx": "zpipe.executors.onnx:OnnxExecutor",
}

_DTYPES = {name: np.dtype(name) for name in DTYPE_BYTES}


@dataclass(slots=True)
class StageOutput:
    """What one batch through one stage gave.

    Attributes:
        activation: `[batch, ...]` for all rows, exited or not, in the order of the input; None for the last stage. The
            receiver owns it: the executor neither keeps nor reuses the memory.
        exited: per row, whether the gate let it leave here.
        labels: per row, index into the bundle's classes; -1 where the stage has no exit head.
        confidences: per row, 0..1, float32 values; 0 where the stage has no exit head.
        wall_seconds: `time.perf_counter` around engine and gate; on an emulated device what the board would have taken.
        cpu_seconds: `time.thread_time` of the calling thread around engine and gate.
    """

    activation: npt.NDArray[Any] | None
    exited: list[bool]
    labels: list[int]
    confidences: list[float]
    wall_seconds: float
    cpu_seconds: float


class StageExecutor(Protocol):
    """Runs the stages one node hosts. `run` may be called from several threads at once.

    Attributes:
        stages: the stages it can run, ascending.
        inline: whether short batches may run on an event loop; False where `run` waits.
    """

    stages: tuple[int, ...]
    inline: bool

    def warm_up(self, max_batch: int) -> dict[int, float]:
        """Load every stage and run it at batch 1 and at `max_batch`.

        Returns:
            {stage: median seconds per sample at batch 1}, measured in a tight loop: with other work between calls the caches
            are cold and a stage takes up to three times as long, so use it as a first guess only.
        """
        ...

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        """Run one batch through one stage and its exit gate.

        Args:
            stage: one of `stages`.
            inputs: `[batch, *shape]` in the dtype the bundle states for this stage, batch >= 1; it is only read.
            gate: one threshold per row.

        Raises:
            ExecutorError: the stage is not hosted here, the input or the gate does not fit it, or the engine failed.
            BundleError: the stage's file does not hold what the manifest says (at its first use).
            BackendUnavailable: the library or device is not here (at first use at the latest).
        """
        ...

    def close(self) -> None:
        """Free engines and device memory. Idempotent; `run` afterwards raises ExecutorError."""
        ...


def make_executor(name: str, bundle: Bundle, stages: Sequence[int], **options: object) -> StageExecutor:
    """The executor a topology names, for some stages of a bundle. Cheap: engines are loaded at first use or by `warm_up`.

    Args:
        name: a key of `EXECUTORS`.
        bundle: where the stages' files and specifications come from.
        stages: hosted stages, in any order.
        options: what the executor's own class takes.

    Raises:
        ConfigError: there is no executor of that name, it knows no such option, or the bundle has no such stage.
        BackendUnavailable: the library it needs is not installed.
    """
    missing = sorted(set(stages) - set(range(len(bundle.stages))))
    if missing:
        last = len(bundle.stages) - 1
        raise ConfigError(
            f"executor {name}: found stages {missing}, expected some of 0..{last} as bundle {bundle.name} has; correct `stages`"
        )
    known = executor_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"executor {name}: found options {unknown}, expected some of: {', '.join(known) or 'none'}; correct the topology"
        )
    return cast("StageExecutor", _factory(name)(bundle, stages, **options))


def executor_options(name: str) -> tuple[str, ...]:
    """The options `make_executor` takes for this executor.

    Raises:
        ConfigError: there is no executor of that name.
    """
    return tuple(inspect.signature(_factory(name)).parameters)[2:]


def _factory(name: str) -> Any:
    if name not in EXECUTORS:
        raise ConfigError(
            f"executor: found {name!r}, expected one of {', '.join(sorted(EXECUTORS))}; correct the topology's `executor`"
        )
    module, _, attribute = EXECUTORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_inputs(spec: StageSpec, inputs: npt.NDArray[Any]) -> None:
    """Refuse an input that does not fit the stage, before any engine sees it.

    Raises:
        ExecutorError: names what was found and what is expected.
    """
    expected = spec.input
    # Dtype objects compare in 0.05 µs; asking one for its name takes 1.8, and 3.5 after an engine has emptied the caches.
    if inputs.shape[1:] == expected.shape and inputs.dtype == _DTYPES[expected.dtype] and len(inputs) > 0:
        return
    found = f"{inputs.dtype.name} {list(inputs.shape)}"
    wanted = f"{expected.dtype} {_batched(expected)} with batch >= 1"
    raise ExecutorError(f"stage {spec.index}: found input {found}, expected {wanted}; reshape or convert it before submitting")


def sample_inputs(spec: StageSpec, batch: int) -> npt.NDArray[Any]:
    """A plausible `[batch, *shape]` input for warming up: the same at every call, bytes over the full range, floats in 0..1."""
    rng = np.random.default_rng(spec.index)
    shape = (batch, *spec.input.shape)
    if spec.input.dtype.startswith("float"):
        return rng.random(shape, dtype=np.float32).astype(spec.input.dtype)
    high = min(np.iinfo(spec.input.dtype).max, 255)
    return rng.integers(0, high, size=shape, endpoint=True).astype(spec.input.dtype)


def _batched(spec: TensorSpec) -> str:
    return f"[batch, {', '.join(map(str, spec.shape))}]"

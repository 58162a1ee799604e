"""What a stage executor is, and how one is found by its name.

An executor owns the engines of the stages one node hosts. It is told what to run (a stage, a batch, a gate) and answers with
activations and exit decisions; it knows nothing of queues, links or samples. The same contract holds for ONNX Runtime, for
replayed decisions and for TensorRT, and one set of tests checks it.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError, ExecutorError, ZpipeError, one_line
from zpipe.executors.cuda.presence import require
from zpipe.model import CONFIDENCE_SLACK, DTYPE_BYTES, GateSpec, StageSpec, TensorSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

#: Name in a topology -> `module:class`. Modules are imported on first use, so a node needs only the backend it runs. Any other
#: `module:class` may stand in a topology, too.
EXECUTORS = {
    "auto": "zpipe.executors.auto:make",
    "emulated": "zpipe.executors.emulated:EmulatedExecutor",
    "onnx": "zpipe.executors.onnx:OnnxExecutor",
    "torch-cuda": "zpipe.executors.torch_cuda:TorchCudaExecutor",
    "trt": "zpipe.executors.trt:TrtExecutor",
}

#: No batch takes as long: 31 years.
_MOST_SECONDS = 1e9

_DTYPES = {name: np.dtype(name) for name in DTYPE_BYTES}


@runtime_checkable
class ResidentRows(Protocol):
    """Activations that lie where their executor keeps them (a GPU's memory), for a stage that it hosts as well.

    They go back to the same executor's `run` as they are; `np.asarray` copies them to the host for anybody else, and raises
    ExecutorError when that executor was closed or lost.

    Attributes:
        shape: `(rows, ...)`.
        dtype: of the elements.
        nbytes: of all rows.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]: ...

    def join(self, rows: Sequence[tuple[Batch, int]]) -> ResidentRows:
        """One batch of rows `(batch, index)`, resident ones of the same executor or the host's, in this order. Copies nothing."""


#: A batch of activations `[rows, ...]`.
Batch: TypeAlias = "npt.NDArray[Any] | ResidentRows"


@dataclass(slots=True)
class StageOutput:
    """What one batch through one stage gave.

    Attributes:
        activation: `[rows, ...]` in the order of the input, for all rows or for those alone that do not exit (the count tells
            which); None for the last stage. The receiver owns it: the executor neither changes nor reuses the memory as long as
            anything refers to it.
        exited: per row, whether the gate let it leave here.
        labels: per row, index into the bundle's classes; -1 where the stage has no exit head.
        confidences: per row, 0..1, float32 values; 0 where the stage has no exit head.
        wall_seconds: `time.perf_counter` around engine and gate; on an emulated device what the board would have taken; on a GPU
            how long it was occupied by this batch, without the time this one waited behind another.
        cpu_seconds: `time.thread_time` around engine and gate, of the calling thread and of one that worked for it.
        scores: `[rows, classes] float32`, the raw logits where the gate asks for them (`wanted_scores`), else None.
    """

    activation: Batch | None
    exited: list[bool]
    labels: list[int]
    confidences: list[float]
    wall_seconds: float
    cpu_seconds: float
    scores: npt.NDArray[np.float32] | None = None


@runtime_checkable
class Encoder(Protocol):
    """An executor that can code activations for a link itself."""

    def encode(self, stage: int, codec: str) -> bool:
        """From the next batch on give this stage's activations as that codec's rows, `[rows, row_bytes] uint8`.

        Told before the first live batch, of a loaded stage whose survivors can only go to neighbours, over links of that codec.

        Returns:
            Whether it will; if not, the activations stay as they are.
        """


@runtime_checkable
class Waited(Protocol):
    """An executor that keeps a time of its own and wants to know which batches had to wait for it."""

    def waited(self) -> None:
        """Told on the thread of the `run` that follows: the node had that batch when it heard of the end of the one before."""


class StageExecutor(Protocol):
    """Runs the stages one node hosts. `run` may be called from several threads at once.

    It may have an attribute `parallel`: how many batches it wants at once (see `parallel()`), and methods `encode` (`Encoder`) and
    `waited` (`Waited`).

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
            inputs: `[batch, *shape]` in the dtype the bundle states for this stage, batch >= 1; it is only read. An executor that
                gives ResidentRows takes its own here, too.
            gate: one threshold per row.

        Raises:
            ExecutorError: the stage is not hosted here, the input or the gate does not fit it, or the engine failed on this batch.
            ExecutorLost: it will not run anything any more; the node takes its stages out of service.
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
        name: a key of `EXECUTORS`, or `module:class`; called with bundle, stages and options.
        bundle: where the stages' files and specifications come from.
        stages: hosted stages, in any order.
        options: what the executor's own class takes.

    Raises:
        ConfigError: there is no executor of that name, it knows no such option, the bundle has no such stage, or has students and
            the executor does not give their scores.
        ExecutorError: it could not be made.
        BackendUnavailable: the library it needs is not installed, or there is no GPU.
    """
    missing = sorted(set(stages) - set(range(len(bundle.stages))))
    if missing:
        last = len(bundle.stages) - 1
        raise ConfigError(
            f"executor {name}: found stages {missing}, expected some of 0..{last} as bundle {bundle.name} has; correct `stages`"
        )
    factory = _factory(name)
    if inspect.isclass(factory):
        _check_scores(name, bundle, factory)
    require(name)  # before its module asks for one library after the other
    known = executor_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"executor {name}: found options {unknown}, expected some of: {', '.join(known) or 'none'}; correct the topology"
        )
    try:
        made = factory(bundle, stages, **options)
    except ZpipeError:
        raise
    except Exception as exc:  # of somebody else's class
        raise ExecutorError(f"executor {name}: found {_said(exc)} when it was made, expected an executor; correct it") from exc
    lacks = [attribute for attribute in ("stages", "inline", "warm_up", "run", "close") if not hasattr(made, attribute)]
    if lacks:
        raise ConfigError(
            f"executor {name}: found {type(made).__name__} without {', '.join(lacks)}, expected a zpipe.executors.StageExecutor"
        )
    _check_scores(name, bundle, made)
    return cast("StageExecutor", made)


def _check_scores(name: str, bundle: Bundle, executor: object) -> None:
    """A student's label alone says nothing: its scores are joined with the others'."""
    if bundle.students and not getattr(executor, "scores", False):
        raise ConfigError(
            f"executor {name}: found bundle {bundle.name} of {len(bundle.students)} students, expected one chain: it does not give "
            "the scores that are joined; take executor onnx"
        )


def parallel(executor: StageExecutor) -> int:
    """How many batches it wants at once, so that one is copied while another is computed: its attribute `parallel`, else 1."""
    return max(1, int(getattr(executor, "parallel", 1)))


def is_executor_name(name: str) -> bool:
    """Whether a topology may name this: a key of `EXECUTORS`, or in the form `module:class`. Imports nothing."""
    module, colon, attribute = name.partition(":")
    return name in EXECUTORS or (bool(colon) and all(part.isidentifier() for part in (*module.split("."), attribute)))


def executor_name(executor: StageExecutor) -> str:
    """What a topology would call it: a key of `EXECUTORS`, or `module:class`."""
    kind = f"{type(executor).__module__}:{type(executor).__qualname__}"
    return next((name for name, path in EXECUTORS.items() if path == kind), kind)


def executor_options(name: str) -> tuple[str, ...]:
    """The options `make_executor` takes for this executor.

    Raises:
        ConfigError: there is no executor of that name, or its module does not load.
    """
    return tuple(inspect.signature(_factory(name)).parameters)[2:]


def _factory(name: str) -> Any:
    if not is_executor_name(name):
        raise ConfigError(
            f"executor: found {name!r}, expected one of {', '.join(sorted(EXECUTORS))}, or MODULE:CLASS of your own; "
            f"correct the topology's `executor`"
        )
    module, _, attribute = EXECUTORS.get(name, name).partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute, None)
    except Exception as exc:  # of somebody else's module
        raise ConfigError(
            f"executor {name}: found {_said(exc)} on importing {module}, expected a module that Python finds where the node runs; "
            f"install it there or put its folder on PYTHONPATH"
        ) from exc
    if not callable(factory):
        found = "nothing" if factory is None else type(factory).__name__
        raise ConfigError(f"executor {name}: found {found} as {attribute} in {module}, expected a class; correct the topology")
    return factory


def _said(exc: Exception) -> str:
    return one_line(" ".join(f"{type(exc).__name__}: {exc}".split()))


def check_inputs(spec: StageSpec, inputs: Batch) -> None:
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


def check_output(spec: StageSpec, rows: int, output: StageOutput, *, scores: bool = False) -> None:
    """Refuse an output that does not fit the stage, before it goes on: a neighbour would drop it, or a later step break on it.

    It looks at shapes and at the values that travel, not into activations: those are read by the next stage alone, and one that
    holds a NaN ends at the gate.

    Args:
        spec: the stage that ran.
        rows: of the batch it ran on.
        output: as the executor gave it; anything may come from one that is not our own.
        scores: whether the gate asked for them.

    Raises:
        ExecutorError: names what was found and what is expected.
    """
    found, expected = _misfit(spec, rows, output)
    if not found and scores and spec.exit_head is not None:
        found, expected = _scores_misfit(spec.exit_head.classes, output)
    if found:
        raise ExecutorError(f"stage {spec.index}: found output {found}, expected {expected}; correct the executor")


_FITS = ("", "")


def _misfit(spec: StageSpec, rows: int, output: StageOutput) -> tuple[str, str]:
    """(found, expected) of the first thing wrong; `_FITS` if nothing is. 2.4 µs for a batch of 8, 7 for one of 64."""
    if not isinstance(output, StageOutput):
        return f"of type {type(output).__name__}", "a StageOutput"
    exited, labels, confidences = output.exited, output.labels, output.confidences
    for name, values, kind in (("exited", exited, bool), ("labels", labels, int), ("confidences", confidences, float)):
        if type(values) is not list:
            return f"{name} of type {type(values).__name__}", f"a list of {kind.__name__}"
        if len(values) != rows:
            return f"{name} of {len(values)} rows", f"{rows}, as in the batch"
        if set(map(type, values)) != {kind}:  # NumPy's scalars look alike, but the wire has no form for them
            return f"{name} with {' and '.join(sorted({type(value).__name__ for value in values}))}", f"a list of {kind.__name__}"
    if spec.exit_head is None:
        if True in exited:
            return f"that lets row {exited.index(True)} exit", "none to at a stage without an exit head"
    elif min(labels) < 0 or max(labels) >= spec.exit_head.classes:
        return f"label {max(labels, key=abs)}", f"0..{spec.exit_head.classes - 1}"
    # The sum is for a NaN, which hides from min and max behind the first value.
    if not (math.isfinite(sum(confidences)) and min(confidences) >= -CONFIDENCE_SLACK and max(confidences) <= 1 + CONFIDENCE_SLACK):
        wrong = next(value for value in confidences if not -CONFIDENCE_SLACK <= value <= 1 + CONFIDENCE_SLACK)
        return f"confidence {wrong} in row {confidences.index(wrong)}", "0..1"
    for name, seconds in (("wall_seconds", output.wall_seconds), ("cpu_seconds", output.cpu_seconds)):
        if not isinstance(seconds, float | int) or not 0.0 <= seconds <= _MOST_SECONDS:
            return f"{name} {seconds!r:.40}", f"seconds, 0..{_MOST_SECONDS:g}"
    return _activation_misfit(spec.output, exited, output.activation)


def _scores_misfit(classes: int, output: StageOutput) -> tuple[str, str]:
    """Of those that leave each must be finite: one that is not would spoil the sum of all parts."""
    scores, shape = output.scores, (len(output.exited), classes)
    if not isinstance(scores, np.ndarray) or scores.dtype != np.float32 or scores.shape != shape:
        found = f"{scores.dtype.name} {list(scores.shape)}" if isinstance(scores, np.ndarray) else type(scores).__name__
        return f"{found} as scores", f"float32 {list(shape)}, as its gate asks for them"
    leaving = scores if all(output.exited) else scores[output.exited]
    if not np.isfinite(leaving).all():
        return "scores that are not finite of a row that leaves", "such rows to stay, or to fail at a last stage"
    return _FITS


def _activation_misfit(expected: TensorSpec | None, exited: list[bool], activation: object) -> tuple[str, str]:
    if expected is None:
        return _FITS if activation is None else ("with an activation", "none from the last stage")
    rows, stay = len(exited), exited.count(False)
    if not isinstance(activation, np.ndarray) and not isinstance(activation, ResidentRows):
        found = f"{type(activation).__name__} as activation"
    elif activation.dtype == _DTYPES[expected.dtype] and activation.shape in ((rows, *expected.shape), (stay, *expected.shape)):
        return _FITS
    else:
        found = f"activation {activation.dtype.name} {list(activation.shape)}"
    fewer = f", or {stay} rows of those that stay" if stay < rows else ""
    return found, f"{expected.dtype} {[rows, *expected.shape]}{fewer}"


def sample_inputs(spec: StageSpec, batch: int) -> npt.NDArray[Any]:
    """A plausible `[batch, *shape]` input for warming up: the same at every call, bytes over the full range, floats in 0..1.

    Wider integers are 0 or 1: they may be tokens, and how many of these the network knows is not written anywhere.
    """
    rng = np.random.default_rng(spec.index)
    shape = (batch, *spec.input.shape)
    if spec.input.dtype.startswith("float"):
        return rng.random(shape, dtype=np.float32).astype(spec.input.dtype)
    high = np.iinfo(spec.input.dtype).max if np.dtype(spec.input.dtype).itemsize == 1 else 1
    return rng.integers(0, high, size=shape, endpoint=True).astype(spec.input.dtype)


def open_gate(spec: StageSpec, batch: int) -> GateSpec:
    """A gate for warming up: it does all its work and lets every row leave."""
    temperature = 1.0 if spec.exit_head is None else spec.exit_head.temperature
    return GateSpec("max-probability", temperature, (0.0,) * batch, last=spec.output is None)


def _batched(spec: TensorSpec) -> str:
    return f"[batch, {', '.join(map(str, spec.shape))}]"

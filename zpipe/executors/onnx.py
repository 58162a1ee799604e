"""Stages on ONNX Runtime, one CPU thread each.

Threads: one, and no spinning. ONNX Runtime's defaults (a thread per core that spins while it waits) cost 1.8 to 3.7 times the
throughput where five stage processes share two cores, and burn a full core at 100 requests a second. Graph optimisation
stays at ALL: EXTENDED is 2 to 3 times slower. IO binding, OrtValues and preallocated outputs were measured and are slower or
equal on a CPU (bench/micro_executor.py has the numbers), so the plain `InferenceSession.run` it is; it releases the GIL.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from zpipe.errors import BackendUnavailable, BundleError, ExecutorError, ExecutorLost, said
from zpipe.executors.base import StageOutput, check_inputs, open_gate, sample_inputs
from zpipe.executors.gate import evaluate_gate, undecided, wanted_scores
from zpipe.model import GateSpec, StageSpec, TensorSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

#: Runs of each stage that `warm_up` takes the median of; the first run of a shape also sizes ONNX Runtime's arena.
_WARM_UP_RUNS = 5

#: ONNX Runtime's "fatal": what goes wrong reaches us as an exception, once.
_LOG_FATAL = 4

#: What ONNX Runtime says when there is no memory left: its arena, the C++ library, the operating system. The exception's class
#: tells nothing: Fail in 1.31, RuntimeException before.
_NO_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory", "cannot allocate memory")

#: ONNX Runtime's name of each dtype a stage boundary may carry.
_ORT_TYPES = {
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}


class OnnxExecutor:
    """The stages one node hosts, each an ONNX Runtime session, loaded at first use.

    Args:
        bundle: its stages have input `input` and outputs `activation` (unless last) and `logits` (where there is an exit head).
        stages: hosted stages, each within the bundle.
        threads: intra-op threads; more than one only where a node has the cores for itself.

    Raises:
        BackendUnavailable: onnxruntime is not installed, or does not load here.
    """

    inline = True
    scores = True

    def __init__(self, bundle: Bundle, stages: Sequence[int], threads: int = 1) -> None:
        self.stages: tuple[int, ...] = tuple(sorted(set(stages)))
        self._bundle = bundle
        self._ort = _import_onnxruntime()
        self._threads = threads
        self._sessions: dict[int, _Session] = {}  #: loaded so far; written under the lock only
        self._loading = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<OnnxExecutor {self._bundle.name} | stages {self.stages} | loaded {tuple(self._sessions)}>"

    def warm_up(self, max_batch: int) -> dict[int, float]:
        """Load every stage, run it at `max_batch` and batch 1; {stage: median seconds per sample at batch 1}."""
        return {stage: self._warm_up_stage(stage, max_batch) for stage in self.stages}

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        """One batch through one stage and its gate; see `StageExecutor.run`."""
        session = self._sessions.get(stage) or self._load(stage)
        check_inputs(session.spec, inputs)
        wall, cpu = time.perf_counter(), time.thread_time()
        activation, logits = session.run(inputs)
        if logits is None:
            decision = undecided(stage, len(inputs), gate)
        else:
            decision = evaluate_gate(logits, gate)
        scores = None if logits is None else wanted_scores(logits, gate)
        cpu = time.thread_time() - cpu
        wall = time.perf_counter() - wall
        return StageOutput(activation, decision.exited, decision.labels, decision.confidences, wall, cpu, scores)

    def close(self) -> None:
        """Drop the sessions; a `run` still going on in another thread keeps its own until it ends."""
        with self._loading:
            self._closed = True
            self._sessions = {}

    def _load(self, stage: int) -> _Session:
        with self._loading:
            if self._closed:
                raise ExecutorError(f"stage {stage}: found a closed executor, expected an open one; make a new one")
            if stage not in self.stages:
                raise ExecutorError(f"stage {stage}: found {list(self.stages)} hosted here, expected it among them; check `stages`")
            if stage not in self._sessions:
                self._sessions[stage] = _Session(self._ort, self._bundle, stage, self._threads)
            return self._sessions[stage]

    def _warm_up_stage(self, stage: int, max_batch: int) -> float:
        spec = self._bundle.stages[stage]
        # The largest batch first: the arena then holds all that is ever needed, and the timed runs allocate nothing.
        for batch in sorted({max_batch, 1}, reverse=True):
            output = self.run(stage, sample_inputs(spec, batch), open_gate(spec, batch))
            _check_activation(self._bundle.stage_path(stage).name, spec, batch, output)
        inputs, gate = sample_inputs(spec, 1), open_gate(spec, 1)
        return statistics.median(self.run(stage, inputs, gate).wall_seconds for _ in range(_WARM_UP_RUNS))


class _Session:
    """One stage's session and the names of what it gives, in the order `run` wants them."""

    __slots__ = ("_names", "_session", "spec")

    def __init__(self, ort: Any, bundle: Bundle, stage: int, threads: int) -> None:
        self.spec = bundle.stages[stage]
        path = bundle.stage_path(stage)
        if not path.is_file():
            raise BundleError(f"{path}: found no such file, expected the ONNX of stage {stage}; restore the bundle's files")
        try:
            self._session = ort.InferenceSession(str(path), _session_options(ort, threads), providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise BundleError(f"{path}: found no ONNX that loads ({said(exc)}), expected stage {stage}; restore it") from exc
        self._names = _output_names(self.spec)
        _check_interface(str(path), self.spec, self._session)

    def run(self, inputs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
        """(activation or None, logits or None) of a checked batch.

        Raises:
            ExecutorError: ONNX Runtime failed; the session stays usable.
            ExecutorLost: it has no memory for one row alone, so there is not enough for any other.
        """
        try:
            outputs = self._session.run(self._names, {"input": inputs})
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            found = f"batch {len(inputs)} failed in ONNX Runtime: {said(exc)}"
            if len(inputs) == 1 and any(words in str(exc).lower() for words in _NO_MEMORY):
                raise ExecutorLost(f"stage {self.spec.index}: {found}; free memory on this board, or host fewer stages") from exc
            raise ExecutorError(f"stage {self.spec.index}: {found}; `zpipe doctor` checks the bundle") from exc
        if len(outputs) == 2:
            return outputs[0], outputs[1]
        return (None, outputs[0]) if self.spec.output is None else (outputs[0], None)


def available_providers() -> list[str]:
    """ONNX Runtime's execution providers here, for `zpipe doctor`.

    Raises:
        BackendUnavailable: onnxruntime is not installed, or does not load here.
    """
    return list(_import_onnxruntime().get_available_providers())


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        found = f"found no onnxruntime ({said(exc)})"
        raise BackendUnavailable(f"executor onnx: {found}, expected it installed; run: pip install onnxruntime") from exc
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    return onnxruntime


def _session_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _output_names(spec: StageSpec) -> list[str]:
    names = [] if spec.output is None else ["activation"]
    return names if spec.exit_head is None else [*names, "logits"]


def _check_interface(path: str, spec: StageSpec, session: Any) -> None:
    """Compare the file's inputs and outputs with the manifest: a wrong pair would fail later, in the middle of a run.

    Raises:
        BundleError: names file, tensor, found and expected.
    """
    expected: dict[str, TensorSpec] = {"input": spec.input}
    if spec.output is not None:
        expected["activation"] = spec.output
    if spec.exit_head is not None:
        expected["logits"] = TensorSpec("float32", (spec.exit_head.classes,))
    found = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    for name, tensor in expected.items():
        if name not in found:
            have = ", ".join(found) or "nothing"
            raise BundleError(f"{path}: {name}: found {have}, expected a tensor of that name; export the stage again")
        if not _fits(found[name], tensor):
            have = f"{found[name].type} {found[name].shape}"
            wanted = f"{tensor.dtype} [batch, {', '.join(map(str, tensor.shape))}] as in the manifest"
            raise BundleError(f"{path}: {name}: found {have}, expected {wanted}; export the stage again")


def _fits(node: Any, tensor: TensorSpec) -> bool:
    """Same dtype and rank, free batch axis, and no other axis that is fixed to another size (an axis may be symbolic)."""
    # Logits may also be float16, the gate takes both.
    types = {_ORT_TYPES[tensor.dtype]} | ({"tensor(float16)"} if node.name == "logits" else set())
    batch, *shape = node.shape or [0]
    sizes_fit = len(shape) == len(tensor.shape) and all(
        size == wanted or not isinstance(size, int) for size, wanted in zip(shape, tensor.shape, strict=True)
    )
    return node.type in types and not isinstance(batch, int) and sizes_fit


def _check_activation(file: str, spec: StageSpec, batch: int, output: StageOutput) -> None:
    """What the interface cannot say where axes are symbolic: the size of what really comes out.

    Raises:
        BundleError: names file, found and expected.
    """
    expected = None if spec.output is None else (batch, *spec.output.shape)
    found = None if output.activation is None else output.activation.shape
    if found != expected:
        raise BundleError(
            f"{file}: activation: found shape {found}, expected {expected} as in the manifest; export the stage again"
        )

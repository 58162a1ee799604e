"""ONNX Runtime on the CPU: one thread, no spinning, one session per stage.

The settings are measured, not taste. With the defaults (a thread per core, spinning) five stage processes on two cores had 1.8 to
3.7 times less throughput, and a node at 100 requests/s burnt a whole core. Graph optimisation below ALL costs a factor of 2-3.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from zpipe.errors import BackendUnavailable, BundleError, ExecutorError
from zpipe.executors.base import StageOutput, check_inputs, sample_inputs
from zpipe.executors.gate import evaluate_gate
from zpipe.model import NEVER_EXIT, GateSpec

if TYPE_CHECKING:
    from zpipe.bundle import Bundle

#: Runs per stage and batch size of a warm-up; the median is told.
WARM_UP_RUNS = 5
#: ORT's severity for "say nothing below fatal": what goes wrong comes to us as an exception.
_FATAL = 4


class OnnxExecutor:
    """See StageExecutor."""

    def __init__(self, bundle: Bundle, stages: Sequence[int]) -> None:
        self.stages = tuple(sorted(stages))
        self._bundle = bundle
        self._sessions: dict[int, tuple[Any, list[str], str]] = {}
        self._loading = threading.Lock()

    def warm_up(self, max_batch: int) -> dict[int, float]:
        """See StageExecutor."""
        seconds = {}
        for stage in self.stages:
            for batch in {max_batch, 1}:
                inputs = sample_inputs(self._bundle.stages[stage], batch)
                gate = GateSpec("max-probability", 1.0, (NEVER_EXIT,) * batch)
                took = [self.run(stage, inputs, gate).wall_seconds for _ in range(WARM_UP_RUNS)]
                if batch == 1:
                    seconds[stage] = statistics.median(took)
        return seconds

    def run(self, stage: int, inputs: npt.NDArray[Any], gate: GateSpec) -> StageOutput:
        """See StageExecutor."""
        check_inputs(self._bundle.stages[stage], inputs)
        session, names, input_name = self._sessions.get(stage) or self._load(stage)
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            outputs = dict(zip(names, session.run(names, {input_name: inputs}), strict=True))
        except Exception as exc:  # ORT raises a family of its own, which is not worth importing
            raise ExecutorError(f"stage {stage}: ONNX Runtime: {' '.join(str(exc).split())[:200]}") from exc
        decision = evaluate_gate(outputs["logits"], gate)
        return StageOutput(
            outputs.get("activation"),
            decision.exited,
            decision.labels,
            decision.confidences,
            time.perf_counter() - wall,
            time.thread_time() - cpu,
        )

    def close(self) -> None:
        """See StageExecutor."""
        self._sessions.clear()

    def _load(self, stage: int) -> tuple[Any, list[str], str]:
        with self._loading:
            if stage not in self._sessions:
                self._sessions[stage] = self._open(stage)
            return self._sessions[stage]

    def _open(self, stage: int) -> tuple[Any, list[str], str]:
        try:
            import onnxruntime as ort
        except ImportError as exc:
            raise BackendUnavailable(f"executor onnx: ONNX Runtime cannot be imported ({exc}); `pip install onnxruntime`") from exc
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _FATAL
        path = self._bundle.stage_path(stage)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:
            said = " ".join(str(exc).split())[:200]
            found = f"found a file ONNX Runtime cannot load ({said})"
            raise BundleError(f"{path}: {found}, expected the ONNX of stage {stage}; restore it") from exc
        names = [output.name for output in session.get_outputs()]
        if "logits" not in names:
            expected = "`logits` and, before the last stage, `activation`"
            raise BundleError(f"{path}: outputs: found {names}, expected {expected}; export it anew")
        return session, names, session.get_inputs()[0].name

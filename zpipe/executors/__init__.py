"""Stage executors: the only code that imports onnxruntime, TensorRT, pycuda or torch, each lazily in its own file."""

from zpipe.executors.base import EXECUTORS, StageExecutor, StageOutput, make_executor
from zpipe.executors.gate import GateDecision, evaluate_gate

__all__ = ["EXECUTORS", "GateDecision", "StageExecutor", "StageOutput", "evaluate_gate", "make_executor"]

"""ONNX Runtime, to ask a network what it computes: every tensor of it, not only what a stage gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from zpipe.errors import ConfigError, said

Array = npt.NDArray[Any]

_SILENT = 4


class Session:
    """A network in ONNX Runtime on the CPU.

    Args:
        model: less than 2 GB.
        name: of it, in error messages.
        optimised: whether nodes may be fused; without it every tensor by name can be asked for at little cost.

    Raises:
        ConfigError: ONNX Runtime does not take it: an operator it does not have, or a graph that is wrong.
    """

    def __init__(self, model: onnx.ModelProto, name: str, *, optimised: bool = True) -> None:
        onnxruntime.set_default_logger_severity(_SILENT)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._name = name
        try:
            content = model.SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime's errors have no base class of their own
            raise ConfigError(
                f"{name}: found a network that ONNX Runtime does not take ({said(exc)}), expected one that it runs; export it "
                "again with standard operators (opset 13 to 20)"
            ) from exc

    def run(self, inputs: dict[str, Array], outputs: Sequence[str]) -> list[Any]:
        """Values of these outputs; arrays, but for sequences and maps.

        Raises:
            RunFailed: ONNX Runtime failed on these inputs.
        """
        try:
            found: list[Any] = self._session.run(list(outputs), inputs)
        except Exception as exc:  # as above
            raise RunFailed(said(exc)) from exc
        return found


def session_for(model: onnx.ModelProto, outputs: Sequence[str], name: str, *, optimised: bool) -> Session:
    """A session with other tensors as its outputs; the model, of which no copy is made, is as before afterwards.

    Raises:
        ConfigError: as `Session`.
    """
    own = onnx.GraphProto()
    own.output.extend(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in outputs)
    try:
        return Session(model, name, optimised=optimised)
    finally:
        del model.graph.output[:]
        model.graph.output.extend(own.output)


class RunFailed(Exception):
    """What ONNX Runtime said; whoever asked knows what it means."""


def random_inputs(dtype: str, shape: Sequence[int], *, batch: int, high: int, seed: int) -> Array:
    """`[batch, *shape]`: floats from a standard normal, whole numbers from 0 up to `high`, that one excluded."""
    rng = np.random.default_rng(seed)
    full = (batch, *shape)
    if dtype.startswith("float"):
        return rng.standard_normal(full).astype(dtype)
    return rng.integers(0, high, full).astype(dtype)

"""From torch to one ONNX file per stage, and back again through ONNX Runtime to see that they agree."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from zpipe.calibrate.chain import StageChain
from zpipe.errors import ExecutorError
from zpipe.model import TensorSpec
from zpipe.models.network import MultiExitNet, Stage

#: ONNX Runtime and torch must agree on every value to this (absolute, on logits of about +-10).
PARITY = 1e-4

OPSET = 18


def export_stages(network: MultiExitNet, example: npt.NDArray[Any], folder: Path, *, first: int = 0) -> list[Path]:
    """Write `stageK.onnx` for every stage: input `input`, outputs `activation` (not in the last) and `logits`, any batch.

    Args:
        network: in eval mode.
        example: at least two samples `[batch, ...]`.
        folder: exists.
        first: number of the first stage.
    """
    paths = []
    x = torch.from_numpy(example)
    for index, stage in enumerate(network.stages, first):
        path = folder / f"stage{index}.onnx"
        onnx.save_model(strip(_to_onnx(stage, x)), path)
        paths.append(path)
        with torch.no_grad():
            answer = stage(x)
        x = answer[0] if isinstance(answer, tuple) else x
    return paths


def _to_onnx(stage: Stage, x: Tensor) -> onnx.ModelProto:
    outputs = ["logits"] if stage.last else ["activation", "logits"]
    # In place: after this the network no longer has the channels-last weights that make training fast.
    plain = stage.to(memory_format=torch.contiguous_format).eval()
    with warnings.catch_warnings():
        # The exporter warns about its own internals; nothing in them is ours to mend.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            plain,
            (x.contiguous(),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    return program.model_proto


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter wrote about the machine it ran on: source paths and stack traces in every node."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.value_info[:]
    return model


def parity_error(network: MultiExitNet, chain: StageChain, images: npt.NDArray[Any], *, relative: bool = False) -> float:
    """Largest difference between torch and ONNX Runtime, over activations and logits of every stage.

    Args:
        network: in eval mode.
        chain: its exported stages.
        images: at least one sample.
        relative: to each tensor's largest value, where that is above 1: random weights enlarge rounding errors as they do signals.

    Raises:
        ExecutorError: it is above PARITY.
    """
    worst = 0.0
    x = torch.from_numpy(images)
    y: npt.NDArray[np.generic] = images
    for index, stage in enumerate(network.stages):
        with torch.no_grad():
            answer = stage(x)
        activation, logits = chain.run_stage(index, y)
        expected = answer if isinstance(answer, tuple) else (None, answer)
        worst = max(worst, difference(logits, expected[1].numpy(), relative=relative))
        if expected[0] is None or activation is None:
            break
        worst = max(worst, difference(activation, expected[0].numpy(), relative=relative))
        # Each side goes on with its own activation: errors may add up here as they would in a line.
        x, y = expected[0], activation
    if not worst <= PARITY:
        raise ExecutorError(f"exported stages: found a difference of {worst:.2g} from torch, expected at most {PARITY:g}")
    return worst


def difference(found: npt.NDArray[Any] | None, expected: npt.NDArray[Any], *, relative: bool) -> float:
    """Largest difference of two tensors, perhaps over the largest value expected."""
    scale = max(1.0, float(np.abs(expected).max())) if relative else 1.0
    return float(np.abs(found - expected).max()) / scale


def stage_tensors(network: MultiExitNet, example: npt.NDArray[Any]) -> list[tuple[TensorSpec, TensorSpec | None]]:
    """One sample's tensor before and after each stage."""
    tensors: list[tuple[TensorSpec, TensorSpec | None]] = []
    x = torch.from_numpy(example[:2])
    for stage in network.stages:
        before = _spec(x)
        with torch.no_grad():
            answer = stage(x)
        if isinstance(answer, tuple):
            x = answer[0]
            tensors.append((before, _spec(x)))
        else:
            tensors.append((before, None))
    return tensors


def _spec(x: Tensor) -> TensorSpec:
    return TensorSpec(str(x.dtype).removeprefix("torch."), tuple(x.shape[1:]))

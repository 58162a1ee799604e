"""A bundle's stages as one: what splitting costs is measured against it. Needs `onnx` (extra `train`)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import compose, utils

from zpipe.bundle import Bundle


def unsplit(bundle: Bundle, folder: Path) -> Bundle:
    """A bundle of one stage that computes what the last of all stages does; the earlier exit heads are left out.

    Args:
        bundle: a real one.
        folder: exists; gets the one ONNX file, and the evaluation set.
    """
    models = [compose.add_prefix(onnx.load(bundle.stage_path(spec.index)), f"{spec.index}/") for spec in bundle.stages]
    whole = models[0]
    for index, model in enumerate(models[1:], start=1):
        whole = compose.merge_models(whole, model, io_map=[(f"{index - 1}/activation", f"{index}/input")])
    last = bundle.stages[-1]
    whole = utils.Extractor(whole).extract_model(["0/input"], [f"{last.index}/logits"])
    _rename(whole, {"0/input": "input", f"{last.index}/logits": "logits"})
    onnx.save_model(whole, folder / "whole.onnx")
    if bundle.evaluation_file is not None:
        shutil.copy(bundle.path / bundle.evaluation_file, folder)
    first = bundle.stages[0]
    stage = replace(last, index=0, file="whole.onnx", input=first.input, macs=bundle.full_macs)
    point = replace(bundle.default_point, thresholds=(0.0,))
    return replace(
        bundle,
        name=f"{bundle.name}-unsplit",
        path=folder,
        stages=(stage,),
        operating_points=(point,),
        default_point=point,
        replay_file=None,
        bottleneck_file=None,
    )


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for listed in (node.input, node.output):
            listed[:] = [names.get(name, name) for name in listed]

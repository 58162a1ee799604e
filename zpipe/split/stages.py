"""From a network and its cuts to one ONNX file per stage, in the form that every executor takes.

A stage has the input `input` and the outputs `activation` (not the last) or `logits` (the last). Where several tensors cross a cut,
the stage before lays them end to end in one, `[batch, values]`, and the stage behind takes it apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

import numpy as np
import onnx

from zpipe.model import TensorSpec
from zpipe.split.cuts import Cut
from zpipe.split.graph import add_constant, mentioned, needed, rename
from zpipe.split.network import BATCH, Network

INPUT, ACTIVATION, LOGITS = "input", "activation", "logits"

_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "uint8": onnx.TensorProto.UINT8,
    "int8": onnx.TensorProto.INT8,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
}


def crossing_spec(network: Network, cut: Cut) -> TensorSpec:
    """One sample of what a stage hands on at this cut."""
    specs = [network.tensors[name] for name in cut.tensors]
    return specs[0] if len(specs) == 1 else TensorSpec(specs[0].dtype, (sum(math.prod(spec.shape) for spec in specs),))


def make_stages(network: Network, cuts: Sequence[Cut]) -> Iterator[onnx.ModelProto]:
    """One model per stage, made as it is asked for."""
    ends = [None, *cuts, None]
    return (_make_stage(network, before, after) for before, after in pairwise(ends))


def _make_stage(network: Network, before: Cut | None, after: Cut | None) -> onnx.ModelProto:
    entering = (network.input,) if before is None else before.tensors
    leaving = (network.output,) if after is None else after.tensors
    chosen, read = needed(network.nodes, leaving, set(entering))
    nodes = [_copy(node) for node in chosen]
    read |= set(leaving) & set(entering)  # carried past this stage
    graph = onnx.GraphProto(name="stage")
    graph.initializer.extend(item for item in network.model.graph.initializer if item.name in read)
    own = _set_aside((INPUT, ACTIVATION, LOGITS), mentioned(nodes) | read)
    rename(nodes, own)
    for item in graph.initializer:
        item.name = own.get(item.name, item.name)
    entering, leaving = (tuple(own.get(name, name) for name in names) for names in (entering, leaving))
    takes = network.takes if before is None else crossing_spec(network, before)
    gives = network.tensors[network.output] if after is None else crossing_spec(network, after)
    names = [] if before is None else [network.tensors[name] for name in before.tensors]
    result = LOGITS if after is None else ACTIVATION
    first = _batch(graph) if BATCH in read else []
    first += _unpack(graph, entering, names) if len(entering) > 1 else []
    last = _pack(graph, leaving, [network.tensors[name] for name in after.tensors]) if after and len(leaving) > 1 else []
    nodes = [*first, *nodes, *last]
    if len(entering) == 1:
        rename(nodes, {entering[0]: INPUT})
    if len(leaving) == 1:
        rename(nodes, {leaving[0]: result})
    graph.node.extend(nodes)
    graph.input.append(_value(INPUT, takes))
    graph.output.append(_value(result, gives))
    return _model(network, graph)


def _set_aside(names: Sequence[str], taken: AbstractSet[str]) -> dict[str, str]:
    """What the user's tensors of these names are called instead."""
    found = {}
    for name in names:
        other = f"{name}.own"
        while other in taken:
            other += "_"
        found[name] = other
    return found


def _model(network: Network, graph: onnx.GraphProto) -> onnx.ModelProto:
    """With what a network needs beside its graph; without what its exporter wrote about the machine it ran on."""
    model = onnx.ModelProto(ir_version=network.model.ir_version, producer_name="zpipe", graph=graph)
    model.opset_import.extend(network.model.opset_import)
    for item in (model.graph, *model.graph.node, *model.graph.initializer):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    return model


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def _value(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, _TYPES[spec.dtype], ["batch", *spec.shape])


def _batch(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """BATCH from this stage's own input."""
    first = add_constant(graph, "zpipe.first", np.array([0], np.int64))
    return [
        onnx.helper.make_node("Shape", [INPUT], ["zpipe.entered"]),
        onnx.helper.make_node("Gather", ["zpipe.entered", first], [BATCH], axis=0),
    ]


def _pack(graph: onnx.GraphProto, names: Sequence[str], specs: Sequence[TensorSpec]) -> list[onnx.NodeProto]:
    """Each tensor as one row per sample, end to end."""
    nodes = []
    for index, (name, spec) in enumerate(zip(names, specs, strict=True)):
        row = add_constant(graph, f"zpipe.row{index}", np.array([0, math.prod(spec.shape)], np.int64))
        nodes.append(onnx.helper.make_node("Reshape", [name, row], [f"zpipe.packed{index}"]))
    rows = [node.output[0] for node in nodes]
    return [*nodes, onnx.helper.make_node("Concat", rows, [ACTIVATION], axis=1)]


def _unpack(graph: onnx.GraphProto, names: Sequence[str], specs: Sequence[TensorSpec]) -> list[onnx.NodeProto]:
    """The inverse."""
    sizes = add_constant(graph, "zpipe.sizes", np.array([math.prod(spec.shape) for spec in specs], np.int64))
    rows = [f"zpipe.part{index}" for index in range(len(names))]
    nodes = [onnx.helper.make_node("Split", [INPUT, sizes], rows, axis=1)]
    for index, (name, spec) in enumerate(zip(names, specs, strict=True)):
        shape = add_constant(graph, f"zpipe.shape{index}", np.array([0, *spec.shape], np.int64))
        nodes.append(onnx.helper.make_node("Reshape", [rows[index], shape], [name]))
    return nodes

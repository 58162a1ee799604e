"""ONNX graphs as this package sees them: renaming, constants, the tensors that cross from one side to the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from zpipe.models.graphs import reads, subgraphs

Array = npt.NDArray[Any]


def rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Gives tensors other names wherever these nodes and their subgraphs mention them; the new names are not in use.

    What a body calls its own is renamed as well: what hid a tensor of the surrounding graph still does, and nothing else.
    """
    for node in nodes:
        for listed in (node.input, node.output):
            listed[:] = [names.get(name, name) for name in listed]
        for graph in subgraphs(node):
            rename(graph.node, names)
            for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
                item.name = names.get(item.name, item.name)


def mentioned(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name in these nodes and their subgraphs."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input, node.output)
        for graph in subgraphs(node):
            found |= mentioned(graph.node)
            found.update(item.name for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
    return found


def needed(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str], stops: AbstractSet[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """What has to be computed for some tensors when others are given.

    `onnx.utils.Extractor` does nearly this, but looks past what subgraphs capture.

    Args:
        nodes: of the graph, in topological order.
        outputs: the tensors wanted.
        stops: the tensors given.

    Returns:
        The nodes, in order, and the tensors that they read and do not make: given ones, initializers, inputs of the graph.
    """
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    chosen: set[int] = set()
    open_names, read = [name for name in outputs if name not in stops], set()
    while open_names:
        name = open_names.pop()
        index = makers.get(name)
        if index is None:
            read.add(name)
            continue
        if index in chosen:
            continue
        chosen.add(index)
        for wanted in reads(nodes[index]):
            (read.add if wanted in stops else open_names.append)(wanted)
    return [nodes[index] for index in sorted(chosen)], read


def live_tensors(nodes: Sequence[onnx.NodeProto], source: str) -> set[str]:
    """The tensors whose values depend on `source`, itself included."""
    live = {source}
    for node in nodes:
        if any(name in live for name in reads(node)):
            live.update(filter(None, node.output))
    return live


def crossings(nodes: Sequence[onnx.NodeProto], live: AbstractSet[str], source: str, output: str) -> list[tuple[str, ...]]:
    """After each node, the live tensors that later ones still read, in the order in which they were made.

    Where that is one tensor, everything from the input to the output passes through it (an articulation point of the graph), and
    every articulation point is found, whatever the topological order: all nodes are its ancestors or its descendants.

    Args:
        nodes: in topological order, each needed for `output`.
        live: tensors that depend on `source`.
        source, output: where it begins and ends.
    """
    last_read = {output: len(nodes)}
    for index, node in enumerate(nodes):
        last_read.update(dict.fromkeys((name for name in reads(node) if name in live and name != output), index))
    alive, found = [source], []
    for index, node in enumerate(nodes):
        alive += [name for name in node.output if name in live]
        alive = [name for name in alive if last_read.get(name, -1) > index]
        found.append(tuple(alive))
    return found


def constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Small whole-number constants by name: shapes, axes. Weights are left where they are."""
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer if _small(item)}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value" and _small(node.attribute[0].t):
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Constant" and node.attribute and node.attribute[0].name in ("value_ints", "value_int"):
            known[node.output[0]] = np.asarray(onnx.helper.get_attribute_value(node.attribute[0]), np.int64)
        elif node.op_type == "Identity" and node.input[0] in known:
            known[node.output[0]] = known[node.input[0]]
    return known


def _small(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and math.prod(tensor.dims) <= 64


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value."""
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def add_constant(graph: onnx.GraphProto, name: str, values: Array) -> str:
    """A new initializer; the name is made unique if it is taken. Returns its name."""
    taken = {item.name for item in graph.initializer} | {output for node in graph.node for output in node.output}
    taken |= {item.name for item in graph.input}
    while name in taken:
        name += "_"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name

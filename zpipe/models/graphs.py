"""Who reads what in an ONNX graph, the bodies of If, Loop and Scan included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors of the surrounding graph that a node needs, those that its subgraphs capture included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        own = {item.name for item in (*graph.input, *graph.initializer)} | {name for each in graph.node for name in each.output}
        for each in graph.node:
            yield from (name for name in reads(each) if name not in own)
        yield from (output.name for output in graph.output if output.name not in own)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs

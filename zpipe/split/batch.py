"""A batch of fixed size, taken out of a graph."""

from __future__ import annotations

import numpy as np
import onnx

from zpipe.split.graph import add_constant, attribute, constants, live_tensors
from zpipe.split.reading import Original
from zpipe.split.running import RunFailed, random_inputs, session_for


def free_batch(original: Original, graph: onnx.GraphProto) -> None:
    """Opens the batch axis of input and outputs, and of every Reshape that names the old size.

    What else may have been built for one batch size shows when it runs with another.

    Args:
        original: as read.
        graph: a copy of its own, changed here.
    """
    tensor = graph.input[0].type.tensor_type
    for dim, size in zip(tensor.shape.dim, ("batch", *original.takes.shape), strict=True):
        dim.Clear()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    for item in graph.output:
        item.type.tensor_type.ClearField("shape")
    if original.batch is not None:
        _free_reshapes(original, graph)


def _free_reshapes(original: Original, graph: onnx.GraphProto) -> None:
    known, live = constants(graph), live_tensors(graph.node, original.input)
    found = [
        node
        for node in graph.node
        if node.op_type == "Reshape"
        and node.input[0] in live
        and (target := known.get(node.input[1])) is not None
        and target.size
        and target[0] == original.batch
        and not (attribute(node, "allowzero", 0) and (target == 0).any())
    ]
    rows = _first_axes(original, [node.input[0] for node in found])
    for node in found:
        target = known[node.input[1]].astype(np.int64).copy()
        # 0 copies the batch from what comes in; where another axis stands there, what is left over must be the batch.
        if rows.get(node.input[0]) == original.batch:
            target[0] = 0
        elif not (target == -1).any():
            target[0] = -1
        node.input[1] = add_constant(graph, f"{node.output[0]}.shape", target)
        del node.attribute[:]  # allowzero, which would make 0 mean none


def _first_axes(original: Original, names: list[str]) -> dict[str, int]:
    """How long the first axis of these tensors is at the batch that is built in."""
    assert original.batch is not None
    wanted = [name for name in dict.fromkeys(names) if name != original.input]
    if not wanted:
        return {original.input: original.batch}
    takes = original.takes
    rows = random_inputs(takes.dtype, takes.shape, batch=original.batch, high=1, seed=0)
    try:
        session = session_for(original.model, wanted, original.name, optimised=False)
        values = session.run({original.input: rows}, wanted)
    except RunFailed:
        return {}
    sizes = {name: value.shape[0] for name, value in zip(wanted, values, strict=True) if value.ndim}
    return {**sizes, original.input: original.batch}

"""What a node reads of the graph around it."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx", reason="needs onnx: pip install 'zpipe[split]'")

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from zpipe.models.graphs import reads
from zpipe.models.heads.graph import without_head

FLOAT = TensorProto.FLOAT


def loop(activation: str = "looped") -> object:
    """Its body captures `captured` and calls its own tensors `state`, `weight` and `sum`."""
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "weight"], ["sum"]), helper.make_node("Mul", ["sum", "captured"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", FLOAT, None)],
        initializer=[numpy_helper.from_array(np.ones(3, np.float32), "weight")],
    )
    return helper.make_node("Loop", ["times", "", "start"], [activation], body=body)


def test_node_reads_what_its_bodies_capture_and_not_what_is_their_own() -> None:
    assert set(reads(loop())) == {"times", "start", "captured"}


def test_weight_of_a_head_goes_with_it_though_a_body_calls_its_own_the_same() -> None:
    weights = [numpy_helper.from_array(np.full(3, value, np.float32), name) for name, value in (("weight", 2), ("captured", 3))]
    weights.append(numpy_helper.from_array(np.array(2, np.int64), "times"))
    graph = helper.make_graph(
        [loop("activation"), helper.make_node("Mul", ["activation", "weight"], ["logits"])],
        "stage",
        [helper.make_tensor_value_info("start", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info(name, FLOAT, ["batch", 3]) for name in ("activation", "logits")],
        initializer=weights,
    )
    stripped = without_head(helper.make_model(graph))
    assert [item.name for item in stripped.graph.initializer] == ["captured", "times"]
    assert [node.op_type for node in stripped.graph.node] == ["Loop"]

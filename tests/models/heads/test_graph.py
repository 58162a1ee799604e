"""Heads in ONNX files: the backbone stays byte for byte, the front computes what it says, old heads leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import onnx
from onnx import TensorProto, helper

from zpipe.bundle import Bundle, load_bundle
from zpipe.calibrate.chain import StageChain
from zpipe.errors import BundleError
from zpipe.model import TensorSpec
from zpipe.models.heads.graph import Front, Head, front_model, head_cost, with_head, without_head
from zpipe.models.heads.shape import HeadShape, grid_shape

HALF = Path(__file__).parents[3] / "engines" / "digits-mobilenetv2-half"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(HALF)


def grid_of(activation: TensorSpec, grid: int) -> HeadShape:
    channels, height, width = activation.shape
    return grid_shape(channels, height, width, grid)


def random_head(shape: HeadShape, *, hidden: int = 8, classes: int = 10) -> Head:
    rng = np.random.default_rng(0)

    def drawn(*sizes: int) -> npt.NDArray[np.float32]:
        return rng.normal(size=sizes).astype(np.float32)

    front = Front(shape, drawn(shape.channels), drawn(shape.channels) ** 2 + np.float32(0.5))
    return Head(front, drawn(hidden, shape.features), drawn(hidden), drawn(classes, hidden), drawn(classes))


# ---- the backbone ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_activation_is_the_same_bit_for_bit(bundle: Bundle, stage: int, tmp_path: Path) -> None:
    spec = bundle.stages[stage]
    assert spec.output is not None
    model = onnx.load(bundle.stage_path(stage))
    onnx.save_model(with_head(model, random_head(grid_of(spec.output, 4))), tmp_path / "other.onnx")
    onnx.save_model(without_head(model), tmp_path / "none.onnx")
    images = bundle.evaluation().images[:24]
    chain = StageChain([bundle.stage_path(index) for index in range(stage + 1)])
    x: npt.NDArray[np.generic] = images
    for index in range(stage):
        activation, _ = chain.run_stage(index, x)
        assert activation is not None
        x = activation
    before, old = chain.run_stage(stage, x)
    after, new = StageChain([tmp_path / "other.onnx"]).run_stage(0, x)
    bare, nothing = StageChain([tmp_path / "none.onnx"]).run_stage(0, x)
    assert before is not None
    assert np.array_equal(before, np.asarray(after))
    assert np.array_equal(before, np.asarray(bare))
    assert nothing is None
    assert old is not None
    assert new is not None
    assert not np.array_equal(old, new)


def test_backbone_nodes_and_weights_are_byte_for_byte_what_they_were(bundle: Bundle) -> None:
    model = onnx.load(bundle.stage_path(0))
    output = bundle.stages[0].output
    assert output is not None
    made = with_head(model, random_head(grid_of(output, 4)))
    old = {item.SerializeToString() for item in (*model.graph.node, *model.graph.initializer)}
    backbone = [item.SerializeToString() for item in without_head(model).graph.node]
    assert [item.SerializeToString() for item in made.graph.node][: len(backbone)] == backbone
    assert set(backbone) <= old
    kept = [item for item in made.graph.initializer if not item.name.startswith("zpipe/head/")]
    assert {item.SerializeToString() for item in kept} <= old
    onnx.checker.check_model(made, full_check=True)


def test_old_head_leaves_nothing_behind(bundle: Bundle) -> None:
    model = onnx.load(bundle.stage_path(1))
    bare = without_head(model)
    names = {name for node in bare.graph.node for name in node.input}
    assert {item.name for item in bare.graph.initializer} <= names
    assert [output.name for output in bare.graph.output] == ["activation"]
    output = bundle.stages[1].output
    assert output is not None
    again = without_head(with_head(model, random_head(grid_of(output, 2))))
    assert again.SerializeToString() == bare.SerializeToString()


def test_cost_of_a_head_is_that_of_its_linear_layers(bundle: Bundle) -> None:
    model = onnx.load(bundle.stage_path(0))
    # Trained with the network: 16 channels on a 4x4 grid, straight to 10 classes; a normalisation has a scale and a shift for each.
    assert head_cost(model) == (16 * 16 * 10, 16 * 16 * 10 + 10 + 2 * 16)
    output = bundle.stages[0].output
    assert output is not None
    head = random_head(grid_of(output, 4))
    macs, _ = head_cost(with_head(model, head))
    assert macs == head.hidden.size + head.weight.size


def test_head_on_a_half_precision_activation_says_the_same_in_float32(tmp_path: Path) -> None:
    head = random_head(HeadShape("none", 3))
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float16)

    def said(kind: int) -> npt.NDArray[np.float32]:
        values = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("input", "activation")]
        model = helper.make_model(
            helper.make_graph([helper.make_node("Identity", ["input"], ["activation"])], "graph", values[:1], values[1:]),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=8,
        )
        made = with_head(model, head)
        onnx.checker.check_model(made, full_check=True)
        onnx.save_model(made, tmp_path / "stage.onnx")
        given = x if kind == TensorProto.FLOAT16 else x.astype(np.float32)
        activation, logits = StageChain([tmp_path / "stage.onnx"]).run_stage(0, given)
        assert activation is not None
        assert activation.dtype == given.dtype
        assert logits is not None
        assert logits.dtype == np.float32
        return logits

    assert np.array_equal(said(TensorProto.FLOAT16), said(TensorProto.FLOAT))


def test_last_stage_keeps_its_head(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="found outputs logits, expected one named activation"):
        without_head(onnx.load(bundle.stage_path(4)))


def test_what_an_inner_graph_reads_is_kept() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["input", "w"], ["inner"])],
        "then",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("If", ["yes"], ["activation"], then_branch=inner, else_branch=inner),
                helper.make_node("Mul", ["activation", "v"], ["logits"]),
            ],
            "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("activation", "logits")],
            [
                helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
                helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]),
                helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0]),
            ],
        )
    )
    assert {item.name for item in without_head(model).graph.initializer} == {"yes", "w"}


# ---- the front ---------------------------------------------------------------------------------


def run_front(front: Front, x: npt.NDArray[np.float32], folder: Path) -> npt.NDArray[np.float32]:
    model = front_model(front, x.shape[1:])
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, folder / "front.onnx")
    features, _ = StageChain([folder / "front.onnx"]).run_stage(0, x)
    assert features is not None
    return features


def halves(z: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    return np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], axis)


def test_front_averages_each_half_of_each_channel(tmp_path: Path) -> None:
    shape = grid_shape(3, 7, 8, 2)
    front = random_head(shape).front
    x = np.random.default_rng(1).normal(size=(5, 3, 7, 8)).astype(np.float32)
    z = halves((x - front.mean[:, None, None]) / front.deviation[:, None, None], 1)
    expected = np.stack([z[:, :, top : top + 4, left : left + 4].mean((2, 3)) for top in (0, 3) for left in (0, 4)], -1)
    assert run_front(front, x, tmp_path) == pytest.approx(expected.reshape(5, -1), abs=1e-5)


def test_front_of_tokens(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, 6, 3)).astype(np.float32)
    for shape in (HeadShape("mean", 3), HeadShape("last", 3)):
        front = random_head(shape).front
        z = halves((x - front.mean) / front.deviation, 2)
        expected = z.mean(1) if shape.pooling == "mean" else z[:, -1]
        assert run_front(front, x, tmp_path) == pytest.approx(expected, abs=1e-5)


def test_front_of_a_vector(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    front = random_head(HeadShape("none", 3)).front
    assert run_front(front, x, tmp_path) == pytest.approx(halves((x - front.mean) / front.deviation, 1), abs=1e-5)

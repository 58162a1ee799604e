"""What cannot be split: one line that says what was found, what was expected and the way out; and nothing is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("onnx", reason="needs onnx: pip install 'zpipe[split]'")

import onnx
from onnx import TensorProto, helper

from tests.split.nets import Maker, layers, residual, skipping, tokens
from zpipe.bundle import load_bundle
from zpipe.cli import cli
from zpipe.errors import ConfigError
from zpipe.split import SplitOptions, list_cuts, split_model
from zpipe.split.run import opened
from zpipe.split.verify import check_stages, difference
from zpipe.topology import load_topology


def complaint(model: Path | str, **options: Any) -> str:
    """The message; and nothing was written."""
    out = Path(options.get("out", "bundle"))
    there = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ConfigError) as caught:
        split_model(SplitOptions(str(model), **{"topology": Path("line.yaml"), **options, "out": out}))
    assert sorted(Path.cwd().rglob("*")) == there
    message = str(caught.value)
    assert "\n" not in message
    assert "found" in message
    assert "expected" in message
    return message


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- files -------------------------------------------------------------------------------------


def test_file_that_is_not_there() -> None:
    assert "no such file" in complaint("gone.onnx")


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x00" * 100])
def test_file_that_is_no_onnx(content: bytes) -> None:
    Path("m.onnx").write_bytes(content)
    assert "package.module:factory" in complaint("m.onnx")


def test_external_data_that_is_missing() -> None:
    model = onnx.load(residual(Path("m.onnx")))
    onnx.save(model, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert split_model(SplitOptions("m.onnx", out=Path("whole"))).full_macs > 0
    Path("weights.bin").unlink()
    assert "weights.bin" in complaint("m.onnx")


def test_operator_that_onnx_runtime_does_not_have() -> None:
    maker = Maker()
    maker.nodes.append(helper.make_node("Sparkle", ["image"], ["scores"], domain="their.own"))
    maker.save(Path("m.onnx"), shape=["N", 4], output="scores")
    assert "Sparkle" in complaint("m.onnx")


def test_opset_that_cannot_be_converted() -> None:
    maker = Maker()
    maker.nodes.append(helper.make_node("Sparkle", ["image"], ["scores"]))
    maker.save(Path("m.onnx"), shape=["N", 4], output="scores", opset=9)
    assert "opset 9" in complaint("m.onnx")


# ---- inputs and outputs ------------------------------------------------------------------------


def test_two_inputs() -> None:
    model = onnx.load(residual(Path("m.onnx")))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, "m.onnx")
    assert "image, mask" in complaint("m.onnx")


def test_open_axes_need_an_example_shape() -> None:
    tokens(Path("m.onnx"), length="L")
    assert "--example-shape" in complaint("m.onnx")
    assert "--example-shape" in complaint("m.onnx", example_shape=(3, 2))
    assert split_model(SplitOptions("m.onnx", out=Path("b"), example_shape=(7,), stages=2)).stages[0].input.shape == (7,)


def test_several_outputs_are_to_be_chosen_from() -> None:
    model = onnx.load(residual(Path("m.onnx")))
    model.graph.output.append(helper.make_tensor_value_info("r0", TensorProto.FLOAT, None))
    onnx.save(model, "m.onnx")
    assert "scores, r0" in complaint("m.onnx")
    assert "scores, r0" in complaint("m.onnx", output="score")
    assert "[batch, classes]" in complaint("m.onnx", output="r0")
    assert split_model(SplitOptions("m.onnx", out=Path("b"), output="scores")).stages


def test_output_that_is_no_tensor() -> None:
    maker = Maker()
    maker.node("MatMul", ["image", maker.weight("w", 8, 3)], "values")
    maker.node("SequenceConstruct", ["values"], "scores")
    path = maker.save(Path("m.onnx"), shape=["N", 8], output="scores")
    model = onnx.load(path)
    del model.graph.output[:]
    floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model.graph.output.append(helper.make_value_info("scores", helper.make_sequence_type_proto(floats)))
    onnx.save(model, path)
    assert "ZipMap" in complaint(path)


def test_output_of_labels_has_no_scores() -> None:
    maker = Maker()
    values = maker.node("MatMul", ["image", maker.weight("w", 8, 3)], "values")
    maker.node("ArgMax", [values], "label", axis=1, keepdims=0)
    maker.save(Path("m.onnx"), shape=["N", 8], output="label")
    model = onnx.load("m.onnx")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, "m.onnx")
    assert "found int64 [batch]" in complaint("m.onnx")


def test_batch_that_is_built_in_and_cannot_be_freed() -> None:
    maker = Maker()
    inner = maker.node("Relu", ["image"], "inner")
    # Batch and rows become one axis of 4: nothing says which of it was the batch.
    mixed = maker.node("Reshape", [inner, maker.constant("four", 4, 2)], "mixed")
    maker.node("MatMul", [mixed, maker.weight("w", 2, 3)], "scores")
    maker.save(Path("m.onnx"), shape=[1, 8], output="scores")
    assert "dynamic batch axis" in complaint("m.onnx")


def test_samples_that_are_not_treated_by_themselves_are_refused() -> None:
    maker = Maker()
    inner = maker.node("Relu", ["image"], "inner")
    mean = maker.node("ReduceMean", [inner], "mean", axes=[0], keepdims=1)
    apart = maker.node("Sub", [maker.node("Relu", [inner], "again"), mean], "apart")
    hidden = maker.node("MatMul", [apart, maker.weight("w", 8, 8)], "hidden")
    maker.node("MatMul", [hidden, maker.weight("v", 8, 3)], "scores")
    maker.save(Path("m.onnx"), shape=["N", 8], output="scores")
    message = complaint("m.onnx", cuts=("hidden",))
    assert "depends on the others in its batch" in message
    assert "cut elsewhere" not in message


def test_random_layers_are_named() -> None:
    maker = Maker()
    hidden = maker.node("MatMul", ["image", maker.weight("w", 8, 8)], "hidden")
    noisy = maker.node("Add", [hidden, maker.node("RandomNormalLike", [hidden], "noise")], "noisy")
    maker.node("MatMul", [noisy, maker.weight("v", 8, 3)], "scores")
    maker.save(Path("m.onnx"), shape=["N", 8], output="scores")
    message = complaint("m.onnx", cuts=("hidden",))
    assert "RandomNormalLike" in message
    assert "cut elsewhere" not in message


def test_answers_that_are_no_numbers() -> None:
    maker = Maker()
    hidden = maker.node("MatMul", ["image", maker.weight("w", 8, 8)], "hidden")
    maker.node("MatMul", [maker.node("Sqrt", [hidden], "root"), maker.weight("v", 8, 3)], "scores")
    maker.save(Path("m.onnx"), shape=["N", 8], output="scores")
    assert "no finite numbers" in complaint("m.onnx", cuts=("hidden",))


def test_stage_that_answers_no_number_is_as_far_off_as_can_be() -> None:
    expected = np.zeros((2, 3), np.float32)
    found = expected.copy()
    found[1, 2] = np.nan
    assert difference(expected, expected) == 0.0
    assert difference(found, expected) == math.inf


def test_stage_that_does_not_load_is_named_without_the_folder_it_was_in(tmp_path: Path) -> None:
    options = SplitOptions(str(residual(Path("m.onnx"))))
    path = tmp_path / "stage0.onnx"
    path.write_bytes(b"no network")
    with opened(options, lambda line, done: None) as network, pytest.raises(ConfigError) as caught:
        check_stages(network, [path])
    assert "stage0.onnx: found no ONNX" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_input_of_no_type() -> None:
    model = onnx.load(layers(Path("m.onnx")))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    onnx.save(model, "m.onnx")
    assert "no type" in complaint("m.onnx")


# ---- cuts --------------------------------------------------------------------------------------


def test_cut_that_does_not_exist() -> None:
    assert "did you mean r1" in complaint(residual(Path("m.onnx")), cuts=("r11",))


def test_cut_where_more_crosses_says_what() -> None:
    message = complaint(residual(Path("m.onnx")), cuts=("a1",))
    assert "r1 crosses there as well" in message
    assert "cut at r1,a1" in message


@pytest.mark.parametrize("cuts", [("r1", "r1"), ("r0,i0", "r0,a0"), ("r0,a0", "r0,i0", "r0,a0")])
def test_cuts_that_cross_each_other(cuts: tuple[str, ...]) -> None:
    model = residual(Path("m.onnx"))
    if len(set(cuts)) == len(cuts):
        # One after the other they are fine, whatever their order.
        assert len(split_model(SplitOptions(str(model), out=Path("b"), cuts=cuts)).stages) == 3
    else:
        assert "behind the first" in complaint(model, cuts=cuts)


def test_cut_of_mixed_types() -> None:
    maker = Maker()
    x = maker.conv("image", "x", 3, 4)
    whole = maker.node("Cast", [x], "whole", to=TensorProto.INT64)
    y = maker.node("Add", [maker.node("Relu", [x], "y"), maker.node("Cast", [whole], "back", to=TensorProto.FLOAT)], "sum")
    maker.node("ReduceMean", [y], "scores", axes=[2, 3], keepdims=0)
    maker.save(Path("m.onnx"), shape=["N", 3, 4, 4], output="scores")
    assert "one float type" in complaint("m.onnx", cuts=("y,whole",))


def test_more_stages_than_places() -> None:
    message = complaint(residual(Path("m.onnx")), stages=6)
    assert "--stages: found 6, expected at most 5" in message
    assert "--crossing 2" in message
    # What is advised is enough; what is not enough is not advised.
    assert len(split_model(SplitOptions("m.onnx", out=Path("b"), stages=6, crossing=2)).stages) == 6
    assert "--crossing" not in complaint("m.onnx", stages=9, crossing=2)
    assert "--crossing 2" in complaint(skipping(Path("s.onnx")), stages=4)


def test_input_alone_is_no_cut() -> None:
    assert "no such tensor" in complaint(skipping(Path("m.onnx")), cuts=("image",))
    assert "cut at image,t0" in complaint("m.onnx", cuts=("t0",))


# ---- data and folders --------------------------------------------------------------------------


def test_data_that_does_not_fit() -> None:
    model = residual(Path("m.onnx"))
    floats = np.zeros((8, 3, 8, 8), np.float32)
    np.savez("labels.npz", images=floats, labels=np.arange(8))
    assert "0..5" in complaint(model, data=Path("labels.npz"))
    np.savez("size.npz", images=floats[:, :, :4], labels=np.zeros(8, int))
    assert "float32 [n, 3, 8, 8]" in complaint(model, data=Path("size.npz"))
    Path("classes.txt").write_text("one\ntwo\n")
    assert "found 2 names" in complaint(model, classes=Path("classes.txt"))
    Path("cats").mkdir()
    assert "--mean" in complaint(model, data=Path("cats"))
    assert "expected one for each class" in complaint(model, data=Path("cats"), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), None), (None, (0.0,)), ((1.0,) * 4, (1.0,))])
def test_mean_and_std_of_another_network(mean: Any, std: Any) -> None:
    assert "--" in complaint(residual(Path("m.onnx")), mean=mean, std=std)
    assert "leave them out" in complaint(tokens(Path("t.onnx")), mean=(0.5,))


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (
            (127.5,),
            (127.5,),
            "--mean: found 127.5, expected units in which images are 0..1, as torchvision has them; divide them by 255: 0.5",
        ),
        ((0.5, 0.5, 0.5), (0.2, 57.4, 0.2), "--std: found 57.4"),
        ((math.nan,), None, "--mean: found nan"),
        (None, (math.inf,), "--std: found inf"),
        (None, (-math.inf,), "--std: found -inf"),
    ],
)
def test_mean_and_std_of_other_units(mean: Any, std: Any, said: str) -> None:
    assert said in complaint(residual(Path("m.onnx")), mean=mean, std=std)


def test_folder_that_is_there_is_kept() -> None:
    model = residual(Path("m.onnx"))
    first = split_model(SplitOptions(str(model), out=Path("bundle")))
    existing = Path("line.yaml")
    existing.write_text("mine")
    assert "--replace" in complaint(model)
    assert "--replace" in complaint(model, out="other", topology=existing)
    assert ".yaml" in complaint(model, out="other", topology=model, replace=True)
    assert split_model(SplitOptions(str(model), out=Path("bundle"), stages=2, replace=True)).digest != first.digest
    Path("mine").mkdir()
    assert "no bundle" in complaint(model, out="mine", replace=True)


def test_what_is_read_is_never_replaced() -> None:
    split_model(SplitOptions(str(residual(Path("m.onnx"))), out=Path("bundle"), stages=2))
    Path("m.onnx").rename("bundle/m.onnx")
    assert "bundle/m.onnx lies in bundle" in complaint("bundle/m.onnx", out="bundle", replace=True)


def test_topology_that_cannot_be_written_costs_nothing() -> None:
    model = residual(Path("m.onnx"))
    first = split_model(SplitOptions(str(model), out=Path("bundle")))
    assert "nodir/x.yaml" in complaint(model, out="bundle", topology=Path("nodir/x.yaml"), replace=True, stages=2)
    assert load_bundle(first.path).digest == first.digest


def test_folder_that_cannot_be_written() -> None:
    Path("file").touch()
    assert "file/bundle: found that it cannot be written" in complaint(residual(Path("m.onnx")), out="file/bundle")


# ---- the command -------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["split", *arguments], standalone_mode=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--stages", "2", "--cut", "r1"),
        ("--mean", "grey"),
        ("--example-shape", "3,x"),
        ("--weights", "w.pt"),
        ("--devices", "nowhere.yaml"),
        ("--topology", "nodir/x.yaml"),
        ("--topology", "nodir/x.yaml", "--replace"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...]) -> None:
    found = run(str(residual(Path("m.onnx"))), *arguments)
    assert isinstance(found.exception, ConfigError)
    assert not Path("engines").exists()


def test_list_prints_places_and_a_command() -> None:
    found = run(str(residual(Path("m.onnx"))), "--list")
    assert found.exception is None
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["r0", "r1", "r2", "flat"]
    assert "--cut r2" in lines[-1]
    assert not Path("engines").exists()


def test_list_of_a_network_without_a_place() -> None:
    maker = Maker()
    maker.node("MatMul", ["image", maker.weight("w", 8, 3)], "scores")
    maker.save(Path("m.onnx"), shape=["N", 8], output="scores")
    found = run("m.onnx", "--list")
    assert isinstance(found.exception, ConfigError)
    assert "no place" in str(found.exception)
    assert "--crossing" not in str(found.exception)
    assert list_cuts(SplitOptions("m.onnx")).cuts == []


def test_list_says_how_many_have_to_cross() -> None:
    model = onnx.load(skipping(Path("m.onnx")))
    # Without the layer at which all comes together there is no place for one tensor.
    del model.graph.node[-1]
    model.graph.node[-1].op_type, model.graph.node[-1].output[0] = "Add", "scores"
    del model.graph.node[-1].attribute[:]
    onnx.save(model, "m.onnx")
    found = run("m.onnx", "--list")
    assert isinstance(found.exception, ConfigError)
    assert "--crossing 2" in str(found.exception)
    assert run("m.onnx", "--list", "--crossing", "2").exception is None


def test_seed_below_zero_is_refused() -> None:
    assert isinstance(run(str(layers(Path("m.onnx"))), "--seed", "-1").exception, click.UsageError)


def test_one_stage_is_not_offered_heads() -> None:
    found = run(str(layers(Path("m.onnx"))), "--stages", "1")
    assert found.exception is None
    assert "1 stage of" in found.stdout
    assert "heads" not in found.stdout


def test_command_shows_how_far_answers_are_apart_and_what_became_of_them() -> None:
    found = run(str(layers(Path("m.onnx"), endings=("Sigmoid",), half=True)), "--stages", "2")
    assert found.exception is None
    assert "(0.005 allowed, as it computes in half precision)" in found.stdout
    assert "answer: its Sigmoid" in found.stdout


def test_command_writes_bundle_and_topology() -> None:
    found = run(str(residual(Path("m.onnx"))), "--stages", "3")
    assert found.exception is None
    assert "zpipe bench --topology m.yaml" in found.stdout
    assert Path("engines/m/manifest.json").is_file()
    assert load_topology("m.yaml").bundle == "engines/m"
    assert "zpipe heads --bundle engines/m" in found.stdout

"""`zpipe split` of ONNX files that were made elsewhere: bundles that answer as the whole did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs onnx: pip install 'zpipe[split]'")

import onnx
import onnxruntime

from tests.split.nets import CLASSES, architecture, branching, layers, looping, residual, skipping, tokens
from zpipe.bundle import Bundle
from zpipe.calibrate.chain import StageChain
from zpipe.model import TensorSpec
from zpipe.models.heads.data import read_head_data
from zpipe.sim import simulate
from zpipe.split import SplitOptions, list_cuts, split_model, split_record
from zpipe.split.run import chosen_cuts, listed_cuts, opened
from zpipe.split.stages import make_stages
from zpipe.split.verify import PARITY, check_stages
from zpipe.topology import load_topology


def split(model: Path, **options: Any) -> Bundle:
    folder = model.parent
    return split_model(SplitOptions(str(model), **{"out": folder / "bundle", "topology": folder / "line.yaml", **options}))


def chain_of(bundle: Bundle) -> StageChain:
    return StageChain([bundle.stage_path(stage.index) for stage in bundle.stages])


def original(model: Path, rows: Any) -> Any:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"image": rows})[0]


def images(count: int, *, size: int = 8) -> Any:
    return np.random.default_rng(1).standard_normal((count, 3, size, size)).astype(np.float32)


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def macs(size: int = 8) -> list[int]:
    """Stem, three blocks of two convolutions, classifier."""
    pixels = size * size
    return [3 * 8 * 9 * pixels, *[8 * 8 * 9 * pixels] * 6, 8 * CLASSES]


# ---- where -------------------------------------------------------------------------------------


def test_list_finds_every_place_where_one_tensor_carries_everything(tmp_path: Path) -> None:
    listing = list_cuts(SplitOptions(str(residual(tmp_path / "m.onnx"))))
    assert [cut.name for cut in listing.cuts] == ["r0", "r1", "r2", "flat"]
    assert [cut.bytes for cut in listing.cuts] == [2048, 2048, 2048, 32]
    whole = macs()
    assert listing.macs == sum(whole)
    assert [cut.macs_before for cut in listing.cuts] == [sum(whole[:1]), sum(whole[:3]), sum(whole[:5]), sum(whole[:7])]
    assert all(cut.macs_before + cut.macs_after == listing.macs for cut in listing.cuts)
    # The rest: sums before their activation, the last block, and what is pooled.
    assert listing.others == 6


def test_list_shows_where_two_cross_if_asked(tmp_path: Path) -> None:
    listing = list_cuts(SplitOptions(str(residual(tmp_path / "m.onnx")), crossing=2))
    assert "r0,i0" in [cut.name for cut in listing.cuts]


def test_equal_stages_cost_about_the_same(tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"), stages=3)
    one = macs()
    assert [stage.macs for stage in bundle.stages] == [sum(one[:3]), sum(one[3:5]), sum(one[5:])]


@pytest.mark.parametrize(("bandwidth", "convolutions"), [("1 Gbit/s", 3), ("1 Mbit/s", 7)])
def test_planner_cuts_for_the_devices_and_links_there_are(tmp_path: Path, bandwidth: str, convolutions: int) -> None:
    devices = tmp_path / "two.yaml"
    devices.write_text(
        "devices:\n  - {name: pi, device: raspberry-pi-4, count: 2}\n"
        f"links: {{shape: line, bandwidth: {bandwidth}, latency: 0 ms}}\n"
    )
    bundle = split(residual(tmp_path / "m.onnx", size=32), devices=str(devices))
    # Fast links: halves as equal as the places allow. Slow ones: where the fewest bytes cross, though little is left to do there.
    costs = macs(32)
    assert [stage.macs for stage in bundle.stages] == [sum(costs[:convolutions]), sum(costs[convolutions:])]


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", *slow("resnet50", "densenet121", "inception_v2")])
@pytest.mark.parametrize("stages", [4, 5])
def test_well_known_networks_are_cut(tmp_path: Path, name: str, stages: int) -> None:
    model = architecture(name, tmp_path / f"{name}.onnx")
    options = SplitOptions(str(model), stages=stages)
    with opened(options, lambda line, done: None) as network:
        cuts = chosen_cuts(network, options)
        paths = [tmp_path / f"stage{index}.onnx" for index in range(stages)]
        for path, stage in zip(paths, make_stages(network, cuts), strict=True):
            onnx.save(stage, path)
        assert float(network.expected(network.examples(2, seed=1)).std()) > 1e-3, "answers that do not vary would hide anything"
        assert check_stages(network, paths) <= PARITY
    costs = np.diff([0, *(cut.macs_before for cut in cuts), sum(network.macs)])
    # The best that these places allow, as near to equal as the largest piece between two of them.
    pieces = np.diff([0, *(cut.macs_before for cut in listed_cuts(network, options)[1]), sum(network.macs)])
    assert costs.max() <= costs.sum() / stages + pieces.max()


# ---- what comes out ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"ending": "Softmax"},
        {"batch": 1, "reshape": "constant"},
        {"opset": 11},
    ],
    ids=["free", "softmax", "fixed-batch", "old-opset"],
)
def test_stages_answer_as_the_original(tmp_path: Path, made: dict[str, Any], batch: int) -> None:
    model = residual(tmp_path / "m.onnx", **made)
    bundle = split(model)
    rows = images(batch)
    logits = chain_of(bundle).logits(rows, batch=batch)[:, -1]
    if made.get("ending"):
        logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.concatenate([original(model, row[None]) for row in rows])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert bundle.stages[0].input == TensorSpec("float32", (3, 8, 8))
    assert bundle.preprocessing is None


def test_stage_files_are_valid_and_say_nothing_of_the_machine(tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"))
    for stage in bundle.stages:
        model = onnx.load(bundle.stage_path(stage.index))
        onnx.checker.check_model(model, full_check=True)
        assert str(tmp_path) not in str(model)
        # Shapes of far layers are taken from the stage's own input.
        assert "r0" not in {name for node in model.graph.node for name in node.input if stage.index}


def test_several_tensors_cross_in_one_frame(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    # The second cut carries r0 on, which the first handed over; the third is an ordinary one.
    bundle = split(model, cuts=("i0,r0", "r0,b0", "r2"))
    assert [stage.output and stage.output.shape for stage in bundle.stages] == [(1024,), (1024,), (8, 8, 8), None]
    rows = images(5)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=5)[:, -1], original(model, rows), atol=1e-4)


def test_functions_of_the_file_are_looked_into(tmp_path: Path) -> None:
    model = onnx.load(residual(tmp_path / "m.onnx"))
    body = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(onnx.helper.make_function("their.own", "Activation", ["x"], ["y"], body, model.opset_import))
    model.opset_import.append(onnx.helper.make_opsetid("their.own", 1))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Activation", "their.own"
    onnx.save(model, tmp_path / "m.onnx")
    bundle = split(tmp_path / "m.onnx")
    rows = images(3)
    expected = original(tmp_path / "m.onnx", rows)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=3)[:, -1], expected, atol=1e-4)


def test_what_a_branch_captures_crosses_too(tmp_path: Path) -> None:
    model = branching(tmp_path / "m.onnx")
    names = [cut.name for cut in list_cuts(SplitOptions(str(model), crossing=2)).cuts]
    # Not `late` alone, which the branch reads together with `early`; both at once are twice the bytes of what follows.
    assert names == ["early", "again"]
    bundle = split(model, cuts=("late,early", "chosen"))
    rows = np.random.default_rng(3).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=4)[:, -1], original(model, rows), atol=1e-4)


def numbers(count: int, *, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(3).standard_normal((count, 8)).astype(dtype)


def test_loop_keeps_its_own_names(tmp_path: Path) -> None:
    model = looping(tmp_path / "m.onnx")
    bundle = split(model, stages=2)
    assert bundle.stages[1].macs > 0
    rows = numbers(4)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=4)[:, -1], original(model, rows), atol=1e-4)
    bundle = split(model, cuts=("r0", "looped"), out=tmp_path / "three", topology=None)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=4)[:, -1], original(model, rows), atol=1e-4)


def test_input_that_later_layers_read_travels_with_the_activation(tmp_path: Path) -> None:
    model = skipping(tmp_path / "m.onnx")
    assert [cut.name for cut in list_cuts(SplitOptions(str(model), crossing=2)).cuts] == ["image,s0", "image,s1", "both"]
    bundle = split(model, stages=4, crossing=2)
    assert [stage.output and stage.output.shape for stage in bundle.stages] == [(16,), (16,), (16,), None]
    rows = numbers(5)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=5)[:, -1], original(model, rows), atol=1e-4)


def test_one_tensor_that_comes_in_may_be_one_of_several_that_go_on(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    bundle = split(model, cuts=("r0", "r0,b0", "r1"))
    rows = images(3)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=3)[:, -1], original(model, rows), atol=1e-4)


@pytest.mark.parametrize("endings", [("Softmax",), ("Softmax", "Identity"), ("Softmax", "Relu")])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_probabilities_become_logits(tmp_path: Path, endings: tuple[str, ...], half: bool) -> None:
    model = layers(tmp_path / "m.onnx", endings=endings, half=half)
    bundle = split(model, stages=2)
    rows = numbers(6, dtype=np.float16 if half else np.float32)
    expected = original(model, rows).astype(np.float32)
    logits = chain_of(bundle).logits(rows, batch=6)[:, -1]
    found = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found / found.sum(1, keepdims=True), expected, atol=5e-3 if half else 1e-4)
    # Scores before the Softmax where they can be had: they are exact where probabilities have long been 0.
    assert split_record(bundle).answer.startswith("its probabilities" if "Relu" in endings else "the Softmax")


def test_bundle_says_how_far_its_answers_are_from_the_networks(tmp_path: Path) -> None:
    whole, half = (
        split_record(split(layers(tmp_path / f"{half}.onnx", half=half), stages=2, out=tmp_path / str(half), topology=None))
        for half in (False, True)
    )
    assert (whole.half, half.half) == (False, True)
    assert whole.parity_error <= whole.parity_limit == PARITY < half.parity_limit
    assert whole.parity_error < half.parity_error <= half.parity_limit


def test_scores_of_a_sigmoid_are_remarked_on(tmp_path: Path) -> None:
    model = layers(tmp_path / "m.onnx", endings=("Sigmoid",))
    bundle = split(model, stages=2)
    np.testing.assert_allclose(chain_of(bundle).logits(numbers(3), batch=3)[:, -1], original(model, numbers(3)), atol=1e-4)
    assert "each class by itself" in split_record(bundle).answer


@pytest.mark.parametrize(
    "name", ["2024", "no", "it's", "a: b #c", "~", "[x]", '"', "größe 日本 🙂", "tab\there", "line\nbreak", "- x", "x" * 120]
)
def test_topology_of_a_bundle_of_any_name_is_read_again(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    split(layers(folder / f"{name}.onnx"), out=folder / "engines" / name, topology=folder / f"{name}.yaml", stages=2)
    topology = load_topology(folder / f"{name}.yaml")
    assert (topology.name, topology.bundle) == (name, f"engines/{name}")
    assert simulate(topology, count=5, warm_up=0)["counts"]["result"] == 5


def test_mean_and_std_move_into_stage_0(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    bundle = split(model, mean=(0.5,), std=(0.2, 0.3, 0.4))
    assert bundle.image_size == 8
    pixels = np.random.default_rng(2).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    floats = (pixels / np.float32(255) - np.float32(0.5)) / np.array([0.2, 0.3, 0.4], np.float32)[:, None, None]
    np.testing.assert_allclose(
        chain_of(bundle).logits(pixels, batch=4)[:, -1], original(model, floats.astype(np.float32)), atol=1e-4
    )


def test_tokens_stay_whole_numbers(tmp_path: Path) -> None:
    model = tokens(tmp_path / "m.onnx")
    bundle = split(model, stages=2)
    assert bundle.stages[0].input == TensorSpec("int64", (5,))
    assert int(bundle.evaluation().images.max()) < 300
    rows = np.arange(10).reshape(2, 5)
    np.testing.assert_allclose(chain_of(bundle).logits(rows, batch=2)[:, -1], original(model, rows), atol=1e-4)


def test_made_up_evaluation_is_labelled_by_the_network(tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"))
    assert bundle.evaluation_generated
    evaluation = bundle.evaluation()
    np.testing.assert_array_equal(evaluation.labels, original(tmp_path / "m.onnx", evaluation.images).argmax(1))
    np.testing.assert_array_equal(bundle.replay().labels[:, -1], evaluation.labels)
    assert bundle.default_point.test.accuracy == 1.0


def test_labelled_data_becomes_evaluation_and_calibration(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    rows = images(40)
    labels = original(model, rows).argmax(1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    np.savez(tmp_path / "data.npz", images=rows, labels=labels)
    bundle = split(model, data=tmp_path / "data.npz")
    assert not bundle.evaluation_generated
    assert bundle.evaluation_samples + bundle.calibration_samples == 40
    split_accuracy = [bundle.default_point.calibration.accuracy, bundle.default_point.test.accuracy]
    weights = [bundle.calibration_samples, bundle.evaluation_samples]
    assert np.average(split_accuracy, weights=weights) == pytest.approx(36 / 40)


def test_folder_of_images_is_evaluation_and_calibration(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'zpipe[images]'")
    names = ["cat", "dog", "eel", "fox", "gnu", "hen"]
    for index, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            colour = (40 * index, 60 * number, 200)
            pillow.new("RGB", (16, 12), colour).save(tmp_path / "photos" / name / f"{number}.png")
    model = residual(tmp_path / "m.onnx")
    bundle = split(model, data=tmp_path / "photos", mean=(0.5,), std=(0.25,))
    assert bundle.classes == tuple(names)
    assert (bundle.evaluation_samples, bundle.calibration_samples) == (12, 12)
    # The network numbers its classes otherwise than folders sort.
    (tmp_path / "classes.txt").write_text("\n".join(reversed(names)))
    other = split(
        model,
        data=tmp_path / "photos",
        mean=(0.5,),
        std=(0.25,),
        classes=tmp_path / "classes.txt",
        out=tmp_path / "o",
        topology=None,
    )
    assert sorted(other.evaluation().labels) == sorted(bundle.evaluation().labels)
    assert list(other.evaluation().labels[:1]) == [5 - bundle.evaluation().labels[0]]


def test_simulator_runs_the_bundle_and_its_topology(tmp_path: Path) -> None:
    bundle = split(residual(tmp_path / "m.onnx"), stages=3)
    topology = load_topology(tmp_path / "line.yaml")
    assert [node.stages for node in topology.nodes] == [(0,), (1,), (2,)]
    report = simulate(topology, count=50, warm_up=0)
    assert (report["bundle"], report["counts"]["result"], report["accuracy"]) == (bundle.name, 50, 1.0)
    assert report["generated_inputs"]


def test_heads_never_learn_from_what_the_bundle_tests_on(tmp_path: Path) -> None:
    model = residual(tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", images=images(60), labels=np.arange(60) % CLASSES)
    bundle = split(model, data=tmp_path / "data.npz")
    found = read_head_data(bundle, tmp_path / "data.npz", test=None, seed=0)
    tested = {row.tobytes() for row in bundle.evaluation().images}
    assert len(tested) == len(found.test) == 30
    assert len(found.images) + len(found.calibration) == 30
    assert not tested & {row.tobytes() for row in (*found.images, *found.calibration.images)}

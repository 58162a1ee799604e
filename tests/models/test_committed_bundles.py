"""The bundles that lie in `engines/`: intact, small, and their tables follow from their own files. Needs no torch."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.bundle import Bundle, Evaluation, load_bundle
from zpipe.calibrate.metrics import Answers, answers_of, bootstrap, max_probability
from zpipe.calibrate.points import exit_of, measure_point, right_at
from zpipe.calibrate.table import TARGETS, Split, accuracy_table
from zpipe.calibrate.temperature import fit_variant
from zpipe.codecs import load_bottleneck, make_codecs
from zpipe.executors import evaluate_gate
from zpipe.model import CODECS, GateSpec, OperatingPoint, PointMetrics, TensorSpec

ENGINES = Path(__file__).parents[2] / "engines"
FULL, HALF, LARGE = "digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2"

#: What all files of a bundle may weigh. The full one is in the wheel.
MOST_BYTES = {FULL: 16e6, HALF: 16e6, LARGE: 12e6}

#: Another CPU sums in another order; this is what torch and ONNX Runtime may differ by, too.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[FULL, HALF, LARGE])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(ENGINES / request.param)


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> list[onnxruntime.InferenceSession]:
    return sessions_of(bundle)


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_text())
    return manifest


def sessions_of(bundle: Bundle) -> list[onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return [
        onnxruntime.InferenceSession(bundle.stage_path(stage.index), options, providers=["CPUExecutionProvider"])
        for stage in bundle.stages
    ]


def run_chain(bundle: Bundle, images: npt.NDArray[np.uint8], *, batch: int) -> npt.NDArray[np.float32]:
    """Raw logits of every exit `[samples, exits, classes]`, each stage fed with what the one before gave."""
    sessions = sessions_of(bundle)
    parts = []
    for start in range(0, len(images), batch):
        x: Any = images[start : start + batch]
        exits = []
        for session in sessions:
            *activation, logits = session.run(None, {"input": x})
            x = activation[0] if activation else None
            exits.append(logits)
        parts.append(np.stack(exits, 1))
    return np.concatenate(parts)


def answers_in(bundle: Bundle, codec: str = "none") -> Answers:
    replay = bundle.replay(codec)
    labels = replay.labels.astype(np.int64)
    return Answers(labels, replay.confidences, labels == evaluation_at(bundle.path).labels[:, None])


@cache
def evaluation_at(path: Path) -> Evaluation:
    """Read once: the pictures of 96 pixels take a while."""
    return load_bundle(path, verify=False).evaluation()


def assert_replayed(bundle: Bundle, samples: slice, *, batch: int) -> None:
    replay = bundle.replay()
    logits = run_chain(bundle, evaluation_at(bundle.path).images[samples], batch=batch)
    two_best = np.sort(logits, -1)[..., -2:]
    clear = two_best[..., 1] - two_best[..., 0] > 10 * TOLERANCE
    assert (logits.argmax(-1) == replay.labels[samples])[clear].all()
    for stage in bundle.stages:
        assert stage.exit_head is not None
        confidences = max_probability(logits[:, stage.index], stage.exit_head.temperature)
        assert np.abs(confidences - replay.confidences[samples, stage.index]).max() < TOLERANCE


def activation_bytes(bundle: Bundle) -> list[int]:
    """At each cut, uncoded."""
    return [stage.output.bytes for stage in bundle.stages if stage.output is not None]


def sent_bytes(bundle: Bundle, point: OperatingPoint) -> npt.NDArray[np.float64]:
    """Mean bytes per sample at each cut, uncoded: only what survives the exits before it crosses."""
    survivors = 1 - np.cumsum(point.test.exit_shares)[:-1]
    return np.asarray(np.array(activation_bytes(bundle)) * survivors)


# ---- files -------------------------------------------------------------------------------------


def test_bundle_stays_small(bundle: Bundle) -> None:
    sizes = [path.stat().st_size for path in bundle.path.iterdir() if path.is_file()]
    assert sum(sizes) < MOST_BYTES[bundle.name]
    assert max(sizes) < 8 * 2**20


def test_no_file_is_unlisted(bundle: Bundle) -> None:
    listed = set(manifest_of(bundle)["digests"]) | {"manifest.json"}
    assert {path.name for path in bundle.path.iterdir() if path.is_file()} == listed


def test_no_file_names_the_machine_it_was_made_on(bundle: Bundle) -> None:
    # Long enough patterns: three bytes like ".py" do turn up in 9 MB of weights.
    for path in [bundle.path / "manifest.json", *(bundle.stage_path(stage.index) for stage in bundle.stages)]:
        assert not re.search(rb"site-packages|/(home|root|tmp|work|usr)/|\w{4}\.py\b", path.read_bytes()), path


# ---- stages ------------------------------------------------------------------------------------


def test_onnx_interface_is_what_the_manifest_says(bundle: Bundle) -> None:
    types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    for stage, session in zip(bundle.stages, sessions_of(bundle), strict=True):
        (entrance,) = session.get_inputs()
        outputs = {output.name: output for output in session.get_outputs()}
        assert entrance.name == "input"
        assert isinstance(entrance.shape[0], str), "the batch must be free"
        assert TensorSpec(types[entrance.type], tuple(entrance.shape[1:])) == stage.input
        assert list(outputs) == ["logits"] if stage.output is None else ["activation", "logits"]
        if stage.output is not None:
            activation = outputs["activation"]
            assert TensorSpec(types[activation.type], tuple(activation.shape[1:])) == stage.output
        assert outputs["logits"].shape[1:] == [len(bundle.classes)]


def test_first_stage_takes_raw_pixels(bundle: Bundle) -> None:
    size = 96 if bundle.name == LARGE else 32
    assert bundle.stages[0].input == TensorSpec("uint8", (3, size, size))
    assert bundle.image_size == size


def test_full_network_is_mobilenetv2_at_full_width() -> None:
    bundle = load_bundle(ENGINES / FULL, verify=False)
    assert len(bundle.stages) == 5
    assert bundle.full_macs == pytest.approx(88e6, rel=0.02)
    parameters = sum(stage["parameters"] for stage in manifest_of(bundle)["stages"])
    assert parameters == pytest.approx(2.25e6, rel=0.02)


@pytest.mark.parametrize("batch", [1, 7])
def test_chained_stages_reproduce_the_replay(bundle: Bundle, batch: int) -> None:
    assert_replayed(bundle, slice(0, 140), batch=batch)


@pytest.mark.slow
def test_chained_stages_reproduce_the_whole_replay(bundle: Bundle) -> None:
    assert_replayed(bundle, slice(None), batch=1)


def test_calibration_and_executors_share_one_gate_to_the_last_bit(bundle: Bundle) -> None:
    logits = run_chain(bundle, evaluation_at(bundle.path).images[:50], batch=50)
    for stage in bundle.stages:
        assert stage.exit_head is not None
        thresholds = tuple(np.linspace(0.5, 1.0, 50).tolist())
        gate = GateSpec("max-probability", stage.exit_head.temperature, thresholds)
        decision = evaluate_gate(logits[:, stage.index], gate)
        ours = max_probability(logits[:, stage.index], stage.exit_head.temperature)
        assert ours.tolist() == decision.confidences
        both = np.stack([ours, np.zeros_like(ours)], 1)
        exited = [exit_of(row[None], (limit, limit))[0] == 0 for row, limit in zip(both, thresholds, strict=True)]
        assert exited == decision.exited


# ---- codecs ------------------------------------------------------------------------------------


def activations_of(bundle: Bundle, samples: int) -> list[npt.NDArray[np.float32]]:
    """What crosses each cut, without any codec."""
    x: Any = evaluation_at(bundle.path).images[:samples]
    activations = []
    for session in sessions_of(bundle)[:-1]:
        x = session.run(["activation"], {"input": x})[0]
        activations.append(x)
    return activations


def test_every_codec_was_measured(bundle: Bundle) -> None:
    assert bundle.replay_codecs() == CODECS == tuple(bundle.codecs)
    assert (bundle.codecs["none"].accuracy, bundle.codecs["none"].lost) == (bundle.default_point.test.accuracy, 0.0)


@pytest.mark.parametrize("codec", CODECS)
def test_accuracy_under_a_codec_follows_from_its_replay(bundle: Bundle, codec: str) -> None:
    row = manifest_of(bundle)["codecs"][codec]
    thresholds = bundle.default_point.thresholds
    right = right_at(answers_in(bundle, codec), thresholds).astype(float)
    assert row["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    lost = bootstrap(right_at(answers_in(bundle), thresholds) - right, evaluation_at(bundle.path).digit)
    assert [row["lost"], *row["lost_interval"]] == pytest.approx([lost.value, lost.low, lost.high], abs=1e-12)


def test_no_codec_costs_more_than_a_point(bundle: Bundle) -> None:
    lost = {name: metrics.lost for name, metrics in bundle.codecs.items()}
    assert lost["fp16"] <= 0.001
    assert lost["int8"] == lost["int8+zstd"] <= 0.002
    assert lost["bottleneck"] <= 0.01


def test_coded_bytes_are_what_the_codecs_send(bundle: Bundle) -> None:
    rows, codecs = manifest_of(bundle)["codecs"], make_codecs(bundle, CODECS)
    for name in CODECS:
        for cut, mean in enumerate(rows[name]["bytes"]):
            codec = codecs[name, cut + 1]
            assert 0.5 * codec.row_bytes < mean <= codec.row_bytes
            assert codec.packed or mean == codec.row_bytes
    raw = activation_bytes(bundle)
    assert rows["none"]["bytes"] == raw
    assert all(coded < plain / 3.5 for coded, plain in zip(rows["int8"]["bytes"], raw, strict=True))
    assert all(coded < plain / 14 for coded, plain in zip(rows["bottleneck"]["bytes"], raw, strict=True))


def test_packing_brings_the_same_activations(bundle: Bundle) -> None:
    codecs = make_codecs(bundle, ["int8", "int8+zstd"])
    for cut, activations in enumerate(activations_of(bundle, 8)):
        plain, packed = codecs["int8", cut + 1], codecs["int8+zstd", cut + 1]
        assert (plain.decode(plain.encode(activations), 8) == packed.decode(packed.encode(activations), 8)).all()


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "none"])
def test_chain_through_a_codec_reproduces_its_replay(
    bundle: Bundle, sessions: list[onnxruntime.InferenceSession], codec: str
) -> None:
    """Up to a step of the quantiser here and there: another CPU's last bits may fall on the other side of one."""
    codecs, samples = make_codecs(bundle, [codec]), 60
    replay = bundle.replay(codec)
    x: Any = evaluation_at(bundle.path).images[:samples]
    for stage, session in enumerate(sessions):
        *activation, logits = session.run(None, {"input": x})
        head = bundle.stages[stage].exit_head
        assert head is not None
        distance = np.abs(max_probability(logits, head.temperature) - replay.confidences[:samples, stage])
        assert np.mean(distance) < 2e-3
        assert np.mean(logits.argmax(1) == replay.labels[:samples, stage]) > 0.98
        if activation:
            coder = codecs[codec, stage + 1]
            x = coder.decode(coder.encode(activation[0]), samples)


def test_bottleneck_has_a_code_for_every_cut(bundle: Bundle) -> None:
    weights = load_bottleneck(bundle)
    assert list(weights) == [0, 1, 2, 3]
    for cut, weight in weights.items():
        output = bundle.stages[cut].output
        assert output is not None
        assert weight.encode.shape == (output.shape[0] // 4, output.shape[0])


# ---- where an activation is smaller than the picture -------------------------------------------


def test_96_pixel_network_sends_less_than_the_picture_at_every_cut() -> None:
    bundle = load_bundle(ENGINES / LARGE, verify=False)
    picture = bundle.stages[0].input.bytes
    assert picture == 27_648
    for point in bundle.operating_points:
        assert (sent_bytes(bundle, point) < 0.7 * picture).all()
    assert (sent_bytes(bundle, bundle.default_point) < 0.5 * picture).all()


def test_32_pixel_network_sends_more_than_the_picture_at_its_first_cut() -> None:
    bundle = load_bundle(ENGINES / FULL, verify=False)
    assert sent_bytes(bundle, bundle.default_point)[0] > 10 * bundle.stages[0].input.bytes


# ---- tables ------------------------------------------------------------------------------------


def test_test_column_follows_from_the_replay_exactly(bundle: Bundle) -> None:
    answers = answers_in(bundle)
    macs = [stage.macs for stage in bundle.stages]
    for point in bundle.operating_points:
        assert measure_point(answers, point.thresholds, macs) == point.test


def test_accuracy_tables_follow_from_the_replay(bundle: Bundle) -> None:
    answers, severity = answers_in(bundle), evaluation_at(bundle.path).severity
    table = manifest_of(bundle)["test"]
    assert [row["accuracy"]["value"] for row in table["exits"]] == pytest.approx(answers.right.mean(0).tolist())
    for row in table["severities"]:
        assert row["accuracy"] == pytest.approx(answers.right[severity == row["severity"]].mean(0).tolist())


def test_accuracy_table_follows_from_calibration_file_and_replay(bundle: Bundle) -> None:
    calibration, temperatures = bundle.calibration(), temperatures_of(bundle)
    fitted = answers_of(calibration.logits, temperatures, calibration.labels)
    macs, tested = [stage.macs for stage in bundle.stages], answers_in(bundle)
    assert len(bundle.accuracy_table) >= 10
    for row in bundle.accuracy_table:
        assert row.target <= row.calibration.accuracy
        assert_same(measure_point(fitted, row.thresholds, macs), row.calibration)
        assert row.test is not None
        assert row.test_interval is not None
        assert_same(measure_point(tested, row.thresholds, macs), row.test)
        assert row.test_interval[0] < row.test.accuracy < row.test_interval[1]
    assert bundle.accuracy_table[-1].calibration.accuracy > bundle.default_point.calibration.accuracy - 0.005


def test_accuracy_table_is_what_the_tool_makes_of_them_now(bundle: Bundle) -> None:
    """Targets, the thresholds chosen for them, and what they give: as `zpipe calibrate --write` would write them again."""
    calibration, evaluation = bundle.calibration(), evaluation_at(bundle.path)
    fitted = Split(answers_of(calibration.logits, temperatures_of(bundle), calibration.labels), calibration.digit)
    macs = [stage.macs for stage in bundle.stages]
    table = accuracy_table(
        fitted, Split(answers_in(bundle), evaluation.digit), targets=TARGETS, heads=(True,) * len(macs), stage_macs=macs
    )
    assert [row.target for row in table.rows] == [row.target for row in bundle.accuracy_table]
    for made, stored in zip(table.rows, bundle.accuracy_table, strict=True):
        assert made.thresholds == stored.thresholds
        assert made.test_interval == pytest.approx(stored.test_interval, abs=1e-3)


def test_every_promise_of_the_full_network_is_kept_on_test() -> None:
    """Only claimed for the full width: the digits of the others' smaller splits, or nets, fall short by up to 1.2 points."""
    for row in load_bundle(ENGINES / FULL, verify=False).accuracy_table:
        assert row.test is not None
        assert row.test.accuracy >= row.target


def temperatures_of(bundle: Bundle) -> list[float]:
    return [stage.exit_head.temperature for stage in bundle.stages if stage.exit_head is not None]


def assert_same(found: PointMetrics, stored: PointMetrics) -> None:
    """Up to a sample that sits on the threshold: another processor's last bit may put it on the other side."""
    assert found.accuracy == pytest.approx(stored.accuracy, abs=1e-3)
    assert found.exit_shares == pytest.approx(stored.exit_shares, abs=1e-3)
    assert found.mean_macs == pytest.approx(stored.mean_macs, rel=1e-3)


def test_temperatures_are_fitted_to_the_calibration_file(bundle: Bundle) -> None:
    calibration = bundle.calibration()
    assert len(calibration) == 3000
    assert len(np.unique(calibration.digit)) == 200
    assert not set(calibration.digit.tolist()) & set(evaluation_at(bundle.path).digit.tolist())
    assert fit_variant("per-exit", calibration.logits, calibration.labels) == pytest.approx(temperatures_of(bundle), rel=1e-3)


def test_calibration_column_of_points_follows_from_the_calibration_file(bundle: Bundle) -> None:
    calibration = bundle.calibration()
    fitted = answers_of(calibration.logits, temperatures_of(bundle), calibration.labels)
    for point in bundle.operating_points:
        assert_same(measure_point(fitted, point.thresholds, [stage.macs for stage in bundle.stages]), point.calibration)


def test_points_reach_from_cheap_to_never_exit(bundle: Bundle) -> None:
    last = bundle.operating_points[-1]
    assert last.name == "no-exit"
    assert last.test.exit_shares == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert last.calibration.mean_macs == last.test.mean_macs == bundle.full_macs
    accuracies = [point.test.accuracy for point in bundle.operating_points]
    assert accuracies[0] < accuracies[-1]


def test_every_exit_is_at_least_as_good_as_the_one_before(bundle: Bundle) -> None:
    table = manifest_of(bundle)["test"]
    assert all(row["gain_over_exit_before"]["high"] >= 0 for row in table["exits"][1:])


def test_last_exit_is_good_enough(bundle: Bundle) -> None:
    table = manifest_of(bundle)["test"]
    assert table["exits"][-1]["accuracy"]["value"] >= 0.94
    assert table["severities"][0]["accuracy"][-1] >= 0.97


def test_temperatures_do_not_worsen_the_likelihood(bundle: Bundle) -> None:
    for row in manifest_of(bundle)["calibration"]["exits"]:
        assert row["nll_after"] <= row["nll_before"]


def test_default_point_loses_at_most_half_a_point(bundle: Bundle) -> None:
    assert bundle.point("no-exit").test.accuracy - bundle.default_point.test.accuracy <= 0.005


def test_default_point_saves_most_of_the_compute() -> None:
    """Only claimed for the full width: the half-width network needs its later stages more often (0.42)."""
    bundle = load_bundle(ENGINES / FULL, verify=False)
    assert bundle.default_point.test.mean_macs <= 0.4 * bundle.full_macs

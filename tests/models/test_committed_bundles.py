"""The bundles that lie in `engines/`: intact, small, and their tables follow from their own files. Needs no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from zpipe.bundle import Bundle, load_bundle
from zpipe.executors import evaluate_gate
from zpipe.model import GateSpec, TensorSpec
from zpipe.models.calibration import Answers, exit_of, max_probability, measure_point

ENGINES = Path(__file__).parents[2] / "engines"
FULL, HALF = "digits-mobilenetv2", "digits-mobilenetv2-half"

#: Another CPU sums in another order; this is what torch and ONNX Runtime may differ by, too.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[FULL, HALF])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(ENGINES / request.param)


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


def answers_in(bundle: Bundle) -> Answers:
    replay, evaluation = bundle.replay(), bundle.evaluation()
    labels = replay.labels.astype(np.int64)
    return Answers(labels, replay.confidences, labels == evaluation.labels[:, None])


def assert_replayed(bundle: Bundle, samples: slice, *, batch: int) -> None:
    replay = bundle.replay()
    logits = run_chain(bundle, bundle.evaluation().images[samples], batch=batch)
    two_best = np.sort(logits, -1)[..., -2:]
    clear = two_best[..., 1] - two_best[..., 0] > 10 * TOLERANCE
    assert (logits.argmax(-1) == replay.labels[samples])[clear].all()
    for stage in bundle.stages:
        assert stage.exit_head is not None
        confidences = max_probability(logits[:, stage.index], stage.exit_head.temperature)
        assert np.abs(confidences - replay.confidences[samples, stage.index]).max() < TOLERANCE


# ---- files -------------------------------------------------------------------------------------


def test_bundle_stays_small(bundle: Bundle) -> None:
    sizes = [path.stat().st_size for path in bundle.path.iterdir() if path.is_file()]
    assert sum(sizes) < 16e6
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
    assert bundle.stages[0].input == TensorSpec("uint8", (3, 32, 32))


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
    logits = run_chain(bundle, bundle.evaluation().images[:50], batch=50)
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


# ---- tables ------------------------------------------------------------------------------------


def test_test_column_follows_from_the_replay_exactly(bundle: Bundle) -> None:
    answers = answers_in(bundle)
    macs = [stage.macs for stage in bundle.stages]
    for point in bundle.operating_points:
        assert measure_point(answers, point.thresholds, macs) == point.test


def test_accuracy_tables_follow_from_the_replay(bundle: Bundle) -> None:
    answers, severity = answers_in(bundle), bundle.evaluation().severity
    table = manifest_of(bundle)["test"]
    assert [row["accuracy"]["value"] for row in table["exits"]] == pytest.approx(answers.right.mean(0).tolist())
    for row in table["severities"]:
        assert row["accuracy"] == pytest.approx(answers.right[severity == row["severity"]].mean(0).tolist())


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

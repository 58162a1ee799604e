"""Bundles of students: read and checked in one line, and one answer from the scores of whichever parts are in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.students import CLASSES, ENDS, PARTS, SAMPLES, STAGES, classes, join, scores, students, write_students
from zpipe.bundle import load_bundle, mask_of, parts_of
from zpipe.errors import BundleError
from zpipe.policy.join import join as policy_join

# ---- the join ----------------------------------------------------------------------------------


def test_answer_is_the_softmax_of_the_sum_at_the_temperature_of_these_parts() -> None:
    taken = scores()[7, list(ENDS)]
    for mask in range(1, 2**PARTS):
        present = parts_of(mask)
        label, confidence = join().answer({part: taken[part].tobytes() for part in reversed(present)})
        logits = taken[list(present)].sum(axis=0) + np.array(join().bias)
        powers = np.exp(logits / join().temperatures[mask])
        assert label == powers.argmax()
        assert confidence == pytest.approx(powers.max() / powers.sum(), rel=1e-5)


def test_one_sample_and_many_are_answered_alike_to_the_last_bit() -> None:
    for present in ((1,), (0, 2), (0, 1, 2)):
        taken = scores()[:, [ENDS[part] for part in present]]
        labels, confidences = join().answers(taken, present)
        for sample in range(SAMPLES):
            said = join().answer({part: taken[sample, index].tobytes() for index, part in enumerate(present)})
            assert said == (labels[sample], confidences[sample])


def test_a_source_answers_alike() -> None:
    for mask in range(1, 2**PARTS):
        present = parts_of(mask)
        labels, confidences = join().answers(scores()[:, [ENDS[part] for part in present]], present)
        for sample in range(SAMPLES):
            taken = {part: scores()[sample, ENDS[part]].tolist() for part in present}
            label, confidence = policy_join(taken, join().bias, join().temperatures)
            assert (label, pytest.approx(confidence, rel=1e-5)) == (labels[sample], confidences[sample])


def test_the_order_in_which_parts_came_does_not_matter() -> None:
    taken = {part: scores()[3, ENDS[part]].tobytes() for part in range(PARTS)}
    assert join().answer(taken) == join().answer(dict(reversed(taken.items())))


def test_all_parts_know_more_than_one() -> None:
    accuracy = [
        float((join().answers(scores()[:, [ENDS[part] for part in present]], present)[0] == classes()).mean())
        for present in ((0,), (1,), (2,), (0, 1, 2))
    ]
    assert max(accuracy[:3]) < accuracy[3]


def test_a_sum_beyond_float32_is_answered_without_confidence() -> None:
    huge = np.full((1, 2, CLASSES), 3e38, np.float32)
    _, confidences = join().answers(huge, (0, 1))
    assert confidences.tolist() == [0.0]


def test_sets_of_parts_are_masks() -> None:
    assert [parts_of(mask) for mask in range(4)] == [(), (0,), (1,), (0, 1)]
    assert all(mask_of(parts_of(mask)) == mask for mask in range(256))


# ---- the bundle --------------------------------------------------------------------------------


def test_students_and_join_are_read_back(tmp_path: Path) -> None:
    bundle = students(tmp_path / "three")
    assert [student.stages for student in bundle.students] == [(0,), (1,), (2, 3)]
    assert bundle.students[0].filters == (0, 3)
    assert (bundle.students[2].parameters, bundle.students[2].bytes) == (300, 3000)
    assert bundle.chains == (range(1), range(1, 2), range(2, 4))
    assert bundle.join is not None
    assert bundle.join.parts == PARTS
    assert bundle.join.bias == join().bias
    assert bundle.join.test[-1] > bundle.join.test[1]
    assert bundle.full_macs == sum(stage.macs for stage in bundle.stages)
    assert "3 students, 4 stages" in repr(bundle)
    assert bundle.emulated().join is bundle.join


def test_replay_of_students_has_their_scores(tmp_path: Path) -> None:
    bundle = students(tmp_path / "three")
    assert np.array_equal(bundle.replay().scores, scores())  # type: ignore[arg-type]
    tables: dict[str, Any] = {"label.none": bundle.replay().labels, "confidence.none": bundle.replay().confidences}
    np.savez(bundle.path / "replay.npz", **tables)
    with pytest.raises(BundleError, match=r"scores\.none: found no such array, expected float32 \[48, 4, 4\]"):
        bundle.replay()


def _at(*path: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def put(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(manifest: dict[str, Any]) -> None:
            place: Any = manifest
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value

        return change

    return put


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_at("students")([]), "students: found [], expected 1 to 8 students"),
        (_at("students", 1, "part")(2), "students[1].part: found 2, expected 1: students are listed by part"),
        (_at("students", 1, "stages")([2]), "students[1].stages: found [2], expected 1 and on, without a gap"),
        (_at("students", 2, "stages")([2]), "expected all 4 stages in some student, not 3 of them"),
        (_at("students", 1, "filters")([3]), "students[1].filters: found [3], expected each of the teacher's filters once"),
        (_at("students", 0, "filters")([0, 0]), "students[0].filters: found [0, 0], expected each of the teacher's filters once"),
        (_at("stages", 1, "input", "shape")([3, 4]), "stages[1].input: "),
        (_at("stages", 0, "exit")(None), "stages[0].exit: found null, expected an exit head at the last stage"),
        (_at("join")(None), "join: found null, expected a JSON object"),
        (_at("join", "bias")([0.0] * 3), "join.bias: found [0.0, 0.0, 0.0], expected 4 values, one per class"),
        (_at("join", "temperatures")([1.0] * 4), "join.temperatures: found [1.0, 1.0, 1.0, 1.0], expected 8 values, one per set"),
        (_at("join", "temperatures", 3)(0.0), "join.temperatures[3]: found 0.0, expected a number 0.001..1000"),
        (_at("join", "accuracy", "test", 1)(1.5), "join.accuracy.test[1]: found 1.5, expected a number 0..1"),
    ],
)
def test_wrong_students_are_named_in_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str) -> None:
    folder = write_students(tmp_path / "three", change)
    with pytest.raises(BundleError, match=re.escape(says)) as caught:
        load_bundle(folder)
    assert str(caught.value).startswith(f"{folder / 'manifest.json'}: ")
    assert "\n" not in str(caught.value)


def test_a_student_that_gives_something_on_is_refused(tmp_path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["stages"][0]["output"] = {"dtype": "uint8", "shape": [3, 4, 4]}
        manifest["stages"][0]["activation_bytes"] = 48

    with pytest.raises(BundleError, match=r"stages\[0\]\.output: found .*, expected null, for the last stage"):
        load_bundle(write_students(tmp_path / "three", change))


def test_chains_have_no_students(tmp_path: Path) -> None:
    assert STAGES == 4

    def change(manifest: dict[str, Any]) -> None:
        del manifest["students"], manifest["join"]
        manifest["stages"] = manifest["stages"][2:]
        for point in manifest["operating_points"]:
            point["thresholds"] = point["thresholds"][2:]
            for split in ("calibration", "test"):
                point[split] = {**point[split], "exit_shares": point[split]["exit_shares"][2:]}

    bundle = load_bundle(write_students(tmp_path / "chain", change))
    assert (bundle.students, bundle.join, bundle.chains) == ((), None, (range(2),))


def test_codecs_change_no_answer_of_students_of_one_stage(tmp_path: Path) -> None:
    """Nothing but raw inputs travels, which codecs leave alone."""
    whole = load_bundle("digits-rocoin", verify=False)
    assert set(whole.student_stages) == {1}
    np.testing.assert_array_equal(whole.replay("int8").confidences, whole.replay().confidences)
    assert "int8+zstd" in whole.replay_codecs()
    with pytest.raises(BundleError, match=r"label.int8: found no such array"):
        students(tmp_path / "three").replay("int8")


def test_students_are_not_sent_to_calibrate_for_an_accuracy(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="leave the accuracy out, as students have operating points alone"):
        students(tmp_path / "three").promise(0.9)

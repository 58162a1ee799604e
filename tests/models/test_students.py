"""Students: how filters are shared out, what fits where, and that they learn to do without each other. As short as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from zpipe.bundle import load_bundle
from zpipe.calibrate.run import CalibrateOptions, calibrate
from zpipe.cli import cli
from zpipe.errors import ConfigError, ZpipeError
from zpipe.models import attach_heads, retrain_codecs, train_students

# ruff: noqa: E402 (the skip stands above the imports that need it, so that the module skips instead of failing)
for _name in ("torch", "onnx", "onnxscript", "sklearn"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'zpipe[train]'")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from zpipe.models.recipes import STUDENT_WIDTHS, StudentsRecipe
from zpipe.models.students.fit import Lesson, Pupils, draw_exits, draw_present, filter_scale, fit_students
from zpipe.models.students.network import Bounds, Outline, make_student, student_cost, widest
from zpipe.models.students.partition import LEAST_SHARE, affinity_of, partition
from zpipe.models.students.teacher import Teacher, last_linear
from zpipe.models.training import torch_settings

ENGINES = Path(__file__).parents[2] / "engines"
OUTLINE = Outline(size=32, filters=12, classes=4, exits=False, rectified=True)


# ---- partition ---------------------------------------------------------------------------------


def filters_in_groups(sizes: tuple[int, ...], *, samples: int = 200) -> tuple[np.ndarray, list[set[int]]]:
    """Filters in a random order, those of a group firing on the same samples; and the groups."""
    rng = np.random.default_rng(5)
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    fires = rng.integers(0, len(sizes), samples)
    values = (fires[:, None] == group) * rng.uniform(0.5, 1.5, (samples, len(group))) + rng.uniform(0, 0.1, (samples, len(group)))
    return values.astype(np.float32), [set(np.flatnonzero(group == index).tolist()) for index in range(len(sizes))]


def test_filters_that_fire_together_stay_together() -> None:
    filters, groups = filters_in_groups((30, 20, 14))
    assert [set(part) for part in partition(filters, 3)] == groups


def test_a_partition_is_the_same_every_time() -> None:
    filters, _ = filters_in_groups((9, 8, 7))
    assert partition(filters, 3) == partition(filters, 3)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_every_filter_has_exactly_one_part_and_no_part_is_a_crumb(parts: int) -> None:
    """Of groups of very unlike sizes, and where some never fire."""
    filters, _ = filters_in_groups((60, 3, 1))
    filters[:, 10:14] = 0.0
    found = partition(filters, parts)
    assert sorted(index for part in found for index in part) == list(range(64))
    sizes = [len(part) for part in found]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= int(LEAST_SHARE * 64 / parts)
    assert all(list(part) == sorted(part) for part in found)


def test_as_many_parts_as_filters() -> None:
    filters, _ = filters_in_groups((2, 2))
    assert sorted(partition(filters, 4)) == [(0,), (1,), (2,), (3,)]


def test_a_filter_that_never_fires_is_like_no_other() -> None:
    filters, _ = filters_in_groups((4, 4))
    filters[:, 3] = 0.0
    affinity = affinity_of(filters)
    assert (affinity[3] == 0).all()
    assert np.diagonal(affinity)[[0, 1, 2, 4]] == pytest.approx(1.0)
    assert (affinity >= 0).all()


# ---- sizes -------------------------------------------------------------------------------------


def test_the_widest_student_within_bounds_is_taken() -> None:
    with torch_settings(threads=1, seed=0):
        costs = [student_cost(make_student(width, OUTLINE), OUTLINE) for width in STUDENT_WIDTHS]
        assert [cost.parameters for cost in costs] == sorted({cost.parameters for cost in costs})
        assert widest(OUTLINE, Bounds(0, macs=costs[3].macs)) == STUDENT_WIDTHS[3]
        assert widest(OUTLINE, Bounds(0, parameters=costs[3].parameters - 1)) == STUDENT_WIDTHS[2]
        with pytest.raises(ConfigError, match=r"^--student-bytes: found 1000 for part 0, expected at least \d+, the smallest"):
            widest(OUTLINE, Bounds(0, bytes=1000))


def test_a_student_with_an_exit_has_two_stages_and_one_without_a_bias() -> None:
    with torch_settings(threads=1, seed=0):
        student = make_student(0.25, Outline(32, 12, 4, exits=True, rectified=True)).eval()
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        (early, last), filters = student.learn(images)
        assert [early.shape, last.shape, filters.shape] == [(2, 4), (2, 4), (2, 12)]
        assert torch.equal(student(images)[-1], last)
        assert torch.allclose(filters @ student.head.scores.weight.T, last)
        assert (filters >= 0).all()


# ---- teacher -----------------------------------------------------------------------------------


def linear_model(nodes: list[Any], **weights: np.ndarray) -> onnx.ModelProto:
    entering = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    leaving = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    items = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [entering], [leaving], items))


WEIGHT, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -1.0], np.float32)


@pytest.mark.parametrize(
    ("nodes", "weight"),
    [
        ([helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1)], WEIGHT),
        ([helper.make_node("Gemm", ["x", "w", "b"], ["y"]), helper.make_node("Identity", ["y"], ["logits"])], WEIGHT.T),
        ([helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["b", "y"], ["logits"])], WEIGHT.T),
    ],
)
def test_the_last_linear_layer_is_found_however_it_is_written(nodes: list[Any], weight: np.ndarray) -> None:
    linear = last_linear(linear_model(nodes, w=weight, b=BIAS), "mine")
    assert linear.filters == "x"
    assert linear.weight.tolist() == WEIGHT.tolist()
    assert linear.bias.tolist() == BIAS.tolist()


def test_a_network_that_ends_otherwise_is_no_teacher() -> None:
    model = linear_model([helper.make_node("Relu", ["x"], ["logits"])])
    with pytest.raises(ConfigError, match=r"^--teacher mine: found Relu at its end, expected a linear layer"):
        last_linear(model, "mine")


def test_the_teacher_says_what_it_said_and_from_which_filters() -> None:
    bundle = load_bundle(ENGINES / "digits-mobilenetv2-half", verify=False)
    teacher = Teacher(bundle)
    filters, logits = teacher.look(bundle.evaluation().images[:8])
    assert filters.shape == (8, teacher.filters)
    assert np.abs(filters @ teacher.linear.weight.T + teacher.linear.bias - logits).max() < 1e-4
    assert logits.argmax(1).tolist() == bundle.replay().labels[:8, -1].tolist()


# ---- training ----------------------------------------------------------------------------------


class Glance(torch.nn.Module):
    """In a student's place, for it learns in milliseconds: its filters are linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(48, 12)
        self.head = torch.nn.Module()
        self.head.scores = torch.nn.Linear(12, 4, bias=False)

    def learn(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        filters = self.project(x.flatten(1) / 255.0 - 0.5)
        return [self.head.scores(filters)], filters


def lesson() -> Lesson:
    """Noisy pictures of 4x4 in which the class is the brightest row; each of the teacher's filters fires for one class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 512)
    rows = 100.0 + 60.0 * np.eye(4)[labels]
    images = np.clip(rng.normal(rows[:, None, :, None], 40.0, (512, 3, 4, 4)), 0, 255).astype(np.uint8)
    filters = (np.arange(24) % 4 == labels[:, None]).astype(np.float16)
    return Lesson(images, labels, filters, (6.0 * np.eye(4)[labels]).astype(np.float32))


PARTS = tuple(tuple(range(start, start + 12)) for start in (0, 12))
WEIGHT4 = (np.arange(24) % 4 == np.arange(4)[:, None]).astype(np.float32)


def trained(*, weights: tuple[float, float, float, float], epochs: int = 8) -> Pupils:
    """Two of them after a few passes."""
    recipe = StudentsRecipe("test", batch=32, learning_rate=0.05, weights=weights)
    with torch_settings(threads=1, seed=1):
        pupils = Pupils([Glance(), Glance()], PARTS, WEIGHT4, np.zeros(4, np.float32), scale=0.5)
        fit_students(pupils, PARTS, [lesson()], recipe, epochs=epochs, seed=1, on_epoch=lambda *_: None)
    return pupils


def losses_of(pupils: Pupils) -> tuple[list[float], float]:
    """Cross-entropy of each part without the other, and of both."""
    taught = lesson()
    with torch.no_grad():
        scores, _ = pupils.learn(torch.from_numpy(taught.images))
        sets = [scores[:, 0, -1], scores[:, 1, -1], scores[:, :, -1].sum(1)]
        first, second, both = (
            float(torch.nn.functional.cross_entropy(each + pupils.bias, torch.from_numpy(taught.labels))) for each in sets
        )
    return [first, second], both


def test_students_that_learnt_with_parts_missing_do_better_without_them() -> None:
    with_missing, both = losses_of(trained(weights=(0.5, 1.0, 0.0, 0.0)))
    without, _ = losses_of(trained(weights=(1.5, 0.0, 0.0, 0.0)))
    assert max(with_missing) < 0.8 * min(without)
    assert both < 0.3


def test_filters_alone_are_learnt_too() -> None:
    def distance(pupils: Pupils) -> float:
        taught = lesson()
        with torch.no_grad():
            _, filters = pupils.learn(torch.from_numpy(taught.images))
        wanted = torch.from_numpy(taught.filters.astype(np.float32)) / filter_scale(taught.filters)
        return float((torch.cat(filters, 1) - wanted).square().mean())

    assert distance(trained(weights=(0.0, 0.0, 0.0, 1.0))) < 0.7 * distance(trained(weights=(1.0, 0.0, 0.0, 0.0)))


def test_the_same_seed_gives_the_same_students() -> None:
    def state() -> torch.Tensor:
        return torch.cat([each.flatten() for each in trained(weights=(0.5, 0.5, 0.25, 0.5), epochs=1).parameters()])

    assert torch.equal(state(), state())


def test_pupils_start_at_the_teachers_own_classifier() -> None:
    with torch_settings(threads=1, seed=0):
        pupils = Pupils([make_student(0.15, OUTLINE) for _ in PARTS], PARTS, WEIGHT4, np.ones(4, np.float32), scale=0.5)
    columns = torch.cat([student.head.scores.weight for student in pupils.students], 1)
    assert (columns == torch.from_numpy(0.5 * WEIGHT4)).all()
    assert (pupils.bias == 1).all()


def test_somebody_is_always_there() -> None:
    present = draw_present(500, 3, 0.3, torch.Generator().manual_seed(0))
    assert set(present.unique().tolist()) == {0.0, 1.0}
    assert (present.sum(1) >= 1).all()
    assert float((present.sum(1) == 3).float().mean()) < 0.1


def test_early_answers_stand_in_for_later_ones_now_and_then() -> None:
    scores = torch.tensor([0.0, 1.0])[None, None, :, None].expand(400, 2, 2, 5)
    chosen = draw_exits(scores, 0.25, torch.Generator().manual_seed(0))
    assert chosen.shape == (400, 2, 5)
    assert float(chosen.mean()) == pytest.approx(0.75, abs=0.05)


# ---- asked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "rocoin"], "--teacher: found none, expected the bundle that recipe rocoin is to distil"),
        (["--recipe", "digits-rocoin", "--stages", "4"], "--stages: found it with recipe digits-rocoin"),
        (["--recipe", "digits-mobilenetv2", "--students", "3"], "--students: found it with recipe digits-mobilenetv2"),
        (["--recipe", "digits-rocoin", "--student-macs", "2e6,x"], "--student-macs: found '2e6,x', expected whole numbers"),
        (["--recipe", "digits-rocoin", "--students", "9"], "--students: found 9, expected 1 to 8"),
        (
            ["--recipe", "digits-rocoin", "--students", "3", "--student-bytes", "9,9"],
            "--student-bytes: found 2 values, expected one",
        ),
        (["--recipe", "rocoin", "--teacher", "nowhere"], "nowhere"),
        (["--recipe", "rocoin", "--teacher", "digits-rocoin"], "--teacher digits-rocoin: found a bundle of students"),
        (["--recipe", "digits-rocoin", "--student-macs", "9e6,1000"], "--student-macs: found 1000 for part 1, expected at least"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, ["train", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ZpipeError)
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_recipe_for_one_network_makes_no_students(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 'digits-mobilenetv2', expected one of digits-rocoin, rocoin"):
        train_students("digits-mobilenetv2", out=tmp_path / "out")


def test_what_is_for_one_network_alone_refuses_students(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found students"):
        retrain_codecs(ENGINES / "digits-rocoin")
    with pytest.raises(ConfigError, match="found students"):
        attach_heads(ENGINES / "digits-rocoin", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="found students"):
        calibrate(CalibrateOptions(str(ENGINES / "digits-rocoin")))


@pytest.mark.slow
def test_recipe_distils_a_bundle_into_students_of_given_sizes(tmp_path: Path) -> None:
    teacher, limits = ENGINES / "digits-mobilenetv2-half", (400_000, 250_000)
    bundle = train_students("rocoin", teacher=teacher, out=tmp_path / "two", student_bytes=limits, student_exits=True, epochs=1)
    assert [student.stages for student in bundle.students] == [(0, 1), (2, 3)]
    assert all(student.bytes <= limit for student, limit in zip(bundle.students, limits, strict=True))
    assert sorted(index for student in bundle.students for index in student.filters) == list(range(640))
    scores = bundle.replay().scores
    assert scores is not None
    assert scores.shape == (2985, 4, 10)
    assert bundle.join is not None
    labels, _ = bundle.join.answers(scores[:, [1, 3]], (0, 1))
    assert float((labels == bundle.evaluation().labels).mean()) == pytest.approx(bundle.join.test[-1])
    assert len(bundle.operating_points) > 2
    assert all(point.test.exit_shares[0] + point.test.exit_shares[1] == pytest.approx(1.0) for point in bundle.operating_points)

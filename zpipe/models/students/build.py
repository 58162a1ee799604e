"""A bundle of students from a teacher, in order: look, share out, train, export, calibrate, measure, write; a function each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zpipe.bundle import SCHEMA, Bundle, Evaluation, load_bundle
from zpipe.bundle.write import replaced_when_done, save_manifest
from zpipe.calibrate.chain import StageChain
from zpipe.calibrate.metrics import answers_of
from zpipe.calibrate.rows import CALIBRATION_FILE, calibration_arrays, calibration_rows, default_rule, label_dtype
from zpipe.calibrate.temperature import fit_variant
from zpipe.calibrate.write import EVALUATION_FILE, REPLAY_FILE, write_evaluation
from zpipe.errors import ConfigError
from zpipe.models.export import export_stages, parity_error
from zpipe.models.manifest import PREPROCESSING_NOTE, chain_rows, versions
from zpipe.models.recipes import StudentsRecipe
from zpipe.models.students.fit import Lesson, Pupils, filter_scale, fit_students
from zpipe.models.students.join import Said, fit_join, join_row, point_rows, set_rows
from zpipe.models.students.network import Bounds, Outline, Student, check_narrowest, make_student, widest
from zpipe.models.students.partition import partition
from zpipe.models.students.teacher import Teacher
from zpipe.models.task import Task
from zpipe.models.training import torch_settings

Json = dict[str, Any]
Floats = npt.NDArray[np.float32]

#: How much of all work is done when a step ends, for the progress bar (measured on the digits).
LOOK_END, TRAIN_END, EXPORT_END = 0.2, 0.9, 0.92

#: Training samples whose filters say what fires together.
PARTITION_SAMPLES = 4000

#: Test samples on which torch and ONNX Runtime are compared.
PARITY_SAMPLES = 256

#: Floor of the default operating point's threshold, where students have early exits.
DEFAULT_LEAST = 0.9

#: Called as work goes on: see `zpipe.models.Progress`.
Tell = Callable[[str, float, str], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller wants of the students: see `zpipe.models.train_students`."""

    students: int
    file_bytes: tuple[int, ...]
    macs: tuple[int, ...]
    exits: bool
    epochs: int
    seed: int
    threads: int


def build_students(teacher: Bundle, task: Task, recipe: StudentsRecipe, name: str, out: Path, wishes: Wishes, tell: Tell) -> Bundle:
    """See `zpipe.models.train_students`."""
    with torch_settings(threads=wishes.threads, seed=wishes.seed), replaced_when_done(out) as folder:
        looking = Teacher(teacher)
        check_bounds(task, wishes)
        lessons = draw_lessons(looking, task, min(recipe.draws, wishes.epochs), wishes.seed, tell)
        parts = share_out(lessons, wishes.students)
        outlines, widths = outlines_of(looking, task, lessons, parts, recipe, wishes)
        start = time.monotonic()
        students = [make_student(width, outline) for width, outline in zip(widths, outlines, strict=True)]
        linear = looking.linear
        pupils = Pupils(students, parts, linear.weight, linear.bias, scale=filter_scale(lessons[0].filters))

        def on_epoch(done: int, total: int, loss: float, accuracy: float) -> None:
            line = f"epoch {done}/{total}: loss {loss:.3f}, all parts {100 * accuracy:.1f} % while training"
            tell("train", LOOK_END + (TRAIN_END - LOOK_END) * done / total, line)

        fit_students(pupils, parts, lessons, recipe, epochs=wishes.epochs, seed=wishes.seed, on_epoch=on_epoch)
        seconds = time.monotonic() - start
        chains, error = export_students(students, task, folder)
        tell("export", EXPORT_END, f"{len(students)} students, at most {error:.1g} away from torch")
        manifest = measured(pupils, parts, chains, task, folder, recipe, tell)
        manifest |= {
            "name": name,
            "training": {
                "recipe": {**asdict(recipe), "widths": list(widths)},
                "teacher": {
                    "name": looking.name,
                    "digest": looking.digest,
                    "parameters": looking.parameters,
                    "filters": looking.filters,
                    "accuracy": float((looking.look(task.test.images)[1].argmax(1) == task.test.labels).mean()),
                },
                "data": task.name,
                "split": task.note,
                "epochs": wishes.epochs,
                "seed": wishes.seed,
                "threads": wishes.threads,
                "seconds": round(seconds, 1),
                "onnx_parity_error": error,
                **versions(),
            },
        }
        save_manifest(folder, manifest)
    tell("done", 1.0, f"bundle written to {out}")
    return load_bundle(out)


def draw_lessons(teacher: Teacher, task: Task, draws: int, seed: int, tell: Tell) -> list[Lesson]:
    """So many draws of the training set with what the teacher makes of each; one, where all draws are of the same images."""
    rng = np.random.default_rng([seed, 7])
    lessons: list[Lesson] = []
    for index in range(draws if task.draws_anew else 1):
        images, labels = task.draw_epoch(rng)
        filters, logits = teacher.look(images)
        lessons.append(Lesson(images, labels, filters.astype(np.float16), logits))
        tell("look", LOOK_END * (index + 1) / draws, f"draw {index + 1}/{draws}: {len(labels)} samples through {teacher.name}")
    return lessons


def share_out(lessons: Sequence[Lesson], parts: int) -> tuple[tuple[int, ...], ...]:
    """The filters of each student, by how they fire together on the first training samples.

    Raises:
        ConfigError: there are fewer filters than that.
    """
    needed = -(-PARTITION_SAMPLES // len(lessons[0].labels))
    filters = np.concatenate([lesson.filters for lesson in lessons[:needed]])[:PARTITION_SAMPLES].astype(np.float32)
    if filters.shape[1] < parts:
        raise ConfigError(f"--students: found {parts}, expected at most {filters.shape[1]}, the filters of the teacher; take fewer")
    return partition(filters, parts)


def check_bounds(task: Task, wishes: Wishes) -> None:
    """Bounds that no student of any part could meet are refused before the teacher begins to look.

    Raises:
        ConfigError: as `widest`.
    """
    outline = Outline(task.image_size, 1, len(task.classes), wishes.exits, rectified=True)
    for part in range(wishes.students if wishes.file_bytes or wishes.macs else 0):
        check_narrowest(outline, bounds_of(part, wishes))


def bounds_of(part: int, wishes: Wishes, parameters: int | None = None) -> Bounds:
    """Those of the caller for a part."""
    return Bounds(
        part,
        parameters,
        wishes.file_bytes[part] if wishes.file_bytes else None,
        wishes.macs[part] if wishes.macs else None,
    )


def outlines_of(
    teacher: Teacher, task: Task, lessons: Sequence[Lesson], parts: Sequence[Sequence[int]], recipe: StudentsRecipe, wishes: Wishes
) -> tuple[list[Outline], list[float]]:
    """What each student must fit, and the width that does: the caller's bounds, or the recipe's share of the teacher for all."""
    rectified = all(bool((lesson.filters >= 0).all()) for lesson in lessons)
    bounded = wishes.file_bytes or wishes.macs
    parameters = None if bounded else int(recipe.share * teacher.parameters / len(parts))
    outlines = [Outline(task.image_size, len(part), len(task.classes), wishes.exits, rectified) for part in parts]
    widths = [widest(outline, bounds_of(index, wishes, parameters)) for index, outline in enumerate(outlines)]
    return outlines, widths


def export_students(students: Sequence[Student], task: Task, folder: Path) -> tuple[list[StageChain], float]:
    """Write the stages, numbered through, and compare each student with torch.

    Raises:
        ExecutorError: they disagree.
    """
    chains, worst, first = [], 0.0, 0
    for student in students:
        chain = StageChain(export_stages(student, task.test.images[:2], folder, first=first))
        worst = max(worst, parity_error(student, chain, task.test.images[:PARITY_SAMPLES]))
        chains.append(chain)
        first += len(student.stages)
    return chains, worst


def measured(
    pupils: Pupils,
    parts: Sequence[Sequence[int]],
    chains: Sequence[StageChain],
    task: Task,
    folder: Path,
    recipe: StudentsRecipe,
    tell: Tell,
) -> Json:
    """Fit on calibration, measure on test, write the arrays; gives the manifest without how it was trained."""

    def asked(samples: Evaluation, line: str, start: float) -> Said:
        tell("calibrate", start, f"{len(samples)} {line} samples through ONNX Runtime")
        return Said(np.concatenate([chain.logits(samples.images) for chain in chains], 1), samples)

    calibration, test = asked(task.calibration, "calibration", 0.93), asked(task.test, "test", 0.96)
    temperatures = fit_variant("per-exit", calibration.scores, task.calibration.labels)
    stages, students = student_rows(pupils, parts, task, temperatures, folder)
    ranges = [range(row["stages"][0], row["stages"][-1] + 1) for row in students]
    join = fit_join(pupils.bias.detach().numpy().astype(np.float32), ranges, calibration, test)
    points, default = point_rows(
        join, ranges, calibration, test, temperatures=temperatures, stage_macs=[row["macs"] for row in stages], least=DEFAULT_LEAST
    )
    fitted, kept = task.calibration, kept_rows(task.test, recipe.rounds)
    write_arrays(folder, calibration, test, kept, temperatures)
    return {
        "schema": SCHEMA,
        "classes": list(task.classes),
        "preprocessing": {
            "size": task.image_size,
            "channels": "RGB",
            "layout": "CHW",
            "dtype": "uint8",
            "note": PREPROCESSING_NOTE,
        },
        "stages": stages,
        "students": students,
        "join": join_row(join),
        "operating_points": points,
        "default_operating_point": default,
        "default_operating_point_rule": default_rule(DEFAULT_LEAST),
        "evaluation": {"file": EVALUATION_FILE, "samples": kept.stop},
        "replay": {"file": REPLAY_FILE},
        "calibration": calibration_rows(calibration.scores, fitted.labels, temperatures),
        "test": {
            "samples": len(task.test),
            "originals": len(np.unique(task.test.digit)),
            "interval": "95 %, bootstrap over original images; `lost` is against all parts, paired by sample",
            "sets": set_rows(join, ranges, test),
        },
    }


def kept_rows(test: Evaluation, rounds: int | None) -> slice:
    """The first rounds of the test split, each original once a round; None = all of it."""
    return slice(0, len(test) if rounds is None else rounds * len(np.unique(test.digit)))


def write_arrays(folder: Path, calibration: Said, test: Said, kept: slice, temperatures: Sequence[float]) -> None:
    """The evaluation set, what each exit says about it, and about the calibration split."""
    evaluation = Evaluation(*(getattr(test.samples, key)[kept] for key in ("images", "labels", "severity", "digit")))
    write_evaluation(folder / EVALUATION_FILE, evaluation)
    answers = answers_of(test.scores[kept], temperatures, evaluation.labels)
    tables: Json = {
        "label.none": answers.labels.astype(label_dtype(answers.labels)),
        "confidence.none": answers.confidences,
        "scores.none": test.scores[kept],
    }
    np.savez_compressed(folder / REPLAY_FILE, **tables)
    fitted = calibration.samples
    arrays = calibration_arrays(calibration.scores, fitted.labels, fitted.severity, fitted.digit)
    np.savez_compressed(folder / CALIBRATION_FILE, **arrays)


def student_rows(
    pupils: Pupils, parts: Sequence[Sequence[int]], task: Task, temperatures: Sequence[float], folder: Path
) -> tuple[list[Json], list[Json]]:
    """The manifest's `stages`, numbered through, and its `students`."""
    stages: list[Json] = []
    students: list[Json] = []
    for index, (student, part) in enumerate(zip(pupils.students, parts, strict=True)):
        assert isinstance(student, Student)
        first = len(stages)
        own = temperatures[first : first + len(student.stages)]
        rows = chain_rows(student, task.test.images[:2], classes=len(task.classes), temperatures=own, first=first)
        stages += rows
        students.append(
            {
                "part": index,
                "stages": list(range(first, len(stages))),
                "filters": list(part),
                "parameters": sum(row["parameters"] for row in rows),
                "bytes": sum((folder / row["file"]).stat().st_size for row in rows),
            }
        )
    return stages, students

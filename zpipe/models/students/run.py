"""From what a caller asks for to a bundle of students: what is wrong with it is said before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zpipe.bundle import Bundle, load_bundle
from zpipe.bundle.write import check_free
from zpipe.errors import ConfigError
from zpipe.model import MAX_PARTS
from zpipe.models import DATA_SETS
from zpipe.models.building import check_numbers, find_task
from zpipe.models.heads.data import read_head_data
from zpipe.models.recipes import StudentsRecipe, find_students_recipe
from zpipe.models.students.build import Tell, Wishes, build_students
from zpipe.models.task import Task


@dataclass(frozen=True, slots=True)
class StudentOptions:
    """See `zpipe.models.train_students`."""

    recipe: str
    out: Path
    teacher: str | Path | None
    data: str
    data_dir: Path | None
    students: int | None
    student_bytes: tuple[int, ...]
    student_macs: tuple[int, ...]
    student_exits: bool
    epochs: int | None
    seed: int
    threads: int
    replace: bool


def run_students(options: StudentOptions, tell: Tell) -> Bundle:
    """See `zpipe.models.train_students`."""
    recipe = find_students_recipe(options.recipe)
    check_numbers(epochs=options.epochs, threads=options.threads, seed=options.seed)
    teacher = find_teacher(recipe, options.teacher)
    count = count_students(recipe, options)
    data = None if options.data in DATA_SETS else Path(options.data)
    check_free(options.out, replace=options.replace, read=(options.data_dir, data, teacher.path))
    tell("data", 0.0, "reading it")
    task = task_of(teacher, options, data)
    if task.classes != teacher.classes:
        found, expected = ", ".join(task.classes[:6]), ", ".join(teacher.classes[:6])
        raise ConfigError(
            f"--data {options.data}: found classes {found}, expected those of the teacher: {expected}; give its own data"
        )
    wishes = Wishes(
        count,
        per_student(options.student_bytes, count),
        per_student(options.student_macs, count),
        options.student_exits,
        options.epochs or recipe.epochs,
        options.seed,
        options.threads,
    )
    name = options.out.resolve().name if recipe.teacher is None else recipe.name
    return build_students(teacher, task, recipe, name, options.out, wishes, tell)


def find_teacher(recipe: StudentsRecipe, given: str | Path | None) -> Bundle:
    """The caller's, or the recipe's own.

    Raises:
        ConfigError: neither names one, or it is no teacher for us.
    """
    name = recipe.teacher if given is None else given
    if name is None:
        raise ConfigError(
            f"--teacher: found none, expected the bundle that recipe {recipe.name} is to distil; name one, such as `zpipe split` "
            "makes of a torch or ONNX model"
        )
    teacher = load_bundle(name)
    if teacher.students:
        raise ConfigError(f"--teacher {name}: found a bundle of students, expected one network; name what they were distilled from")
    if teacher.costs_only or teacher.preprocessing is None:
        found = (
            "no files of its stages"
            if teacher.costs_only
            else f"{teacher.stages[0].input.dtype} {list(teacher.stages[0].input.shape)}"
        )
        raise ConfigError(f"--teacher {name}: found {found} as what it takes, expected RGB images; choose another")
    return teacher


def count_students(recipe: StudentsRecipe, options: StudentOptions) -> int:
    """How many there are to be; bounds count them where the caller does not.

    Raises:
        ConfigError: two options disagree, or it is no number of students.
    """
    given = [
        (option, len(values))
        for option, values in (("--student-bytes", options.student_bytes), ("--student-macs", options.student_macs))
        if len(values) > 1
    ]
    count = options.students or (given[0][1] if given else recipe.students)
    if not 1 <= count <= MAX_PARTS:
        raise ConfigError(f"--students: found {count}, expected 1 to {MAX_PARTS}")
    for option, values in given:
        if values != count:
            raise ConfigError(f"{option}: found {values} values, expected one for all, or one for each of {count} students")
    return count


def per_student(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    """One for each, of one for all."""
    return values * count if len(values) == 1 else values


def task_of(teacher: Bundle, options: StudentOptions, data: Path | None) -> Task:
    """What the students learn, are calibrated and tested on."""
    if data is None:
        return find_task(teacher.image_size, options.data, options.data_dir)
    read = read_head_data(teacher, data, test=None, seed=options.seed)
    if read.labels is None:
        raise ConfigError(
            f"--data {data}: found images without labels, expected one folder per class, or an .npz with labels; give these"
        )
    images, labels = read.images, read.labels

    def draw_epoch(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        order = rng.permutation(len(labels))
        return images[order], labels[order]

    return Task(data.name, teacher.classes, read.note, draw_epoch, read.calibration, read.test, None, draws_anew=False)

"""Making bundles: data, network, joint training of all exits, calibration, export. Needs the extra `train`.

torch is imported only once a bundle is made, so that commands can list the recipes without it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from zpipe.bundle import MANIFEST, Bundle
from zpipe.errors import BackendUnavailable
from zpipe.models.recipes import RECIPES, STUDENT_RECIPES, Recipe, StudentsRecipe

__all__ = [
    "DATA_SETS",
    "HEAD_EPOCHS",
    "RECIPES",
    "STUDENT_RECIPES",
    "Progress",
    "Recipe",
    "StudentsRecipe",
    "attach_heads",
    "head_notes",
    "make_untrained",
    "retrain_codecs",
    "train_bundle",
    "train_students",
]

#: What `data` may be.
DATA_SETS = ("digits", "cifar10")

#: Passes over the training samples when heads are fitted: 5 seconds a head on the digits' 10,000.
HEAD_EPOCHS = 20

#: Called as work goes on: (step: `data`, `network`, `look`, `train`, `export`, `calibrate`, `replay`, `bottleneck`, `codecs`,
#: `done`; fraction 0..1 of all work; one line for people).
Progress = Callable[[str, float, str], None]

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")


def train_bundle(
    recipe: str,
    *,
    out: Path,
    data: str = "digits",
    data_dir: Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    stages: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Train a recipe and write the bundle to `out`, ready to run.

    The folder appears only when all of it is done; what was there before stays until then.

    Args:
        recipe: a name in RECIPES.
        out: the bundle's folder.
        data: `digits` (comes with scikit-learn) or `cifar10` (read from `data_dir`).
        data_dir: holds `cifar-10-batches-py/`.
        epochs: passes over the training set; None = as the recipe or the data set says.
        seed: of weights, order and augmentation; the held-out splits don't depend on it.
        threads: torch's threads. One is repeatable bit by bit; two on a busy machine were up to ten times slower than one.
        stages: what it is cut into, 4 or 5; None = as the recipe says.
        replace: a bundle that is in `out`; otherwise it is refused, as anything else always is.
        progress: called after every epoch and step, from this thread.

    Returns:
        The bundle, loaded and verified.

    Raises:
        ConfigError: unknown recipe or data set, files of the data set absent, or `out` holds something else.
        BackendUnavailable: a library of the extra `train` is absent.
        ExecutorError: the exported stages disagree with torch.
    """
    require_libraries()
    from zpipe.models.building import build_bundle

    return build_bundle(
        recipe,
        out=out,
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        seed=seed,
        threads=threads,
        stages=stages,
        replace=replace,
        tell=progress or _silent,
    )


def make_untrained(
    recipe: str,
    *,
    out: Path,
    stages: int | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    threads: int = 1,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Write a recipe's network with random weights, or a GPT-2 checkpoint's, as a bundle: for measurements of speed.

    Its evaluation set is made up; what counts as right there is what the un-split network says.

    Args:
        recipe: a name in RECIPES.
        out: the bundle's folder.
        stages: what it is cut into, 4 or 5; None = as the recipe says.
        checkpoint: for `gpt2-small`: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`; sizes are its own.
        seed: of weights and samples.
        threads: torch's.
        replace: as for `train_bundle`.
        progress: called as work goes on, from this thread.

    Raises:
        ConfigError: unknown recipe, not cut so, no such checkpoint, or `out` holds something else.
        BackendUnavailable: a library of the extra `train` is absent.
        ExecutorError: the stages disagree with the un-split network.
    """
    require_libraries()
    from zpipe.models.building import build_untrained

    return build_untrained(
        recipe,
        out=out,
        stages=stages,
        checkpoint=checkpoint,
        seed=seed,
        threads=threads,
        replace=replace,
        tell=progress or _silent,
    )


def retrain_codecs(
    out: Path,
    *,
    data: str = "digits",
    data_dir: Path | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> Bundle:
    """Train the bottleneck of a finished bundle anew and measure every codec; its stages and operating points stay.

    Args:
        out: the bundle's folder; replaced once all of it is done.
        data: what the bundle was trained on.
        data_dir: as for `train_bundle`, as are the others.

    Returns:
        The bundle, loaded and verified; its digest is another.

    Raises:
        BundleError: there is no bundle in `out`, or it is damaged.
        ConfigError: unknown data set or not the bundle's, its files absent, or the stages are not of our making.
        BackendUnavailable: a library of the extra `train` is absent.
    """
    require_libraries()
    from zpipe.models.building import rebuild_codecs

    return rebuild_codecs(out, data=data, data_dir=data_dir, seed=seed, threads=threads, tell=progress or _silent)


def attach_heads(
    bundle: str | Path,
    *,
    out: Path,
    data: Path | None = None,
    at: Sequence[int] | None = None,
    distill: bool = False,
    test: Path | None = None,
    tokens: Literal["mean", "last"] = "mean",
    epochs: int = HEAD_EPOCHS,
    seed: int = 0,
    threads: int = 1,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Train exit heads for a bundle's stages and write the bundle with them to `out`; the stages stay as they are, bit for bit.

    A head that was there is replaced; one at a stage that is not in `at` stays. Temperatures, operating points, accuracy table and
    replay are made anew.

    Args:
        bundle: folder or name; only read.
        out: the new bundle's folder; that of `bundle` with `replace`.
        data: a path for `zpipe.datasets`: images with labels or, to distill, without; None = the digits.
        at: the stages that get a head; None = all but the last.
        distill: learn from what the last exit says instead of from labels. Where there are no labels at all, temperatures and every
            accuracy speak of agreement with the last exit.
        test: like `data`, to test with, if the bundle has no evaluation set; a fifth of `data` if not given.
        tokens: what a head looks at in an activation `[tokens, channels]`.
        epochs: passes over the training samples.
        seed: of weights and order.
        threads: torch's.
        replace: as for `train_bundle`.
        progress: called as work goes on, from this thread.

    Returns:
        The bundle, loaded and verified.

    Raises:
        BundleError: no such bundle, or a damaged one.
        ConfigError: a stage that cannot get a head, data that does not fit, or `out` holds something else.
        BackendUnavailable: a library of the extra `train` is absent, or Pillow for images in files.
    """
    require_libraries()
    from zpipe.bundle.write import check_free
    from zpipe.models.building import check_numbers
    from zpipe.models.heads.build import Plan, build_heads

    check_numbers(epochs=epochs, threads=threads, seed=seed)
    check_free(out, replace=replace, read=(data, test))
    return build_heads(bundle, out, Plan(at, data, test, distill, tokens, epochs, seed, threads), progress or _silent)


def train_students(
    recipe: str,
    *,
    out: Path,
    teacher: str | Path | None = None,
    data: str = "digits",
    data_dir: Path | None = None,
    students: int | None = None,
    student_bytes: Sequence[int] = (),
    student_macs: Sequence[int] = (),
    student_exits: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Distil a network into small students, each for one part of its last filters, and write them as one bundle to `out`.

    Args:
        recipe: a name in STUDENT_RECIPES.
        out: the bundle's folder.
        teacher: folder or name of the bundle to distil, for images; None = the recipe's. It is only read.
        data: `digits`, `cifar10` (read from `data_dir`), or a path for `zpipe.datasets`: images with labels.
        data_dir: as for `train_bundle`.
        students: how many, 1 to MAX_PARTS; None = as many as there are bounds, or as the recipe says.
        student_bytes: at most so many of each student's files, one for all of them or one per part; the first part is the largest.
        student_macs: the same in multiply-adds for one sample.
        student_exits: students have two stages, and an exit after the first.
        epochs: passes over the training set; None = as the recipe says.
        seed: of weights, order, augmentation and which parts are missing.
        threads: torch's.
        replace: as for `train_bundle`.
        progress: called as work goes on, from this thread.

    Returns:
        The bundle, loaded and verified.

    Raises:
        BundleError: no such teacher, or a damaged one.
        ConfigError: unknown recipe, a teacher without a linear layer at its end, data that does not fit, bounds that no student
            meets, or `out` holds something else.
        BackendUnavailable: a library of the extra `train` is absent.
        ExecutorError: the exported stages disagree with torch.
    """
    require_libraries()
    from zpipe.models.students.run import StudentOptions, run_students

    options = StudentOptions(
        recipe=recipe,
        out=out,
        teacher=teacher,
        data=data,
        data_dir=data_dir,
        students=students,
        student_bytes=tuple(student_bytes),
        student_macs=tuple(student_macs),
        student_exits=student_exits,
        epochs=epochs,
        seed=seed,
        threads=threads,
        replace=replace,
    )
    return run_students(options, progress or _silent)


def head_notes(bundle: Bundle) -> tuple[str, ...]:
    """What `attach_heads` found that its caller should know, a line each: classes without samples, accuracy that was lost."""
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    return tuple(manifest.get("heads", {}).get("notes", ()))


def _silent(step: str, fraction: float, line: str) -> None:
    """Tell nobody."""


def require_libraries(purpose: str = "training a bundle") -> None:
    """What the extra `train` brings.

    Raises:
        BackendUnavailable: some of it is absent.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"found no {', '.join(missing)}, expected them for {purpose}; run: pip install 'zpipe[train]'")

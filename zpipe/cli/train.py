"""`zpipe train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zpipe.cli.completion import complete_bundle
from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError


@cli.command(epilog=example("zpipe train --recipe digits-mobilenetv2-half --out engines/mine"))
@click.option("--recipe", default="digits-mobilenetv2", show_default=True, help="What to train; `--recipe list` names them.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The bundle's folder; ./engines/RECIPE if not given.")
@click.option("--replace", is_flag=True, help="Replace the bundle that is there.")
@click.option(
    "--data",
    metavar="digits|cifar10|PATH",
    default="digits",
    show_default=True,
    help="`digits` (comes with scikit-learn), `cifar10`; for students also labelled images: a folder per class, or an .npz.",
)
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Holds cifar-10-batches-py/.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="One is repeatable bit by bit.")
@click.option("--stages", type=click.IntRange(1), help="What it is cut into: 4 or 5.  [default: 5]")
@click.option("--random", is_flag=True, help="Do not train: random weights, for measurements of speed.")
@click.option(
    "--checkpoint", type=FOLDER, help="A GPT-2 of yours for gpt2-small: config.json, model.safetensors or pytorch_model.bin."
)
@click.option(
    "--teacher",
    metavar="BUNDLE",
    shell_complete=complete_bundle,
    help="What the students of rocoin learn from; `zpipe split` makes one of a torch model.",
)
@click.option("--students", type=click.IntRange(1), help="How many.  [default: 3]")
@click.option(
    "--student-bytes",
    metavar="N[,N...]",
    help="Most bytes of each student's files; the widest that fits is taken. One for all, or one for each, the largest part first.",
)
@click.option("--student-macs", metavar="N[,N...]", help="The same for its multiply-adds.")
@click.option("--student-exits", is_flag=True, help="Each student has two stages, and an exit after the first.")
@click.option("--codecs-only", is_flag=True, help="Keep a finished bundle's stages; train its bottleneck, measure every codec.")
def train(recipe: str, out: Path | None, codecs_only: bool, random: bool, checkpoint: Path | None, **options: Any) -> None:
    """Train a recipe and write the bundle, ready to run (needs `pip install 'zpipe[train]'`).

    `digits-rocoin` and `rocoin` distil a network into small students, each for a part of its features: any one may fail.
    """
    from zpipe.models import RECIPES, STUDENT_RECIPES, make_untrained, retrain_codecs, train_bundle

    names = [*RECIPES, *STUDENT_RECIPES]
    if recipe == "list":
        for name in names:
            click.echo(name)
        return
    if recipe not in names:
        raise ConfigError(f"--recipe: found {recipe!r}, expected one of {', '.join(names)}, or `list`")
    about_students = {key: options.pop(key) for key in ("teacher", "students", "student_bytes", "student_macs", "student_exits")}
    if recipe in STUDENT_RECIPES:
        chosen = {"--codecs-only": codecs_only, "--random": random, "--checkpoint": checkpoint, "--stages": options.pop("stages")}
        _refuse(chosen, f"recipe {recipe}", "students")
        _train_students(recipe, out, about_students, options)
        return
    _refuse({_option(key): value for key, value in about_students.items()}, f"recipe {recipe}", "one network")
    untrained = random or checkpoint is not None
    _check_together(codecs_only=codecs_only, random=random, checkpoint=checkpoint, **options)
    folder = out or Path("engines") / (f"{recipe}-random" if random else recipe)
    with progress_shown() as progress:

        def tell(step: str, done: float, line: str) -> None:
            progress(f"{step}: {line}", done)

        if codecs_only:
            kept = {key: value for key, value in options.items() if key not in ("epochs", "stages", "replace")}
            bundle = retrain_codecs(folder, progress=tell, **kept)
        elif untrained:
            kept = {key: options[key] for key in ("stages", "seed", "threads", "replace")}
            bundle = make_untrained(recipe, out=folder, checkpoint=checkpoint, progress=tell, **kept)
        else:
            bundle = train_bundle(recipe, out=folder, progress=tell, **options)
    point = bundle.default_point
    size = f"{folder}: {len(bundle.stages)} stages, {bundle.full_macs / 1e6:.1f} M multiply-adds"
    compute = f"at {point.test.mean_macs / bundle.full_macs:.2f} of the compute"
    if untrained:
        agreement = 100 * bundle.point("no-exit").test.accuracy
        click.echo(f"{size}; the chain answers as the un-split network in {agreement:.1f} %; point {point.name} is {compute}")
    else:
        click.echo(f"{size}; point {point.name} has {100 * point.test.accuracy:.1f} % on test {compute}")


def _train_students(recipe: str, out: Path | None, about: dict[str, Any], options: dict[str, Any]) -> None:
    from zpipe.models import train_students

    folder = out or Path("engines") / recipe
    about |= {key: _bounds(_option(key), about[key]) for key in ("student_bytes", "student_macs")}
    with progress_shown() as progress:
        bundle = train_students(
            recipe, out=folder, progress=lambda step, done, line: progress(f"{step}: {line}", done), **about, **options
        )
    join = bundle.join
    assert join is not None  # students always have one
    parameters = sum(student.parameters for student in bundle.students)
    worst = min(join.test[-1 - (1 << part)] for part in range(join.parts))
    lacking = f", {100 * worst:.1f} % at worst with one part missing" if join.parts > 1 else ""
    click.echo(
        f"{folder}: {join.parts} students, {parameters / 1e6:.2f} M parameters, {bundle.full_macs / 1e6:.1f} M multiply-adds; "
        f"{100 * join.test[-1]:.1f} % on test{lacking}"
    )


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _bounds(option: str, text: str | None) -> tuple[int, ...]:
    try:
        values = () if text is None else tuple(int(float(part)) for part in text.split(","))
    except (ValueError, OverflowError):
        values = (0,)
    if any(value < 1 for value in values):
        raise ConfigError(f"{option}: found {text!r}, expected whole numbers above 0, such as 600000 or 600000,300000")
    return values


def _refuse(options: Mapping[str, Any], found: str, about: str) -> None:
    """Options that are about something else.

    Raises:
        ConfigError: one of them is given.
    """
    for option, value in options.items():
        if value not in (None, False):
            raise ConfigError(f"{option}: found it with {found}, expected none, as that makes {about}; leave it out")


def _check_together(
    *, codecs_only: bool, random: bool, checkpoint: Path | None, epochs: int | None, stages: int | None, **_: Any
) -> None:
    """Options that make no sense together.

    Raises:
        ConfigError: names two of them.
    """
    ways = [("--codecs-only", codecs_only), ("--random", random), ("--checkpoint", checkpoint is not None)]
    chosen = [name for name, given in ways if given]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[1]}: found it with {chosen[0]}, expected one of the two; leave one out")
    if chosen and epochs:
        raise ConfigError(f"--epochs: found {epochs} with {chosen[0]}, expected none, as no stage is trained; leave one out")
    if codecs_only and stages:
        raise ConfigError(f"--stages: found {stages} with --codecs-only, expected none, as its stages stay; leave one out")

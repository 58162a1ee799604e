"""`zpipe heads`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zpipe.cli.completion import complete_bundle
from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

PATH = click.Path(path_type=Path)


@cli.command(epilog=example("zpipe heads --bundle engines/model --data photos --at 0,1,2 --out engines/model-exits"))
@click.option(
    "--bundle",
    shell_complete=complete_bundle,
    required=True,
    help="A bundle's folder or name, such as `zpipe split` writes; it is only read.",
)
@click.option(
    "--data",
    metavar="PATH|digits",
    required=True,
    help="Images to learn from: a folder with one folder per class, an .npz (images, labels), CIFAR-10's folder; with --distill "
    "also a folder of images, or an .npz without labels.",
)
@click.option("--out", type=FOLDER, required=True, help="The new bundle's folder.")
@click.option("--replace", is_flag=True, help="Replace the bundle that is in --out; that may be --bundle itself.")
@click.option("--at", metavar="A,B,...", help="Stages that get a head.  [default: all but the last]")
@click.option("--distill", is_flag=True, help="Learn from the last exit's answers instead of labels.")
@click.option("--test", type=PATH, help="Images to test with, if the bundle has no evaluation set; a fifth of --data if not given.")
@click.option(
    "--tokens",
    type=click.Choice(["mean", "last"]),
    default="mean",
    show_default=True,
    help="What a head looks at where an activation is tokens x channels.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training images.  [default: 20]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of weights and order.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="One is repeatable bit by bit.")
def heads(bundle: str, data: str, out: Path, at: str | None, epochs: int | None, **options: Any) -> None:
    """Train exit heads for the stages of a frozen network, and write it with them (needs `pip install 'zpipe[train]'`)."""
    from zpipe.models import HEAD_EPOCHS, attach_heads, head_notes

    with progress_shown() as progress:
        made = attach_heads(
            bundle,
            out=out,
            data=None if data == "digits" and not Path(data).exists() else Path(data),
            at=None if at is None else _stages(at),
            epochs=epochs or HEAD_EPOCHS,
            progress=lambda step, done, line: progress(f"{step}: {line}", done),
            **options,
        )
    point = made.default_point
    exits = sum(stage.exit_head is not None for stage in made.stages)
    click.echo(
        f"{out}: {len(made.stages)} stages, {exits} exits; point {point.name} has {100 * point.test.accuracy:.1f} % on test at "
        f"{point.test.mean_macs / made.full_macs:.2f} of the compute, all of it {100 * made.point('no-exit').test.accuracy:.1f} %"
    )
    for note in head_notes(made):
        click.echo(f"zpipe: note: {note}", err=True)


def _stages(text: str) -> tuple[int, ...]:
    try:
        stages = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        stages = ()
    if not stages:
        raise ConfigError(f"--at: found {text!r}, expected stages, such as 0,1,2")
    return stages

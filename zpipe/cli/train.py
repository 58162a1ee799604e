"""`zpipe train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zpipe.cli.group import cli
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError


@cli.command()
@click.option("--recipe", default="digits-mobilenetv2", show_default=True, help="What to train; `--recipe list` names them.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The bundle's folder; ./engines/RECIPE if not given.")
@click.option("--data", default="digits", show_default=True, help="`digits` (comes with scikit-learn) or `cifar10`.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Holds cifar-10-batches-py/.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="One is repeatable bit by bit.")
@click.option("--codecs-only", is_flag=True, help="Keep a finished bundle's stages; train its bottleneck, measure every codec.")
def train(recipe: str, out: Path | None, codecs_only: bool, **options: Any) -> None:
    """Train a recipe and write the bundle, ready to run (needs `pip install 'zpipe[train]'`)."""
    from zpipe.models import RECIPES, retrain_codecs, train_bundle

    if recipe == "list":
        for name in RECIPES:
            click.echo(name)
        return
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe: found {recipe!r}, expected one of {', '.join(RECIPES)}, or `list`")
    folder = out or Path("engines") / recipe
    epochs = options.pop("epochs")
    if codecs_only and epochs:
        raise ConfigError(f"--epochs: found {epochs} with --codecs-only, expected none, as no stage is trained; leave one out")
    with progress_shown() as progress:

        def tell(step: str, done: float, line: str) -> None:
            progress(f"{step}: {line}", done)

        if codecs_only:
            bundle = retrain_codecs(folder, progress=tell, **options)
        else:
            bundle = train_bundle(recipe, out=folder, epochs=epochs, progress=tell, **options)
    point = bundle.default_point
    click.echo(
        f"{folder}: {len(bundle.stages)} stages, {bundle.full_macs / 1e6:.1f} M multiply-adds; point {point.name} has "
        f"{100 * point.test.accuracy:.1f} % on test at {point.test.mean_macs / bundle.full_macs:.2f} of the compute"
    )

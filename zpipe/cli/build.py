"""`zpipe build`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_bundle
from zpipe.cli.group import cli, example
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.executors.tensorrt.build import BuiltEngine


@cli.command(epilog=example("zpipe build --target 8.6 --precision fp16"))
@click.option(
    "--bundle",
    "name",
    shell_complete=complete_bundle,
    default="digits-mobilenetv2",
    show_default=True,
    help="A bundle's folder or name.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="What engines compute in; anything but fp32 is checked on the bundle's evaluation set first.",
)
@click.option(
    "--target",
    default="current",
    show_default=True,
    help="Compute capability to build for, such as 8.6; `current` is this machine's GPU, `any` runs from 8.0 on.",
)
@click.option("--max-batch", type=click.IntRange(1, 1024), default=64, show_default=True, help="Most samples in one batch.")
@click.option("--flavour", type=click.Choice(["trt", "rtx"]), help="TensorRT or TensorRT-RTX; the first that can if not given.")
@click.option("--force", is_flag=True, help="Build what is there, too; keep a precision that loses too much, or cannot be checked.")
def build(name: str, **options: Any) -> None:
    """Build TensorRT engines for a bundle's stages (needs `pip install 'zpipe[rtx]'`, or `zpipe[trt]` and a GPU)."""
    from rich.console import Console

    from zpipe.bundle import load_bundle
    from zpipe.executors.tensorrt.build import build_engines

    bundle = load_bundle(name)
    if bundle.students:
        raise ConfigError(
            f"--bundle {name}: found students, expected one chain of stages, as engines do not give the scores that are joined; "
            "run students on executor onnx"
        )
    with progress_shown() as progress:
        built = build_engines(bundle, progress=progress, **options)
    console, first = Console(), built[0].engine
    console.print(f"{bundle.name}: {first.key}", highlight=False, soft_wrap=True)
    console.print(_table(built))
    if first.accuracy.samples:
        by = {"onnxruntime": "in ONNX Runtime, no GPU took part", "engine": "by the engines themselves"}[first.accuracy.by]
        console.print(f"accuracy on {first.accuracy.samples} evaluation samples {by}", highlight=False)
    console.print(f"engines are in {first.plan.parent}", highlight=False, soft_wrap=True)


def _table(built: list[BuiltEngine]) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("stage", "MB", "seconds", "accuracy"):
        table.add_column(column, justify="right")
    for each in built:
        engine = each.engine
        seconds = "there" if each.kept else f"{engine.build_seconds:.1f}"
        points = _points(engine.accuracy.lost, engine.key.stage)
        table.add_row(str(engine.key.stage), f"{engine.plan_bytes / 1e6:.1f}", seconds, points)
    return table


def _points(lost: tuple[float | None, ...], stage: int) -> str:
    """Points gained; a dash where nothing was converted, or there is no exit."""
    points = lost[stage] if lost else None
    return "-" if points is None else f"{-points:+.2f} points".replace("-0.00", "+0.00")

"""`zpipe plan`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zpipe.cli.completion import complete_bundle, complete_file
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, SECONDS
from zpipe.cli.output import check_writable, write_text
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.bundle import Bundle
    from zpipe.plan import Plan

#: Of the time there is: for the plan itself, at most; the rest for what would help.
PLANNING = 0.7


@cli.command(epilog=example("zpipe plan --devices robot --goal latency --out plan.yaml"))
@click.option(
    "--devices",
    required=True,
    metavar="FILE",
    shell_complete=complete_file,
    help="The boards there are, and their links; `robot` is an example.",
)
@click.option(
    "--bundle", shell_complete=complete_bundle, default="digits-mobilenetv2", show_default=True, help="A bundle's folder or name."
)
@click.option("--goal", type=click.Choice(["throughput", "latency", "accuracy-at-rate"]), default="throughput", show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Samples per second, for `--goal accuracy-at-rate`.")
@click.option("--policy", "point", metavar="POINT", help="An operating point of the bundle, or `no-exit`.")
@click.option(
    "--shape",
    type=click.Choice(["auto", "line", "mesh"]),
    default="auto",
    show_default=True,
    help="line: each board one slice; mesh: any board any stages; auto: as the boards are linked.",
)
@click.option(
    "--most-lost",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="A codec may cost so much accuracy where a link leaves the codec open.",
)
@click.option("--out", type=FILE, default=Path("plan.yaml"), show_default=True, help="Write the topology here.")
@click.option("--draw", type=FILE, help="Write a drawing here, as SVG.")
@click.option(
    "--time-limit",
    type=SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds to search, roughly and in all; lines take what they need.",
)
@click.option(
    "--simulated/--on-paper", default=True, show_default=True, help="Whether plans for throughput are tried in the simulator."
)
def plan(
    devices: str,
    bundle: str,
    goal: str,
    rate: float | None,
    point: str | None,
    shape: str,
    most_lost: float,
    out: Path,
    draw: Path | None,
    time_limit: float,
    simulated: bool,
) -> None:
    """Decide which board hosts which stages, and write the topology."""
    from zpipe.boards import load_boards
    from zpipe.bundle import load_bundle
    from zpipe.plan import draw_plan, explain, make_plan, to_yaml

    if draw is not None and draw.suffix.lower() != ".svg":
        raise ConfigError(f"--draw: found {draw}, expected a file that ends in .svg; browsers show it")
    if out.suffix != ".yaml":
        raise ConfigError(f"--out: found {out}, expected a file that ends in .yaml")
    check_writable(out, draw)
    began = time.monotonic()
    loaded = load_bundle(bundle)
    boards = load_boards(devices, loaded)
    with progress_shown() as progress:
        progress("starting", 0.0)
        found = make_plan(
            loaded,
            boards,
            goal=goal,  # type: ignore[arg-type]
            rate=rate,
            point=point,
            shape=shape,  # type: ignore[arg-type]
            most_lost=most_lost,
            time_limit=PLANNING * time_limit,
            name=out.stem,
            out=out,
            trial=_trial(loaded, progress) if simulated else None,
            clock=time.monotonic,
        )
        progress("asking what would help", 0.9)
        left = time_limit - (time.monotonic() - began)
        lines = explain(found, time_limit=max(left, (1.0 - PLANNING) * time_limit), clock=time.monotonic)
    comment = f"Made by `{_command()}`.\n" + "\n".join([*lines, f"ranks: {_ranks(found)}"])
    write_text(out, to_yaml(found.topology, comment))
    if draw is not None:
        write_text(draw, draw_plan(found, lines[0].removeprefix("plan: ")))
    for line in lines:
        click.echo(line)
    written = f"{out} and {draw}" if draw is not None else f"{out}"
    click.echo(f"{written} written; try it: {_try_it(found, out)}")


def _trial(bundle: Bundle, progress: Callable[[str, float], None]) -> Callable[[Plan], float] | None:
    """The simulator's results per second when samples are always there; None where the bundle has no recorded answers."""
    from zpipe.sim import capacity

    if bundle.replay_file is None or bundle.evaluation_file is None:
        return None

    def results_per_second(plan: Plan) -> float:
        progress("trying plans in the simulator", 0.5)
        return capacity(replace(plan.topology, bundle=str(bundle.path.absolute())), service=plan.measured_files)

    return results_per_second


def _command() -> str:
    """As it was called: rate, operating point and shape belong to what is true of the plan."""
    return " ".join(["zpipe", *map(shlex.quote, sys.argv[1:])])


def _ranks(found: Plan) -> str:
    """Whose node is which: a topology has no names."""
    boards = found.problem.boards.boards
    return ", ".join(f"{rank} {boards[board].name}" for rank, board in enumerate(found.layout.hosted))


def _try_it(found: Plan, out: Path) -> str:
    """The simulator's command that shows what was predicted."""
    services = "".join(f" --service {rank}={shlex.quote(str(file))}" for rank, file in found.measured_files.items())
    load = "--rate max --admission fixed" if found.goal == "throughput" else "--rate 1 --count 500"
    return f"zpipe sim --topology {shlex.quote(str(out))} {load}{services}"

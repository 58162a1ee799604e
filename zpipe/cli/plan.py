"""`zpipe plan`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

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
#: Parameters that only plans for a chain have, and those for students.
OF_CHAINS, OF_GROUPS = ("rate", "time_limit", "simulated"), ("failures", "missing", "redundancy")


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
    type=click.Choice(["auto", "line", "mesh", "groups"]),
    default="auto",
    show_default=True,
    help="line: each board one slice; mesh: any board any stages; groups (RoCoIn): boards that host the same student, for a bundle "
    "of students; auto: by the bundle, and as the boards are linked.",
)
@click.option(
    "--failure",
    "failures",
    metavar="[NAME=]P",
    multiple=True,
    help="groups: P(a device does not answer), of all whose file does not say, or of one (or of all of one entry); the source "
    "has none.",
)
@click.option(
    "--missing",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="groups: P(no device of a group answers) may be so much at most.",
)
@click.option(
    "--redundancy",
    type=click.Choice(["failover", "hedged", "all"]),
    default="hedged",
    show_default=True,
    help="groups: a sample goes to one device of each, and to another once that failed; hedged: or took long; all: to each device.",
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
@click.pass_context
def plan(
    context: click.Context,
    devices: str,
    bundle: str,
    goal: str,
    rate: float | None,
    point: str | None,
    shape: str,
    failures: tuple[str, ...],
    missing: float,
    redundancy: str,
    most_lost: float,
    out: Path,
    draw: Path | None,
    time_limit: float,
    simulated: bool,
) -> None:
    """Decide which board hosts which stages, and write the topology."""
    from zpipe.boards import load_boards
    from zpipe.bundle import load_bundle
    from zpipe.plan import draw_groups, draw_plan, explain, explain_groups, make_plan, plan_groups, to_yaml, with_failures

    if draw is not None and draw.suffix.lower() != ".svg":
        raise ConfigError(f"--draw: found {draw}, expected a file that ends in .svg; browsers show it")
    if out.suffix != ".yaml":
        raise ConfigError(f"--out: found {out}, expected a file that ends in .yaml")
    check_writable(out, draw)
    began = time.monotonic()
    loaded = load_bundle(bundle)
    groups = shape == "groups" or (shape == "auto" and bool(loaded.students))
    _check_options(context, loaded, groups=groups)
    boards = load_boards(devices, loaded)
    with progress_shown() as progress:
        progress("starting", 0.0)
        if groups:
            grouped = plan_groups(
                loaded,
                with_failures(boards, *_failures(failures)),
                missing=missing,
                redundancy=redundancy,  # type: ignore[arg-type]
                point=point,
                most_lost=most_lost,
                name=out.stem,
                out=out,
            )
            found = grouped.plan
            progress("asking what would help", 0.9)
            lines = explain_groups(grouped)
            drawing = draw_groups(grouped, lines[0].removeprefix("plan: "))
        else:
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
            drawing = draw_plan(found, lines[0].removeprefix("plan: "))
    comment = f"Made by `{_command()}`.\n" + "\n".join([*lines, f"ranks: {_ranks(found)}"])
    write_text(out, to_yaml(found.topology, comment))
    if draw is not None:
        write_text(draw, drawing)
    for line in lines:
        click.echo(line)
    written = f"{out} and {draw}" if draw is not None else f"{out}"
    click.echo(f"{written} written; try it: {_try_it(found, out)}")


def _check_options(context: click.Context, bundle: Bundle, *, groups: bool) -> None:
    """That what was asked for is about such a plan.

    Raises:
        ConfigError: it is not.
    """
    if bundle.students and not groups:
        raise ConfigError(
            f"--shape: found {context.params['shape']} for bundle {bundle.name}, a bundle of students, expected groups or auto"
        )
    if groups and not bundle.students:
        raise ConfigError(
            f"--shape: found groups for bundle {bundle.name}, which is one chain, expected a bundle of students; take another "
            "shape, or train students with `zpipe train --recipe digits-rocoin`"
        )
    said = [name for name in (OF_CHAINS if groups else OF_GROUPS) if _is_said(context, name)]
    if groups and _is_said(context, "goal") and context.params["goal"] != "latency":
        said.insert(0, "goal")
    if said:
        (option,) = (each for each in context.command.params if each.name == said[0])
        kind, way = ("a bundle of students", "whose plan is for latency") if groups else ("one chain", "which has no groups")
        value = context.params[said[0]]
        found = "it" if isinstance(value, bool) else " ".join(value) if isinstance(value, tuple) else value
        raise ConfigError(
            f"{option.opts[0] if value else option.secondary_opts[0]}: found {found} for bundle {bundle.name}, expected none for "
            f"{kind}, {way}"
        )


def _is_said(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _failures(said: Sequence[str]) -> tuple[float | None, dict[str, float]]:
    """P(a device does not answer) for all that say nothing else, and by name."""
    everywhere: float | None = None
    by_name: dict[str, float] = {}
    for each in said:
        name, named, text = each.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value < 1.0 or (named and not name):
            raise ConfigError(f"--failure: found {each}, expected P or NAME=P with P from 0 to below 1, such as 0.1 or arm=0.2")
        if (name in by_name) if name else (everywhere is not None):
            raise ConfigError(
                f"--failure: found {each} beside another{f' for {name}' if name else ''}, expected one; leave one out"
            )
        if name:
            by_name[name] = value
        else:
            everywhere = value
    return everywhere, by_name


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

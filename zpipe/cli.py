"""The commands: parse, call one library function, print. Nothing else in zpipe prints.

Exit codes: 0 done, 1 the run fell short, 2 bad usage or configuration.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from zpipe import __version__
from zpipe.errors import BackendUnavailable, ConfigError, ZpipeError

log = logging.getLogger("zpipe.cli")

T = TypeVar("T")

TOPOLOGY = click.option(
    "--topology", default="line4.yaml", show_default=True, help="A topology file, or the name of one that comes with zpipe."
)
FILE = click.Path(dir_okay=False, path_type=Path)


class Seconds(click.FloatRange):
    """Seconds above 0; click's own range lets a NaN pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return found


SECONDS = Seconds(0, 1e6, min_open=True)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: everything is closed already."""


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="zpipe")
@click.option("-v", "--verbose", count=True, help="Say what happens (-v), or everything (-vv).")
@click.pass_context
def cli(context: click.Context, verbose: int) -> None:
    """Run one deep network over several small computers, exiting early when it is sure."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    level = [logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    os.environ.setdefault("ZPIPE_LOG", logging.getLevelName(level))


# ---- node --------------------------------------------------------------------------------------


@cli.command()
@click.option("--rank", type=int, required=True, help="Which node of the topology this is.")
@TOPOLOGY
def node(rank: int, topology: str) -> None:
    """Run one node until it is stopped."""
    from zpipe.runtime.node import Node, by_hand
    from zpipe.topology import load_topology

    loaded = load_topology(topology)
    if not 0 <= rank < len(loaded.nodes):
        raise ConfigError(f"{loaded.path}: --rank: found {rank}, expected one of 0 to {len(loaded.nodes) - 1}")
    served = Node(by_hand(loaded), rank, waiting=click.echo)

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with served:
            stages = ", ".join(map(str, served.topology.node(rank).stages))
            click.echo(f"node {rank} serves stage {stages} of {served.bundle.name} at {served.topology.node(rank).address}")
            await served.serve(stop)
            done = served.driver.policy.counts
        click.echo(f"node {rank} stopped: {done.tasks_run} tasks run, {done.exited} answered here, {done.sent} handed on")

    _run(serve())


# ---- bench -------------------------------------------------------------------------------------


@cli.command()
@TOPOLOGY
@click.option("--attach", is_flag=True, help="The other nodes run already (`zpipe node`); be their source.")
@click.option(
    "--count", type=click.IntRange(1), help="Samples to offer; the evaluation set once if neither this nor --duration is given."
)
@click.option("--duration", type=SECONDS, help="Seconds to offer samples for.")
@click.option(
    "--window", type=click.IntRange(1), default=32, show_default=True, help="Samples under way at once in the closed loop."
)
@click.option("--rate", metavar="HZ|max", help="Poisson arrivals at this rate instead; `max`: as many as admission lets in.")
@click.option("--policy", "exit_point", metavar="POINT", help="An operating point of the bundle, or `no-exit`.")
@click.option("--admission", type=click.Choice(["fixed", "mdi-rate", "mdi-threshold", "aimd"]), help="Instead of the topology's.")
@click.option("--when-full", type=click.Choice(["block", "latest", "deadline"]), help="Instead of the topology's.")
@click.option("--max-batch", type=click.IntRange(1), help="Most tasks in one batch, at every node.")
@click.option("--bundle", help="A bundle's folder or name, instead of the topology's.")
@click.option("--deadline", type=SECONDS, help="Seconds a sample has, instead of the topology's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of samples, the arrivals and the policy's dice.")
@click.option("--warm-up", type=click.IntRange(0), default=200, show_default=True, help="Samples before the measured ones.")
@click.option("--json", "json_file", type=FILE, help="Write the report here.")
@click.option("--samples", "samples_file", type=FILE, help="Write one JSON line per sample here.")
def bench(json_file: Path | None, samples_file: Path | None, rate: str | None, **options: Any) -> None:
    """Start every rank of a topology, drive it with the bundle's evaluation set, print a table."""
    from rich.console import Console

    from zpipe.bench.run import BenchOptions, run_bench
    from zpipe.report import render

    if options["count"] is None and options["duration"] is None and rate is not None and rate != "max":
        options["duration"] = 10.0
    rate_hz = None if rate is None else math.inf if rate == "max" else _rate(rate)
    plan = BenchOptions(rate_hz=rate_hz, **options)
    for file in (json_file, samples_file):
        if file is not None:
            _check_writable(file)
    with _progress() as progress:
        report, samples = _run(run_bench(plan, progress=progress))
    Console().print(render(report))
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if samples_file is not None:
        samples.samples_jsonl(samples_file)
    counts = report["counts"]
    if counts["lost"] or counts["duplicate"] or counts["hung"] or report["strangers"]:
        raise SystemExit(1)


def _check_writable(file: Path) -> None:
    """Before the run: it would be a pity to find out after it."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{file}: found no folder {folder}, expected one to write into; make it first")
    there = file.exists()
    try:
        file.open("a").close()
        if not there:
            file.unlink()
    except OSError as exc:
        raise ConfigError(
            f"{file}: found that it cannot be written ({exc.strerror}), expected a file to write; choose another"
        ) from exc


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0.0 < rate < math.inf:
        raise ConfigError(f"--rate: found {text!r}, expected a number of samples per second above 0, or `max`")
    return rate


class _progress:  # noqa: N801 - reads as a context manager
    """A bar on a terminal, a line at each tenth otherwise. Calling it: (line, done 0..1).

    "starting" is for the bar alone: it is over in a second, and an error there shall stand alone in a log.
    """

    def __enter__(self) -> Callable[[str, float], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._said = ("", -1)
        return self._tell

    def _tell(self, line: str, fraction: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=line, completed=fraction)
            return
        if line == "starting":
            return
        tenth = (line, math.floor(10 * fraction) if math.isfinite(fraction) else 0)
        if tenth != self._said:
            self._said = tenth
            click.echo(f"{line} {100 * fraction:.0f} %" if fraction else line, err=True)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


# ---- train and doctor --------------------------------------------------------------------------


@cli.command()
@click.option("--recipe", default="digits-mobilenetv2", show_default=True, help="What to train; `--recipe list` names them.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The bundle's folder; ./engines/RECIPE if not given.")
@click.option("--data", default="digits", show_default=True, help="`digits` (comes with scikit-learn) or `cifar10`.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Holds cifar-10-batches-py/.")
@click.option("--epochs", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order and augmentation.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="One is repeatable bit by bit.")
def train(recipe: str, out: Path | None, **options: Any) -> None:
    """Train a recipe and write the bundle, ready to run (needs `pip install 'zpipe[train]'`)."""
    from zpipe.models import RECIPES, train_bundle

    if recipe == "list":
        for name in RECIPES:
            click.echo(name)
        return
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe: found {recipe!r}, expected one of {', '.join(RECIPES)}, or `list`")
    folder = out or Path("engines") / recipe
    with _progress() as progress:
        bundle = train_bundle(recipe, out=folder, progress=lambda step, done, line: progress(f"{step}: {line}", done), **options)
    point = bundle.default_point
    click.echo(
        f"{folder}: {len(bundle.stages)} stages, {bundle.full_macs / 1e6:.1f} M multiply-adds; point {point.name} has "
        f"{100 * point.test.accuracy:.1f} % on test at {point.test.mean_macs / bundle.full_macs:.2f} of the compute"
    )


@cli.command()
def doctor() -> None:
    """Say what works here, what is missing, and the command that mends it."""
    from rich.console import Console

    from zpipe.doctor import diagnose, render_findings

    def loopback_check() -> str:
        from zpipe.bench.loopback import loopback_check  # imports ZeroMQ, which may be what is missing

        return loopback_check()

    findings = diagnose(loopback=loopback_check)
    Console().print(render_findings(findings))
    if any(finding.status == "missing" and finding.required for finding in findings):
        raise SystemExit(1)


# ---- running and failing -----------------------------------------------------------------------


def _run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine; Ctrl-C and SIGTERM cancel it, so that it closes what it opened."""
    from zpipe.runtime.loops import run

    async def interruptible() -> T:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise Interrupted from None

    return run(interruptible())


def main() -> None:
    """The `zpipe` command: every failure is one line on standard error."""
    try:
        code = cli.main(prog_name="zpipe", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("stopped")
        sys.exit(0)
    except click.UsageError as exc:
        _fail(f"{exc.format_message().rstrip('.')}; see `{exc.ctx.command_path if exc.ctx else 'zpipe'} --help`", 2)
    except click.ClickException as exc:
        _fail(exc.format_message(), 2)
    except Interrupted:
        click.echo("stopped")
        sys.exit(0)
    except (ConfigError, BackendUnavailable) as exc:
        _fail(str(exc), 2)
    except ZpipeError as exc:
        _fail(str(exc), 1)
    except Exception as exc:  # a mistake of ours
        log.debug("what happened:", exc_info=True)
        _fail(f"unexpected {type(exc).__name__}: {exc}; `zpipe -vv ...` shows where, please report it", 1)


def _fail(message: str, code: int) -> None:
    click.echo("zpipe: " + " ".join(message.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

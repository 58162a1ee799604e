"""`zpipe bench`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER, INSECURE, TOPOLOGY, load_options, parse_compare, parse_load, source_option
from zpipe.cli.output import check_writable, show_comparison, show_report, show_suite
from zpipe.cli.running import progress_shown, run_interruptible
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.runtime.pipeline import Pipeline


@cli.command(epilog=example("zpipe bench --topology mesh3.yaml --rate 40 --duration 10"))
@TOPOLOGY
@click.option("--attach", is_flag=True, help="The other nodes run already (`zpipe node`); be their source.")
@source_option("With --attach: which of several sources to be.")
@INSECURE
@click.option("--lab", is_flag=True, help="In the edge lab: a namespace for each board, links as the topology says (Linux, root).")
@click.option(
    "--cpu-share", "cpu_shares", multiple=True, metavar="RANK=SHARE", help="With --lab: this board has that share of a core."
)
@click.option(
    "--executor",
    help="What runs the stages at every node: `auto`, `trt`, `torch-cuda`, `onnx`, `emulated` (devices that are not here), or "
    "MODULE:CLASS.",
)
@click.option(
    "--device",
    help="Of nodes whose topology names none: a GPU, a precision, or both, such as cuda:1/fp16; with `--executor emulated` a "
    "device profile.",
)
@load_options
@click.option(
    "--trace",
    type=FOLDER,
    help="Record every rank started here: FOLDER/node-RANK.trace, for `zpipe trace merge` and `zpipe replay`.",
)
@click.option(
    "--metrics", metavar="HOST:PORT", help="Tell Prometheus of the source here, as `zpipe node --metrics` does of a node."
)
@click.option(
    "--chaos",
    metavar="SPEC",
    help="Faults while it runs: 'kill every 5s', 'stop 2s every 5s', 'terminate every 5s', 'rolling', 'down 2s every 5s', 'slow "
    "1Mbit/s 3s every 10s', 'reset every 5s', 'flip every 2s', 'corrupt 1%', 'calm 60s every 120s'; several joined by ';'. Also "
    "'kill 3s node 2 poisson 10s', 'reset link 0-1 at 5s'. Random nodes and links, from the seed; no root needed.",
)
@click.option(
    "--suite",
    metavar="NAME",
    help="A whole evaluation instead of one run: `mdi-exit`, `pa-mdi` or `rocoin`. Writes NAME.html (or --html) and its "
    "figures as JSON beside it.",
)
@click.option("--quick", is_flag=True, help="With --suite: fewer settings, topologies and seeds.")
@click.pass_context
def bench(
    context: click.Context,
    /,
    *,
    json_file: Path | None,
    samples_file: Path | None,
    compare: str | None,
    suite: str | None,
    quick: bool,
    html_file: Path | None,
    metrics: str | None,
    **options: Any,
) -> None:
    """Start every rank of a topology, drive its sources with the bundle's evaluation set, print a table."""
    from zpipe.bench.run import BenchOptions, compare_bench, run_bench

    if suite is not None:
        _bench_suite(context, suite, quick=quick, html_file=html_file, json_file=json_file)
        return
    if quick:
        raise ConfigError("--quick: found it without --suite, expected --suite NAME beside it")
    options["cpu_shares"] = dict(map(_cpu_share, options["cpu_shares"]))
    plan = BenchOptions(**parse_load(options))
    baselines = parse_compare(compare, samples_file)
    check_writable(json_file, samples_file, html_file)
    if baselines:
        if metrics:
            raise ConfigError("--metrics: found it beside --compare, whose sources follow each other; expected one of the two")
        with progress_shown() as progress:
            reports = run_interruptible(compare_bench(plan, baselines, progress=progress))
        show_comparison(reports, json_file=json_file, html_file=html_file)
        return
    with progress_shown() as progress:
        report, samples = run_interruptible(run_bench(plan, progress=progress, beside=partial(_told_of, metrics)))
    show_report(report, samples, json_file=json_file, samples_file=samples_file, html_file=html_file)


@asynccontextmanager
async def _told_of(metrics: str | None, source: Pipeline) -> AsyncIterator[None]:
    """While it lasts, Prometheus is told of the source."""
    if not metrics:
        yield
        return
    from zpipe.metrics import MetricsServer

    async with MetricsServer(source, metrics) as telling:
        click.echo(f"tells Prometheus at http://{telling.address}/metrics", err=True)
        yield


def _bench_suite(context: click.Context, name: str, *, quick: bool, html_file: Path | None, json_file: Path | None) -> None:
    """Runs an evaluation, writes its page and figures, prints what of its claims holds."""
    from zpipe.bench.suites import check_suite, run_suite

    of_suites = {"suite", "quick", "html_file", "json_file"}
    for option in context.command.params:
        if option.name not in of_suites and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"{option.opts[0]}: found it beside --suite, expected none: a suite sets its own topologies and loads"
            )
    check_suite(name)
    html_file = html_file or Path(f"{name}.html")
    json_file = json_file or html_file.with_suffix(".json")
    if html_file == json_file:
        raise ConfigError(f"--html: found {html_file}, the file of the JSON, expected another one; call it {html_file.stem}.html")
    check_writable(html_file, json_file)
    with progress_shown() as progress:
        found = run_interruptible(run_suite(name, quick=quick, progress=progress))
    show_suite(found, html_file=html_file, json_file=json_file)


def _cpu_share(text: str) -> tuple[int, float]:
    rank, _, share = text.partition("=")
    try:
        return int(rank), float(share)
    except ValueError:
        raise ConfigError(f"--cpu-share: found {text!r}, expected a rank and its share of a core, such as 2=0.25") from None

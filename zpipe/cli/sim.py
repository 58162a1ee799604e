"""`zpipe sim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, TOPOLOGY, load_options, parse_compare, parse_load
from zpipe.cli.output import check_writable, show_comparison, show_report
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError


@cli.command(epilog=example("zpipe sim --topology mesh3.yaml --device raspberry-pi-3 --rate 100 --duration 60"))
@TOPOLOGY
@load_options
@click.option("--device", default="raspberry-pi-4", show_default=True, help="Profile of every node whose topology names none.")
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="[RANK=]FILE",
    help="Measured times (`zpipe profile`) instead of device profiles; of one node with RANK=, once for each.",
)
@click.option("--hop", type=FILE, help="A measured profile of what a live node takes beside computing and sending.")
@click.option("--nodes", type=click.IntRange(1, 10_000), help="Instead of a topology: so many nodes, each with the whole network.")
@click.option("--sources", type=click.IntRange(1), help="With --nodes: how many of them are sources.  [default: 1]")
@click.option("--shape", type=click.Choice(["grid", "line", "random"]), help="With --nodes: how they are linked.  [default: grid]")
@click.pass_context
def sim(
    context: click.Context,
    /,
    json_file: Path | None,
    samples_file: Path | None,
    compare: str | None,
    html_file: Path | None,
    nodes: int | None,
    sources: int | None,
    shape: str | None,
    services: tuple[str, ...],
    **options: Any,
) -> None:
    """Run a topology on a virtual clock: the same policies, the same report, no devices."""
    from zpipe.sim import SimOptions, compare_sim, generated, run_sim

    if nodes is not None:
        if context.get_parameter_source("topology") is not ParameterSource.DEFAULT:
            raise ConfigError("--nodes: found it beside --topology, expected one of the two")
        options["topology"] = generated(
            shape or "grid", nodes=nodes, sources=sources or 1, bundle=options.pop("bundle"), seed=options["seed"]
        )
    elif sources is not None or shape is not None:
        raise ConfigError(f"--{'sources' if sources else 'shape'}: found it without --nodes, expected --nodes N beside it")
    options["service"] = _services(services)
    plan = SimOptions(**parse_load(options))
    baselines = parse_compare(compare, samples_file)
    check_writable(json_file, samples_file, html_file)
    if baselines:
        with progress_shown() as progress:
            reports = compare_sim(plan, baselines, progress=progress)
        show_comparison(reports, json_file=json_file, html_file=html_file)
        return
    with progress_shown() as progress:
        report, samples = run_sim(plan, progress=progress)
    show_report(report, samples, json_file=json_file, samples_file=samples_file, html_file=html_file)


def _services(texts: tuple[str, ...]) -> Path | dict[int, Path] | None:
    """`FILE` for every node, or `RANK=FILE` for some."""
    found: dict[int, Path] = {}
    for text in texts:
        rank, equals, file = text.partition("=")
        if not (equals and rank.isdecimal()):
            if len(texts) > 1:
                raise ConfigError(f"--service: found {text!r} beside another, expected RANK=FILE for each")
            return Path(text)
        if int(rank) in found:
            raise ConfigError(f"--service: found rank {rank} twice, expected each once")
        found[int(rank)] = Path(file)
    return found or None

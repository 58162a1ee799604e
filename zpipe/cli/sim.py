"""`zpipe sim`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zpipe.cli.group import cli
from zpipe.cli.options import FILE, TOPOLOGY, load_options, parse_load
from zpipe.cli.output import check_writable, show_report
from zpipe.cli.running import progress_shown


@cli.command()
@TOPOLOGY
@load_options
@click.option("--offload", metavar="STRATEGY", help="Instead of the topology's.")
@click.option("--device", default="raspberry-pi-4", show_default=True, help="Profile of every node whose topology names none.")
@click.option("--service", type=FILE, help="Measured service times, instead of device profiles.")
@click.option("--hop", type=FILE, help="A measured profile of what a live node takes beside computing and sending.")
def sim(json_file: Path | None, samples_file: Path | None, **options: Any) -> None:
    """Run a topology on a virtual clock: the same policies, the same report, no devices."""
    from zpipe.sim import SimOptions, run_sim

    plan = SimOptions(**parse_load(options))
    check_writable(json_file, samples_file)
    with progress_shown() as progress:
        report, samples = run_sim(plan, progress=progress)
    show_report(report, samples, json_file=json_file, samples_file=samples_file)

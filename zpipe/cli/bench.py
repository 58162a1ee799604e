"""`zpipe bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zpipe.cli.group import cli
from zpipe.cli.options import FOLDER, TOPOLOGY, load_options, parse_load
from zpipe.cli.output import check_writable, show_report
from zpipe.cli.running import progress_shown, run_interruptible


@cli.command()
@TOPOLOGY
@click.option("--attach", is_flag=True, help="The other nodes run already (`zpipe node`); be their source.")
@click.option("--executor", help="What runs the stages at every node: `onnx`, or `emulated` for devices that are not here.")
@click.option("--device", help="Device profile of nodes whose topology names none, for `--executor emulated`.")
@load_options
@click.option("--trace", type=FOLDER, help="Record every rank started here: FOLDER/node-RANK.trace.jsonl, for `zpipe replay`.")
def bench(json_file: Path | None, samples_file: Path | None, **options: Any) -> None:
    """Start every rank of a topology, drive it with the bundle's evaluation set, print a table."""
    from zpipe.bench.run import BenchOptions, run_bench

    plan = BenchOptions(**parse_load(options))
    check_writable(json_file, samples_file)
    with progress_shown() as progress:
        report, samples = run_interruptible(run_bench(plan, progress=progress))
    show_report(report, samples, json_file=json_file, samples_file=samples_file)

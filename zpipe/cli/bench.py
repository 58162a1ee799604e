"""`zpipe bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zpipe.cli.group import cli
from zpipe.cli.options import FOLDER, TOPOLOGY, load_options, parse_compare, parse_load
from zpipe.cli.output import check_writable, show_comparison, show_report
from zpipe.cli.running import progress_shown, run_interruptible
from zpipe.errors import ConfigError


@cli.command()
@TOPOLOGY
@click.option("--attach", is_flag=True, help="The other nodes run already (`zpipe node`); be their source.")
@click.option("--lab", is_flag=True, help="In the edge lab: a namespace for each board, links as the topology says (Linux, root).")
@click.option(
    "--cpu-share", "cpu_shares", multiple=True, metavar="RANK=SHARE", help="With --lab: this board has that share of a core."
)
@click.option("--executor", help="What runs the stages at every node: `onnx`, or `emulated` for devices that are not here.")
@click.option("--device", help="Device profile of nodes whose topology names none, for `--executor emulated`.")
@load_options
@click.option("--trace", type=FOLDER, help="Record every rank started here: FOLDER/node-RANK.trace.jsonl, for `zpipe replay`.")
def bench(json_file: Path | None, samples_file: Path | None, compare: str | None, **options: Any) -> None:
    """Start every rank of a topology, drive it with the bundle's evaluation set, print a table."""
    from zpipe.bench.run import BenchOptions, compare_bench, run_bench

    options["cpu_shares"] = dict(map(_cpu_share, options["cpu_shares"]))
    plan = BenchOptions(**parse_load(options))
    baselines = parse_compare(compare, samples_file)
    check_writable(json_file, samples_file)
    if baselines:
        with progress_shown() as progress:
            reports = run_interruptible(compare_bench(plan, baselines, progress=progress))
        show_comparison(reports, json_file=json_file)
        return
    with progress_shown() as progress:
        report, samples = run_interruptible(run_bench(plan, progress=progress))
    show_report(report, samples, json_file=json_file, samples_file=samples_file)


def _cpu_share(text: str) -> tuple[int, float]:
    rank, _, share = text.partition("=")
    try:
        return int(rank), float(share)
    except ValueError:
        raise ConfigError(f"--cpu-share: found {text!r}, expected a rank and its share of a core, such as 2=0.25") from None

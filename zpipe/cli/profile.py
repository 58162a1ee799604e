"""`zpipe profile`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_bundle, complete_topology
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, INSECURE, SECONDS
from zpipe.cli.output import check_writable, write_text
from zpipe.cli.running import progress_shown, run_interruptible
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zpipe.bench.profiling import StageProfile


@cli.command(epilog=example("zpipe profile --json board.json"))
@click.option(
    "--bundle", shell_complete=complete_bundle, default="digits-mobilenetv2", show_default=True, help="A bundle's folder or name."
)
@click.option("--executor", default="onnx", show_default=True, help="What runs the stages, as in a topology.")
@click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True, help="Batches of 1 to this are measured.")
@click.option("--seconds", type=SECONDS, default=0.4, show_default=True, help="For each stage and batch size.")
@click.option(
    "--topology",
    metavar="FILE",
    shell_complete=complete_topology,
    help="Measure the links of this topology instead, as its source.",
)
@click.option("--attach", is_flag=True, help="With --topology: the other nodes run already (`zpipe node`).")
@INSECURE
@click.option(
    "--json", "json_file", type=FILE, help="Write what planner and simulator read here; links go into a file that is there."
)
def profile(
    bundle: str,
    executor: str,
    max_batch: int,
    seconds: float,
    topology: str | None,
    attach: bool,
    insecure: bool,
    json_file: Path | None,
) -> None:
    """Measure every stage on this device, or the links between running nodes, for `zpipe plan` and `zpipe sim`."""
    check_writable(json_file)
    _read(json_file)
    if topology is None:
        for option, given in (("--attach", attach), ("--insecure", insecure)):
            if given:
                raise ConfigError(f"{option}: found it without --topology, expected --topology FILE beside it")
        _profile_stages(bundle, executor, max_batch, seconds, json_file)
    else:
        _profile_links(topology, attach, insecure, json_file)


def _profile_stages(name: str, executor: str, max_batch: int, seconds: float, json_file: Path | None) -> None:
    from rich.console import Console

    from zpipe.bench.profiling import profile_stages, to_document
    from zpipe.bundle import load_bundle

    bundle = load_bundle(name)
    with progress_shown() as progress:
        found = profile_stages(bundle, executor=executor, max_batch=max_batch, seconds=seconds, progress=progress)
    Console().print(_stage_table(bundle.name, found))
    click.echo("planner and simulator use the paced times: a stage that runs now and then finds its caches cold")
    _write(json_file, to_document(bundle, executor, found, _known_links(json_file)))


def _profile_links(topology: str, attach: bool, insecure: bool, json_file: Path | None) -> None:
    from zpipe.bench.linking import measure_links, silent_links
    from zpipe.bench.run import BenchOptions

    options = BenchOptions(topology=topology, attach=attach, insecure=insecure)
    with progress_shown() as progress:
        found = run_interruptible(measure_links(options, progress=progress))
    for row in found:
        low, high = row["between"]
        bandwidth = "no limit seen" if row["bandwidth"] is None else f"{row['bandwidth'] / 1e6:.1f} Mbit/s"
        click.echo(f"link {low}-{high}: {1e3 * row['latency']:.2f} ms, {bandwidth}, from {row['tasks']} tasks")
    silent = silent_links(topology, found)
    if silent:
        click.echo(f"nothing went over {', '.join(silent)}: samples did not need it")
    click.echo("as the nodes take them for; a link that was never full shows what it carried, not what it could")
    _write(json_file, _with_links(json_file, found))


def _stage_table(name: str, found: Sequence[StageProfile]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"{name}, ms a batch: median paced (5 % to 95 %), tight", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    largest = max(found[0].paced)
    sizes = sorted({1, largest})
    table.add_column("stage")
    for rows in sizes:
        table.add_column(f"batch {rows}", justify="right")
        table.add_column("tight", justify="right")
    table.add_column("MB", justify="right")
    for each in found:
        cells = []
        for rows in sizes:
            paced, tight = each.paced[rows], each.tight[rows]
            low, high = (1e3 * paced[round(place * (len(paced) - 1))] for place in (0.05, 0.95))
            cells += [f"{1e3 * statistics.median(paced):.2f} ({low:.2f} to {high:.2f})", f"{1e3 * statistics.median(tight):.2f}"]
        table.add_row(str(each.stage), *cells, f"{each.added_bytes / 1e6:.0f}")
    table.caption = f"a node without stages: {statistics.median(each.process_bytes for each in found) / 1e6:.0f} MB"
    table.caption_justify = "left"
    return table


# ---- the file ----------------------------------------------------------------------------------


def _known_links(file: Path | None) -> list[dict[str, Any]]:
    """Links measured before, which a new profile of stages keeps."""
    known = _read(file)
    return list(known.get("links") or []) if known else []


def _with_links(file: Path | None, links: list[dict[str, Any]]) -> dict[str, Any]:
    from zpipe.service import SERVICE_SCHEMA

    return (_read(file) or {"schema": SERVICE_SCHEMA}) | {"links": links}


def _read(file: Path | None) -> dict[str, Any] | None:
    """What a profile's file holds; None where there is none.

    Raises:
        ConfigError: it is something else, which must not be overwritten.
    """
    from zpipe.service import SERVICE_SCHEMA

    if file is None or not file.exists() or not file.stat().st_size:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SERVICE_SCHEMA:
        raise ConfigError(f"{file}: found another file, expected a profile or none; choose another name")
    return found


def _write(file: Path | None, document: dict[str, Any]) -> None:
    if file is not None:
        write_text(file, json.dumps(document, indent=1) + "\n")
        click.echo(f"{file} written")

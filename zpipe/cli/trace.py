"""`zpipe trace`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE
from zpipe.cli.output import check_writable
from zpipe.cli.running import progress_shown
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.timeline import Merged

#: Beyond this a browser has to be patient.
MANY_EVENTS = 2_000_000


@cli.group(epilog=example("zpipe trace merge traces"))
def trace() -> None:
    """Look at what `zpipe bench --trace` and `zpipe node --trace` recorded."""


@trace.command(epilog=example("zpipe trace merge traces --out timeline.json.gz"))
@click.argument("paths", metavar="FILE|FOLDER...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=FILE, default="timeline.json.gz", show_default=True, help="Compressed if its name ends with .gz.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Draw the way of one sample in so many.")
def merge(paths: tuple[Path, ...], out: Path, every: int) -> None:
    """Make one timeline of the traces of all nodes of a run, for https://ui.perfetto.dev.

    A track for each node with its batches, queues, frames, credit and admission, and arrows along the way of each sample. The
    clocks of the nodes are brought together by the messages between them.

    `zpipe bench --topology mesh3.yaml --trace traces` makes some.
    """
    from zpipe.timeline import merge as merge_traces

    files = _files(paths)
    if out.resolve() in files:
        raise ConfigError(f"--out: found {out}, one of the traces, expected another file; choose one")
    check_writable(out)
    with progress_shown() as progress:
        merged = merge_traces(files, out, every=every, progress=progress)
    _show(merged, out)


@trace.command(epilog=example("zpipe trace show traces/node-1.trace"))
@click.argument("file", type=FILE)
def show(file: Path) -> None:
    """Print a trace as lines of JSON: its header, a line per round, its end. Bytes (students' scores) are hexadecimal."""
    from zpipe.trace import Trace

    with Trace(file) as found:
        try:
            for part in found.plain():
                click.echo(json.dumps(part, separators=(",", ":"), default=bytes.hex))
        except BrokenPipeError:  # whoever read the lines has enough of them; nor is there anything left to flush at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _files(paths: tuple[Path, ...]) -> list[Path]:
    """The traces named; of a folder all that are in it."""
    files: dict[Path, None] = {}
    for path in paths:
        found = sorted(path.glob("*.trace")) if path.is_dir() else [path]
        if not found:
            raise ConfigError(f"{path}: found no *.trace in it, expected the folder of a `zpipe bench --trace`; name the files")
        files |= dict.fromkeys(file.resolve() for file in found)
    return list(files)


def _show(merged: Merged, out: Path) -> None:
    counts = merged.counts
    outcomes = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("result", "rejected", "expired", "failed") if counts[kind])
    again = f", {counts['resubmitted']:,} submitted again" if counts["resubmitted"] else ""
    click.echo(
        f"{out}: {len({life.rank for life in merged.lives})} nodes, samples: {outcomes or 'none ended'}{again}; "
        f"{counts['tasks_run']:,} tasks in {counts['batches']:,} batches, {counts['hops']:,} hops in {counts['frames']:,} frames; "
        f"{merged.events:,} events, {1e-3 * merged.bytes:,.0f} kB"
    )
    for path in merged.left_out:
        click.echo(f"{path}: no whole round in it, left out: the node was killed as it began")
    for life, clock in zip(merged.lives, merged.clocks, strict=True):
        name = f"node {life.rank} ({life.path.name})"
        if clock.source == "messages":
            ahead, doubt = 1e3 * clock.ahead_seconds, 1e3 * (clock.uncertainty_seconds or 0.0)
            click.echo(f"{name}: clock {abs(ahead):.3f} ms {'ahead' if ahead >= 0 else 'behind'}, ± {doubt:.3f} ms by its messages")
        elif clock.source != "reference":
            by = "its wall clock" if clock.source == "wall clock" else "nothing: times are its own"
            click.echo(f"{name}: no messages to and fro, so it is placed by {by}")
        if life.differs_at is not None:
            click.echo(
                f"{name}: this zpipe decides otherwise from {life.differs_at:.6f} s on; no queues, credit and admission beyond"
            )
    if merged.events > MANY_EVENTS:
        click.echo("that is much for a browser: `--every 10` draws the way of every tenth sample only")
    click.echo("open it in https://ui.perfetto.dev")

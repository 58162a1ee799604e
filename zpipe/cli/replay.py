"""`zpipe replay`."""

from __future__ import annotations

from pathlib import Path

import click

from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE


@cli.command(epilog=example("zpipe replay traces/node-0.trace traces/node-1.trace"))
@click.argument("files", metavar="FILE...", type=FILE, nargs=-1, required=True)
def replay(files: tuple[Path, ...]) -> None:
    """Tell recorded traces to fresh policies and compare what they answer; 1 if any differs.

    `zpipe node --trace` and `zpipe bench --trace` record them.
    """
    from zpipe.trace import replay as replay_trace

    differ = False
    for file in files:
        result = replay_trace(file)
        equal = f"{result.rounds} rounds, {result.events} events, {result.commands} commands equal"
        if result.difference is None:
            click.echo(f"{file}: node {result.rank}: {equal}; it ends {result.ended}")
        else:
            differ = True
            click.echo(f"{file}: node {result.rank}: {equal}, then {result.difference} (recorded by zpipe {result.version})")
    if differ:
        raise SystemExit(1)

"""`zpipe fleet`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zpipe.cli.group import cli, example
from zpipe.cli.options import INSECURE, TOPOLOGY
from zpipe.cli.push import DIRECTORY, HOST, HOSTS, PROGRAM, TIMEOUT
from zpipe.cli.running import run_interruptible

if TYPE_CHECKING:
    from zpipe.fleet.control import Fleet, NodeStatus

#: Columns where nobody looks.
_ENDLESS = 1000

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

WAIT = click.option(
    "--wait", type=click.IntRange(0, 3600), default=20, show_default=True, help="Seconds to wait until a node serves."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")


@cli.group(epilog=example("zpipe fleet status --topology boards.yaml"))
def fleet() -> None:
    """Start, stop and look at nodes on their boards, over SSH.

    Through the systemd units of `zpipe deploy` or `zpipe push --units` where a board has them, else as processes of their own.
    (pip install 'zpipe[fleet]')
    """


def _place(command: Command) -> Command:
    """Which boards, and how to get there."""
    for option in (TIMEOUT, DIRECTORY, HOSTS, HOST, TOPOLOGY):
        command = option(command)
    return command


@fleet.command(epilog=example("zpipe fleet start --topology boards.yaml"))
@_place
@PROGRAM
@WAIT
@INSECURE
@AS_JSON
def start(wait: int, insecure: bool, as_json: bool, **place: Any) -> None:
    """Start every node that does not run, and wait until it serves; exit code 1 where one does not run then."""
    from zpipe.fleet import start

    where = _fleet(**place, insecure=insecure)
    nodes = _run(start(where, wait=wait, arguments=_arguments(insecure)), "starting")
    _show(nodes, as_json)
    _end(node.up for node in nodes)


@fleet.command(epilog=example("zpipe fleet stop --topology boards.yaml"))
@_place
@AS_JSON
def stop(as_json: bool, **place: Any) -> None:
    """Let every node finish what it holds and end; one that does not is killed. Exit code 1 where one may still run."""
    from zpipe.fleet import stop

    nodes = _run(stop(_fleet(**place)), "stopping")
    _show(nodes, as_json)
    _end(not node.up and node.state not in ("unknown", "restarting") for node in nodes)


@fleet.command(epilog=example("zpipe fleet restart --topology boards.yaml"))
@_place
@PROGRAM
@WAIT
@INSECURE
@AS_JSON
def restart(wait: int, insecure: bool, as_json: bool, **place: Any) -> None:
    """Stop and start every node; exit code 1 where one does not run then."""
    from zpipe.fleet import restart

    where = _fleet(**place, insecure=insecure)
    nodes = _run(restart(where, wait=wait, arguments=_arguments(insecure)), "restarting")
    _show(nodes, as_json)
    _end(node.up for node in nodes)


@fleet.command(epilog=example("zpipe fleet status --topology boards.yaml --json"))
@_place
@AS_JSON
def status(as_json: bool, **place: Any) -> None:
    """Show what runs where: exit code 0 where every node does, 1 where one does not.

    A node that answers at its address from here is `serving`; with keys that needs the secret of any node here.
    """
    from zpipe.fleet import status

    nodes = _run(status(_fleet(**place)), "looking")
    _show(nodes, as_json)
    _end(node.up for node in nodes)


@fleet.command(epilog=example("zpipe fleet logs --topology boards.yaml --lines 50"))
@_place
@click.option("--lines", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Of each node, the last ones.")
def logs(lines: int, **place: Any) -> None:
    """Print the last lines of every node's log; exit code 1 where a board does not answer."""
    from zpipe.errors import one_line
    from zpipe.fleet import tail

    silent = False
    for node, found in _run(tail(_fleet(**place), lines), "reading"):
        for line in found:
            click.echo(f"{node.rank}: {one_line(line)}")
        if not found:
            click.echo(f"{node.rank}: {node.line or 'no log yet'}", err=True)
            silent = silent or bool(node.line)
    _end([not silent])


# ---- helpers -------------------------------------------------------------------------------------


def _fleet(
    topology: str,
    hosts: tuple[str, ...],
    hosts_file: Path | None,
    folder: str,
    seconds: float,
    program: str = "",
    insecure: bool = False,
) -> Fleet:
    from zpipe.fleet import boards
    from zpipe.fleet import hosts_file as found_file
    from zpipe.fleet.connection import check_installed
    from zpipe.fleet.control import Fleet
    from zpipe.runtime.node import by_hand
    from zpipe.topology import load_topology

    check_installed()
    loaded = load_topology(topology)
    if insecure:
        loaded.without_keys()
    meant = boards(loaded, hosts, found_file(loaded, hosts_file))
    return Fleet(by_hand(loaded), meant, folder.removeprefix("~/"), program.removeprefix("~/"), seconds)


def _arguments(insecure: bool) -> tuple[str, ...]:
    return ("--insecure",) if insecure else ()


def _run(work: Coroutine[Any, Any, T], doing: str) -> T:
    from rich.console import Console

    aside = Console(stderr=True)
    with aside.status(doing) if aside.is_terminal else nullcontext():
        return run_interruptible(work)


def _show(nodes: Sequence[NodeStatus], as_json: bool) -> None:
    from rich.console import Console

    from zpipe.fleet.table import as_json as document
    from zpipe.fleet.table import render_nodes

    if as_json:
        click.echo(json.dumps(document(nodes)))
    else:
        # For a program every node is one line, however long.
        Console(width=None if sys.stdout.isatty() else _ENDLESS).print(render_nodes(nodes))


def _end(good: Any) -> None:
    if not all(good):
        raise SystemExit(1)

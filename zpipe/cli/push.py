"""`zpipe push`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zpipe.cli.completion import complete_host
from zpipe.cli.group import cli, example
from zpipe.cli.options import FILE, INSECURE, SECONDS, TOPOLOGY
from zpipe.cli.running import progress_shown, run_interruptible
from zpipe.errors import ConfigError, ZpipeError

if TYPE_CHECKING:
    from zpipe.fleet import Board, Pushed
    from zpipe.fleet.push import Cargo

HOSTS = click.option(
    "--hosts",
    "hosts_file",
    type=FILE,
    help="Lines written like HOST; TOPOLOGY.hosts beside the topology where there is one and none is given.",
)


def _folder(_context: click.Context, _parameter: click.Parameter, folder: str) -> str:
    """What a board answers is read line by line, so no folder's name may have several."""
    if not folder or not folder.isprintable():
        raise ConfigError(f"--dir: found {folder!r}, expected a folder's path without line ends; choose another")
    return folder


DIRECTORY = click.option(
    "--dir", "folder", default="zpipe", show_default=True, callback=_folder, help="Where it lies there, from the home on."
)
PROGRAM = click.option("--program", default="", help="The zpipe to run there; looked for where not given.")
TIMEOUT = click.option(
    "--timeout", "seconds", type=SECONDS, default=10.0, show_default=True, help="Seconds for a connection to a board."
)
HOST = click.argument("hosts", nargs=-1, metavar="[HOST]...", shell_complete=complete_host)


@cli.command(epilog=example("zpipe push --topology boards.yaml 1=nano@192.168.1.12 2=nano@192.168.1.13"))
@TOPOLOGY
@HOST
@HOSTS
@DIRECTORY
@click.option(
    "--install",
    default="",
    metavar="WHEEL|REQUIREMENT",
    help="Install zpipe there, into an environment of its own: a wheel of yours (`make wheel`), or what pip takes from an index.",
)
@click.option("--units", is_flag=True, help="Install systemd units of the user there, and start its nodes with the board.")
@INSECURE
@PROGRAM
@TIMEOUT
def push(
    topology: str,
    hosts: tuple[str, ...],
    hosts_file: Path | None,
    folder: str,
    install: str,
    units: bool,
    insecure: bool,
    program: str,
    seconds: float,
) -> None:
    """Copy a topology, its bundle and each board's own keys to the boards, over SSH.

    HOST is [RANK=][USER@]HOST[:PORT], or a rank; without any, every rank that serves, at its address. What a board has already is
    not sent again, and nothing takes the place of what is there before all of it has come. (pip install 'zpipe[fleet]')
    """
    from zpipe.configure import load_checked
    from zpipe.fleet import boards
    from zpipe.fleet import hosts_file as found_file
    from zpipe.fleet.connection import check_installed
    from zpipe.fleet.push import load
    from zpipe.topology import load_topology

    check_installed()
    if install.endswith(".whl") and not Path(install).is_file():
        raise ConfigError(f"--install: found no file {install}, expected a wheel; `make wheel` builds dist/zpipe-*.whl")
    loaded = load_topology(topology)
    meant = boards(loaded, hosts, found_file(loaded, hosts_file), sources=True)
    cargo = load(loaded, load_checked(loaded))
    arguments = ("--insecure",) if insecure else ()
    options = {
        "folder": folder.removeprefix("~/"),
        "program": program.removeprefix("~/"),
        "install": install,
        "units": units,
        "arguments": arguments,
        "seconds": seconds,
    }
    with progress_shown() as progress:
        outcomes = run_interruptible(_push_all(cargo, meant, options, progress))
    for board, outcome in zip(meant, outcomes, strict=True):
        _show(board, outcome)
    done = [outcome for outcome in outcomes if not isinstance(outcome, ZpipeError)]
    if any(outcome.sent_files for outcome in done):
        click.echo(f"nodes run with it after: zpipe fleet restart --topology {topology}")
    if len(done) < len(outcomes):
        raise SystemExit(1)


async def _push_all(
    cargo: Cargo, meant: Sequence[Board], options: dict[str, Any], progress: Callable[[str, float], None]
) -> list[Pushed | ZpipeError]:
    """To all boards at once; of each what was done, or why not."""
    from zpipe.fleet import push

    number = f"{len(meant)} board{'s' if len(meant) > 1 else ''}"
    there: dict[Board, tuple[int, int]] = {}

    async def one(board: Board) -> Pushed | ZpipeError:
        def tell(done: int, total: int) -> None:
            there[board] = (done, total)
            if options["install"] and len(there) == len(meant) and all(done == total for done, total in there.values()):
                progress(f"installing zpipe on {number}", 0.0)
                return
            progress(
                f"pushing to {number}", sum(done for done, _ in there.values()) / max(1, sum(total for _, total in there.values()))
            )

        try:
            return await push(cargo, board, progress=tell, **options)
        except ZpipeError as exc:
            return exc

    return await asyncio.gather(*map(one, meant))


def _show(board: Board, outcome: Pushed | ZpipeError) -> None:
    name = f"rank {', '.join(map(str, board.ranks))} at {board}"
    if isinstance(outcome, ZpipeError):
        click.echo(f"{name}: {outcome}", err=True)
        return
    sent = f"{outcome.sent_files} files, {outcome.sent_bytes / 1e6:.1f} MB sent in {outcome.seconds:.1f} s"
    click.echo(f"{name}: {sent}, {outcome.kept_files} were there; in {outcome.folder}")
    if outcome.installed:
        click.echo(f"  zpipe {outcome.version} installed there")
    for note in outcome.notes:
        click.echo(f"  {note}", err=True)

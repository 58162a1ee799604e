"""`zpipe keygen`."""

from __future__ import annotations

from pathlib import Path

import click

from zpipe.cli.completion import complete_rank
from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER, TOPOLOGY


@cli.command(epilog=example("zpipe keygen --topology boards.yaml"))
@TOPOLOGY
@click.option("--out", type=FOLDER, help="Where to put them; what the topology's `security:` names, else `keys` beside the file.")
@click.option(
    "--rank",
    "ranks",
    type=int,
    shell_complete=complete_rank,
    multiple=True,
    help="Of this node alone (may be repeated); of all where not given.",
)
def keygen(topology: str, out: Path | None, ranks: tuple[int, ...]) -> None:
    """Make the CURVE keys of a topology's nodes. Nothing is overwritten."""
    from zpipe.security import make_keys
    from zpipe.topology import load_topology
    from zpipe.topology.keys import DEFAULT_FOLDER, PUBLIC_FILE

    loaded = load_topology(topology, read_keys=False)
    assert loaded.path is not None
    beside = loaded.path.absolute().parent
    folder = (out or loaded.security.folder or beside / DEFAULT_FOLDER).absolute()
    ranks = tuple(sorted({loaded.node(rank).rank for rank in ranks})) or tuple(node.rank for node in loaded.nodes)
    made = make_keys(folder, ranks)
    click.echo(f"{folder}: made {PUBLIC_FILE} and the secret of rank {', '.join(map(str, made))} (nodeRANK.secret)")
    if loaded.security.folder != folder:
        named = folder.relative_to(beside) if folder.is_relative_to(beside) else folder
        click.echo(f"add to {loaded.path}:  security: {{keys: {named}}}")
    if len(made) < len(loaded.nodes):
        click.echo(f"every board needs these lines in its {PUBLIC_FILE}, and a line for each other rank:")
        for rank, key in made.items():
            click.echo(f"{rank} {key}")
    else:
        click.echo(f"copy to every board: the topology and {PUBLIC_FILE}; to the board of each rank alone: its nodeRANK.secret")
    click.echo("whoever has a secret is that node: keep it there, readable by its owner only (scp -p keeps the mode)")

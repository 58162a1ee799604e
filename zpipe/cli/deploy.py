"""`zpipe deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER, INSECURE, TOPOLOGY
from zpipe.cli.output import check_folder, write_text


@cli.command(epilog=example("zpipe deploy --target systemd --topology line2.yaml --out units"))
@click.option("--target", type=click.Choice(["systemd"]), default="systemd", show_default=True, help="What shall start the nodes.")
@TOPOLOGY
@click.option("--out", type=FOLDER, help="Write the unit into this folder; it is printed where not given.")
@click.option("--system", "scope", flag_value="system", help="A unit of the machine, with hardening.")
@click.option(
    "--user-unit", "scope", flag_value="user", default=True, help="A unit of who logs in, which needs no root.  [default]"
)
@click.option("--user", default="", help="Whom a unit of the machine runs as; root where not given.")
@click.option("--dir", "folder", default="", help="Where the files lie on the boards: ~/zpipe, or /opt/zpipe with --system.")
@click.option("--program", default="", help="The zpipe to run there; .venv/bin/zpipe in that folder where not given.")
@INSECURE
def deploy(
    target: str,
    topology: str,
    out: Path | None,
    scope: Literal["user", "system"],
    user: str,
    folder: str,
    program: str,
    insecure: bool,
) -> None:
    """Make what starts a topology's nodes on their boards and keeps them running: a systemd unit.

    It is a template, the same for all boards; each enables the instances of its ranks. `zpipe push --units` installs the one of
    --user-unit, and `zpipe fleet` uses either.
    """
    from zpipe.deploy import UnitOptions, layout, render_unit
    from zpipe.runtime.node import by_hand
    from zpipe.topology import load_topology

    loaded = by_hand(load_topology(topology))
    if insecure:
        loaded.without_keys()
    arguments = ("--insecure",) if insecure else ()
    options = UnitOptions(scope=scope, folder=folder, program=program, user=user, arguments=arguments)
    unit = render_unit(loaded.name, layout(loaded), options)
    if out is None:
        click.echo(unit.text, nl=False)
        return
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / unit.name, unit.text)
    click.echo(f"{out / unit.name} written; on each board:")
    control, place = (
        ("sudo systemctl", "/etc/systemd/system") if scope == "system" else ("systemctl --user", "~/.config/systemd/user")
    )
    click.echo(f"  copy it to {place}/, topology and bundle to {unit.folder} (`zpipe push` does the latter)")
    if scope == "user":
        click.echo("  sudo loginctl enable-linger $USER      # so that it starts with the board, not with a log-in")
    click.echo(f"  {control} daemon-reload")
    for node in loaded.nodes:
        if loaded.source_at(node.rank) is None:
            instance = unit.name.replace("@.service", f"@{node.rank}")
            click.echo(f"  {control} enable --now {instance}      # on the board of rank {node.rank}, at {node.host}")
    if user:
        click.echo(f"  sudo usermod -aG video,render {user}      # where {user} shall use a GPU, or a Jetson's")

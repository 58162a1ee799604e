"""`zpipe deploy`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from zpipe.cli.group import cli, example
from zpipe.cli.options import FOLDER, INSECURE, TOPOLOGY
from zpipe.cli.output import check_folder, write_secret, write_text
from zpipe.errors import ConfigError

if TYPE_CHECKING:
    from zpipe.topology import Topology

#: Options that one target alone has.
_OWN = {
    "systemd": {"scope", "user", "folder", "program"},
    "kubernetes": {"image", "bundle_claim", "hosts", "cpu", "memory"},
    "grafana": set[str](),
}


@cli.command(epilog=example("zpipe deploy --target systemd --topology line2.yaml --out units"))
@click.option(
    "--target",
    type=click.Choice(list(_OWN)),
    default="systemd",
    show_default=True,
    help="What shall start the nodes; or, with `grafana`, show them: the dashboard of what `zpipe node --metrics` tells.",
)
@TOPOLOGY
@click.option("--out", type=FOLDER, help="Write the files into this folder; what is no secret is printed where not given.")
@click.option("--system", "scope", flag_value="system", help="A unit of the machine, with hardening.")
@click.option(
    "--user-unit", "scope", flag_value="user", default=True, help="A unit of who logs in, which needs no root.  [default]"
)
@click.option("--user", default="", help="Whom a unit of the machine runs as; root where not given.")
@click.option("--dir", "folder", default="", help="Where the files lie on the boards: ~/zpipe, or /opt/zpipe with --system.")
@click.option("--program", default="", help="The zpipe to run there; .venv/bin/zpipe in that folder where not given.")
@click.option("--image", default="", help="kubernetes: the image of the nodes, with zpipe[metrics] and the bundle.")
@click.option("--bundle-claim", default="", metavar="NAME", help="kubernetes: a volume claim with the bundle's files.")
@click.option("--host", "hosts", multiple=True, metavar="RANK=NAME", help="kubernetes: the board a rank must run on.")
@click.option("--cpu", default="1", show_default=True, help="kubernetes: what each rank asks for.")
@click.option("--memory", default="1Gi", show_default=True, help="kubernetes: what each rank asks for, and gets at most.")
@INSECURE
def deploy(target: str, topology: str, out: Path | None, insecure: bool, **own: Any) -> None:
    """Make what starts a topology's nodes and keeps them running: a systemd unit, or Kubernetes manifests.

    The unit is a template, the same for all boards; each enables the instances of its ranks. `zpipe push --units` installs the one
    of --user-unit, and `zpipe fleet` uses either.

    In Kubernetes each rank is a pod. Its bundle is in the image or on a volume, its key in a secret of its own, which is written to
    another file than the rest.
    """
    from zpipe.runtime.node import by_hand
    from zpipe.topology import load_topology

    _refuse_others(target)
    if target == "grafana":
        _grafana(out)
        return
    loaded = by_hand(load_topology(topology))
    if target == "kubernetes":
        _kubernetes(loaded.without_keys() if insecure else loaded, out, own)
        return
    if insecure:
        loaded.without_keys()
    _systemd(loaded, out, insecure=insecure, **{name: own[name] for name in _OWN["systemd"]})


def _refuse_others(target: str) -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        others = [other for other, own in _OWN.items() if name in own and other != target]
        if others and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            found = parameter.opts[0]
            raise ConfigError(f"{found}: found it with --target {target}, expected it with --target {others[0]}; leave one out")


def _into(out: Path) -> Path:
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _grafana(out: Path | None) -> None:
    import json

    from zpipe.metrics.dashboard import dashboard

    text = json.dumps(dashboard(), indent=1) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    file = _into(out) / "zpipe-dashboard.json"
    write_text(file, text)
    click.echo(f"{file} written; in Grafana: Dashboards, New, Import")


def _kubernetes(loaded: Topology, out: Path | None, own: Mapping[str, Any]) -> None:
    from zpipe.deploy import layout
    from zpipe.deploy.kubernetes import ManifestOptions, render_manifests

    hosts = dict(map(_rank_and_name, own["hosts"]))
    options = ManifestOptions(
        image=own["image"], bundle_claim=own["bundle_claim"], hosts=hosts, cpu=own["cpu"], memory=own["memory"]
    )
    made = render_manifests(loaded, layout(loaded), options)
    if out is None:
        click.echo(made.text, nl=False)
        if made.secrets:
            click.echo("the keys are not printed: say --out FOLDER, which has them in a file of their own", err=True)
        return
    file = _into(out) / f"{made.name}.yaml"
    write_text(file, made.text)
    click.echo(f"{file} written:  kubectl apply -f {file}")
    if made.secrets:
        secrets = out / f"{made.name}-secrets.yaml"
        write_secret(secrets, made.secrets)
        click.echo(f"{secrets} written, readable by you alone: whoever has it is every node; apply it first, then remove it")


def _rank_and_name(text: str) -> tuple[int, str]:
    rank, given, name = text.partition("=")
    if not (rank.isascii() and rank.isdigit() and given and name):
        raise ConfigError(f"--host: found {text!r}, expected RANK=NAME, such as 1=jetson")
    return int(rank), name


def _systemd(
    loaded: Topology,
    out: Path | None,
    *,
    scope: Literal["user", "system"],
    user: str,
    folder: str,
    program: str,
    insecure: bool,
) -> None:
    from zpipe.deploy import UnitOptions, layout, render_unit

    arguments = ("--insecure",) if insecure else ()
    options = UnitOptions(scope=scope, folder=folder, program=program, user=user, arguments=arguments)
    places = layout(loaded)
    unit = render_unit(loaded.name, places, options)
    if out is None:
        click.echo(unit.text, nl=False)
        return
    write_text(_into(out) / unit.name, unit.text)
    click.echo(f"{out / unit.name} written; on each board:")
    control, place = (
        ("sudo systemctl", "/etc/systemd/system") if scope == "system" else ("systemctl --user", "~/.config/systemd/user")
    )
    push = f"zpipe push --topology {loaded.path}{f' --dir {folder}' if folder else ''}"
    if scope == "system":
        push = f"zpipe push --topology {loaded.path} --dir {unit.folder}"
        click.echo(
            f"  copy it to {place}/, and its files to {unit.folder}: {push} RANK={user or 'root'}@HOST   # whose keys they are"
        )
    else:
        click.echo(f"  copy it to {place}/, and its files to {unit.folder}; this does both, and the rest: {push} --units")
        click.echo("  sudo loginctl enable-linger $USER      # so that it starts with the board, not with a log-in")
    click.echo(f"  {control} daemon-reload")
    for node in loaded.nodes:
        if loaded.source_at(node.rank) is None:
            click.echo(
                f"  {control} enable --now {places.instance(node.rank)}      # on the board of rank {node.rank}, at {node.host}"
            )
    if user:
        click.echo(f"  sudo usermod -aG video,render {user}      # where {user} shall use a GPU, or a Jetson's")

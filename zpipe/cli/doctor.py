"""`zpipe doctor`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict

import click

from zpipe.cli.completion import complete_rank, complete_topology
from zpipe.cli.group import cli, example
from zpipe.errors import ConfigError

SCHEMA = "zpipe.doctor/1"


@cli.command(epilog=example("zpipe doctor --topology line4.yaml --rank 2"))
@click.option(
    "--topology", shell_complete=complete_topology, help="What it needs, too: a topology file, or the name of one of ours."
)
@click.option(
    "--rank",
    type=int,
    shell_complete=complete_rank,
    help="The node of it that this machine is to run; those with its address if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def doctor(topology: str | None, rank: int | None, as_json: bool) -> None:
    """Say what works here, what is missing or broken, and the command that mends it.

    With --topology also its file and bundle, the ports, keys and executors of the nodes that this machine is to run, and of every
    node whether it is reached from here, its round trip, how fast bytes get there, and whether it runs the same files. A node is
    sent some MB for that, at most. Exit code 1 where something is missing or broken that is needed.
    """
    from rich.console import Console

    from zpipe.doctor import diagnose, render_findings

    def loopback_check() -> str:
        from zpipe.bench.loopback import loopback_check  # imports ZeroMQ, which may be what is missing

        return loopback_check()

    if rank is not None and topology is None:
        raise ConfigError("--rank: found it without --topology, expected both; say --topology FILE")
    aside = Console(stderr=True)
    with aside.status("looking") if aside.is_terminal else nullcontext():
        findings = diagnose(loopback=loopback_check, topology=topology, rank=rank)
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "topology": topology, "findings": [asdict(finding) for finding in findings]}))
    else:
        Console().print(render_findings(findings, next_step=f"zpipe bench --topology {topology or 'line4.yaml'}"))
    if any(finding.stands_in_the_way for finding in findings):
        raise SystemExit(1)

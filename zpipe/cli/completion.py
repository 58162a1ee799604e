"""`zpipe completion`, and what completes the names that options take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from zpipe.cli.group import cli, example

#: Where a shell says what was typed; click's default for a program of this name.
VARIABLE = "_ZPIPE_COMPLETE"


@cli.command(epilog=example("zpipe completion bash >> ~/.bashrc"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the lines that make a shell complete commands, options and the names of topologies, bundles and ranks.

    For bash append them to ~/.bashrc, for zsh to ~/.zshrc (after compinit); for fish: zpipe completion fish >
    ~/.config/fish/completions/zpipe.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "zpipe", VARIABLE).source())


def complete_topology(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Topologies that a name finds, and topology files of this folder; paths once a folder is typed."""
    from zpipe.topology import topology_files

    return _named(typed, [*[file.name for file in topology_files()], *[str(file) for file in Path().glob("*.yaml")]])


def complete_bundle(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Bundles that a name finds; paths once a folder is typed."""
    from zpipe.bundle import bundle_folders

    return _named(typed, [folder.name for folder in bundle_folders()])


def complete_file(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Whatever files there are, where a parameter may be one, or something else."""
    return [CompletionItem(typed, type="file")]


def complete_rank(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The ranks of the topology that was typed before, or of the default one."""
    from zpipe.errors import ZpipeError
    from zpipe.topology import load_topology

    try:
        topology = load_topology(context.params.get("topology") or "line4.yaml", read_keys=False)
    except ZpipeError:
        return []
    items = [CompletionItem(str(node.rank), help=_hosted(node)) for node in topology.nodes]
    return [item for item in items if item.value.startswith(typed)]


def complete_source(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The sources of the topology that was typed before; where a rate follows, that is the typist's own."""
    from zpipe.errors import ZpipeError
    from zpipe.topology import load_topology

    try:
        topology = load_topology(context.params.get("topology") or "line4.yaml", read_keys=False)
    except ZpipeError:
        return []
    rate = "=" if parameter.name == "rates" else ""
    found = {f"{source.name}{rate}": f"rank {source.rank}, weight {source.weight:g}" for source in topology.sources}
    return [CompletionItem(name, help=said) for name, said in found.items() if name.startswith(typed)]


def complete_host(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """The hosts of the topology that was typed before, each with its rank; what follows `RANK=` is the typist's own."""
    from zpipe.errors import ZpipeError
    from zpipe.topology import load_topology

    try:
        topology = load_topology(context.params.get("topology") or "line4.yaml", read_keys=False)
    except ZpipeError:
        return []
    items = [CompletionItem(f"{node.rank}={node.host}", help=_hosted(node)) for node in topology.nodes]
    return [item for item in items if item.value.startswith(typed)]


def _hosted(node: Any) -> str:
    stages = ", ".join(map(str, node.stages))
    return f"stages {stages} at {node.address}" if stages else f"no stage, at {node.address}"


def _named(typed: str, names: list[str]) -> list[CompletionItem]:
    found = sorted({name for name in names if name.startswith(typed)})
    return [CompletionItem(name) for name in found] or [CompletionItem(typed, type="file")]

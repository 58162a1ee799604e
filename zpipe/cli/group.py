"""The group that every command hangs on."""

from __future__ import annotations

import logging
import os

import click

from zpipe import __version__


def example(line: str) -> str:
    """What a command's help ends with: a line that works as it stands, or with files of one's own (a test parses each)."""
    return f"\b\nExample:\n  {line}"


class Whole(click.Group):
    """A group whose help says the first sentence of each command, whole: click cuts it to what fits beside the name."""

    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list."""
        rows = [(name, command.get_short_help_str(1000)) for name, command in sorted(self.commands.items()) if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=Whole, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="zpipe")
@click.option("-v", "--verbose", count=True, help="Say what happens (-v), or everything (-vv).")
@click.pass_context
def cli(context: click.Context, verbose: int) -> None:
    """Run one deep network over several small computers, exiting early when it is sure."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    level = [logging.ERROR, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    os.environ.setdefault("ZPIPE_LOG", logging.getLevelName(level))

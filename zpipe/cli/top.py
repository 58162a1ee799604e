"""`zpipe top`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

import click

from zpipe.cli.group import cli, example
from zpipe.cli.options import TOPOLOGY, Seconds
from zpipe.cli.running import Interrupted, run_interruptible

if TYPE_CHECKING:
    from rich.console import Console


@cli.command(epilog=example("zpipe top --topology mesh3.yaml"))
@TOPOLOGY
@click.option("--every", type=Seconds(0.1, 3600), default=1.0, show_default=True, help="Seconds from look to look.")
@click.option("--once", is_flag=True, help="Print one table and end; so it is, too, where the output is no terminal.")
@click.option("--json", "as_lines", is_flag=True, help="Print one JSON line per look instead.")
def top(topology: str, every: float, once: bool, as_lines: bool) -> None:
    """Show what every node and link of a running topology does, live; `q` ends it.

    It finds pipelines that were started on this machine by themselves, and else looks at the addresses of the topology. Where the
    nodes have keys, the secret of any one of them must lie beside their public keys: a board's own does.
    """
    from rich.console import Console

    console = Console()
    try:
        if as_lines:
            run_interruptible(_print_lines(topology, every, once=once))
        elif once or not console.is_terminal:
            run_interruptible(_print_once(topology, every, console))
        else:
            run_interruptible(_show(topology, every, console))
    except Interrupted:
        pass  # Ctrl-C is how one leaves it: no word about that, least of all among lines of JSON
    except BrokenPipeError:  # whoever read the lines has enough of them; nor is there anything left to flush at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _print_lines(topology: str, every: float, *, once: bool) -> None:
    from zpipe.top import as_json, watch

    async with aclosing(watch(topology, every=every)) as snapshots:
        async for snapshot in snapshots:
            click.echo(json.dumps(as_json(snapshot)))
            if once:
                return


async def _print_once(topology: str, every: float, console: Console) -> None:
    from zpipe.top import render, watch

    async with aclosing(watch(topology, every=every)) as snapshots:
        async for snapshot in snapshots:
            console.print(render(snapshot, width=console.width))
            return


async def _show(topology: str, every: float, console: Console) -> None:
    from rich.live import Live
    from rich.text import Text

    from zpipe.top import render, watch

    foot = f"every {every:g} s · q ends"
    async with aclosing(watch(topology, every=every)) as snapshots:
        # The first look comes before the screen is taken: where nobody answers, that line stands alone.
        snapshot = await anext(snapshots)
        with _quit_key(asyncio.current_task()), Live(Text(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(render(snapshot, width=console.width, height=console.height, foot=foot), refresh=True)
                snapshot = await anext(snapshots)


@contextmanager
def _quit_key(task: asyncio.Task[None] | None) -> Iterator[None]:
    """While it lasts, `q` cancels the task; keys are not echoed. Without a keyboard there is Ctrl-C."""
    if not sys.stdin.isatty() or os.name != "posix" or task is None:
        yield
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed() -> None:
        if os.read(keyboard, 64).lower().find(b"q") >= 0:
            task.cancel()

    loop = asyncio.get_running_loop()
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

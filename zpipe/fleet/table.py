"""The table of `zpipe fleet status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from zpipe.fleet.control import NodeStatus

SCHEMA = "zpipe.fleet/1"
_STYLES = {
    "serving": "green",
    "running": "yellow",
    "starting": "yellow",
    "restarting": "red",
    "stopped": "dim",
    "dead": "bold red",
    "unknown": "bold red",
}


def render_nodes(nodes: Sequence[NodeStatus]) -> Table:
    """A row for each."""
    table = Table(box=None, pad_edge=False)
    for title, right in (("rank", True), ("host", False), ("state", False), ("since", True), ("session", True)):
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    table.add_column("last line", overflow="fold")
    for node in nodes:
        state = f"{node.state}{f', {node.restarts} restarts' if node.restarts else ''}{f' ({node.did})' if node.did else ''}"
        session = str(node.session) if node.session else "-"
        row = (str(node.rank), str(node.board), Text(state, _STYLES[node.state]), _ago(node.age_seconds), session, Text(node.line))
        table.add_row(*row)
    return table


def as_json(nodes: Sequence[NodeStatus]) -> dict[str, Any]:
    """The same for programs."""
    rows = [{**asdict(node), "board": str(node.board)} for node in nodes]
    return {"schema": SCHEMA, "nodes": rows}


def _ago(seconds: float | None) -> str:
    """`3 s`, `12 min`, `5 h`, `9 d`."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

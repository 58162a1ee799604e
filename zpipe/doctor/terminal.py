"""The list as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zpipe.doctor.finding import Finding

if TYPE_CHECKING:
    from rich.console import RenderableType


#: What a line begins with: its mark, and the style of both.
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "broken": ("✗", "bold yellow"), "missing": ("–", "dim")}


def render_findings(findings: Sequence[Finding], *, next_step: str = "zpipe bench --topology line4.yaml") -> RenderableType:
    """The list as a person reads it: what there is, then what to do, the necessary first.

    Args:
        findings: what was looked at.
        next_step: the command to try where nothing stands in the way.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = _mark(finding)
        plain = style == "green"
        name, found = Text(finding.name, style="" if plain else style), Text(finding.found, style="dim" if style == "dim" else "")
        table.add_row(Text(f"{mark} {finding.status}", style=style), name, found)
    parts: list[RenderableType] = [Text(), table]
    needed = [finding for finding in findings if finding.stands_in_the_way]
    broken = [finding for finding in findings if finding.status == "broken" and not finding.required]
    better = [finding for finding in findings if finding.status == "warning"]
    further = [finding for finding in findings if finding.status == "missing" and not finding.required]
    for title, style, listed in (
        ("this does not run until these are mended", "bold red", needed),
        ("these do not work, and are not needed for a plain run", "bold yellow", broken),
        ("these work, and better after", "bold yellow", better),
        ("not needed for a plain run; to have them", "dim", further),
    ):
        if listed:
            remedies = Table.grid(padding=(0, 2, 0, 0))
            for each in listed:
                remedies.add_row("", Text(each.name), Text(each.remedy))
            parts += [Text(), Text(title, style=style), remedies]
    if not needed:
        parts += [Text(), Text(f"zpipe runs here: {next_step}", style="bold green")]
    return Group(*parts)


def _mark(finding: Finding) -> tuple[str, str]:
    return ("✗", "bold red") if finding.stands_in_the_way else _MARKS[finding.status]

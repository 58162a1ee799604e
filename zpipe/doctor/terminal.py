"""The list as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zpipe.doctor.finding import Finding

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_findings(findings: Sequence[Finding]) -> RenderableType:
    """The list as a person reads it: what there is, then what to do, the necessary first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = _mark(finding)
        plain = style == "green"
        name, found = Text(finding.name, style="" if plain else style), Text(finding.found, style="dim" if style == "dim" else "")
        table.add_row(Text(mark, style=style), name, found)
    parts: list[RenderableType] = [Text(), table]
    broken = [finding for finding in findings if finding.status == "missing" and finding.required]
    better = [finding for finding in findings if finding.status == "warning"]
    further = [finding for finding in findings if finding.status == "missing" and not finding.required]
    for title, style, listed in (
        ("zpipe does not run until these are mended", "bold red", broken),
        ("these work, and better after", "bold yellow", better),
        ("not needed for a plain run; to have them", "dim", further),
    ):
        if listed:
            remedies = Table.grid(padding=(0, 2, 0, 0))
            for each in listed:
                remedies.add_row("", Text(each.name), Text(each.remedy))
            parts += [Text(), Text(title, style=style), remedies]
    if not broken:
        parts += [Text(), Text("zpipe runs here: zpipe bench --topology line4.yaml", style="bold green")]
    return Group(*parts)


def _mark(finding: Finding) -> tuple[str, str]:
    if finding.status == "ok":
        return "✓", "green"
    if finding.status == "warning":
        return "!", "bold yellow"
    return ("✗", "bold red") if finding.required else ("–", "dim")

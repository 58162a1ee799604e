"""A suite's claims in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table


def render_claims(found: dict[str, Any]) -> RenderableType:
    """Each claim with how many of its cases hold in each setting; then the cases that do not, and the most that could be there."""
    table = Table(title=f"suite {found['suite']}: cases in which a claim holds, of all", title_justify="left")
    table.add_column("claim", ratio=1)
    for row in found["settings"]:
        table.add_column(row["name"], justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for claim in found["claims"]:
        shares = [f"{each['held']}/{each['cases']}" if each["cases"] else "-" for each in claim["settings"]]
        table.add_row(escape(claim["text"]), *shares, "[green]holds[/]" if claim["holds"] else "[red]does not[/]")
    return Group(table, *_failed(found), *(f"[red]broken[/]: {escape(line)}" for line in found["broken"]))


def _failed(found: dict[str, Any]) -> list[str]:
    lines = []
    for claim in found["claims"]:
        failed = [case for case in claim["cases"] if not case["holds"]]
        if failed:
            lines.append(f"[red]does not hold[/]: {escape(claim['text'])}")
            lines += [f"  {escape(_case(case))}" for case in failed]
    return lines


def _case(case: dict[str, Any]) -> str:
    most = f"; at most {case['bound']}" if case["bound"] else ""
    why = f"; {case['why']}" if case["why"] else ""
    return f"{case['setting']}, {case['topology']}: {case['figures']}{most}{why}"

"""How busy nodes and links were in a run, as the drawing and the tables say it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

#: Up to which share of its time something is called so; the CSS class of each.
LEVELS = ((0.5, "calm"), (0.9, "busy"), (float("inf"), "full"))


def level(share: float | None) -> str:
    """The CSS class of a load, 0..1; None = not known."""
    return "unknown" if share is None else next(name for limit, name in LEVELS if share < limit)


def link_loads(links: Sequence[Row]) -> list[float | None]:
    """The share of its bandwidth that each direction used; of a shared medium, what all used of it together.

    None = no limit known.
    """
    carried: dict[str, float] = defaultdict(float)
    for row in links:
        carried[row.get("medium") or ""] += row["mbit_s"]
    found: list[float | None] = []
    for row in links:
        limit, medium = row.get("limit_mbit_s"), row.get("medium") or ""
        found.append((carried[medium] if medium else row["mbit_s"]) / limit if limit else None)
    return found


def all_ranks(report: Row) -> list[int]:
    """Every node the report knows of: one that was silent at the end has no row, but it has links."""
    known = {row["rank"] for key in ("nodes", "sources") for row in report[key]}
    return sorted(known | {rank for pair in report["linked"] for rank in pair})


def ranges(numbers: Iterable[int]) -> str:
    """`0, 2–4` of 0, 2, 3, 4."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    said = [str(start) if start == end else f"{start}, {end}" if end == start + 1 else f"{start}–{end}" for start, end in parts]
    return ", ".join(said)

"""A snapshot as a person reads it: from 80 columns on, and no longer than the screen.

What does not fit is not cut off in silence: nodes and links that are not well come first, then the busiest, and a last line says
how many more there are and what they do together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from zpipe.report.words import number, percent
from zpipe.top.snapshot import LinkRow, NodeRow, Snapshot, SourceRow

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

#: From so many columns on there is room for addresses, shares of exits and the link's estimated speed.
WIDE = 110
#: Lines that are no row of a table: head, exits, two titles with the tables' heads, what was left out of each, and the last line.
FRAME_LINES = 9
#: Rows that each table keeps however small the screen is.
LEAST_ROWS = 3
#: Sets of missing parts that are told, the most frequent.
MOST_SETS = 4
#: Lines about nodes that cannot be reached, where they need lines of their own.
MOST_TROUBLES = 3

_Row = TypeVar("_Row", NodeRow, LinkRow)
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {
    "up": "green",
    "back": "green",
    "leaving": "yellow",
    "closed": "yellow",
    "no credit": "yellow",
    "silent": "yellow",
    "unknown": "dim",
}


def render(snapshot: Snapshot, *, width: int, height: int | None = None, foot: str = "") -> RenderableType:
    """Everything of a snapshot.

    Args:
        snapshot: what was seen.
        width: columns there are.
        height: lines there are; None for as many as it takes.
        foot: the last line.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_head(snapshot)]
    several = len({*snapshot.labels, *(source.rank for source in snapshot.sources)}) > 1
    for source in snapshot.sources:
        if several:  # also where only one of them is there: whose rates are these?
            title = f"{_label(snapshot, source.rank)} · class {source.priority} · weight {source.weight:g}"
            parts += [Text(), _line(title, style="bold")]
        parts.append(_source(source, width, first="" if several else "\n"))
    nobody = "nobody submits samples there now"
    parts.extend(Text(f"{_label(snapshot, rank)}: {nobody}", style="yellow") for rank in snapshot.absent)
    shares = _exit_shares([pair for node in snapshot.nodes for pair in node.exits_hz or ()])
    parts.append(Text(f"exits by stage   {shares}"))
    parts.extend(Text(note, style="bold yellow") for note in snapshot.notes)
    wide = width >= WIDE
    troubles = [] if wide else _troubles(snapshot.nodes)
    used = (
        FRAME_LINES + (6 if several else 5) * len(snapshot.sources) + len(snapshot.absent) + 2 * len(snapshot.notes) + len(troubles)
    )
    nodes, links = _shares(len(snapshot.nodes), len(snapshot.links), None if height is None else height - used)
    parts += [Text(), *_nodes(snapshot.nodes, nodes, wide=wide), *troubles]
    if snapshot.links:
        parts += [Text(), *_links(snapshot.links, links, wide=wide)]
    if foot:
        parts += [Text(foot, style="dim")]
    return Group(*parts)


def sparkline(values: Sequence[float | None]) -> str:
    """A bar for each value, the highest for the largest one; a gap where there is none."""
    most = max((value for value in values if value is not None), default=0.0)
    if most <= 0.0:
        return " " * len(values)
    return "".join(" " if value is None else _BARS[min(7, int(8 * value / most))] for value in values)


def _shares(nodes: int, links: int, room: int | None) -> tuple[int, int]:
    """How many rows each table may have: the nodes first, but never all of it."""
    if room is None or nodes + links <= room:
        return nodes, links
    for_nodes = min(nodes, max(LEAST_ROWS, room - min(links, max(LEAST_ROWS, room // 3))))
    return for_nodes, min(links, max(LEAST_ROWS, room - for_nodes))


def _head(snapshot: Snapshot) -> Text:
    from rich.text import Text

    up = sum(node.state not in ("gone", "missing", "silent") for node in snapshot.nodes)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(snapshot.topology, style="bold")
    text.append(" · ")
    text.append(f"{up} of {len(snapshot.nodes)} nodes up", style="bold green" if up == len(snapshot.nodes) else "bold red")
    text.append(f" · seen for {snapshot.seconds:.0f} s", style="dim")
    text.append(f" · {snapshot.bundle.rstrip('/').rpartition('/')[2]}", style="dim")
    return text


def _label(snapshot: Snapshot, rank: int) -> str:
    return snapshot.labels.get(rank, f"source {rank}")


def _source(row: SourceRow, width: int, *, first: str) -> RenderableType:
    """Four lines, after `first`: rates, admission, latency, outcomes."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(first)
    text.append(f"{_hz(row.goodput_hz)} results/s", style="bold green")
    text.append(f"   offered {_hz(row.offered_hz)}/s   admitted {_hz(row.admitted_hz)}/s   point {row.point or 'unnamed'}")
    limits = [f"aims at {row.target_hz:,.1f}/s"] if row.target_hz is not None else []
    limits += [f"window {row.window:.1f}"] if row.window is not None else []
    text.append(f"\n{' '.join([row.admission, *limits])}, when full: {row.when_full}")
    text.append(f"   in flight {row.in_flight}   waiting {row.waiting}/{row.room}")
    latency = row.latency_seconds or {}
    said = "  ".join(f"p{100 * q:.0f} {_milliseconds(latency.get(q))}" for q in (0.5, 0.95, 0.99))
    text.append(f"\nlatency {said} ms   ")
    known = [value for value in row.latencies if value is not None]
    if known:
        label = f"  p95, most {_milliseconds(max(known))} ms"
        room = max(8, width - 46 - len(label))
        text.append(sparkline(row.latencies[-room:]), style="cyan")
        text.append(label, style="dim")
    text.append("\n")
    for kind in ("result", "rejected", "expired", "failed"):
        times = row.outcomes.get(kind, 0)
        text.append(f"{kind} {times:,}  ", style="" if kind == "result" or not times else "yellow" if kind != "failed" else "red")
    text.append(f"resubmitted {row.resubmitted:,}", style="yellow" if row.resubmitted else "")
    if row.missing is not None:
        most = sorted(row.missing.items(), key=lambda item: (-item[1], item[0]))[:MOST_SETS]
        said = "   ".join(f"{', '.join(map(str, parts))}: {results:,}" for parts, results in most) or "none"
        text.append(f"\nresults without parts  {said}", style="yellow" if most else "")
    return text


# ---- tables --------------------------------------------------------------------------------------


def _nodes(rows: Sequence[NodeRow], most: int, *, wide: bool) -> list[RenderableType]:
    from rich.text import Text

    kept, left = _kept(rows, most, lambda row: (row.well, -(row.busy or 0.0)), lambda row: (row.rank,))
    table = _table(2 if wide else 1)
    for name in ("node", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("stages", no_wrap=True)
    table.add_column("executor", max_width=20 if wide else 9)  # not `no_wrap`: where there is no room, it shrinks
    figures = ["in+out", "busy", "batch", "credit", *(["run/s"] if wide else []), "exit/s", "RTT ms", "MB"]
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("exits by stage, %", max_width=60)  # these, too
        table.add_column("address")
    stages = 1 + max((stage for row in rows for stage in row.stages), default=-1)
    for row in kept:
        if row.input_length is None:
            dashes = ["–"] * len(figures)
            why = [_line(row.trouble), _line(row.address)] if wide else []
            table.add_row(str(row.rank), _state(row), _ranks(row.stages), "–", *dashes, *why, style=None if row.well else "dim")
            continue
        exits = None if row.exits_hz is None else sum(hz for _, hz in row.exits_hz)
        table.add_row(
            str(row.rank),
            _state(row),
            _ranks(row.stages),
            _line(row.executor or "–"),
            f"{row.input_length}+{row.output_length}",
            Text(percent(row.busy, 0), style="bold" if (row.busy or 0.0) > 0.9 else ""),
            number(row.batch_mean),
            Text(f"{row.outstanding}/{row.window}", style=_full(row.outstanding, row.window)) if row.window else "–",
            *([_hz(row.run_hz)] if wide else []),
            _hz(exits),
            _milliseconds(row.round_trip_seconds),
            number(None if row.rss_bytes is None else row.rss_bytes / 1e6, ".0f"),
            *([_line(_exit_columns(row.exits_hz or (), stages)), _line(row.address)] if wide else []),
        )
    parts: list[RenderableType] = [table]
    if left:
        busy = [row.busy for row in left if row.busy is not None]
        doing = f", busy {percent(min(busy), 0)} to {percent(max(busy), 0)}" if busy else ""
        well = sum(row.well for row in left)
        parts.append(Text(f"and {len(left)} more nodes: {well} up{doing}", style="dim"))
    return parts


def _troubles(rows: Sequence[NodeRow]) -> list[Text]:
    """Why the first few that cannot be reached cannot be, where the table has no room for that."""
    troubled = [row for row in rows if row.trouble]
    return [_line(f"node {row.rank} ({row.address}): {row.trouble}", style="dim") for row in troubled[:MOST_TROUBLES]]


def _links(rows: Sequence[LinkRow], most: int, *, wide: bool) -> list[RenderableType]:
    from rich.text import Text

    kept, left = _kept(
        rows, most, lambda row: (row.state in ("up", "unknown"), -(row.bytes_hz or 0.0)), lambda row: (row.sender, row.receiver)
    )
    table = _table(2)
    table.add_column("link", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("sent", "tasks/s", "credit", "RTT ms", *(["looks like"] if wide else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in kept:
        credit = "–" if row.window is None else f"{row.outstanding}/{row.window}"
        speed = None if row.bandwidth_bps is None else row.bandwidth_bps / 8.0
        table.add_row(
            f"{row.sender} → {row.receiver}",
            Text(row.state, style=_COLOURS.get(row.state, "red")),
            _bytes(row.bytes_hz),
            _hz(row.tasks_hz),
            Text(credit, style=_full(row.outstanding, row.window)),
            _milliseconds(row.round_trip_seconds),
            *([_bytes(speed)] if wide else []),
            style="dim" if row.state == "unknown" else None,
        )
    parts: list[RenderableType] = [table]
    if left:
        carried = sum(row.bytes_hz or 0.0 for row in left)
        unwell = sum(row.state not in ("up", "unknown") for row in left)
        also = f", {unwell} of them not well" if unwell else ""
        parts.append(Text(f"and {len(left)} more links{also}: {_bytes(carried)} together", style="dim"))
    return parts


def _kept(
    rows: Sequence[_Row], most: int, matters: Callable[[_Row], tuple[object, ...]], order: Callable[[_Row], tuple[int, ...]]
) -> tuple[list[_Row], list[_Row]]:
    """Those that matter most, in order, and the rest."""
    if len(rows) <= most:
        return list(rows), []
    ranked = sorted(rows, key=matters)
    return sorted(ranked[:most], key=order), ranked[most:]


def _table(gap: int) -> Table:
    from rich.table import Table

    return Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)


def _state(row: NodeRow) -> Text:
    from rich.text import Text

    since = "" if row.seconds is None else f" {_duration(row.seconds)}"
    return Text(f"{row.state}{since}", style=_COLOURS.get(row.state, "bold red not dim"))


def _exit_shares(exits: Sequence[tuple[int, float]]) -> str:
    """`0: 62 %  1: 20 %`, of what left; a stage may be named by several nodes."""
    hz: dict[int, float] = {}
    for stage, each in exits:
        hz[stage] = hz.get(stage, 0.0) + each
    total = sum(hz.values())
    return "  ".join(f"{stage}: {percent(hz[stage] / total, 0)}" for stage in sorted(hz)) if total else "–"


def _exit_columns(exits: Sequence[tuple[int, float]], stages: int) -> str:
    """The share of each stage under that of the row above."""
    hz, total = dict(exits), sum(hz for _, hz in exits)
    return " ".join(f"{100 * hz[stage] / total:3.0f}" if total and stage in hz else "  ·" for stage in range(stages))


def _line(text: str, *, style: str = "") -> Text:
    """Cut where there is no room, and never wrapped."""
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _hz(rate: float | None) -> str:
    """A rate in few characters."""
    return number(rate, ",.0f" if rate is not None and rate >= 999.5 else ".1f")


def _full(taken: int | None, window: int | None) -> str:
    return "yellow" if window and taken is not None and taken >= window else ""


def _ranks(stages: Sequence[int]) -> str:
    """Stages in short: `0-2,4`."""
    runs: list[list[int]] = []
    for stage in stages:
        if runs and stage == runs[-1][-1] + 1:
            runs[-1].append(stage)
        else:
            runs.append([stage])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "–"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.1f}"


def _bytes(per_second: float | None) -> str:
    """A rate of bytes, three digits."""
    if per_second is None:
        return "–"
    for unit in ("B/s", "kB/s", "MB/s"):
        if per_second < 999.5:
            return f"{per_second:.0f} {unit}" if per_second >= 100 or unit == "B/s" else f"{per_second:.3g} {unit}"
        per_second /= 1000.0
    return f"{per_second:.3g} GB/s"

"""The report as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zpipe.report.build import PERCENTILES
from zpipe.report.log import KINDS
from zpipe.report.words import accuracy_lines, drift_lines, fault_lines, footnotes, number, parts_words, percent

#: More nodes than this are shown as a spread.
MOST_NODES = 40
#: More sources than this, too.
MOST_SOURCES = 16
#: Columns that a name keeps where figures leave it no room.
LEAST_NAME = 8

if TYPE_CHECKING:
    from rich.console import RenderableType


def render(report: dict[str, Any]) -> RenderableType:
    """The report as a person reads it, for 80 columns and more."""
    from rich.console import Group
    from rich.text import Text

    severities = (_severities,) if len(report["severities"]) > 1 else ()
    parts = (
        _headline,
        _latency,
        *((_sources,) if len(report["sources"]) > 1 else ()),
        _parts if "missing" in report else _exits,
        *severities,
        *((_chaos,) if "chaos" in report else ()),
        _nodes,
        _footnotes,
    )
    lines: list[RenderableType] = [item for part in parts for item in (Text(), part(report))]
    return Group(*lines)


def _headline(report: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    counts = report["counts"]
    text = Text()
    text.append(f"{report['topology']}", style="bold")
    text.append(f" · {report['bundle']} · {report['policy']}\n", style="dim")
    text.append(f"{number(report['throughput_hz'], ',.0f')} results/s", style="bold green")
    text.append(f"   accuracy {percent(report['accuracy'])}", style="bold")
    text.append(f"   {counts['submitted']:,} samples in {report['seconds']:.1f} s\n")
    ends = "   ".join(f"{kind} {counts[kind]:,}" for kind in KINDS[1:])
    text.append(f"{ends}\n")
    broken = counts["lost"] + counts["duplicate"] + counts["hung"] + report["strangers"]
    promise = f"lost {counts['lost']:,}  duplicate {counts['duplicate']:,}  hung {counts['hung']:,}"
    promise += f"  strangers {report['strangers']:,}" if report["strangers"] else ""
    text.append(promise, style="bold red" if broken else "green")
    for line in accuracy_lines(report):
        text.append(f"\n{line}")
    for line in drift_lines(report):
        text.append(f"\n{line}", style="bold yellow")
    for cause, times in list(report["causes"].items())[:3]:
        text.append(f"\n{times:,} {cause}", style="yellow")
    return text


def _latency(report: dict[str, Any]) -> RenderableType:
    stats = ("mean", *[f"p{p}" for p in PERCENTILES], "max")
    table = plain_table(("ms", "left"), *[(stat, "right") for stat in stats])
    for name, key in (("latency", "latency_ms"), ("queueing", "queueing_ms")):
        table.add_row(name, *[number(report[key][stat]) for stat in stats])
    return whole(table)


def _sources(report: dict[str, Any]) -> RenderableType:
    """A line for each source, the most urgent first."""
    rows = sorted(report["sources"], key=lambda row: (-row["priority"], -row["weight"], row["rank"]))
    if len(rows) > MOST_SOURCES:
        return _many(f"{len(rows):,} sources", rows, {"submitted": ",.0f", "goodput_hz": ".1f"})
    figures = ("weight", "class", "samples", "results", "mean ms", "p50", "p95", "p99", "accuracy")
    table = plain_table(("source", "left"), *[(name, "right") for name in figures])
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['weight']:g}",
            str(row["priority"]),
            f"{row['submitted']:,}",
            f"{row['result']:,}",
            *[number(row["latency_ms"][stat]) for stat in ("mean", "p50", "p95", "p99")],
            percent(row["accuracy"]),
        )
    return whole(table)


def plain_table(*columns: tuple[str, str]) -> Any:
    """An empty table of rich, without a frame; each column: its name and `left` or `right`.

    Figures stand on the right; what stands on the left gives way where there is no room.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right", overflow="ellipsis")  # type: ignore[arg-type]
    return table


def whole(table: Any) -> RenderableType:
    """The table, filled: no figure of it is ever cut; where short names leave no room either, lines are longer than the screen."""
    from rich.cells import cell_len

    for column in table.columns:
        longest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
        column.min_width = longest if column.justify == "right" else min(longest, LEAST_NAME)
    return table  # type: ignore[no-any-return]


def _exits(report: dict[str, Any]) -> RenderableType:
    table = plain_table(("exit", "right"), ("share", "right"), ("accuracy", "right"), ("", "left"))
    for row in report["exits"]:
        bar = "█" * round(30 * row["share"])
        table.add_row(str(row["stage"]), percent(row["share"]), percent(row["accuracy"]), f"[green]{bar}[/]")
    return whole(table)


def _parts(report: dict[str, Any]) -> RenderableType:
    """Of students: the answers by which parts were not in."""
    table = plain_table(("missing parts", "left"), *[(name, "right") for name in ("answers", "share", "accuracy", "on test")])
    for row in report["missing"]:
        figures = [percent(row[key]) for key in ("share", "accuracy", "expected")]
        table.add_row(parts_words(row["parts"]), f"{row['samples']:,}", *figures)
    return table  # type: ignore[no-any-return]


def _severities(report: dict[str, Any]) -> RenderableType:
    last = "% left at each exit" if report["exits"] else ""
    table = plain_table(("severity", "right"), ("samples", "right"), ("accuracy", "right"), (last, "left"))
    for row in report["severities"]:
        shares = " ".join(f"{100 * share:3.0f}" for share in row["exit_shares"])
        table.add_row(str(row["severity"]), f"{row['samples']:,}", percent(row["accuracy"]), shares)
    return whole(table)


def _chaos(report: dict[str, Any]) -> RenderableType:
    """What went wrong on purpose, and how soon it was mended."""
    from rich.console import Group
    from rich.text import Text

    chaos = report["chaos"]
    columns = ("times", "skipped", "harmless", "repaired p50", "p99", "max", "all max", "back max")
    table = plain_table(("fault, s", "left"), *[(name, "right") for name in columns])
    for action, row in chaos["summary"].items():
        repaired, whole, back = (row[f"{key}_seconds"] for key in ("repaired_after", "all_repaired_after", "back_after"))
        seconds = (repaired["p50"], repaired["p99"], repaired["max"], whole["max"], back["max"])
        counts = (row["events"], row["skipped"], row["harmless"])
        table.add_row(action, *map(str, counts), *[number(value, ".2f") for value in seconds])
    return Group(table, Text("\n".join(fault_lines(chaos))))


def _nodes(report: dict[str, Any]) -> RenderableType:
    if len(report["nodes"]) > MOST_NODES:
        forms = {"busy": ".0%", "batch_mean": ".1f", "queue_p95": ".0f", "tasks": ",.0f"}
        return _many(f"{len(report['nodes']):,} nodes", report["nodes"], forms)
    process = not report["simulated"]
    names = ("node", "stages", "busy", "batch", "queue p95", "max", "tasks", *(("CPU s", "RSS MB") if process else ()), "sent MB")
    table = plain_table(*[(name, "left" if name == "stages" else "right") for name in names])
    for row in report["nodes"]:
        table.add_row(
            str(row["rank"]),
            " ".join(map(str, row["stages"])),
            percent(row["busy"], 0),
            number(row["batch_mean"]),
            str(row["queue_p95"]),
            str(row["queue_max"]),
            f"{row['tasks']:,}",
            *((number(row["cpu_s"], ".2f"), number(row["rss_mb"], ".0f")) if process else ()),
            number(row["sent_bytes"] / 1e6),
        )
    return whole(table)


def _many(name: str, rows: list[dict[str, Any]], forms: dict[str, str]) -> RenderableType:
    """The spread over rows: nobody reads a thousand of them.

    Args:
        name: what they are, and how many.
        rows: of nodes or sources.
        forms: {key: how its value is written}.
    """
    table = plain_table((name, "left"), *[(column, "right") for column in ("least", "median", "mean", "most")])
    for key, form in forms.items():
        values = sorted(row[key] for row in rows)
        shown = (values[0], values[len(values) // 2], sum(values) / len(values), values[-1])
        table.add_row(key.replace("_", " "), *[format(value, form) for value in shown])
    return whole(table)


def _footnotes(report: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    return Text("\n".join(footnotes(report)), style="dim")

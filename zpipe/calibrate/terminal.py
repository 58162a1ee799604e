"""A study as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zpipe.report.terminal import plain_table
from zpipe.report.words import number, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = dict[str, Any]


def render(report: Json) -> RenderableType:
    """The study's report, for 80 columns and more."""
    from rich.console import Group
    from rich.text import Text

    parts = (_headline, _fit, _outage, _missed, _severities, _table)
    lines: list[RenderableType] = []
    for part in parts:
        shown = part(report)
        if shown is not None:
            lines += [Text(), shown]
    return Group(*lines)


def _headline(report: Json) -> RenderableType:
    from rich.text import Text

    text = Text()
    text.append(report["bundle"], style="bold")
    for split, row in report["data"].items():
        text.append(f"\n{split}: {row['samples']:,} samples of {row['originals']:,} originals, {row['source']}", style="dim")
    for line in report["warnings"]:
        text.append(f"\nwarning: {line}", style="yellow")
    return text


def _fit(report: Json) -> RenderableType:
    """Per exit and variant: temperature, ECE, NLL and AUROC on test."""
    columns = ("T", "accuracy", "confidence", "ECE", "NLL", "AUROC")
    table = plain_table(("exit", "right"), ("variant", "left"), *[(name, "right") for name in columns])
    variants = report["variants"]
    for index, first in enumerate(variants["none"]["exits"]):
        for name, found in variants.items():
            row = found["exits"][index]
            test = row["test"]
            table.add_row(
                str(first["stage"]) if name == "none" else "",
                name,
                number(row["temperature"], ".3f"),
                percent(test["accuracy"]) if name == "none" else "",
                percent(test["mean_confidence"]),
                percent(test["ece"], 2),
                number(test["nll"], ".4f"),
                number(test["auroc"], ".3f"),
            )
    return table  # type: ignore[no-any-return]


def _outage(report: Json) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    published = report["published_relative_drop"]
    table = plain_table(
        ("target", "right"),
        ("variant", "left"),
        ("outage", "right"),
        ("relative", "right"),
        ("published", "right"),
        ("early", "right"),
        ("right", "right"),
        ("compute", "right"),
    )
    for row in report["outage"]:
        for name, found in row["variants"].items():
            drop = row["relative_drop"].get(name)
            table.add_row(
                number(row["target"], "g") if name == "none" else "",
                name,
                number(found["outage"], ".3f"),
                number(drop, "+.0%"),
                number(published.get(name), "+.0%"),
                percent(found["left_early"]),
                percent(found["accuracy_of_early"]),
                number(found["macs_share"], ".3f"),
            )
    size = report["outage"][0]["window"]
    lines = [f"outage: share of windows of {size} samples whose early answers fall under the target", *_risen(report)]
    return Group(table, Text("\n".join(lines), style="dim"))


#: Outage below this is a handful of windows: a ratio to it says little.
_RARE = 0.02


def _risen(report: Json) -> list[str]:
    """Why calibration made outages more frequent, where it did: one line per target, from the figures."""
    variant = report["variant"]
    exit_row = report["variants"]["none"]["exits"][0]
    first = exit_row["test"]
    lines = []
    for row in report["outage"]:
        before, after = row["variants"]["none"], row["variants"][variant]
        if round(after["outage"], 3) <= round(before["outage"], 3):
            continue  # none that could be seen above
        line = f"target {row['target']:g}: outage rose from {before['outage']:.3f} to {after['outage']:.3f}"
        if first["mean_confidence"] < first["accuracy"]:
            line += (
                f": exit {exit_row['stage']} was under-confident ({percent(first['mean_confidence'])} sure, "
                f"{percent(first['accuracy'])} right), so calibration raises confidences and {percent(after['left_early'])} leave "
                f"early instead of {percent(before['left_early'])}"
            )
        if before["outage"] < _RARE:
            line += f"; {before['outage']:.3f} is so little that a ratio to it says little"
        lines.append(line)
    return lines


def _missed(report: Json) -> RenderableType | None:
    missed = report["missed_deadlines"]
    if missed is None:
        return None
    names = list(report["variants"])
    columns = [("target", "right"), ("deadline ms", "right"), *[(f"missed {name}", "right") for name in names]]
    table = plain_table(*columns)
    limits = missed["deadline_seconds"]
    for curve in missed["curves"]:
        # Around the mean time of the uncalibrated exits the variants differ most.
        middle = curve["mean_seconds"]["none"]
        for share in (0.8, 1.0, 1.25, 2.0):
            index = min(range(len(limits)), key=lambda i, at=share * middle: abs(limits[i] - at))  # type: ignore[misc]
            cells = [number(curve["variants"][name][index], ".3f") for name in names]
            table.add_row(number(curve["target"], "g"), number(1e3 * limits[index]), *cells)
    return table  # type: ignore[no-any-return]


def _severities(report: Json) -> RenderableType | None:
    rows = report["severities"]
    if len(rows) < 2:
        return None
    exits = len(rows[0]["accuracy_of_exits"])
    columns = [*[(f"{index}", "right") for index in range(exits)], ("default", "right"), ("compute", "right")]
    table = plain_table(("exits of severity", "right"), *columns, ("left at", "left"))
    for row in rows:
        point = row["default_point"]
        cells = [number(100 * value) for value in (*row["accuracy_of_exits"], point["accuracy"])]
        shares = " ".join(f"{100 * share:.0f}" for share in point["exit_shares"])
        table.add_row(str(row["severity"]), *cells, number(point["macs_share"], ".2f"), shares)
    return table  # type: ignore[no-any-return]


def _table(report: Json) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    found = report["accuracy_table"]
    table = plain_table(
        ("target", "right"),
        ("threshold", "right"),
        ("calibration", "right"),
        ("test", "right"),
        ("its interval", "left"),
        ("compute", "right"),
        ("", "left"),
    )
    full = report["full_macs"]
    for row in _distinct(found["rows"]):
        test, interval = row["test"], row["test_interval"]
        kept = "" if test is None else ("kept" if test["accuracy"] >= row["target"] else "not on test")
        table.add_row(
            f"{100 * row['target']:g} %",
            "never" if row["thresholds"][0] >= 1.0 else f"{row['thresholds'][0]:.4g}",
            percent(row["calibration"]["accuracy"], 2),
            "–" if test is None else percent(test["accuracy"], 2),
            "" if interval is None else f"{100 * interval[0]:.2f}..{100 * interval[1]:.2f}",
            number((test or row["calibration"])["mean_macs"] / full, ".3f"),
            Text(kept, style="" if kept == "kept" else "yellow"),
        )
    lines = [f"temperatures {found['variant']}; each row: {found['rule']}"]
    short = sum(row["test"] is not None and row["test"]["accuracy"] < row["target"] for row in found["rows"])
    if short:
        lines.append(f"{short} of {len(found['rows'])} targets are not kept on test")
    if found["unreached"]:
        # They rise, and what is above one that cannot be reached cannot be either.
        above = " and above" if len(found["unreached"]) > 1 else ""
        lines.append(
            f"not reached on calibration: {100 * found['unreached'][0]:g} %{above}; the best is {percent(found['best'], 2)}"
        )
    return Group(table, Text("\n".join(lines), style="dim"))


def _distinct(rows: list[Json]) -> list[Json]:
    """Of rows with the same thresholds the one with the highest target: it says all that the others say."""
    return [
        row for row, after in zip(rows, [*rows[1:], None], strict=True) if after is None or after["thresholds"] != row["thresholds"]
    ]

"""The charts of one run, or of several laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from zpipe.report.page.markup import figure, grid, number
from zpipe.report.page.plots import Axis, Band, Dot, Line, chart, colour, stacked, thinned
from zpipe.report.words import percent

Row = dict[str, Any]

#: Points of a line over time, and faults marked below it: more cannot be told apart.
MOST_POINTS, MOST_BANDS = 60, 100

#: What is shown over time: title, unit, and of each line the key in the series, its colour and what it is.
_PANELS = (
    ("Rate", "samples/s", (("admitted_hz", "c0", "let in"), ("result_hz", "c3", "answered"))),
    (
        "Queues at the sources",
        "samples",
        (
            ("waiting", "c0", "waiting to be let in"),
            ("in_flight", "c1", "under way"),
            ("queue", "c3", "in the sources' own queues"),
        ),
    ),
    ("Operating point", "number (0: cheapest)", (("point", "all", "of the next sample"),)),
)


def key(names: Sequence[tuple[str, str]]) -> str:
    """A legend: (CSS classes of the swatch, what it stands for)."""
    swatches = "".join(f'<span><i class="{kind}"></i>{escape(said)}</span>' for kind, said in names)
    return f'<div class="legend">{swatches}</div>'


def short_name(report: Row, first: Row) -> str:
    """A baseline by its own name."""
    name, of = report["topology"], first["topology"]
    return str(name.removeprefix(f"{of}/"))


# ---- latency -----------------------------------------------------------------------------------


def latency(runs: Sequence[Row]) -> str:
    """Cumulative latencies: of one run by exit, too; of several each as a whole."""
    first = runs[0]
    if len(runs) == 1:
        curves = [("all", "all answers", first["latency_curve"]["ms"])]
        for index, ms in enumerate(first["latency_curve"]["exits"]):
            curves.append((colour(index), f"answered at exit {index}", ms))
    else:
        curves = [(colour(index), short_name(run, first), run["latency_curve"]["ms"]) for index, run in enumerate(runs)]
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return figure("Latency: no answers, so nothing to draw", "")
    shares = [100.0 * share for share in first["latency_curve"]["shares"]]
    lines = [Line(list(zip(ms, shares, strict=True)), kind) for kind, _, ms in reversed(curves)]
    says = "; ".join(f"{short_name(run, first)}: {_median(run)}" for run in runs)
    svg = chart(
        x=Axis("latency (ms, logarithmic)", logarithmic=True),
        y=Axis("answers (%)", 0.0, 100.0),
        lines=lines,
        title="Share of the answers that took no longer than so many milliseconds",
        says=says,
    )
    return figure("Latency: answers that took no longer", svg) + key([(f"{kind} stroke", said) for kind, said, _ in curves])


def _median(run: Row) -> str:
    found = run["latency_ms"]
    return f"half of them within {number(found['p50'])} ms, 95 % within {number(found['p95'])} ms"


# ---- accuracy at the operating point -----------------------------------------------------------


def operating_points(runs: Sequence[Row]) -> str:
    """The runs beside what the bundle's operating points give on its test data."""
    first = runs[0]
    points = sorted((100.0 * row["macs_share"], 100.0 * row["test"], row["name"]) for row in first["operating_points"])
    lines = [Line([(x, y) for x, y, _ in points], "table")]
    # The cheapest and the dearest by name, the others at a touch.
    labels = {at: (name, side) for at, side in ((0, "right"), (len(points) - 1, "above")) for _, _, name in points[at : at + 1]}
    dots = [Dot(x, y, "table", f"{name}: {_at(x, y)}", *labels.get(at, ())) for at, (x, y, name) in enumerate(points)]
    here = [(index, run) for index, run in enumerate(runs) if None not in (run["accuracy"], run["mean_macs_share"])]
    if "missing" in first and not here:
        return ""
    for index, run in reversed(here):  # the first on top
        x, y = 100.0 * run["mean_macs_share"], 100.0 * run["accuracy"]
        kind = colour(index) if len(runs) > 1 else "all"
        dots.append(Dot(x, y, kind, f"{short_name(run, first)}: {_at(x, y)}", large=True))
    if not dots:
        return figure("Accuracy: no answers, so nothing to draw", "")
    svg = chart(
        x=Axis("multiply-adds (% of the whole network)", 0.0, 100.0),
        y=Axis("accuracy (%)", high=None if max(dot.y for dot in dots) < 99.0 else 100.0),
        lines=lines,
        dots=dots,
        title="Accuracy over compute",
        says="; ".join(f"{short_name(run, first)}: {percent(run['accuracy'])}" for _, run in here),
    )
    names = [
        (f"{colour(index)} dot" if len(runs) > 1 else "all dot", short_name(run, first) if len(runs) > 1 else "this run")
        for index, run in here
    ]
    names += [("table dot small", f"operating points of {first['bundle']} on its test data")] if points else []
    return figure("Accuracy against operating point", svg) + key(names)


def _at(x: float, y: float) -> str:
    return f"{y:.1f} % right at {x:.1f} % of the multiply-adds"


# ---- exits -------------------------------------------------------------------------------------


def exits(runs: Sequence[Row]) -> str:
    """Where answers left: of one run at each severity, too; of several each as a whole. "" where all are of students."""
    runs = [run for run in runs if "missing" not in run]
    if not runs:
        return ""
    first = runs[0]
    if not any(run["counts"]["result"] for run in runs):
        return figure("Exits: no answers, so nothing to draw", "")
    rows = [("all" if len(runs) == 1 else short_name(run, first), [row["share"] for row in run["exits"]]) for run in runs]
    if len(runs) == 1 and len(first["severities"]) > 1:
        rows += [(f"severity {row['severity']}", row["exit_shares"]) for row in first["severities"]]
    told = [
        (name, shares, [f"{name}: {percent(share)} left at exit {at}" for at, share in enumerate(shares)]) for name, shares in rows
    ]
    count = max(len(shares) for _, shares in rows)
    says = ", ".join(f"{percent(row['share'], 0)} at exit {row['stage']}" for row in first["exits"])
    names = [(f"{colour(at)}", f"exit {at}" if at < count - 1 else f"exit {at}, the whole network") for at in range(count)]
    return figure("Exits: where answers left (%)", stacked(told, title="Exit shares", says=says)) + key(names)


# ---- over time ---------------------------------------------------------------------------------


def over_time(report: Row) -> str:
    """Rate, queues and operating point from the first sample to the last, faults marked."""
    rows = report["series"][1:]  # the first has nothing before it to count from
    if len(rows) < 2:
        return figure("The run was too short for figures over time", "")
    bands = _faults(report)
    last = rows[-1]["t"]
    figures = []
    for title, unit, shown in _PANELS:
        lines = [Line(thinned([(row["t"], row[name]) for row in rows], MOST_POINTS), kind) for name, kind, _ in shown]
        most = max(y for line in lines for _, y in line.points)
        svg = chart(
            x=Axis("time (s)", 0.0, last),
            y=Axis(unit, 0.0, None if most > 0 else 1.0),
            lines=lines,
            bands=bands,
            title=f"{title} over time",
            says=", ".join(f"{said}: {number(_mean([row[name] for row in rows]))} on average" for name, _, said in shown),
        )
        names = [(f"{kind} stroke", said) for _, kind, said in shown]
        figures.append(figure(title, svg) + key([*names, *([("band", "a fault")] if bands else [])]))
    return grid([f"<div>{each}</div>" for each in figures], "wide")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _faults(report: Row) -> list[Band]:
    """Faults with a moment; those that last all the time say nothing about one."""
    timeline = report.get("chaos", {}).get("timeline", [])
    done = [row for row in timeline if "skipped" not in row]
    return [Band(row["at_seconds"], row["at_seconds"] + (row["lasted_seconds"] or 0.0), _fault(row)) for row in done[:MOST_BANDS]]


def _fault(row: Row) -> str:
    return f"{row['action']} {row['target'] or ''} at {row['at_seconds']:.1f} s for {row['lasted_seconds'] or 0.0:.1f} s"


def rates_over_time(runs: Sequence[Row]) -> str:
    """Answers a second of several runs."""
    lines = [
        Line(thinned([(row["t"], row["result_hz"]) for row in run["series"][1:]], MOST_POINTS), colour(index))
        for index, run in enumerate(runs)
    ]
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return figure("The runs were too short for figures over time", "")
    svg = chart(
        x=Axis("time (s)", 0.0, max(x for line in lines for x, _ in line.points)),
        y=Axis("answers/s", 0.0),
        lines=lines,
        title="Rate over time",
        says="; ".join(f"{short_name(run, runs[0])}: {number(run['throughput_hz'])} a second" for run in runs),
    )
    return figure("Rate: answers a second", svg) + key(
        [(f"{colour(i)} stroke", short_name(run, runs[0])) for i, run in enumerate(runs)]
    )


def memory(report: Row) -> str:
    """Every node's resident set as results grow: what creeps up, leaks; "" where nothing was recorded."""
    rows = report["memory"]
    if len(rows) < 3 or len(rows[0]["rss_mb"]) > 8:
        return ""
    lines, names = [], []
    for rank in range(len(rows[0]["rss_mb"])):
        points = [(row["results"], row["rss_mb"][rank]) for row in rows if row["rss_mb"][rank] is not None]
        if len(points) > 1:
            lines.append(Line(thinned(points, MOST_POINTS), f"{colour(rank)}{' dashed' if rank >= 5 else ''}"))
            names.append((f"{lines[-1].kind} stroke", f"node {rank}"))
    if not lines:
        return ""
    says = "; ".join(f"{said}: {line.points[-1][1]:.0f} MB at the end" for line, (_, said) in zip(lines, names, strict=True))
    svg = chart(x=Axis("answers", 0.0), y=Axis("resident (MB)", 0.0), lines=lines, title="Memory of each node", says=says)
    return figure("Memory of each node", svg) + key(names)

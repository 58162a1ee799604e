"""The figures of the page: a policy keeps its colour and marker in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from zpipe.bench.suites.drawing import INK, STYLE, TINY, Mark, new_figure, sample, svg
from zpipe.bench.suites.pa_mdi.claims import Policies, carries, others_ms
from zpipe.bench.suites.pa_mdi.settings import AR_MDI, CLOSED, COMPARED, FIFO, MDI, MS_MDI, PA_MDI

Row = dict[str, Any]

MARKS = {
    PA_MDI: Mark("#D55E00", "o", 4.5),
    AR_MDI: Mark("#000000", "^", 4.5),
    MS_MDI: Mark("#009E73", "D", 4.0),
    FIFO: Mark("#CC79A7", "v", 4.5),
    MDI: Mark("#0072B2", "s", 4.0),
}
#: Changes that are drawn, in per cent; the worse ones are in the tables.
CHANGES = (-100.0, 50.0)
#: Whom a node computed for; no policy's colours.
URGENT, OTHERS = "#1d4369", "#a9c6de"
_X = {CLOSED: "data points of each source under way"}


def inference_time(policies: Mapping[str, Mapping[float, Row]], *, kind: str, least: Mapping[float, float], says: str) -> str:
    """Mean inference time over load, a line per policy: above the time-sensitive source, below the mean of the others.

    Args:
        policies: {policy: {load: row}} of one setting, number of sources and kind of load.
        kind: of load.
        least: dotted: {load: the least mean of the time-sensitive source that any policy could reach}, milliseconds.
        says: what the figure shows, for those who do not see it.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2, 4.0), layout="constrained")
        above, below = figure.subplots(2, sharex=True, sharey=True)
        means = [
            value for rows in policies.values() for row in rows.values() for value in (row["latency_ms"][0][0], others_ms(row))
        ]
        within = 0.7 * min(*means, *least.values()), 1.4 * max(means)
        for policy, rows in reversed(list(policies.items())):
            loads = sorted(rows)
            _line(above, policy, loads, [rows[load]["latency_ms"][0] for load in loads], within=within)
            _line(below, policy, loads, [[others_ms(rows[load]), 0.0] for load in loads], within=within)
        above.plot(sorted(least), [least[load] for load in sorted(least)], ":", color=INK, linewidth=1.0)
        for axes, who in ((above, "time-sensitive source"), (below, "other sources")):
            axes.set_yscale("log")
            axes.set_ylim(*within)
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if within[1] < 50.0 * within[0] else (1.0,)))
            axes.yaxis.set_major_formatter(FuncFormatter(_seconds))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_ylabel("mean inference time (s)")
            axes.set_title(who, fontsize=8, color=INK, loc="left")
        _over(below, kind, sorted({load for rows in policies.values() for load in rows}))
        return svg(figure, says)


def reductions(sweeps: Sequence[Policies], *, kind: str, published: Mapping[str, float], says: str) -> str:
    """What pa-mdi changes of the time-sensitive source's mean inference time under each baseline; dotted: the published figure.

    A marker is hollow where the baseline does not carry the load.

    Args:
        sweeps: the rows for two sources, drawn through, and for three, dashed.
        kind: of load.
        published: {baseline: fraction}.
        says: what the figure shows, for those who do not see it.
    """
    with rc_context(STYLE):
        figure, axes = new_figure("", "change by pa-mdi (%)")
        for policies, dashes in zip(sweeps, ("-", "--"), strict=False):
            rows = policies[PA_MDI]
            loads = sorted(rows)
            for name in reversed(COMPARED):
                if name not in policies:
                    continue
                values = [rows[load]["reduction"][name] for load in loads]
                _line(axes, name, loads, [[-100.0 * mean, 100.0 * half] for mean, half in values], within=CHANGES, dashes=dashes)
                beyond = [load for load in loads if not carries(policies, name, load)]
                changes = [-100.0 * rows[load]["reduction"][name][0] for load in beyond]
                mark = MARKS[name]
                axes.plot(beyond, changes, mark.marker, color=mark.colour, markerfacecolor="white", markersize=mark.size)
        for name, share in published.items():
            axes.axhline(-100.0 * share, linestyle=":", color=MARKS[name].colour, linewidth=1.2)
        axes.axhline(0.0, color=INK, linewidth=0.6)
        axes.set_ylim(CHANGES[0], min(CHANGES[1], max(5.0, axes.get_ylim()[1])))
        _over(axes, kind, sorted({load for policies in sweeps for load in policies[PA_MDI]}))
        return svg(figure, says)


def _line(
    axes: Axes,
    policy: str,
    x: Sequence[float],
    intervals: Sequence[Sequence[float]],
    *,
    within: tuple[float, float],
    dashes: str = "-",
) -> None:
    """A policy's line with its 95 % intervals, as far as they are within the axes."""
    mark = MARKS[policy]
    low, high = within
    axes.plot(x, [value[0] for value in intervals], dashes, color=mark.colour, marker=mark.marker, markersize=mark.size)
    for where, (mean, half) in zip(x, intervals, strict=True):
        if half:
            axes.vlines(where, max(low, mean - half), min(high, mean + half), color=mark.colour, linewidth=0.8)


def _over(axes: Axes, kind: str, loads: Sequence[float]) -> None:
    axes.set_xlabel(_X.get(kind, "arrivals (share of what all boxes can compute)"))
    if kind == CLOSED:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(loads, [f"{load:g}" for load in loads])


def _seconds(milliseconds: float, position: int) -> str:
    return f"{milliseconds / 1e3:g}"


def served(row: Row, *, says: str) -> str:
    """How much of its time each node computed, below for the time-sensitive source, above for the others."""
    with rc_context(STYLE):
        figure, axes = new_figure("node", "of its time (%)", size=TINY)
        nodes = range(len(row["served"]))
        urgent = [100.0 * shares[0] for shares in row["served"]]
        axes.bar(nodes, urgent, color=URGENT, width=0.7)
        axes.bar(nodes, [100.0 * sum(shares[1:]) for shares in row["served"]], bottom=urgent, color=OTHERS, width=0.7)
        axes.set_xticks(nodes)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0.0, 100.0)
        return svg(figure, says)


def policy_mark(policy: str) -> str:
    """For legends."""
    return sample(MARKS[policy], policy)

"""The figures of the page: a system keeps its colour and marker in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from zpipe.bench.suites.drawing import STYLE, Mark, new_figure, sample, svg
from zpipe.bench.suites.rocoin.settings import SYSTEMS

Row = dict[str, Any]

#: Students are warm and filled, everything else is cold.
MARKS = {
    "rocoin-failover": Mark("#E69F00", "^", 5.0),
    "rocoin-hedged": Mark("#D55E00", "o", 4.5),
    "rocoin-all": Mark("#CC79A7", "v", 5.0),
    "rocoin-single": Mark("#B59A00", "x", 5.0),
    "chain-replicas": Mark("#0072B2", "s", 4.5),
    "chain": Mark("#56B4E9", "D", 4.0),
    "one-board": Mark("#000000", "P", 5.0),
    "copies": Mark("#009E73", "*", 6.0),
}
#: Widths of figures with a group of bars for each kind of stall.
_WIDE = (4.6, 2.7)


def over_probability(rows: Sequence[Row], take: Callable[[Row], Sequence[float] | None], *, y: str, log: bool, says: str) -> str:
    """A line for each system over the probability that a board fails.

    Args:
        rows: of one model of failure.
        take: a row's value with half of its interval; None: nothing to draw.
        y: label.
        log: whether its axis is.
        says: what the figure shows, for those who do not see it.
    """
    return _lines(rows, "probability", take, x="probability that a board fails", y=y, log=(False, log), says=says)


def over_devices(rows: Sequence[Row], take: Callable[[Row], Sequence[float] | None], *, y: str, log: bool, says: str) -> str:
    """A line for each system over the number of boards; arguments as above."""
    return _lines(rows, "boards", take, x="boards", y=y, log=(True, log), says=says)


def _lines(
    rows: Sequence[Row],
    over: str,
    take: Callable[[Row], Sequence[float] | None],
    *,
    x: str,
    y: str,
    log: tuple[bool, bool],
    says: str,
) -> str:
    with rc_context(STYLE):
        figure, axes = new_figure(x, y)
        places = sorted({row[over] for row in rows})
        for system in reversed(_present(rows)):
            points = [(row[over], value) for row in rows if row["system"] == system and (value := take(row)) is not None]
            _line(axes, system, points)
        if log[0]:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places, [f"{place:g}" for place in places])
        if log[1]:
            _log_axis(axes)
        if y.endswith("(%)"):
            axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(102.0, axes.get_ylim()[1]))
        return svg(figure, says)


def _line(axes: Axes, system: str, points: Sequence[tuple[float, Sequence[float]]]) -> None:
    mark = MARKS[system]
    places, values = [place for place, _ in points], [value[0] for _, value in points]
    axes.plot(places, values, "-", color=mark.colour, marker=mark.marker, markersize=mark.size)
    for place, (mean, half) in points:
        if half:
            axes.vlines(place, mean - half, mean + half, color=mark.colour, linewidth=0.8)


def tails(rows: Sequence[Row], *, says: str) -> str:
    """A group for each kind of stall: of each system the median (hollow), and above it the 99th percentile with its interval."""
    with rc_context(STYLE):
        figure, axes = new_figure("", "latency (ms): median, 99th percentile", size=_WIDE)
        kinds = list(dict.fromkeys(row["stalling"] for row in rows))
        systems = _present(rows)
        width = 0.7 / len(systems)
        for row in rows:
            low, high = row["latency_p50_ms"], row["latency_p99_ms"]
            if low is None or high is None:
                continue
            mark = MARKS[row["system"]]
            at = kinds.index(row["stalling"]) + (systems.index(row["system"]) - (len(systems) - 1) / 2) * width
            axes.vlines(at, low[0], high[0], color=mark.colour, linewidth=2.5)
            axes.vlines(at, max(low[0], high[0] - high[1]), high[0] + high[1], color="#333333", linewidth=0.8)
            axes.plot(at, high[0], mark.marker, color=mark.colour, markersize=mark.size)
            axes.plot(at, low[0], mark.marker, color=mark.colour, markerfacecolor="white", markersize=mark.size)
        axes.set_xticks(range(len(kinds)), ["no stalls" if kind == "none" else kind for kind in kinds])
        axes.grid(visible=False, axis="x")
        _log_axis(axes)
        return svg(figure, says)


def _log_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50.0 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _present(rows: Sequence[Row]) -> list[str]:
    there = {row["system"] for row in rows}
    return [system.name for system in SYSTEMS if system.name in there]


def legend(rows: Sequence[Row], titles: Mapping[str, str]) -> list[tuple[str, str]]:
    """(sample, title) of each system that is drawn."""
    return [(sample(MARKS[system], system), titles[system]) for system in _present(rows)]

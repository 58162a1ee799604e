"""The figures of a suite's page, as SVG to stand inside it.

A policy keeps its colour and marker everywhere (colours: Okabe and Ito, told apart by nearly every eye). A marker is hollow where
less than CARRIED of the offered samples were answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zpipe.bench.suites.drawing import STYLE, TINY, Mark, new_figure, sample, svg
from zpipe.bench.suites.settings import CARRIED, MDI, MDI_AUTO, MDI_INPUTS

Row = dict[str, Any]


MARKS = {
    MDI: Mark("#0072B2", "o", 4.0),
    MDI_INPUTS: Mark("#D55E00", "s", 5.0),
    MDI_AUTO: Mark("#56B4E9", "X", 7.0),
    "no-exit": Mark("#000000", "^", 5.0),
    "local": Mark("#CC79A7", "v", 5.0),
    "ddi": Mark("#009E73", "D", 6.0),
    "mdi-static": Mark("#E69F00", "P", 7.0),
}
#: Policies whose bound is drawn, too; the summary has all bounds.
BOUNDED = (MDI, MDI_INPUTS)
#: Exits from first to last; no policy's colours.
EXITS = ("#d6e4f0", "#a9c6de", "#7aa1c2", "#4a759f", "#1d4369")
# ---- the two families of curves --------------------------------------------------------------------


def rate_at_accuracy(rows: Sequence[Row], *, says: str) -> str:
    """Rate over accuracy, a line per policy through its operating points; dotted: the bounds.

    Args:
        rows: of one setting and topology.
        says: what the figure shows, for those who do not see it.
    """
    with rc_context(STYLE):
        figure, axes = new_figure("accuracy (%)", "data rate (samples/s)")
        for policy, mine in _by_policy(rows):
            mine.sort(key=lambda row: row["accuracy"][0])
            accuracies = [100.0 * row["accuracy"][0] for row in mine]
            if policy in BOUNDED:
                axes.plot(accuracies, [row["bound_hz"] for row in mine], ":", color=MARKS[policy].colour, linewidth=1.0)
            _line(axes, policy, accuracies, [row["rate_hz"] for row in mine], [row["answered"] for row in mine])
        axes.set_ylim(bottom=0.0)
        return svg(figure, says)


def accuracy_at_rate(rows: Sequence[Row], *, says: str) -> str:
    """Samples answered right and in time over the rate at which they come, a line per policy; dotted: the highest rates.

    Args:
        rows: of one setting and topology.
        says: what the figure shows, for those who do not see it.
    """
    with rc_context(STYLE):
        figure, axes = new_figure("data rate offered (samples/s)", "right and in time (% of offered)")
        for policy, mine in _by_policy(rows):
            mine.sort(key=lambda row: row["offered_hz"])
            if policy in BOUNDED:
                axes.axvline(mine[0]["bound_hz"], linestyle=":", color=MARKS[policy].colour, linewidth=1.0)
            right = [[100.0 * value for value in row["right"]] for row in mine]
            _line(axes, policy, [row["offered_hz"] for row in mine], right, [row["answered"] for row in mine], highest=100.0)
        axes.set_xlim(left=0.0)
        axes.set_ylim(top=101.0)
        return svg(figure, says)


def _by_policy(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """From the last to the first, which is drawn on top."""
    for policy in reversed(MARKS):
        if mine := [row for row in rows if row["policy"] == policy]:
            yield policy, mine


def _line(
    axes: Axes,
    policy: str,
    x: Sequence[float],
    intervals: Sequence[Sequence[float]],
    answered: Sequence[Sequence[float]],
    *,
    highest: float = math.inf,
) -> None:
    """A policy's line, its 95 % intervals where they can be seen, and its markers."""
    mark = MARKS[policy]
    means = [value[0] for value in intervals]
    axes.plot(x, means, color=mark.colour)
    most = max(means)
    for where, (mean, half) in zip(x, intervals, strict=True):
        if half > 0.005 * most:
            axes.vlines(where, max(0.0, mean - half), min(highest, mean + half), color=mark.colour, linewidth=0.8)
    for hollow in (False, True):
        chosen = [index for index, share in enumerate(answered) if (share[0] < CARRIED) == hollow]
        if chosen:
            at, values = [x[index] for index in chosen], [means[index] for index in chosen]
            face = "white" if hollow else mark.colour
            axes.plot(at, values, mark.marker, color=mark.colour, markerfacecolor=face, markeredgewidth=0.9, markersize=mark.size)


# ---- over time, exits, bytes -----------------------------------------------------------------------


def over_time(rows: Sequence[Row], *, among: Sequence[Row], says: str) -> str:
    """Admitted rate, queue and operating point of one run, a row a second.

    Args:
        rows: the run's series.
        among: all rows that stand beside these: they share their scales.
        says: what the figure shows, for those who do not see it.
    """
    shown = (
        ("admitted_hz", "admitted\n(samples/s)"),
        ("queue", "queue at source\n(tasks)"),
        ("point", "operating point\n(0: cheapest)"),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3.8), layout="constrained")
        panels = figure.subplots(len(shown), sharex=True)
        for axes, (name, label) in zip(panels, shown, strict=True):
            axes.plot([row["t"] for row in rows], [row[name] for row in rows], color=MARKS[MDI].colour)
            axes.set_ylim(0.0, 1.05 * max(1.0, *(row[name] for row in among)))
            axes.set_ylabel(label)
        panels[-1].set_xlabel("time (s)")
        figure.align_ylabels()
        return svg(figure, says)


def exit_shares(rows: Sequence[Row], *, says: str) -> str:
    """Shares of the answers that left at each exit, a bar for each data rate.

    Args:
        rows: of one setting, topology and policy.
        says: what the figure shows, for those who do not see it.
    """
    rows = sorted(rows, key=lambda row: row["offered_hz"])
    with rc_context(STYLE):
        figure, axes = new_figure("offered (samples/s)", "answers (%)", size=TINY)
        below = [0.0] * len(rows)
        for exit_index in range(len(rows[0]["exits"])):
            shares = [100.0 * row["exits"][exit_index] for row in rows]
            axes.bar(range(len(rows)), shares, bottom=below, color=exit_colour(exit_index), width=0.7)
            below = [before + share for before, share in zip(below, shares, strict=True)]
        axes.set_xticks(range(len(rows)), [f"{row['offered_hz']:g}" for row in rows])
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0.0, 100.0)
        return svg(figure, says)


def exit_colour(index: int) -> str:
    """Of an exit; the last one's for all beyond."""
    return EXITS[min(index, len(EXITS) - 1)]


def bytes_per_sample(rows: Sequence[Row], topologies: Sequence[str], *, says: str) -> str:
    """A line for each topology, with each policy's mark on it.

    Args:
        rows: of one setting, one for each topology and policy.
        topologies: from top to bottom.
        says: what the figure shows, for those who do not see it.
    """
    with rc_context(STYLE):
        figure, axes = new_figure("sent on all links (kB per sample)", "", size=(3.6, 1.0 + 0.28 * len(topologies)))
        for policy, mine in _by_policy(rows):
            mark = MARKS[policy]
            at = [topologies.index(row["topology"]) for row in mine]
            sent = [row["bytes_per_sample"][0] / 1e3 for row in mine]
            axes.plot(sent, at, mark.marker, color=mark.colour, markersize=mark.size)
        axes.set_yticks(range(len(topologies)), topologies)
        axes.invert_yaxis()
        axes.margins(y=0.08)
        return svg(figure, says)


def policy_mark(policy: str) -> str:
    """For legends."""
    return sample(MARKS[policy], policy)

"""The plot: per workload and mode one panel, zpipe's factor over each contender."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bench.peers.contender import CONTENDERS
from bench.peers.rounds import MODES, ratio
from bench.peers.work import WORKLOADS

Row = dict[str, Any]
_MINE, _OTHER, _TEXT = "#c2571a", "#4878a8", "#555555"
_TITLES = {
    "batch-1": "saturated, batch 1\nsamples a second",
    "batch-8": "saturated, batch 8\nsamples a second",
    "latency": "one sample at a time\nµs beside the stages",
}


def write_plot(rows: list[Row], path: Path) -> None:
    """Bars with the range over rounds, and zpipe's factor over each contender written beside it; `path` ends in .svg or .png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "zpipe"  # else the same figures give another file
    workloads = [name for name in WORKLOADS if any(row["workload"] == name for row in rows)]
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    keys = [key for key in CONTENDERS if any(row["contender"] == key for row in rows)]
    figure, axes = pyplot.subplots(
        len(workloads),
        len(modes),
        figsize=(1.6 + 4.2 * len(modes), 0.9 + (0.45 + 0.27 * len(keys)) * len(workloads)),
        squeeze=False,
        layout="constrained",
    )
    for workload, line in zip(workloads, axes, strict=True):
        for mode, axis in zip(modes, line, strict=True):
            found = {row["contender"]: row for row in rows if (row["workload"], row["mode"]) == (workload, mode)}
            if not found:
                axis.axis("off")
                continue
            _panel(axis, found, keys, figure_of="beside_us" if mode == "latency" else "hz")
            if workload == workloads[0]:
                axis.set_title(_TITLES[mode], fontsize=9)
            if mode == modes[0]:
                axis.set_ylabel(workload, fontsize=10)
            else:
                axis.set_yticklabels([])
    figure.suptitle("A line of four on one machine; right of each bar: zpipe's figure over this one", fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, found: dict[str, Row], keys: list[str], *, figure_of: str) -> None:
    mine = found.get("z", {"fell": ""})
    for place, key in enumerate(keys):
        row = found.get(key, {"fell": "not measured"})
        if "fell" in row:
            axis.text(0.01, place, row["fell"][:60], transform=axis.get_yaxis_transform(), va="center", fontsize=6, color=_TEXT)
            continue
        figure = row[figure_of]
        axis.barh(place, figure["median"], color=_MINE if key == "z" else _OTHER, height=0.7)
        axis.plot([figure["low"], figure["high"]], [place, place], color="black", linewidth=0.8)
        if key != "z" and "fell" not in mine:
            factor = ratio(mine["rounds"], row["rounds"], figure_of)["median"]
            label = f" × {factor:.2f}" if math.isfinite(factor) else ""
            axis.text(figure["high"], place, label, va="center", fontsize=7, color=_TEXT)
    axis.set_yticks(range(len(keys)), [f"{key}  {CONTENDERS[key][1]}" for key in keys], fontsize=7)
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.set_xlim(0, 1.15 * max([axis.get_xlim()[1], 1e-9]))
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)

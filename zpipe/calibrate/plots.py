"""A study's figures as PNG files: reliability diagrams, outage over target, missed deadlines. Needs the extra `suite`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from zpipe.errors import BackendUnavailable, ConfigError

Json = dict[str, Any]

#: Colours that nearly every eye tells apart (Okabe and Ito), and a dash for those that print in grey.
LOOKS = {"none": ("#000000", "--"), "global": ("#E69F00", "-."), "per-exit": ("#0072B2", "-")}
#: Lines with gaps lie on top, where what is beneath shows through.
ORDER = {"none": 3, "global": 4, "per-exit": 2}
NAMES = {"none": "not calibrated", "global": "one temperature", "per-exit": "one per exit"}

_STYLE = {
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}
_DPI = 140


def require_matplotlib() -> None:
    """Before the work: it would be a pity to find out after it.

    Raises:
        BackendUnavailable: matplotlib is absent.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("found no matplotlib, expected it for --plots; run: pip install 'zpipe[suite]'")


def write_plots(report: Json, folder: Path) -> list[Path]:
    """Write `reliability.png`, `outage.png` and, where the study has missed deadlines, `missed.png`.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from matplotlib import rc_context

    figures = {"reliability": _reliability, "outage": _outage}
    if report["missed_deadlines"] is not None:
        figures["missed"] = _missed
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context(_STYLE):
            for name, draw in figures.items():
                file = folder / f"{name}.png"
                draw(report).savefig(file, dpi=_DPI)
                written.append(file)
    except OSError as exc:
        raise ConfigError(
            f"{folder}: found that it cannot be written ({exc.strerror}), expected room there; choose another"
        ) from exc
    return written


def _figure(columns: int, *, height: float, width: float = 2.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, width * columns), height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _reliability(report: Json) -> Any:
    """One panel per exit: accuracy over confidence; the diagonal is a confidence that means what it says."""
    variants = report["variants"]
    stages = [row["stage"] for row in variants["none"]["exits"]]
    figure, panels = _figure(len(stages), height=3.6)
    for index, (axes, stage) in enumerate(zip(panels, stages, strict=True)):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        for name, (colour, dash) in LOOKS.items():
            row = variants[name]["exits"][index]
            bins = row["reliability"]
            points = [
                (confidence, accuracy)
                for confidence, accuracy, samples in zip(bins["confidence"], bins["accuracy"], bins["samples"], strict=True)
                if samples >= 20  # fewer say nothing, and jump
            ]
            label = f"{NAMES[name]}: ECE {100 * row['test']['ece']:.1f} %"
            axes.plot([x for x, _ in points], [y for _, y in points], dash, color=colour, marker="o", markersize=3, label=label)
        axes.set(title=f"exit {stage}", xlabel="confidence", xlim=(0.0, 1.02), ylim=(0.0, 1.02), aspect="equal")
        # Below: in the early exits' panels there are points in every corner.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=6.5, handlelength=2.4)
    panels[0].set_ylabel("accuracy")
    figure.suptitle(f"{report['bundle']}: reliability on {report['data']['test']['samples']:,} test samples", fontsize=10)
    return figure


def _outage(report: Json) -> Any:
    """Outage over the target, and what the exits then spend."""
    figure, (left, right) = _figure(2, height=3.4, width=3.6)
    rows = report["outage_curve"]
    for name, (colour, dash) in LOOKS.items():
        targets = [row["target"] for row in rows]
        left.plot(
            targets, [row["variants"][name]["outage"] for row in rows], dash, color=colour, label=NAMES[name], zorder=ORDER[name]
        )
        right.plot(targets, [row["variants"][name]["macs_share"] for row in rows], dash, color=colour, zorder=ORDER[name])
    left.set(xlabel="target = confidence threshold", ylabel=f"outage, windows of {rows[0]['window']} samples", ylim=(0, None))
    right.set(xlabel="target = confidence threshold", ylabel="multiply-adds, share of the network", ylim=(0, None))
    left.legend()
    size = rows[0]["window"]
    # Why the curve has teeth: a window can only be right in whole samples.
    teeth = f"one wrong of {size} early answers is {100 - 100 / size:.1f} %"
    figure.suptitle(f"{report['bundle']}: outage ({teeth}), and compute", fontsize=10)
    return figure


def _missed(report: Json) -> Any:
    """Share of windows that are too late or in outage, over the deadline."""
    missed = report["missed_deadlines"]
    figure, panels = _figure(len(missed["curves"]), height=3.4, width=3.6)
    milliseconds = [1e3 * seconds for seconds in missed["deadline_seconds"]]
    for axes, curve in zip(panels, missed["curves"], strict=True):
        for name, (colour, dash) in LOOKS.items():
            axes.plot(milliseconds, curve["variants"][name], dash, color=colour, label=NAMES[name], zorder=ORDER[name])
        # Nothing happens long after the last window is in time.
        shown = [
            at for at, shares in zip(milliseconds, zip(*curve["variants"].values(), strict=True), strict=True) if max(shares) > 0.02
        ]
        axes.set(title=f"target {curve['target']:g}", xlabel="deadline (ms)", ylim=(-0.02, 1.02))
        axes.set_xlim(0, min(milliseconds[-1], 1.6 * max(shown, default=milliseconds[-1])))
        axes.legend()
    panels[0].set_ylabel("missed: too late, or outage")
    name = missed.get("topology", "")
    figure.suptitle(f"{report['bundle']} on {name}: missed deadlines, windows of {missed['window']} samples", fontsize=10)
    return figure

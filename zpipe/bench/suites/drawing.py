"""How figures of a suite's page are drawn: their style, and matplotlib's SVG as it may stand inside a page."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#333333"

#: Inches; a point of the font is about a pixel and a half where the page is as wide as a phone.
SMALL, TINY = (3.2, 2.5), (2.2, 1.9)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zpipe",
    "font.size": 8,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """How a policy is drawn: the later on the list, the larger, so that those on top of it leave a rim to be seen."""

    colour: str
    marker: str
    size: float


def new_figure(x: str, y: str, size: tuple[float, float] = SMALL) -> tuple[Figure, Axes]:
    """One pair of axes with its labels; `size` in inches."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def sample(mark: Mark, says: str, *, line: str = "-") -> str:
    """For legends: a line with the marker."""
    with rc_context(STYLE):
        figure = Figure(figsize=(0.36, 0.16))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], line, color=mark.colour, marker=mark.marker, markevery=[1])
        return svg(figure, says)


#: What matplotlib writes and a page does without, in this order: names of groups, clipping (nothing is outside its axes), fonts
#: (the page's own), namespaces that HTML knows, decimals that no screen shows.
_SPARED = (
    (re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>|<clipPath.*?</clipPath>", re.DOTALL), ""),
    (re.compile(r'(<g) id="[^"]*"'), r"\1"),
    (re.compile(r' clip-path="[^"]*"| xmlns(?::xlink)?="[^"]*"| version="[^"]*"'), ""),
    (re.compile(r"xlink:href"), "href"),
    (re.compile(r" font-family: [^;]*;"), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r"(\d\.\d\d)\d+"), r"\1"),
    (re.compile(r"<defs>\s*</defs>|(?<=>)\s+(?=<)| *\n(?=[\"A-Zz])"), ""),
)


def svg(figure: Figure, says: str) -> str:
    """The figure as an element that is as wide as its place."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for pattern, instead in _SPARED:
        text = pattern.sub(instead, text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    return re.sub(r"^<svg[^>]*>", f'<svg {view[0]} role="img" aria-label="{escape(says)}">', text)


def numbered(page: str) -> str:
    """The page with its figures' markers told apart: they are named after what they look like, so the same in many figures."""
    numbers = itertools.count()

    def own(found: re.Match[str]) -> str:
        return re.sub(r'( id="| href="#)(\w+)', rf"\g<1>\g<2>-{next(numbers)}", found[0])

    return re.sub(r"<svg .*?</svg>", own, page, flags=re.DOTALL)

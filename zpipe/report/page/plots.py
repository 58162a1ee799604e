"""Charts as SVG to stand in a page: they take their colours from its style, light or dark, and need no library to be made.

matplotlib, which draws the suite's page, writes colours into the figure and is no part of a plain install, which is all that a
board has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

#: Of a chart, in units that are about a pixel where it is as wide as a phone.
WIDTH, HEIGHT = 340, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 23, 12, 8, 36  # to the left there is room for what the axis says besides
#: A letter of the charts' font is about so wide.
LETTER = 6.0
#: As many colours as base classes `c0`, `c1`, ...; further ones begin again.
COLOURS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Points to be joined.

    Attributes:
        points: (x, y), x rising.
        kind: CSS classes.
    """

    points: Sequence[tuple[float, float]]
    kind: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A point that stands for something.

    Attributes:
        title: what it is, in words.
        label: beside it, "" = none.
        side: where the label stands: `right`, or `above`, ending there.
        large: one that the chart is about.
    """

    x: float
    y: float
    kind: str
    title: str
    label: str = ""
    side: str = "right"
    large: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis in which something was so."""

    start: float
    end: float
    title: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a chart.

    Attributes:
        label: with the unit.
        low, high: its ends; None = those of the data.
        logarithmic: equal steps are equal factors.
    """

    label: str
    low: float | None = None
    high: float | None = None
    logarithmic: bool = False


def chart(
    *, x: Axis, y: Axis, lines: Sequence[Line] = (), dots: Sequence[Dot] = (), bands: Sequence[Band] = (), title: str, says: str
) -> str:
    """Lines and dots over two axes.

    Args:
        x, y: the axes.
        lines, dots, bands: what is drawn; bands lie under everything.
        title: of the chart.
        says: what it shows, for those who do not see it.
    """
    points = [point for line in lines for point in line.points] + [(dot.x, dot.y) for dot in dots]
    up = _Scale.of(y, [point[1] for point in points], HEIGHT - _BOTTOM, _TOP)
    left = _LEFT + LETTER * max(len(said) for _, said in up.named())
    across = _Scale.of(x, [point[0] for point in points], left, WIDTH - _RIGHT)
    parts = [_frame(across, up, x.label, y.label)]
    parts += [_band(band, across) for band in bands]
    parts += [_polyline(line, across, up) for line in lines if line.points]
    parts += [_dot(dot, across, up) for dot in dots]
    return picture(WIDTH, HEIGHT, "".join(parts), title=title, says=says)


def stacked(rows: Sequence[tuple[str, Sequence[float], Sequence[str]]], *, title: str, says: str) -> str:
    """A bar for each row, cut into its shares.

    Args:
        rows: name, shares (0..1), and what each of them is, in words.
        title: of the chart.
        says: what it shows, for those who do not see it.
    """
    thick, apart = 22, 8
    left = 14 + min(135.0, 1.05 * LETTER * max((len(name) for name, _, _ in rows), default=0))
    room = WIDTH - left - 2
    parts = []
    for index, (name, shares, titles) in enumerate(rows):
        top, at = 4 + index * (thick + apart), left
        parts.append(text(left - 8, top + 15, _cut(name, 21), "end"))
        for number, (share, said) in enumerate(zip(shares, titles, strict=True)):
            wide = room * share
            if wide <= 0.0:
                continue
            value = f"{100 * share:.0f}"
            box = f'<rect x="{at:.1f}" y="{top}" width="{max(0.5, wide - 1):.1f}" height="{thick}"/>'
            inside = text(at + wide / 2, top + 15, value, "middle", "on") if wide > LETTER * len(value) + 6 else ""
            parts.append(f'<g class="area {colour(number)}"><title>{escape(said)}</title>{box}{inside}</g>')
            at += wide
    return picture(WIDTH, 4 + max(1, len(rows)) * (thick + apart), "".join(parts), title=title, says=says)


def picture(width: float, height: float, content: str, *, title: str, says: str, kind: str = "") -> str:
    """An SVG as wide as its place, with its words for those who do not see it."""
    label = escape(f"{title}: {says}" if says else title)
    known = f' class="{kind}"' if kind else ""
    return f'<svg{known} viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">{content}</svg>'


def colour(index: int) -> str:
    """The CSS class of the colour of a line, a run or an exit."""
    return f"c{index % COLOURS}"


def text(x: float, y: float, said: str, anchor: str = "start", kind: str = "") -> str:
    """Words in a picture."""
    known = f' class="{kind}"' if kind else ""
    held = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{held}{known}>{escape(said)}</text>'


def _cut(said: str, letters: int) -> str:
    return said if len(said) <= letters else f"{said[: letters - 1]}…"


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: the means of neighbours, equally many each time."""
    step = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


# ---- scales ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    marks: tuple[float, ...]
    logarithmic: bool = False

    @classmethod
    def of(cls, axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low = min(known) if axis.low is None else axis.low
        high = max(known) if axis.high is None else axis.high
        room = abs(end - start)
        if axis.logarithmic:
            low = max(low, 1e-3)
            high = max(high, 1.25 * low)
            return cls(low, high, start, end, tuple(_factors(low, high)), True)
        if high - low <= 1e-9 * max(1.0, abs(high)):  # no spread that could be told
            high = low + max(1.0, abs(low))
        step = _step((high - low) / max(2, room // (48 if end > start else 30)))
        if axis.low is None:
            low = step * math.floor(low / step + 1e-9)
        if axis.high is None:
            high = step * math.ceil(high / step - 1e-9)
        first = math.ceil(low / step - 1e-9)
        return cls(low, high, start, end, tuple(step * number for number in range(first, math.floor(high / step + 1e-9) + 1)))

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def named(self) -> list[tuple[float, str]]:
        """Where marks are, and what they say: all as finely as the finest needs."""
        if self.logarithmic:
            return [(self(value), f"{value:g}") for value in self.marks]
        step = self.marks[1] - self.marks[0] if len(self.marks) > 1 else self.high - self.low
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        form = f",.{digits}f" if digits <= 4 and self.high < 1e6 else ".4g"
        return [(self(value), format(value, form)) for value in self.marks]


def _step(least: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _factors(low: float, high: float) -> list[float]:
    """Marks of a logarithmic axis: 1, 2, 5, or powers of ten alone where these are many; both ends where there is no other."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.6 else (1,)
    found = [factor * 10.0**power for power in decades for factor in factors]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) > 1 else [low, high]


# ---- pieces ------------------------------------------------------------------------------------


def _frame(across: _Scale, up: _Scale, x_label: str, y_label: str) -> str:
    """Lines behind the data, and what the axes say."""
    left, right, bottom = across.start, across.end, up.start
    parts = []
    for at, said in up.named():
        parts.append(f'<path class="rule" d="M{left:.1f} {at:.1f}H{right:.1f}"/>{text(left - 5, at + 4, said, "end")}')
    for at, said in across.named():
        parts.append(f'<path class="rule" d="M{at:.1f} {bottom:.1f}V{up.end:.1f}"/>{text(at, bottom + 14, said, "middle")}')
    parts.append(text((left + right) / 2, bottom + 31, x_label, "middle", "name"))
    middle = (bottom + up.end) / 2
    turned = f'transform="rotate(-90 9 {middle:.1f})"'
    parts.append(f'<text x="9" y="{middle:.1f}" text-anchor="middle" class="name" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _band(band: Band, across: _Scale) -> str:
    start, end = across(band.start), across(band.end)
    size = f'x="{start:.1f}" y="{_TOP}" width="{max(1.5, end - start):.1f}" height="{HEIGHT - _TOP - _BOTTOM}"'
    return f'<rect class="band" {size}><title>{escape(band.title)}</title></rect>'


def _polyline(line: Line, across: _Scale, up: _Scale) -> str:
    path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in line.points)
    return f'<path class="line {line.kind}" d="M{path}"/>'


def _dot(dot: Dot, across: _Scale, up: _Scale) -> str:
    x, y, size = across(dot.x), up(dot.y), 6.0 if dot.large else 3.0
    mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if dot.label:
        place = {
            "right": (x + size + 4, y + 4, "start"),
            "above": (x + size, y - size - 5, "end"),
        }
        mark += text(*place[dot.side][:2], dot.label, place[dot.side][2], "halo")
    return f'<g class="dot {dot.kind}{" large" if dot.large else ""}"><title>{escape(dot.title)}</title>{mark}</g>'

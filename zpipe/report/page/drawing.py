"""The topology with what its nodes and links had to do: boxes for a few nodes, dots for many, none beyond that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from zpipe.report.page.loads import all_ranks, level, link_loads, ranges
from zpipe.report.page.markup import number, paragraph
from zpipe.report.page.places import Pair, layers, packed
from zpipe.report.page.plots import LETTER, picture, text

Row = dict[str, Any]

#: More nodes than this are dots, more than the second not drawn at all; more links than the third are left out.
MOST_BOXES, MOST_DOTS, MOST_LINKS = 40, 4000, 12_000
#: Beyond as many nodes links carry no words: they would lie on each other.
MOST_NAMED = 12
#: A source's name in its node's corner is cut where it is longer.
MOST_LETTERS = 11
_BOX_HEIGHT = 70
_APART = 14


@dataclass(frozen=True, slots=True)
class _Shape:
    """Measures of a drawing; `down`: the layers lie below each other, for a narrow screen."""

    down: bool
    box_width: float
    between_layers: float


_ACROSS = _Shape(False, 136.0, 120.0)
_DOWN = _Shape(True, 104.0, 56.0)


def topology(report: Row) -> str:
    """The drawing, twice where boxes are drawn: wide and narrow screens show one each."""
    ranks = all_ranks(report)
    if not ranks:
        return paragraph("No node said anything.", "soft")
    flows = _flows(report)
    first = min((row["rank"] for row in report["sources"]), default=ranks[0])
    found = layers(ranks, flows, first)
    if len(ranks) > MOST_DOTS:
        return paragraph(f"{len(ranks):,} nodes are too many to draw.", "soft")
    if len(ranks) > MOST_BOXES:
        return f'<div class="scroll">{_dots(report, found, flows)}</div>'
    drawings = [_boxes(report, found, flows, shape) for shape in (_ACROSS, _DOWN)]
    wide, narrow = (f'<div class="scroll {name}">{svg}</div>' for name, svg in zip(("on-wide", "on-narrow"), drawings, strict=True))
    return wide + narrow


def legend(report: Row) -> str:
    """What colours and widths mean in this report's drawing; "" where nothing is drawn."""
    if not 0 < len(all_ranks(report)) <= MOST_DOTS:
        return ""
    said = {"calm": "less than half busy", "busy": "busy", "full": "always busy"}
    many = len(all_ranks(report)) > MOST_BOXES
    said |= {"idle": "no task"} if many else {}
    keys = "".join(f'<span><i class="load {name}"></i>{words}</span>' for name, words in said.items())
    keys += '<span><i class="source"></i>a source</span>' if many else ""
    if any(load is None for load in link_loads(report["links"])):
        keys += '<span><i class="load unknown"></i>link without a known limit</span>'
    wide = "" if many else '<span class="soft">links: the wider, the more bytes</span>'
    return f'<div class="legend">{keys}{wide}</div>'


def _says(report: Row) -> str:
    nodes = report["nodes"]
    if not nodes:
        return "no node said anything"
    busiest = max(nodes, key=lambda row: row["busy"])
    return f"{len(all_ranks(report)):,} nodes; the busiest is node {busiest['rank']}, {100 * busiest['busy']:.0f} % of the time"


# ---- links -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Flow:
    """What went over one link.

    Attributes:
        ways: {(from, to): its row and its load}.
    """

    ways: Mapping[Pair, tuple[Row, float | None]]

    @property
    def bytes(self) -> int:
        return sum(int(row["bytes"]) for row, _ in self.ways.values())

    @property
    def level(self) -> str:
        if not self.bytes:
            return "idle"
        known = [load for _, load in self.ways.values() if load is not None]
        return level(max(known) if known else None)

    @property
    def title(self) -> str:
        return "; ".join(_way(row, load) for row, load in self.ways.values()) or "not used"


def _way(row: Row, load: float | None) -> str:
    a, b = row["between"]
    limit = f"{number(row.get('limit_mbit_s'))} Mbit/s"
    used = "" if load is None else f", {100 * load:.0f} % of {row.get('medium') or limit}"
    return f"node {a} to {b}: {row['tasks']:,} tasks, {number(row['mbit_s'])} Mbit/s{used}"


def _flows(report: Row) -> dict[Pair, _Flow]:
    """{ranks, lower first: what went between them}; of every link, used or not."""
    found: dict[Pair, dict[Pair, tuple[Row, float | None]]] = {(a, b): {} for a, b in report["linked"]}
    for row, load in zip(report["links"], link_loads(report["links"]), strict=True):
        a, b = row["between"]
        found.setdefault((min(a, b), max(a, b)), {})[(a, b)] = (row, load)
    return {pair: _Flow(ways) for pair, ways in found.items()}


# ---- boxes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a node's box is."""

    layer: int
    row: int
    x: float
    y: float
    width: float

    def side(self, towards: str) -> tuple[float, float]:
        """The middle of one of its sides."""
        x, y = self.x + self.width / 2, self.y + _BOX_HEIGHT / 2
        return {
            "left": (self.x, y),
            "right": (self.x + self.width, y),
            "top": (x, self.y),
            "bottom": (x, self.y + _BOX_HEIGHT),
        }[towards]


def _boxes(report: Row, found: Sequence[Sequence[int]], flows: Mapping[Pair, _Flow], shape: _Shape) -> str:
    named = sum(map(len, found)) <= MOST_NAMED
    places, width, height = _places(found, shape, gap=shape.between_layers if named else 44.0)
    most = max((flow.bytes for flow in flows.values()), default=0) or 1
    lines, words = [], []
    for (a, b), flow in flows.items():
        line, said = _link(places[a], places[b], (a, b), flow, shape, wide=1.5 + 5.0 * math.sqrt(flow.bytes / most))
        lines.append(line)
        if named and _uncrossed(places[a].layer, places[b].layer, found, places, flows, shape):
            words.append(said)
    rows, called = {row["rank"]: row for row in report["nodes"]}, {row["rank"]: _called(row) for row in report["sources"]}
    boxes = [_box(rank, rows.get(rank), place, called.get(rank, "")) for rank, place in places.items()]
    svg = picture(width, height, "".join([*lines, *boxes, *words]), title="Topology", says=_says(report), kind="topology")
    # On a screen narrower than this the drawing scrolls rather than shrinks until nobody can read it.
    return svg.replace("<svg ", f'<svg style="max-width:{1.15 * width:.0f}px;min-width:{0.7 * width:.0f}px" ', 1)


def _places(found: Sequence[Sequence[int]], shape: _Shape, *, gap: float) -> tuple[dict[int, _Box], float, float]:
    """The box of every node, and the size of it all."""
    along = (_BOX_HEIGHT if shape.down else shape.box_width) + gap
    beside = (shape.box_width if shape.down else _BOX_HEIGHT) + _APART + (0 if shape.down else 10)
    most = max(map(len, found))
    places = {}
    for index, layer in enumerate(found):
        for row, rank in enumerate(layer):
            far, near = 4 + index * along, 4 + (row + (most - len(layer)) / 2) * beside
            x, y = (near, far) if shape.down else (far, near)
            places[rank] = _Box(index, row, x, y, shape.box_width)
    # Besides the boxes: bows of links within a layer, and on a narrow screen the words beside a link.
    long, broad = 4 + len(found) * along - gap + 4, 4 + most * beside - _APART + 4
    bow = 40 if any(len(layer) > 2 for layer in found) else 4
    if shape.down:
        return places, max(broad, shape.box_width + 116.0), long + bow
    return places, long + bow, broad


def _uncrossed(
    a: int, b: int, found: Sequence[Sequence[int]], places: Mapping[int, _Box], flows: Mapping[Pair, _Flow], shape: _Shape
) -> bool:
    """Whether the links between these layers leave room for words."""
    if shape.down:  # words beside one link would lie on the next
        return len(found[a]) == len(found[b]) == 1
    if a == b:
        return len(found[a]) == 2
    between = sum({places[x].layer, places[y].layer} == {a, b} for x, y in flows)
    return between <= max(len(found[a]), len(found[b]))


def _link(a: _Box, b: _Box, pair: Pair, flow: _Flow, shape: _Shape, *, wide: float) -> tuple[str, str]:
    """A link's line, and its words."""
    if (b.layer, b.row) < (a.layer, a.row):
        a, b, pair = b, a, (pair[1], pair[0])
    ahead, back, after, out = ("bottom", "top", "right", "bottom") if shape.down else ("right", "left", "bottom", "right")
    if a.layer != b.layer:
        ends, arrows = (a.side(ahead), b.side(back)), ("↓", "↑") if shape.down else ("→", "←")
    elif b.row == a.row + 1:
        ends, arrows = (a.side(after), b.side("left" if shape.down else "top")), ("→", "←") if shape.down else ("↓", "↑")
    else:
        ends, arrows = (a.side(out), b.side(out)), ("", "")
    (x1, y1), (x2, y2) = ends
    path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    if not arrows[0]:  # past others in the layer, in a bow
        bow = 12.0 + 8.0 * (b.row - a.row)
        c1, c2 = ((x1, y1 + bow), (x2, y2 + bow)) if shape.down else ((x1 + bow, y1), (x2 + bow, y2))
        path = f"M{x1:.1f} {y1:.1f}C{c1[0]:.1f} {c1[1]:.1f} {c2[0]:.1f} {c2[1]:.1f} {x2:.1f} {y2:.1f}"
    line = f'<path class="link {flow.level}" d="{path}" stroke-width="{wide:.1f}"><title>{escape(flow.title)}</title></path>'
    return line, _words(flow, pair, ends, arrows, beside=shape.down or a.layer == b.layer)


def _words(flow: _Flow, pair: Pair, ends: tuple[tuple[float, float], ...], arrows: tuple[str, str], *, beside: bool) -> str:
    """How much went each way: beside a link's middle, or on it; where links spread from one box, nearer to their ends."""
    said = []
    for way, arrow in ((pair, arrows[0]), (pair[::-1], arrows[1])):
        row, load = flow.ways.get(way, (None, None))
        if row is not None and row["tasks"]:
            used = "" if load is None else f" {100 * load:.0f} %"
            said.append(f"{arrow} {number(row['mbit_s'])} Mbit/s{used}")
    (x1, y1), (x2, y2) = ends
    if beside:
        x, y = (x1 + x2) / 2 + 8, (y1 + y2) / 2
        return "".join(text(x, y + 4 + 14 * (at - (len(said) - 1) / 2), line, kind="halo") for at, line in enumerate(said))
    level = abs(y1 - y2) < 1.0
    x, y = (x1 + x2) / 2, y1 + (0.5 if level else 0.62) * (y2 - y1)
    spots = (y - 8, y + 18) if level else (y + 4,) if len(said) == 1 else (y - 3, y + 11)
    return "".join(text(x, spot, line, "middle", "halo") for spot, line in zip(spots, said, strict=False))


def _called(source: Row) -> str:
    """A source in the corner of its node: its name where it has one of its own."""
    name = str(source["name"])
    return "source" if name == f"source-{source['rank']}" else name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _box(rank: int, row: Row | None, box: _Box, source: str) -> str:
    """A node; `source` is what its source is called, "" where it is none."""
    x, y, width = box.x, box.y, box.width
    role = source if source else "restarted" if row is not None and row.get("restarted") else ""
    name = f"node {rank}"
    if role and 8.5 * len(name) + LETTER * len(role) > width - 20:
        name = str(rank)
    parts = [text(x + 10, y + 19, name, kind="strong")]
    if role:
        parts.append(text(x + width - 10, y + 19, role, "end", "soft"))
    if row is None:
        silent = "silent at the end"
        frame = f'<rect class="box silent" x="{x:.1f}" y="{y:.1f}" width="{width}" height="{_BOX_HEIGHT}" rx="7"/>'
        return f"<g><title>node {rank}: {silent}</title>{frame}{''.join(parts)}{text(x + 10, y + 38, silent, kind='bad')}</g>"
    stages = ranges(row["stages"])
    hosted = f"stage{'s' if len(row['stages']) > 1 else ''} {stages}" if row["stages"] else "no stage"
    parts.append(text(x + 10, y + 37, hosted, kind="soft"))
    long, busy = width - 20 - 40, min(1.0, row["busy"])
    bar = f'x="{x + 10:.1f}" y="{y + 50:.1f}" height="8" rx="4"'
    parts.append(f'<rect class="track" {bar} width="{long:.1f}"/>')
    if busy >= 0.005:
        parts.append(f'<rect class="load {level(busy)}" {bar} width="{max(4.0, long * busy):.1f}"/>')
    parts.append(text(x + width - 10, y + 58, f"{100 * row['busy']:.0f} %", "end"))
    frame = f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width}" height="{_BOX_HEIGHT}" rx="7"/>'
    return f"<g><title>{escape(_node_title(row))}</title>{frame}{''.join(parts)}</g>"


def _node_title(row: Row) -> str:
    return f"node {row['rank']}: {100 * row['busy']:.0f} % busy, {row['tasks']:,} tasks, queue {row['queue_p95']} at p95"


# ---- dots --------------------------------------------------------------------------------------


def _dots(report: Row, found: Sequence[Sequence[int]], flows: Mapping[Pair, _Flow]) -> str:
    """A heat map of many nodes: colours alone, words at a touch."""
    places, columns, rows = packed(found)
    step, size = 16.0, 5.0

    def at(rank: int) -> tuple[float, float]:
        column, row = places[rank]
        return step * (column + 0.75), step * (row + 0.75)

    parts = []
    if len(flows) <= MOST_LINKS:
        # One path for all links of a kind: a page of thousands of elements is slow on a phone.
        used: dict[str, list[str]] = {}
        for (a, b), flow in flows.items():
            (x1, y1), (x2, y2) = at(a), at(b)
            used.setdefault(flow.level, []).append(f"M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}")
        parts += [f'<path class="link {name}" d="{"".join(paths)}"/>' for name, paths in sorted(used.items())]
    known, sources = {row["rank"]: row for row in report["nodes"]}, {row["rank"] for row in report["sources"]}
    for rank in places:
        x, y = at(rank)
        row = known.get(rank)
        kind = "silent" if row is None else level(row["busy"]) if row["tasks"] else "idle"
        title = f"node {rank}: silent at the end" if row is None else _node_title(row)
        mark = f'<circle class="load {kind}" cx="{x:.0f}" cy="{y:.0f}" r="{size}"><title>{title}</title></circle>'
        ring = f'<circle class="ring" cx="{x:.0f}" cy="{y:.0f}" r="{size + 2}"/>' if rank in sources else ""
        parts.append(mark + ring)
    width, height = step * (columns + 0.5), step * (rows + 0.5)
    svg = picture(width, height, "".join(parts), title="Topology", says=_says(report), kind="topology dots")
    return svg.replace("<svg ", f'<svg style="max-width:{1.4 * width:.0f}px;min-width:{min(300.0, width):.0f}px" ', 1)

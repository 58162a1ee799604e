"""A plan as an SVG: boards from the source on, what each runs and how busy it is, and what their links carry; or its groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from zpipe.plan.groups import percent
from zpipe.plan.layout import Load
from zpipe.plan.planner import Plan
from zpipe.plan.rocoin import GroupPlan

BOX_WIDTH, BOX_HEIGHT = 196, 104
#: Between boxes; a link's label lies in the gap.
GAP_X, GAP_Y = 168, 56
MARGIN, HEAD, FOOT = 28, 74, 46
CHIP = 22
#: Height that a link past other boards takes over them.
LANE = 44
#: Between boxes of a group, and its frame's edge; height of its heading; boxes beside each other.
INSET, GROUP_HEAD, ABREAST = 14, 30, 4
#: Busy at the planned rate: hardly, well, always. Told apart by lightness, too.
COLOURS = ((0.5, "#7fb0d8"), (0.97, "#e0a030"), (math.inf, "#b3261e"))
INK, PALE, PAPER, SHADE = "#1f2933", "#68737d", "#ffffff", "#f3f7fb"
#: Characters of a line of the heading, by the mean width of its letters.
LETTER_WIDTH = 6.6


@dataclass(frozen=True, slots=True)
class _Place:
    x: float
    y: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + BOX_WIDTH / 2, self.y + BOX_HEIGHT / 2


def draw_plan(plan: Plan, title: str) -> str:
    """The text of an SVG file.

    Args:
        plan: as `make_plan` gave it.
        title: one line for its top; broken where it is long.
    """
    places, width, height = _places(plan)
    width = max(width, 560)
    lines = _wrapped(title, int((width - 2 * MARGIN) / LETTER_WIDTH))
    over = _long_ways(plan, places)
    head = HEAD + 18 * (len(lines) - 1) + LANE * len(over)
    shifted = {board: _Place(place.x, place.y + head) for board, place in places.items()}
    total = height + head + FOOT
    parts = _opened(plan.topology.name, width, total, lines)
    lanes = {pair: head - LANE * (at + 0.6) for at, pair in enumerate(over)}
    parts += _links(plan, shifted, lanes)
    parts += [_box(plan, board, place) for board, place in shifted.items()]
    parts += [_legend(total - 20), "</svg>"]
    return "\n".join(parts) + "\n"


def draw_groups(found: GroupPlan, title: str) -> str:
    """The text of an SVG file: the source, and for each part a frame around the boards that host its student, the fastest first.

    Args:
        found: as `plan_groups` gave it.
        title: one line for its top; broken where it is long.
    """
    plan, case, source = found.plan, found.case, found.plan.problem.boards.source
    groups = [sorted(group, key=lambda board: case.seconds[part][board]) for part, group in enumerate(found.groups)]
    abreast = min(ABREAST, max(map(len, groups)))
    left = MARGIN + BOX_WIDTH + GAP_Y
    frame = abreast * (BOX_WIDTH + INSET) + INSET
    width = left + frame + MARGIN
    lines = _wrapped(title, int((width - 2 * MARGIN) / LETTER_WIDTH))
    heights = [GROUP_HEAD + math.ceil(len(group) / abreast) * (BOX_HEIGHT + INSET) for group in groups]
    top = HEAD + 18 * (len(lines) - 1)
    total = top + sum(heights) + INSET * (len(groups) - 1) + FOOT
    home = _Place(MARGIN, top + (total - top - FOOT - BOX_HEIGHT) / 2)
    parts = _opened(plan.topology.name, width, total, lines)
    boxes = [_box(plan, source, home)]
    y = float(top)
    for part, (group, height) in enumerate(zip(groups, heights, strict=True)):
        x1, y1, y2 = home.x + BOX_WIDTH, home.middle[1], y + height / 2
        curve = f"M{x1:.1f} {y1:.1f}C{left - 20:.1f} {y1:.1f} {x1 + 20:.1f} {y2:.1f} {left:.1f} {y2:.1f}"
        parts.append(f'<path d="{curve}" fill="none" stroke="{COLOURS[0][1]}" stroke-width="2"/>')
        rect = f'x="{left:.1f}" y="{y:.1f}" width="{frame:.1f}" height="{height:.1f}" rx="10"'
        parts.append(f'<rect {rect} fill="{SHADE}" stroke="{COLOURS[0][1]}"/>')
        taken = f"{1e3 * case.part_seconds(part, found.groups[part]):.3g} ms, missing {percent(case.part_missing(group))}"
        boxes.append(_text(left + INSET, y + 20, f"part {part}: {taken}", size=13, bold=True))
        for at, board in enumerate(group):
            row, column = divmod(at, abreast)
            place = _Place(left + INSET + column * (BOX_WIDTH + INSET), y + GROUP_HEAD + row * (BOX_HEIGHT + INSET))
            boxes.append(_box(plan, board, place, note=f"{1e3 * case.seconds[part][board]:.3g} ms"))
        y += height + INSET
    return "\n".join([*parts, *boxes, _legend(total - 20), "</svg>"]) + "\n"


def _opened(name: str, width: float, height: float, lines: list[str]) -> list[str]:
    """How the file begins: its size, its ground and its heading."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(name)}</title>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
        *(_text(MARGIN, 30 + 18 * at, line, size=13) for at, line in enumerate(lines)),
    ]


# ---- where things are --------------------------------------------------------------------------


def _places(plan: Plan) -> tuple[dict[int, _Place], float, float]:
    """Boards in columns by how many links they are from the source, and the size of it all."""
    columns: list[list[int]] = []
    depth = _depths(plan)
    for board in plan.layout.hosted:
        while len(columns) <= depth[board]:
            columns.append([])
        columns[depth[board]].append(board)
    tallest = max(map(len, columns))
    height = tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y
    found = {}
    for at, column in enumerate(columns):
        top = (height - (len(column) * (BOX_HEIGHT + GAP_Y) - GAP_Y)) / 2
        for row, board in enumerate(column):
            found[board] = _Place(MARGIN + at * (BOX_WIDTH + GAP_X), top + row * (BOX_HEIGHT + GAP_Y))
    return found, 2 * MARGIN + len(columns) * (BOX_WIDTH + GAP_X) - GAP_X, height


def _depths(plan: Plan) -> dict[int, int]:
    """{board: its column}: one after each board that sends it something, where that goes without a circle."""
    order = list(plan.layout.hosted)
    depth = dict.fromkeys(order, 0)
    for at, board in enumerate(order):
        for other in order[at + 1 :]:
            if any((a, b) == (board, other) for a, b, _ in plan.layout.sent):
                depth[other] = max(depth[other], depth[board] + 1)
    return {board: max(depth[board], 1) if at else 0 for at, board in enumerate(order)}


# ---- boards ------------------------------------------------------------------------------------


def _box(plan: Plan, board: int, place: _Place, note: str = "") -> str:
    there = plan.problem.boards.boards[board]
    share = _shares(plan).get(f"board {there.name}", 0.0)
    x, y = place.x, place.y
    rank = list(plan.layout.hosted).index(board)
    stages = plan.layout.hosted[board]
    colour = _colour(share)
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{PAPER}" stroke="{INK}"/>',
        _text(x + 12, y + 21, _cut(there.name, 15), size=14, bold=True),
        _text(x + BOX_WIDTH - 12, y + 21, "source" if rank == 0 else f"rank {rank}", anchor="end", colour=PALE),
        _text(x + 12, y + 38, _cut(there.device, 28), colour=PALE, size=11),
    ]
    for at, stage in enumerate(stages[:7]):
        label = str(stage) if at < 6 or len(stages) <= 7 else "..."
        left = x + 12 + at * (CHIP + 3)
        parts.append(f'<rect x="{left:.1f}" y="{y + 47:.1f}" width="{CHIP}" height="{CHIP}" rx="4" fill="#e3e9ef"/>')
        parts.append(_text(left + CHIP / 2, y + 62, label, anchor="middle"))
    parts.append(_text(x + BOX_WIDTH - 12, y + 62, note, anchor="end", colour=PALE, size=11))
    if not stages:
        parts.append(_text(x + 12, y + 62, "takes samples in, runs no stage", colour=PALE, size=11))
    long = BOX_WIDTH - 24 - 46
    parts += [
        f'<rect x="{x + 12:.1f}" y="{y + 82:.1f}" width="{long}" height="9" rx="4" fill="#eef1f4"/>',
        f'<rect x="{x + 12:.1f}" y="{y + 82:.1f}" width="{long * min(1.0, share):.1f}" height="9" rx="4" fill="{colour}"/>',
        _text(x + BOX_WIDTH - 12, y + 91, f"{100 * share:.0f} %", anchor="end"),
    ]
    return "".join(parts)


# ---- links -------------------------------------------------------------------------------------


def _long_ways(plan: Plan, places: Mapping[int, _Place]) -> list[tuple[int, int]]:
    """Links past whole columns: they go over all boxes, the shortest lowest."""

    def length(pair: tuple[int, int]) -> float:
        return abs(places[pair[0]].x - places[pair[1]].x)

    return sorted(
        (pair for pair in plan.layout.links if length(pair) > BOX_WIDTH + GAP_X + 1), key=lambda pair: (length(pair), pair)
    )


def _links(plan: Plan, places: Mapping[int, _Place], lanes: Mapping[tuple[int, int], float]) -> list[str]:
    """Lines under the boxes first, labels over all lines.

    Args:
        plan: whose links.
        places: of the boxes.
        lanes: {link: height at which it goes over the boxes}, for the long ones.
    """
    lines, labels = [], []
    shares = _shares(plan)
    for link in plan.problem.boards.links:
        if link.between not in plan.layout.links:
            continue
        a, b = sorted(link.between, key=list(plan.layout.hosted).index)
        names = [plan.problem.boards.boards[board].name for board in (a, b)]
        there, back = (shares.get(f"link {x}-{y}", 0.0) for x, y in (names, names[::-1]))
        share = shares.get(f"medium {link.medium}", 0.0) if link.medium else max(there, back)
        path, (x, y) = _path(places[a], places[b], lanes.get(link.between))
        width = 2.0 if share < COLOURS[0][0] else 3.5
        lines.append(f'<path d="{path}" fill="none" stroke="{_colour(share)}" stroke-width="{width}"/>')
        speed = f"{link.bandwidth_bps / 1e6:g} Mbit/s" if link.bandwidth_bps < math.inf else "no limit"
        codec = plan.codecs.get(link.between, "none")
        first = speed + (f", {1e3 * link.latency_seconds:g} ms" if link.latency_seconds else "")
        second = ("as it is" if codec == "none" else f"codec {codec}") + (
            f", {100 * share:.0f} %" if link.bandwidth_bps < math.inf else ""
        )
        second += f" of {link.medium}" if link.medium else ""
        labels.append(_label(x, y, first, second))
    return lines + labels


def _path(a: _Place, b: _Place, lane: float | None) -> tuple[str, tuple[float, float]]:
    """From a to b, and where its label goes: to the next column straight, within one down or in a bow, past others over them."""
    if a.x == b.x:
        upper, lower = sorted((a, b), key=lambda place: place.y)
        x, top, bottom = a.x + BOX_WIDTH / 2, upper.y + BOX_HEIGHT, lower.y
        if bottom - top <= GAP_Y:
            return f"M{x:.1f} {top:.1f}L{x:.1f} {bottom:.1f}", (x, (top + bottom) / 2)
        x, bow, top, bottom = a.x + BOX_WIDTH, a.x + BOX_WIDTH + 0.3 * GAP_X, upper.middle[1], lower.middle[1]
        curve = f"M{x:.1f} {top:.1f}C{bow:.1f} {top:.1f} {bow:.1f} {bottom:.1f} {x:.1f} {bottom:.1f}"
        return curve, (bow, (top + bottom) / 2)
    left, right = (a, b) if a.x < b.x else (b, a)
    if lane is None:
        x1, y1, x2, y2 = left.x + BOX_WIDTH, left.middle[1], right.x, right.middle[1]
        return f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", ((x1 + x2) / 2, (y1 + y2) / 2)
    (x1, _), (x2, _) = left.middle, right.middle
    bend = 60
    curve = f"M{x1:.1f} {left.y:.1f}C{x1:.1f} {lane:.1f} {x1:.1f} {lane:.1f} {x1 + bend:.1f} {lane:.1f}"
    curve += f"L{x2 - bend:.1f} {lane:.1f}C{x2:.1f} {lane:.1f} {x2:.1f} {lane:.1f} {x2:.1f} {right.y:.1f}"
    return curve, ((x1 + x2) / 2, lane)


def _label(x: float, y: float, first: str, second: str) -> str:
    wide = 6.0 * max(len(first), len(second)) + 8
    back = (
        f'<rect x="{x - wide / 2:.1f}" y="{y - 16:.1f}" width="{wide:.1f}" height="32" rx="4" fill="{PAPER}" fill-opacity="0.92"/>'
    )
    return back + _text(x, y - 3, first, anchor="middle", size=11) + _text(x, y + 11, second, anchor="middle", size=11, colour=PALE)


# ---- helpers -----------------------------------------------------------------------------------


def _shares(plan: Plan) -> dict[str, float]:
    """{name of a load: how busy it is at the planned rate}."""
    rate = plan.rate_hz if plan.rate_hz < math.inf else 0.0
    return {load.name: _share(load, rate) for load in plan.loads}


def _share(load: Load, rate: float) -> float:
    return load.seconds * rate


def _colour(share: float) -> str:
    return next(colour for limit, colour in COLOURS if share < limit)


def _legend(y: float) -> str:
    words = ("less than half busy", "busy", "always busy: the bottleneck")
    parts, x = [], float(MARGIN)
    for (_, colour), said in zip(COLOURS, words, strict=True):
        parts.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="14" height="9" rx="3" fill="{colour}"/>')
        parts.append(_text(x + 20, y, said, size=11, colour=PALE))
        x += 40 + 6.0 * len(said)
    return "".join(parts)


def _text(x: float, y: float, said: str, *, anchor: str = "start", size: int = 12, colour: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>{escape(said)}</text>'


def _cut(said: str, letters: int) -> str:
    return said if len(said) <= letters else said[: letters - 3] + "..."


def _wrapped(line: str, letters: int) -> list[str]:
    """Broken at spaces."""
    lines = [""]
    for word in line.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines

"""Pieces of HTML, for every page that zpipe writes; text that goes in is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

#: What every page looks like, whatever it shows.
BASE_STYLE = (Path(__file__).parent / "base.css").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell that is more than a number or a text.

    Attributes:
        text: what it says.
        kind: CSS class; `number`, alone or among others, stands to the right.
    """

    text: str
    kind: str


Value = str | float | int | None | Cell | Sequence[float]


def table(header: Sequence[str], rows: Iterable[Sequence[Value]], *, strong: Sequence[bool] = ()) -> str:
    """A table that scrolls within itself where it is too wide.

    Args:
        header: of the columns.
        rows: a pair of numbers is a mean with half of its interval; None is a dash.
        strong: rows that stand out.
    """
    lines = [list(row) for row in rows]
    numeric = [all(_is_number(row[column]) for row in lines) for column in range(len(header))]
    head = "".join(f'<th scope="col"{_class(numeric[column])}>{escape(name)}</th>' for column, name in enumerate(header))
    body = []
    for index, row in enumerate(lines):
        mark = ' class="strong"' if index < len(strong) and strong[index] else ""
        body.append(f"<tr{mark}>{''.join(_cell(value) for value in row)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _is_number(value: Value) -> bool:
    return "number" in value.kind.split() if isinstance(value, Cell) else not isinstance(value, str)


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(value: Value) -> str:
    if isinstance(value, Cell):
        return f'<td class="{value.kind}">{escape(value.text)}</td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{number(value)}</td>'


def number(value: float | Sequence[float] | None) -> str:
    """Four significant digits; a pair is a mean and half of its 95 % interval, told as finely."""
    if value is None:
        return "–"
    if isinstance(value, Sequence):
        mean, half = value
        digits = _decimals(mean)
        return f"{mean:,.{digits}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{half:,.{digits}f}" if half else f"{mean:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{_decimals(value)}f}"


def _decimals(value: float) -> int:
    size = abs(value)
    return 0 if size >= 1000.0 else 1 if size >= 10.0 else 2


def figure(title: str, svg: str, note: str = "") -> str:
    """A figure below its title."""
    more = f"<span>{escape(note)}</span>" if note else ""
    return f"<figure><figcaption>{escape(title)}{more}</figcaption>{svg}</figure>"


def grid(figures: Iterable[str], kind: str = "") -> str:
    """Figures side by side, as many as there is room for; `wide` and `dense` ones have more and less room each."""
    return f'<div class="grid {kind}">{"".join(figures)}</div>'


def folded(title: str, content: str) -> str:
    """Opens at a touch, and before printing."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def section(name: str, title: str, *content: str) -> str:
    """A part of the page; the name is where links go."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{"".join(content)}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Of plain text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def bullets(lines: Iterable[str], kind: str = "") -> str:
    """A list of plain texts."""
    return f"<ul{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def document(title: str, body: str, *, style: str, head: str = "", attributes: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        body, head: markup.
        style: CSS beside the base style.
        attributes: of the body, markup.
    """
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{meta}<title>{escape(title)}</title>\n<style>\n{BASE_STYLE}{style}</style>\n{head}'
        f"</head>\n<body{attributes}>\n{body}\n</body></html>\n"
    )

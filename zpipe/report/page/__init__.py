"""A run's report as one HTML file that needs nothing else: no script, no font, no image, no library, no network.

`sections.py`  what is said of one run       `plots.py`   charts as SVG, in the page's own colours
`figures.py`   its charts                    `places.py`  where nodes stand in a drawing
`drawing.py`   the topology with its load    `markup.py`  pieces of HTML, and what every page looks like (`base.css`)
`loads.py`     how busy links were           `run.css`    what this page looks like beside that, light and dark
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from zpipe.report.page import figures
from zpipe.report.page.markup import Value, document, grid, paragraph, section, table
from zpipe.report.page.sections import as_json, made_on, sections, tiles, verdict, warnings

Row = dict[str, Any]

_STYLE = Path(__file__).parent / "run.css"
#: The page forbids itself to load or run anything: whatever a name in a report may hold, it stays text.
_POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"


def render_page(runs: Sequence[Row], *, command: str = "", made_at: str = "") -> str:
    """The page.

    Args:
        runs: reports (`zpipe.report/1`), at least one; several are compared with the first.
        command: that made them, as typed.
        made_at: date and time, for people.
    """
    first = runs[0]
    body = _one(first) if len(runs) == 1 else _several(runs)
    names = [figures.short_name(run, first) for run in runs[1:]]
    figures_of = [as_json(run, title=f"All figures of {run['topology']}, as JSON") for run in runs]
    made = section("made", "How this was made", made_on(first, command=command, made_at=made_at), *figures_of)
    title = first["topology"] if not names else f"{first['topology']} against {', '.join(names)}"
    emulated = any(row["executor"] == "emulated" for row in first["nodes"])
    how = "simulated" if first["simulated"] else "live, emulated" if emulated else "live"
    about = f"{first['bundle']} · {first['policy']} · seed {first['seed']}"
    top = f'<p class="soft">zpipe · {how} run</p><h1>{escape(title)}</h1>{paragraph(about, "soft")}'
    style = _STYLE.read_text(encoding="utf-8")
    return document(f"zpipe: {title}", f"<header>{top}</header>\n<main>{body}\n{made}</main>", style=style, head=_POLICY)


def _one(report: Row) -> str:
    found = sections(report)
    top = verdict(report) + warnings(report) + tiles(report)
    return "\n".join([top, _links([(name, title) for name, title, _ in found]), *[content for _, _, content in found]])


def _links(names: Sequence[tuple[str, str]]) -> str:
    links = [*names, ("made", "How this was made")]
    return f"<nav>{' '.join(f'<a href={chr(34)}#{name}{chr(34)}>{escape(title)}</a>' for name, title in links)}</nav>"


def _several(runs: Sequence[Row]) -> str:
    first = runs[0]
    names = [figures.short_name(run, first) for run in runs]
    charts = [draw(runs) for draw in (figures.latency, figures.operating_points, figures.exits, figures.rates_over_time)]
    drawn = grid([f"<div>{each}</div>" for each in charts if each], "four")
    together = section("together", "Side by side", _table(runs, names), drawn)
    parts = ["".join(verdict(run, name=name) for run, name in zip(runs, names, strict=True)), ""]
    links = [("together", "Side by side")]
    parts.append(together)
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        links.append((f"run{index}", name))
        inside = "".join(content for _, _, content in sections(run, prefix=f"run{index}-"))
        top = f"<summary><b>{escape(name)}</b> {escape(run['policy'])}</summary>"
        parts.append(f'<details class="run" id="run{index}">{top}{warnings(run)}{tiles(run)}{inside}</details>')
    parts[1] = _links(links)
    return "\n".join(parts)


def _table(runs: Sequence[Row], names: Sequence[str]) -> str:
    header = ["run", "answers/s", "in time/s", "accuracy (%)", "mean (ms)", "p50 (ms)", "p95 (ms)", "p99 (ms)", "kB per answer"]
    header += ["multiply-adds (%)", "answered", "submitted"]
    rows: list[list[Value]] = []
    for run, name in zip(runs, names, strict=True):
        ms, sent = run["latency_ms"], run["bytes_per_sample"]
        accuracy, macs = (None if run[key] is None else 100 * run[key] for key in ("accuracy", "mean_macs_share"))
        kilobytes = None if sent is None else sent / 1e3
        rows.append(
            [
                name,
                run["throughput_hz"],
                run["goodput_hz"],
                accuracy,
                *[ms[stat] for stat in ("mean", "p50", "p95", "p99")],
                kilobytes,
                macs,
                run["counts"]["result"],
                run["counts"]["submitted"],
            ]
        )
    return table(header, rows, strong=[True])

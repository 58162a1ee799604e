"""What the page of every suite has: its frame, its claims, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zpipe.bench.suites import drawing
from zpipe.report.page.markup import Cell, bullets, document, paragraph, section, table

Found = dict[str, Any]

_OPEN_TO_PRINT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(d=>d.open=true))"


def whole_page(found: Found, sections: Sequence[str], links: Mapping[str, str]) -> str:
    """The page.

    Args:
        found: what `run_suite` returned.
        sections: in order.
        links: {name of a section: what its link says}.
    """
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    body = drawing.numbered("\n".join(sections))
    settings_count = f' style="--settings:{len(found["settings"])}"'
    script = f"<script>{_OPEN_TO_PRINT}</script>"
    title = f"zpipe: suite {found['suite']}"
    return document(title, f"{_top(found, links)}\n{body}", style=style, head=script, attributes=settings_count)


def _top(found: Found, links: Mapping[str, str]) -> str:
    how = "quick" if found["quick"] else "full"
    about = f"{how} run of {len(found['seeds'])} seeds on {found['machine']['cpu']}, commit {found['commit'] or 'unknown'}"
    nav = " ".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links.items())
    return f"<h1>zpipe: suite {escape(found['suite'])}</h1>{paragraph(about, 'soft')}<nav>{nav}</nav>"


def promise(found: Found) -> str:
    """Whether every sample had its one outcome."""
    kept = "In every run each sample was answered or reported exactly once: none lost, none answered twice, none left hanging."
    return bullets([f"broken: {line}" for line in found["broken"]]) if found["broken"] else paragraph(kept)


def claim_shown(claim: dict[str, Any], found: Found) -> str:
    """A claim in one line, with its cases behind it."""
    titles = {row["name"]: row["title"] for row in found["settings"]}
    chips = []
    for judged in claim["settings"]:
        name = escape(judged["setting"])
        if judged["holds"] is None:
            why = escape(f"{titles[judged['setting']]}: not asked, {judged['not_asked']}")
            chips.append(f'<span class="chip" title="{why}">{name} –</span>')
        else:
            kind, sign = ("good", "✓") if judged["holds"] else ("bad", "✗")
            chips.append(f'<span class="chip {kind}">{name} {sign} {judged["held"]}/{judged["cases"]}</span>')
    asked = [judged["holds"] for judged in claim["settings"] if judged["holds"] is not None]
    verdict = "holds" if claim["holds"] else f"holds in {sum(asked)} of {len(asked)} settings" if any(asked) else "does not hold"
    kind = "good" if claim["holds"] else "bad"
    said = f'<span>{escape(claim["text"])}: <b class="{kind}">{verdict}</b></span>'
    line = f'<summary>{said}<span class="chips">{"".join(chips)}</span></summary>'
    return f'<details class="claim">{line}{_cases(claim)}</details>'


def _yes(holds: bool) -> Cell:
    return Cell("holds", "good") if holds else Cell("does not hold", "bad")


def _cases(claim: dict[str, Any]) -> str:
    """What a claim rests on, and where it was not asked."""
    rows = [
        (case["setting"], case["topology"], _yes(case["holds"]), case["figures"], case["bound"], case["why"])
        for case in claim["cases"]
    ]
    not_asked = [f"{each['setting']}: not asked, {each['not_asked']}" for each in claim["settings"] if each["holds"] is None]
    header = ("setting", "topology", "", "figures", "the most there could be", "why not")
    return table(header, rows) + (bullets(not_asked) if not_asked else "")


def made_on(found: Found, *more: str) -> str:
    """Machine, versions, commit and command; `more` lines after them."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"command: zpipe bench --suite {found['suite']}{' --quick' if found['quick'] else ''}",
        f"took {found['seconds'] / 60:.1f} minutes; seeds {', '.join(map(str, found['seeds']))}",
        f"machine: {machine['cpu']}, {machine['cores']} cores, {machine['os']}, Python {machine['python']}",
        f"versions: {versions}",
        f"commit: {found['commit'] or 'unknown'}",
        *more,
        f"all tables of this page are in the JSON beside it ({found['schema']})",
    ]
    return section("made-on", "Made on", bullets(lines))

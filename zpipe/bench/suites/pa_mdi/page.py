"""The results as one HTML page that needs nothing else: no script from elsewhere, no font, no image."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Any

from zpipe.bench.suites import frame
from zpipe.bench.suites.pa_mdi import figures
from zpipe.bench.suites.pa_mdi.claims import Sweeps, least_ms, others_ms, sweeps
from zpipe.bench.suites.pa_mdi.settings import (
    AR_MDI,
    CLOSED,
    CODEC,
    COMPARED,
    FIFO,
    MDI,
    MS_MDI,
    OPEN,
    OTHER_WEIGHT,
    PA_MDI,
    POLICIES,
    URGENT_WEIGHT,
)
from zpipe.report.page.markup import Value, bullets, figure, folded, grid, paragraph, section, table

Found = dict[str, Any]
Row = dict[str, Any]

_LINKS = {
    "verdict": "verdict",
    "published": "beside the published",
    "time": "mean inference time",
    "others": "what the others pay",
    "nodes": "which node served whom",
    "live": "live",
    "settings": "settings",
    "summary": "all figures",
    "made-on": "made on",
}
_SAYS = {
    PA_MDI: "pa-mdi: urgent tasks first, neighbours by delay, work and backlog over weight, stages allocated as it runs",
    AR_MDI: "ar-mdi, our reading: layers in proportion to measured rate along a chain, blind to other sources",
    MS_MDI: "ms-mdi, our reading: the same by what other sources leave free, no priority",
    FIFO: "fifo, ours: the cheapest completion, first come first served",
    MDI: "mdi: MDI-Exit's Alg. 1-2, for comparison",
}
_KINDS = {OPEN: "open load: Poisson arrivals", CLOSED: "closed load: data points worked off"}
#: Of each load in turn.
_KIND_WORDS = {OPEN: "open", CLOSED: "closed"}


def render_page(found: Found) -> str:
    """The page.

    Args:
        found: what `run_suite` returned.
    """
    asked = sweeps(found["sweep"])
    sections = (
        _verdict(found, asked),
        _published(found, asked),
        _time(found, asked),
        _others(found, asked),
        _nodes(found, asked),
        _live(found),
        _settings(found),
        _summary(found),
        frame.made_on(found, f"activations go as {CODEC}, inputs as they are"),
    )
    return frame.whole_page(found, sections, _LINKS)


def _legend(found: Found, *more: str) -> str:
    there = {row["policy"] for row in found["sweep"]}
    marks = "".join(f"<span>{figures.policy_mark(name)}{escape(_SAYS[name])}</span>" for name in POLICIES if name in there)
    return f'<div class="legend">{marks}{"".join(more)}</div>'


_DOTTED = '<span><i class="dotted"></i>dotted: the least that any policy could reach for this source</span>'


# ---- the verdict -------------------------------------------------------------------------------------


def _verdict(found: Found, asked: Sweeps) -> str:
    claimed = [claim for claim in found["claims"] if claim["claimed"]]
    held = sum(claim["holds"] for claim in claimed)
    return section(
        "verdict",
        "Verdict",
        paragraph(
            "Largest change of the time-sensitive source's mean inference time by pa-mdi over the sweep, beside the published:"
        ),
        bullets(_headline(row, asked) for row in found["settings"]),
        paragraph(
            "ar-mdi and ms-mdi cut between layers wherever rates say, so part of what they lose they lose on links. fifo chooses "
            "as freely as pa-mdi and knows no urgency: the change against it is what priority alone is worth."
        ),
        frame.promise(found),
        "<h3>What was to be shown</h3>",
        paragraph(
            f"{held} of {len(claimed)} claims hold in every setting that they are asked in. Beside each claim: in how many of a "
            "setting's sweeps (two or three sources, either kind of load) it holds. A line opens to show them, each with the most "
            "that any policy could take off, and why pa-mdi fell short where it did."
        ),
        *(frame.claim_shown(claim, found) for claim in found["claims"]),
    )


def _headline(setting: Row, asked: Sweeps) -> str:
    parts = []
    for name in COMPARED:
        reached = [
            row["reduction"][name][0]
            for (where, _, _), policies in asked.items()
            if where == setting["name"]
            for row in policies.get(PA_MDI, {}).values()
            if name in row["reduction"]
        ]
        if reached:
            published = f" (published {-setting['published'][name]:+.1%})" if name in setting["published"] else ""
            parts.append(f"{-max(reached):+.1%} against {name}{published}")
    return f"{setting['title']}: {', '.join(parts)}."


# ---- over load ---------------------------------------------------------------------------------------


def _of(asked: Sweeps, setting: Row) -> Iterable[tuple[int, str, dict[str, dict[float, Row]]]]:
    """The sweeps of one setting: (sources, kind of load, by policy and load)."""
    return [(sources, kind, policies) for (where, sources, kind), policies in asked.items() if where == setting["name"]]


def _published(found: Found, asked: Sweeps) -> str:
    parts = []
    for setting in found["settings"]:
        drawn = []
        for kind in _KINDS:
            lines = [policies for _, of_kind, policies in _of(asked, setting) if of_kind == kind]
            says = f"Change of the time-sensitive source's mean inference time by pa-mdi over load, {setting['title']}, {kind}"
            drawn.append(figure(_KINDS[kind], figures.reductions(lines, kind=kind, published=setting["published"], says=says)))
        parts.append(f"<h3>{escape(setting['title'])}</h3>{grid(drawn, 'wide')}")
    marks = "".join(f"<span>{figures.policy_mark(name)}against {name}</span>" for name in COMPARED)
    key = (
        "<span>drawn through: two sources; dashed: three</span><span>dotted, in the same colour: published, the largest</span>"
        '<span><i class="hollow"></i>hollow: more arrivals than the baseline carries</span>'
    )
    return section(
        "published",
        "Beside the published reductions",
        paragraph(
            "Change of the time-sensitive source's mean inference time by pa-mdi, at every load of the sweep; bars are 95 % "
            "intervals over pairs of one seed. Where a baseline does not carry the arrivals its queue grows as long as they come, "
            "and so does what is taken off it. The paper's loads, boxes and weights are not known to us: its figures are lines to "
            "look at, not a measurement to repeat."
        ),
        f'<div class="legend">{marks}{key}</div>',
        *parts,
    )


def _time(found: Found, asked: Sweeps) -> str:
    parts = []
    for setting in found["settings"]:
        drawn = []
        for sources, kind, policies in sorted(_of(asked, setting), key=lambda each: (each[1] != OPEN, each[0])):
            says = f"Mean inference time over load under each policy, {setting['title']}, {sources} sources, {kind}"
            least = {load: least_ms(setting, kind, load) for rows in policies.values() for load in rows}
            svg = figures.inference_time(policies, kind=kind, least=least, says=says)
            drawn.append(figure(f"{sources} sources, {_KIND_WORDS[kind]} load", svg))
        parts.append(f"<h3>{escape(setting['title'])}</h3>{grid(drawn)}")
    return section(
        "time",
        "Mean inference time per source",
        paragraph(
            "From submit() to the answer, over all data points. Open load: each source's data points come by a Poisson process "
            "of the same rate; the load is their sum as a share of what all boxes could compute if links cost nothing. Closed "
            "load, the paper's kind: each source has a fixed number of data points and keeps so many under way."
        ),
        _legend(found, _DOTTED),
        *parts,
    )


def _others(found: Found, asked: Sweeps) -> str:
    rows: list[list[Value]] = []
    for setting in found["settings"]:
        for sources, kind, policies in _of(asked, setting):
            for load, mine in sorted(policies.get(PA_MDI, {}).items()):
                against = [policies.get(name, {}).get(load) for name in COMPARED]
                ratios = [None if other is None else others_ms(mine) / others_ms(other) for other in against]
                whole = [None if other is None else mine["rate_hz"][0] / other["rate_hz"][0] for other in against]
                rows.append([setting["name"], sources, _KIND_WORDS[kind], load, others_ms(mine), *ratios, *whole])
    header = (
        "setting",
        "sources",
        "load",
        "",
        "their mean (ms)",
        *(f"over {name}" for name in COMPARED),
        *(f"data points/s over {name}" for name in COMPARED),
    )
    said = (
        "Mean inference time of the sources without priority under pa-mdi, and that over the baselines' at the same load (above 1: "
        "they wait longer); then the data points a second of all sources together, likewise."
    )
    return section("others", "What the others pay", paragraph(said), folded("All loads", table(header, rows)))


def _nodes(found: Found, asked: Sweeps) -> str:
    parts = []
    for setting in found["settings"]:
        drawn, said = [], ""
        for sources, kind, policies in _of(asked, setting):
            if kind != OPEN or sources != 2:
                continue
            load = max((each for each in policies[PA_MDI] if each <= 1.0), default=max(policies[PA_MDI]))
            said = f"{setting['title']}; two sources, arrivals of {load:g} of the capacity"
            for name in POLICIES:
                if load in policies.get(name, {}):
                    says = f"How much of its time each node computed for whom under {name}, {said}"
                    drawn.append(figure(name, figures.served(policies[name][load], says=says)))
        boxes = _boxes(setting)
        more = (
            f"Nodes: {boxes}. The time-sensitive source is at node {setting['sources'][0]}, the other at {setting['sources'][1]}."
        )
        parts.append(f"<h3>{escape(said or setting['title'])}</h3>{paragraph(more)}{grid(drawn, 'dense')}")
    colours = ((figures.URGENT, "for the time-sensitive source"), (figures.OTHERS, "for the others"))
    key = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for colour, name in colours)
    said = "How much of its time each node computed, and for whom, at the heaviest load short of overload."
    return section("nodes", "Which node served whom", paragraph(said), f'<div class="legend">{key}</div>', *parts)


def _boxes(setting: Row) -> str:
    """Devices by rank, equal neighbours told once."""
    return ", then ".join(f"{len(list(same))} x {device}" for device, same in groupby(setting["devices"]))


# ---- live, settings, all figures ---------------------------------------------------------------------


def _live(found: Found) -> str:
    if not found["live"]:
        return section("live", "Live", paragraph("Live parts: not run."))
    rows: list[list[Value]] = []
    for row in found["live"]:
        for index, rank in enumerate(row["ranks"]):
            rows.append(
                [
                    row["setting"],
                    row["policy"],
                    _KIND_WORDS[row["kind"]],
                    row["load"],
                    rank,
                    row["latency_ms"][index],
                    row["simulated_ms"][index],
                    [100.0 * value for value in row["difference"][index]],
                    row["broken"],
                ]
            )
    header = (
        "setting",
        "policy",
        "load",
        "",
        "source at rank",
        "live (ms)",
        "simulated (ms)",
        "simulated less live (%)",
        "lost, twice or hanging",
    )
    return section("live", "Live against simulated", paragraph(found["live"][0]["how"]), table(header, rows))


def _settings(found: Found) -> str:
    parts = []
    for row in found["settings"]:
        network = f"{row['network']}: {sum(row['macs']) / 1e9:.2f} G multiply-adds in {len(row['macs'])} stages; {row['cut_why']}."
        least, most = min(row["cut_bytes"]), max(row["cut_bytes"])
        sizes = f"A data point is {row['input_bytes']:,} bytes; cuts are {least:,} to {most:,} of float32, a quarter on the links."
        boxes = f"Boxes: {_boxes(row)}; all together {row['capacity_hz']:.1f} data points a second."
        ranks = f"Sources at ranks {', '.join(map(str, row['sources']))}, the first one time-sensitive."
        lines = [f"{row['title']}: {row['why']}.", network, sizes, boxes, ranks]
        parts.append(f"<h3>{escape(row['name'])}</h3>{bullets(lines)}")
    known = (
        "The paper's (arXiv:2412.12371, by its abstract and published summaries; its full text was not at hand): the testbeds - "
        "five Jetson Xavier on Wi-Fi of about 20 Mbit/s, all in range of each other; three Xavier and three Nano, multi-hop; five "
        "radio nodes with Xeon E5-2650 on 10 Gbit/s - and the networks."
    )
    ours = (
        "Ours: the boxes' speed (a board's whole network time in other people's benchmarks, scaled), the multi-hop links, where "
        f"sources are, weights {URGENT_WEIGHT:g} and {OTHER_WEIGHT:g}, as many data points from each source, windows and arrivals, "
        f"{CODEC} on the links for every policy, and what the baselines do."
    )
    return section("settings", "Settings", paragraph(known), paragraph(ours), *parts)


def _summary(found: Found) -> str:
    parts = []
    for setting in found["settings"]:
        rows: list[list[Value]] = [
            [
                row["sources"],
                _KIND_WORDS[row["kind"]],
                row["load"],
                row["policy"],
                row["latency_ms"][0],
                row["latency_p95_ms"][0],
                others_ms(row),
                row["rate_hz"],
                [value / 1e3 for value in row["bytes_per_sample"]],
                row["resubmitted"],
            ]
            for row in found["sweep"]
            if row["setting"] == setting["name"]
        ]
        header = (
            "sources",
            "load",
            "",
            "policy",
            "time-sensitive, mean (ms)",
            "time-sensitive, p95 (ms)",
            "others, mean (ms)",
            "data points/s",
            "kB sent per data point",
            "resubmitted",
        )
        parts.append(folded(setting["title"], table(header, rows)))
    return section("summary", "All figures", *parts)

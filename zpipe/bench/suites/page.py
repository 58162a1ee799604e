"""A suite's results as one HTML page that needs nothing else: no script from elsewhere, no font, no image."""

from __future__ import annotations

from html import escape
from typing import Any

from zpipe.bench.suites import frame, plots, settings, tables
from zpipe.bench.suites.admission import THRESHOLD_LOAD, TOPOLOGY
from zpipe.bench.suites.claims import Tables
from zpipe.bench.suites.settings import ACCURACY_SLACK, CARRIED, CODEC, DEADLINE_SECONDS, MDI, MDI_AUTO, MDI_INPUTS, POLICIES
from zpipe.report.page.markup import bullets, figure, folded, grid, number, paragraph, section

Found = dict[str, Any]

#: What each policy is, for the legend.
_SAYS = {
    MDI: "mdi: Alg. 1-2, every sample starts at the source's stage 0",
    MDI_INPUTS: "mdi+inputs: raw inputs may go out, too",
    MDI_AUTO: "mdi+auto: they may where they are fewer bytes",
    "no-exit": "no-exit: the same mesh, exits off",
    "local": "local: the source alone",
    "ddi": "ddi: whole inputs spread over nodes that host everything",
    "mdi-static": "mdi-static: exits, but no choice of node and no adapting",
}
_OPEN_TO_PRINT = "addEventListener('beforeprint',()=>document.querySelectorAll('details').forEach(d=>d.open=true))"
_LINKS = {
    "verdict": "verdict",
    "rate": "data rate at a given accuracy",
    "accuracy": "accuracy at a given data rate",
    "time": "over time",
    "exits": "exits",
    "bytes": "bytes",
    "sweep": "constants",
    "live": "live",
    "summary": "all figures",
    "made-on": "made on",
}


def render_page(found: Found) -> str:
    """The page.

    Args:
        found: what `run_suite` returned.
    """
    asked = Tables(found, [settings.setting(row["name"]) for row in found["settings"]])
    sections = (
        _verdict(found, asked),
        _rate_at_accuracy(found, asked),
        _accuracy_at_rate(found, asked),
        _over_time(found),
        _exits(found, asked),
        _bytes(found, asked),
        tables.sweep(found),
        tables.live(found),
        tables.summary(found, asked),
        frame.made_on(found, f"activations go as {CODEC}"),
    )
    return frame.whole_page(found, sections, _LINKS)


# ---- the verdict -----------------------------------------------------------------------------------


def _verdict(found: Found, asked: Tables) -> str:
    topology = _shown_topology(asked)
    lines = [line for row in found["settings"] if (line := _headline(asked, row, topology))]
    claimed = [claim for claim in found["claims"] if claim["claimed"]]
    held = sum(claim["holds"] for claim in claimed)
    return section(
        "verdict",
        "Verdict",
        paragraph(f"Highest rates on {topology}, at an accuracy at most {ACCURACY_SLACK:.1%} below the whole network's:"),
        bullets(lines),
        frame.promise(found),
        bullets(found["missing"]) if found["missing"] else "",
        "<h3>What was to be shown</h3>",
        paragraph(
            f"{held} of {len(claimed)} claims hold in every setting that they are asked in. Beside each claim: in how many of a "
            "setting's cases it holds. A line opens to show the cases, each with the most that its policy could reach (a linear "
            "program's bound), so that what nothing could have won can be told from what was lost."
        ),
        *(frame.claim_shown(claim, found) for claim in found["claims"]),
        "<h3>Settings</h3>",
        bullets(f"{row['name']}: {row['title']}. {row['why']}." for row in found["settings"]),
        tables.regimes(found),
    )


def _shown_topology(asked: Tables) -> str:
    """The one that a single figure is about: that of the series, where it was run."""
    topologies = asked.topologies(asked.settings[0].name)
    return TOPOLOGY if TOPOLOGY in topologies else topologies[0]


def _headline(asked: Tables, row: dict[str, Any], topology: str) -> str:
    """What the policies carry in one setting, and how much more than the baselines that is."""
    rates = {policy: best["rate_hz"][0] for policy in POLICIES if (best := asked.best(row["name"], topology, policy))}
    parts = []
    for policy in (MDI, MDI_INPUTS):
        if policy in rates:
            others = (f"{rates[policy] / rates[name]:.2f}x {name}" for name in ("no-exit", "local", "ddi") if name in rates)
            parts.append(f"{policy} carries {rates[policy]:.0f} samples/s ({', '.join(others)})")
    return f"{row['title']}: {'; '.join(parts)}." if parts else ""


# ---- the two families ------------------------------------------------------------------------------


def _legend(found: Found, *more: str) -> str:
    there = {row["policy"] for row in found["rate_at_accuracy"]}
    marks = "".join(f"<span>{plots.policy_mark(policy)}{escape(_SAYS[policy])}</span>" for policy in POLICIES if policy in there)
    return f'<div class="legend">{marks}{"".join(more)}</div>'


_DOTTED = '<span><i class="dotted"></i>the most there could be for mdi and mdi+inputs (linear program)</span>'
_HOLLOW = f'<span><i class="hollow"></i>hollow: less than {CARRIED:.0%} of the offered samples answered</span>'


def _rate_at_accuracy(found: Found, asked: Tables) -> str:
    parts = []
    for row in found["settings"]:
        figures = []
        for topology in asked.topologies(row["name"]):
            rows = [each for each in asked.capacity if (each["setting"], each["topology"]) == (row["name"], topology)]
            says = f"Data rate over accuracy for each policy on {topology}, {row['title']}"
            figures.append(figure(topology, plots.rate_at_accuracy(rows, says=says)))
        parts.append(f"<h3>{escape(row['title'])}</h3>{grid(figures)}")
    return section(
        "rate",
        "Data rate at a given accuracy",
        paragraph(
            f"The rate a closed loop of {settings.WINDOW} samples reaches at each operating point, over the accuracy it has there. "
            "Up and to the right is better. Bars are 95 % intervals over seeds, drawn where they can be seen."
        ),
        _legend(found, _DOTTED),
        *parts,
    )


def _accuracy_at_rate(found: Found, asked: Tables) -> str:
    parts = []
    for row in found["settings"]:
        figures = []
        for topology in asked.topologies(row["name"]):
            rows = [each for each in asked.given if (each["setting"], each["topology"]) == (row["name"], topology)]
            if rows:
                says = f"Share of the offered samples answered right and in time over the data rate, on {topology}, {row['title']}"
                figures.append(figure(topology, plots.accuracy_at_rate(rows, says=says)))
        if figures:
            parts.append(f"<h3>{escape(row['title'])}</h3>{grid(figures)}")
    return section(
        "accuracy",
        "Accuracy at a given data rate",
        paragraph(
            f"Samples come at random at a mean rate and have {DEADLINE_SECONDS:g} s; thresholds follow the queues (mdi-threshold). "
            "Shown is how many of all offered samples were answered right and in time: late and refused ones count as wrong."
        ),
        _legend(found, _DOTTED, _HOLLOW),
        *parts,
    )


# ---- one run, exits, bytes -------------------------------------------------------------------------


def _over_time(found: Found) -> str:
    rows = found["over_time"]
    among = [each for row in rows for each in row["series"]]
    figures = []
    for row in rows:
        note = (
            f"admits {number(row['admitted_hz'])}/s, standard deviation {number(row['admitted_std_hz'])}/s in steady state; "
            f"accuracy {100 * row['accuracy'][0]:.1f} %"
        )
        says = f"Admitted rate, queue and operating point over time under {row['admission']}"
        figures.append(figure(row["admission"], plots.over_time(row["series"], among=among, says=says), note))
    where = found["settings"][0]
    return section(
        "time",
        "Admission over time",
        paragraph(
            f"{TOPOLOGY} under mdi, {where['title']}, one run each; the figures are means over seeds. mdi-rate and aimd choose the "
            f"rate at the bundle's default operating point; mdi-threshold is given {THRESHOLD_LOAD:.0%} of what the mesh carries "
            "there and moves the operating point instead. Rates are counted over one second."
        ),
        grid(figures, "wide"),
    )


def _exits(found: Found, asked: Tables) -> str:
    topology = _shown_topology(asked)
    parts = []
    for row in found["settings"]:
        figures = []
        for policy in POLICIES:
            mine = asked.right(row["name"], topology, policy)
            if mine:
                says = f"Shares of the exits over the data rate under {policy} on {topology}, {row['title']}"
                figures.append(figure(policy, plots.exit_shares(list(mine.values()), says=says)))
        if figures:
            parts.append(f"<h3>{escape(row['title'])}</h3>{grid(figures, 'dense')}")
    count = max(len(row["exits"]) for row in found["rate_at_accuracy"])
    names = [f"exit {index}" for index in range(count - 1)] + [f"exit {count - 1}, the whole network"]
    key = "".join(f'<span><i style="background:{plots.exit_colour(at)}"></i>{name}</span>' for at, name in enumerate(names))
    return section(
        "exits",
        "Where answers leave",
        paragraph(
            f"On {topology}, at each data rate offered; thresholds follow the queues (mdi-threshold), so shares depend on the load."
        ),
        f'<div class="legend">{key}</div>',
        *parts,
        folded("Shares at fixed operating points", tables.exits(found, topology)),
    )


def _bytes(found: Found, asked: Tables) -> str:
    figures = []
    for row in found["settings"]:
        rows = [
            each for each in asked.capacity if each["setting"] == row["name"] and each["point"] in (row["default_point"], "no-exit")
        ]
        says = f"Bytes per sample of each policy on each topology, {row['title']}"
        figures.append(figure(row["title"], plots.bytes_per_sample(rows, asked.topologies(row["name"]), says=says)))
    return section(
        "bytes",
        "Bytes per sample",
        paragraph(
            "In the closed loop at the bundle's default operating point (no-exit: without exits): inputs, activations and results "
            f"on all links together. Activations go as {settings.CODEC}, inputs as uint8."
        ),
        _legend(found),
        grid(figures, "wide"),
        tables.bytes_sent(found, asked),
    )

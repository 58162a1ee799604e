"""What a page says of one run: a verdict, and sections of figures and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from zpipe.report.log import KINDS
from zpipe.report.page import drawing, figures
from zpipe.report.page.loads import all_ranks, link_loads, ranges
from zpipe.report.page.markup import Value, bullets, folded, grid, number, paragraph, section, table
from zpipe.report.words import accuracy_lines, drift_lines, fault_lines, footnotes, parts_words

Row = dict[str, Any]

#: Rows of a table that a page shows; the rest is in the JSON.
MOST_ROWS = 60
_BROKEN = {"lost": "without an outcome", "duplicate": "answered more than once", "hung": "open past their deadline"}


# ---- at the top --------------------------------------------------------------------------------


def verdict(report: Row, *, name: str = "") -> str:
    """In one line whether the run kept the promise, and whether every sample got its answer."""
    counts = report["counts"]
    submitted, results = counts["submitted"], counts["result"]
    broken = [f"{counts[key]:,} {said}" for key, said in _BROKEN.items() if counts[key]]
    broken += [f"{report['strangers']:,} outcomes of samples that nobody offered"] if report["strangers"] else []
    late = round(report["seconds"] * (report["throughput_hz"] - report["goodput_hz"]))
    if broken:
        kind, sign, said = "bad", "✗", f"The promise was broken: {', '.join(broken)} of {submitted:,} samples."
    elif not submitted:
        kind, sign, said = "warn", "!", "No sample was offered: there is nothing to measure."
    elif results < submitted:
        others = ", ".join(f"{counts[key]:,} {key}" for key in KINDS[2:] if counts[key])
        kind, sign = "warn", "!"
        said = f"{submitted - results:,} of {submitted:,} samples ended without an answer: {others}; none was lost."
    else:
        kind, sign = "good", "✓"
        said = f"All {submitted:,} samples were answered: none lost, none answered twice, none left hanging."
    said += f" {late:,} answers came after their deadline." if late else ""
    faults = sum(row["events"] for row in report["chaos"]["summary"].values()) if "chaos" in report else 0
    said += f" Meanwhile {faults:,} fault{'s were' if faults > 1 else ' was'} made on purpose." if faults else ""
    before = f"<b>{escape(name)}:</b> " if name else ""
    return f'<p class="verdict {kind}"><span aria-hidden="true">{sign}</span><span>{before}{escape(said)}</span></p>'


def tiles(report: Row) -> str:
    """The figures that everybody asks for first."""
    ms, shared = report["latency_ms"], report["mean_macs_share"]
    good = report["goodput_hz"]
    late = "" if abs(good - report["throughput_hz"]) < 0.05 else f"{number(good)} in time"
    sent = report["bytes_per_sample"]
    shown = (
        ("answers per second", number(report["throughput_hz"]), "/s", late),
        ("accuracy", "–" if report["accuracy"] is None else f"{100 * report['accuracy']:.1f}", "%", ""),
        ("latency, median", number(ms["p50"]), "ms", "" if ms["mean"] is None else f"mean {number(ms['mean'])} ms"),
        ("latency, 95 %", number(ms["p95"]), "ms", "" if ms["p99"] is None else f"99 %: {number(ms['p99'])} ms"),
        _whole(report["missing"]) if "missing" in report else ("multiply-adds", *_share(shared), "of the whole network"),
        ("over links, per answer", number(None if sent is None else sent / 1e3), "kB", ""),
    )
    cells = [
        f"<div><dt>{escape(name)}</dt><dd>{value}<small>{'' if value == '–' else chr(160) + unit}</small>"
        f"<span>{escape(note)}</span></dd></div>"
        for name, value, unit, note in shown
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>{paragraph(_outcomes(report), "soft")}'


def _share(value: float | None) -> tuple[str, str]:
    return "–" if value is None else f"{100 * value:.1f}", "%"


def _whole(rows: Sequence[Row]) -> tuple[str, str, str, str]:
    """Of students: how many answers had every part."""
    without = sum(row["samples"] for row in rows[1:])
    return "all parts in", *_share(rows[0]["share"]), f"{without:,} answers without some"


def _outcomes(report: Row) -> str:
    """How every sample ended."""
    counts = report["counts"]
    ends = ", ".join(f"{counts[kind]:,} {kind}" for kind in (*KINDS[1:], "lost", "duplicate", "hung"))
    again = f"sent again {counts['resubmitted']:,} times, {counts['second_results']:,} second answers dropped"
    return f"{counts['submitted']:,} samples in {report['seconds']:.1f} s: {ends}; {again}."


def warnings(report: Row) -> str:
    """What else may be wrong with these figures."""
    causes = [f"{times:,} × {cause}" for cause, times in report["causes"].items()]
    short = any(row["promised"] and (row["accuracy"] or 0.0) < row["accuracy_wanted"] for row in report["sources"])
    notes = [*(accuracy_lines(report) if short else []), *drift_lines(report)]
    return (bullets(causes, "causes") if causes else "") + "".join(paragraph(line, "note") for line in notes)


# ---- sections ----------------------------------------------------------------------------------


def sections(report: Row, *, prefix: str = "") -> list[tuple[str, str, str]]:
    """(id, title, markup) of each section.

    Args:
        report: of one run.
        prefix: of the ids, where a page has several runs.
    """
    found = [
        ("topology", "Topology", drawing.topology(report) + drawing.legend(report)),
        ("answers", "Answers", _answers(report)),
        ("time", "Over time", figures.over_time(report)),
        *([("faults", "Faults", _faults(report))] if "chaos" in report else []),
        ("nodes", "Nodes and links", _nodes(report) + _links(report)),
    ]
    return [(f"{prefix}{name}", title, section(f"{prefix}{name}", title, content)) for name, title, content in found]


def _answers(report: Row) -> str:
    charts = [draw([report]) for draw in (figures.latency, figures.operating_points, figures.exits)]
    stats = ("mean", "p50", "p90", "p95", "p99", "max")
    spreads = [
        [name, *[report[key][stat] for stat in stats]] for name, key in (("latency", "latency_ms"), ("queueing", "queueing_ms"))
    ]
    exits = [[str(row["stage"]), 100 * row["share"], _percent(row["accuracy"])] for row in report["exits"]]
    severities = [
        [str(row["severity"]), row["samples"], _percent(row["accuracy"]), *[100 * share for share in row["exit_shares"]]]
        for row in report["severities"]
    ]
    each = len(report["sources"]) > 1 or any(row["promised"] for row in report["sources"])
    tables = [
        *([("Each source", _sources(report["sources"]))] if each else []),
        ("How answers took (ms)", table(["", *stats], spreads)),
        _parts(report["missing"]) if "missing" in report else ("Each exit", table(["exit", "share (%)", "accuracy (%)"], exits)),
    ]
    if len(severities) > 1:
        names = [f"exit {row['stage']} (%)" for row in report["exits"]]
        tables.append(("At each severity of distortion", table(["severity", "answers", "accuracy (%)", *names], severities)))
    said = accuracy_lines(report)
    parts = "".join(f"<div><h3>{escape(title)}</h3>{content}</div>" for title, content in tables)
    return (
        grid([f"<div>{each}</div>" for each in charts if each], "wide")
        + (bullets(said) if said else "")
        + f'<div class="tables">{parts}</div>'
    )


def _parts(rows: Sequence[Row]) -> tuple[str, str]:
    """Of students: the answers by which parts were not in, title and table."""
    keys = ("share", "accuracy", "expected")
    lines: list[list[Value]] = [[parts_words(row["parts"]), row["samples"], *[_percent(row[key]) for key in keys]] for row in rows]
    header = ["missing parts", "answers", "share (%)", "accuracy (%)", "on the test data (%)"]
    return "With parts missing", table(header, lines)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _sources(rows: Sequence[Row]) -> str:
    """Of each source, the most urgent first: what became of its samples, and how long its answers took."""
    stats = ("mean", "p50", "p95", "p99")
    header = ["source", "rank", "weight", "class", "submitted", *KINDS[1:], "lost", "in time/s"]
    header += [f"{stat} (ms)" for stat in stats] + ["queued, mean (ms)", "accuracy (%)", "wanted (%)"]
    lines: list[list[Value]] = [
        [
            row["name"],
            row["rank"],
            int(row["weight"]) if float(row["weight"]).is_integer() else row["weight"],
            row["priority"],
            row["submitted"],
            *[row[kind] for kind in KINDS[1:]],
            row["lost"],
            row["goodput_hz"],
            *[row["latency_ms"][stat] for stat in stats],
            row["queueing_ms"]["mean"],
            _percent(row["accuracy"]),
            _percent(row["accuracy_wanted"]),
        ]
        for row in sorted(rows, key=lambda row: (-row["priority"], -row["weight"], row["rank"]))[:MOST_ROWS]
    ]
    return table(header, lines) + _more(len(rows))


def _more(count: int, what: str = "rows") -> str:
    """Where a table is cut."""
    return paragraph(f"{count - MOST_ROWS:,} more {what}: `--json FILE` writes them all.", "soft") if count > MOST_ROWS else ""


def _faults(report: Row) -> str:
    chaos = report["chaos"]
    header = [
        "fault",
        "times",
        "skipped",
        "harmless",
        "first repair p50 (s)",
        "p99 (s)",
        "max (s)",
        "all repaired max (s)",
        "node back max (s)",
    ]
    rows: list[list[Value]] = []
    for action, row in chaos["summary"].items():
        first, whole, back = (row[f"{key}_seconds"] for key in ("repaired_after", "all_repaired_after", "back_after"))
        rows.append(
            [
                action,
                row["events"],
                row["skipped"],
                row["harmless"],
                first["p50"],
                first["p99"],
                first["max"],
                whole["max"],
                back["max"],
            ]
        )
    events: list[list[Value]] = [
        [
            row["at_seconds"],
            row["action"],
            row["target"] or "",
            row.get("lasted_seconds"),
            row.get("needed_repair"),
            row.get("repaired_after_seconds"),
            row.get("all_repaired_after_seconds"),
            row.get("skipped", ""),
        ]
        for row in chaos["timeline"][:MOST_ROWS]
    ]
    names = ["at (s)", "fault", "where", "lasted (s)", "samples sent again", "first repaired after (s)", "all after (s)", "skipped"]
    timeline = folded(f"Each of the {len(chaos['timeline']):,} faults", table(names, events) + _more(len(chaos["timeline"])))
    asked = f"<p>Asked for: <code>{escape(chaos['spec'])}</code></p>"
    return asked + table(header, rows) + bullets(fault_lines(chaos)) + timeline


def _nodes(report: Row) -> str:
    process = not report["simulated"]
    header = ["node", "stages", "executor", "busy (%)", "batch", "queue p95", "queue max", "tasks"]
    header += [*(("CPU (s)", "in stages (s)", "RSS (MB)") if process else ()), "sent (MB)", "inputs sent"]
    busiest = sorted(report["nodes"], key=lambda row: (-row["busy"], row["rank"]))
    shown = report["nodes"] if len(busiest) <= MOST_ROWS else busiest[:MOST_ROWS]
    rows: list[list[Value]] = [
        [
            str(row["rank"]),
            ranges(row["stages"]) or "none",
            row["executor"] or ("simulated" if report["simulated"] else "–"),
            100 * row["busy"],
            row["batch_mean"],
            row["queue_p95"],
            row["queue_max"],
            row["tasks"],
            *((row["cpu_s"], row["stage_cpu_s"], row["rss_mb"]) if process else ()),
            row["sent_bytes"] / 1e6,
            row["sent_inputs"],
        ]
        for row in shown
    ]
    known = {row["rank"] for row in report["nodes"]}
    silent = [rank for rank in all_ranks(report) if rank not in known]
    said = (
        paragraph(f"Silent at the end, so without figures: node{'s' if len(silent) > 1 else ''} {ranges(silent)}.", "note")
        if silent
        else ""
    )
    spread = _spread(report["nodes"]) if len(busiest) > MOST_ROWS else ""
    return said + spread + table(header, rows) + _more(len(busiest), "nodes, less busy")


def _spread(nodes: Sequence[Row]) -> str:
    """Nobody reads a thousand rows."""
    rows: list[list[Value]] = []
    for key, name, factor in (
        ("busy", "busy (%)", 100),
        ("batch_mean", "batch", 1),
        ("queue_p95", "queue p95", 1),
        ("tasks", "tasks", 1),
    ):
        values = sorted(factor * node[key] for node in nodes)
        rows.append([name, values[0], values[len(values) // 2], sum(values) / len(values), values[-1]])
    return table([f"{len(nodes):,} nodes", "least", "median", "mean", "most"], rows)


def _links(report: Row) -> str:
    links = report["links"]
    if not links:
        return paragraph("No links: nothing was sent.", "soft")
    loads = link_loads(links)
    order = range(len(links))
    if len(links) > MOST_ROWS:
        order = sorted(order, key=lambda at: -links[at]["bytes"])  # type: ignore[assignment]
    limited = any(load is not None for load in loads)
    header = [
        "link",
        "tasks",
        "frames",
        "MB",
        "Mbit/s",
        *(("limit (Mbit/s)", "medium", "used (%)") if limited else ()),
        "round trip (ms)",
    ]
    rows: list[list[Value]] = []
    for at in list(order)[:MOST_ROWS]:
        row, load = links[at], loads[at]
        name = f"{row['between'][0]} → {row['between'][1]}"
        limits: list[Value] = [row.get("limit_mbit_s"), row.get("medium") or "", _percent(load)] if limited else []
        rows.append([name, row["tasks"], row["frames"], row["bytes"] / 1e6, row["mbit_s"], *limits, row["round_trip_ms"]])
    memory = figures.memory(report)
    chart = f'<div class="chart">{memory}</div>' if memory else ""
    shown = f"<div><h3>Links</h3>{table(header, rows)}{_more(len(links), 'links, with fewer bytes')}</div>"
    return f'<div class="tables">{shown}{chart}</div>'


# ---- at the end --------------------------------------------------------------------------------


def made_on(report: Row, *, command: str, made_at: str) -> str:
    """Machine, versions, command: what it takes to do it again."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {known}" for name, known in machine["versions"].items() if known)
    where = "simulated on" if report["simulated"] else "measured on"
    facts = [
        ("command", f"<code>{escape(command)}</code>" if command else "–"),
        ("when", escape(made_at) or "–"),
        (where, escape(f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, Python {machine['python']}")),
        ("versions", escape(versions)),
        ("bundle", escape(report["bundle"])),
        ("policy", escape(report["policy"])),
        ("seed", str(report["seed"])),
    ]
    if report.get("lab"):
        facts.append(("links", "edge lab: as slow as the topology says"))
    if report.get("cpu_shares"):
        facts.append(
            ("boards", escape(", ".join(f"node {rank}: {share:g} of a core" for rank, share in report["cpu_shares"].items())))
        )
    rows = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in facts)
    return f'<dl class="facts">{rows}</dl>{bullets(footnotes(report))}'


def as_json(report: Row, *, title: str) -> str:
    """The report itself, a line for each row of its lists; long lists are cut, and say so."""
    cut = {}
    for name in ("nodes", "links", "sources"):
        if len(report[name]) > MOST_ROWS:
            cut[name] = len(report[name]) - MOST_ROWS
    shown = {name: value[:MOST_ROWS] if name in cut else value for name, value in report.items()}
    if len(report.get("chaos", {}).get("timeline", ())) > MOST_ROWS:
        cut["faults"] = len(report["chaos"]["timeline"]) - MOST_ROWS
        shown["chaos"] = report["chaos"] | {"timeline": report["chaos"]["timeline"][:MOST_ROWS]}
    lines = [f"{json.dumps(name)}: {_lines(value)}" for name, value in shown.items()]
    said = "".join(paragraph(f"{count:,} more {name}: `--json FILE` writes them all.", "soft") for name, count in cut.items())
    return folded(title, f'{said}<pre class="scroll">{escape("{" + f",{chr(10)}".join(lines) + "}")}</pre>')


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n " + ",\n ".join(json.dumps(row) for row in value) + "]"
    return json.dumps(value)

"""The tables of a suite's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zpipe.bench.suites.admission import TOPOLOGY
from zpipe.bench.suites.claims import Tables
from zpipe.bench.suites.settings import ACCURACY_SLACK, MDI, POLICIES
from zpipe.report.page.markup import Cell, Value, folded, paragraph, section, table

Found = dict[str, Any]


def _percent(value: Sequence[float]) -> list[float]:
    return [100.0 * each for each in value]


def _kilo(value: Sequence[float]) -> list[float]:
    return [each / 1e3 for each in value]


def regimes(found: Found) -> str:
    """Whether a sample's activations are fewer bytes than its input, for each setting."""
    rows: list[list[Value]] = []
    for setting in found["settings"]:
        for cut in found["cuts"]:
            if cut["bundle"] == setting["bundle"] and cut["cut"] == 1:
                answer = Cell("yes", "good") if cut["cheaper"] else Cell("no", "bad")
                figures = (100.0 * cut["reach"], round(cut["mean_bytes"]), cut["input_bytes"])
                rows.append([setting["name"], cut["codec"], cut["bytes"], *figures, answer])
    header = (
        "setting",
        "codec",
        "activation (bytes)",
        "P(survive), %",
        "activation x P (bytes)",
        "input (bytes)",
        "fewer than the input?",
    )
    said = "What leaves stage 0, at the default operating point, beside the raw input:"
    return "<h3>Which is cheaper to send</h3>" + paragraph(said) + table(header, rows)


def exits(found: Found, topology: str) -> str:
    """Shares of the exits at each operating point; they depend on the bundle alone, not on who runs it."""
    rows: list[list[Value]] = []
    for setting in found["settings"]:
        for row in found["rate_at_accuracy"]:
            if (row["setting"], row["topology"], row["policy"]) == (setting["name"], topology, MDI):
                accuracy = _percent(row["accuracy"])
                rows.append([setting["name"], row["point"], accuracy, *(100.0 * share for share in row["exits"])])
    count = max(len(row["exits"]) for row in found["rate_at_accuracy"])
    return table(("setting", "operating point", "accuracy (%)", *(f"exit {index} (%)" for index in range(count))), rows)


def bytes_sent(found: Found, asked: Tables) -> str:
    """The figure's numbers."""
    parts = []
    for setting in found["settings"]:
        rows: list[list[Value]] = []
        for topology in asked.topologies(setting["name"]):
            line: list[Value] = [topology]
            for policy in POLICIES:
                wanted = [
                    row
                    for row in asked.rows(setting["name"], topology, policy)
                    if row["point"] in (setting["default_point"], "no-exit")
                ]
                line.append(_kilo(wanted[0]["bytes_per_sample"]) if wanted else None)
            rows.append(line)
        parts.append(folded(f"{setting['title']}: kB per sample", table(("topology", *POLICIES), rows)))
    return "".join(parts)


_FIGURES = ("rate_hz", "latency_ms", "latency_p95_ms", "admitted_hz", "admitted_std_hz", "queue_p95")


def sweep(found: Found) -> str:
    """What each constant of MDI-Exit does to admission."""
    rows = [[row["constant"], row["value"], *(row[name] for name in _FIGURES)] for row in found["sweep"]]
    header = (
        "constant",
        "value",
        "answered (/s)",
        "latency, mean (ms)",
        "latency, p95 (ms)",
        "admitted (/s)",
        "its standard deviation (/s)",
        "queue at source, p95 (tasks)",
    )
    said = (
        f"One at a time around the defaults (bold), mdi-rate on {TOPOLOGY} under mdi, {found['settings'][0]['title']}. "
        "T_O: output threshold (tasks). Ten times a second the gap between samples shrinks by alpha while the queue at the source "
        "is below t_q1 (tasks), by beta while it is below t_q2, and grows by zeta above."
    )
    return section(
        "sweep", "Constants of admission", paragraph(said), table(header, rows, strong=[row["default"] for row in found["sweep"]])
    )


def live(found: Found) -> str:
    """Real sockets, beside what the simulator says of the same run."""
    where = found["live"]["where"]
    if not found["live"]["rows"]:
        return section("live", "Live", paragraph(f"Live parts: {where}."))
    said = f"One run each, {where}. Emulated boards take a board's time over recorded answers; samples go over real sockets."
    rows: list[list[Value]] = []
    for row in found["live"]["rows"]:
        simulated = row["simulated_hz"]
        apart = None if simulated is None else 100.0 * (row["rate_hz"] / simulated - 1.0)
        rows.append(
            [
                row["topology"],
                row["policy"],
                row["boards"],
                row["samples"],
                row["rate_hz"],
                simulated,
                apart,
                None if row["accuracy"] is None else 100.0 * row["accuracy"],
                row["latency_ms"],
                row["latency_p95_ms"],
                None if row["bytes_per_sample"] is None else row["bytes_per_sample"] / 1e3,
                row["broken"],
            ]
        )
    header = (
        "topology",
        "policy",
        "boards",
        "samples",
        "live (/s)",
        "simulated (/s)",
        "live over simulated (%)",
        "accuracy (%)",
        "latency, mean (ms)",
        "latency, p95 (ms)",
        "kB per sample",
        "lost, twice or hanging",
    )
    return section("live", "Live against simulated", paragraph(said), table(header, rows))


def summary(found: Found, asked: Tables) -> str:
    """Per setting, topology and policy the fastest operating point that is accurate enough."""
    parts = []
    for setting in found["settings"]:
        rows = [
            _summary_row(asked, setting["name"], topology, policy)
            for topology in asked.topologies(setting["name"])
            for policy in POLICIES
            if asked.rows(setting["name"], topology, policy)
        ]
        header = (
            "topology",
            "policy",
            "operating point",
            "rate (/s)",
            "bound (/s)",
            "of it (%)",
            "what bounds it",
            "accuracy (%)",
            "latency, mean (ms)",
            "latency, p95 (ms)",
            "kB per sample",
            "raw inputs sent, each hop (% of samples)",
            "work per sample (% of whole)",
        )
        parts.append(folded(setting["title"], table(header, rows)))
    said = (
        f"The fastest operating point of those at most {ACCURACY_SLACK:.1%} below the whole network's accuracy, closed loop. "
        "A policy that would be the same as another one on a topology is left out there."
    )
    return section("summary", "All figures at equal accuracy", paragraph(said), *parts)


def _summary_row(asked: Tables, setting: str, topology: str, policy: str) -> list[Value]:
    row = asked.best(setting, topology, policy)
    if row is None:
        return [topology, policy, "none is accurate enough", *[None] * 3, "", *[None] * 6]
    return [
        topology,
        policy,
        row["point"],
        row["rate_hz"],
        row["bound_hz"],
        100.0 * row["rate_hz"][0] / row["bound_hz"],
        ", ".join(row["limits"]),
        _percent(row["accuracy"]),
        row["latency_ms"],
        row["latency_p95_ms"],
        _kilo(row["bytes_per_sample"]),
        _percent(row["raw_inputs"]),
        _percent(row["macs_share"]),
    ]

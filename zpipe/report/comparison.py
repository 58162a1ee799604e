"""Several runs side by side: a topology and what it is compared with, under the same load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zpipe.report.terminal import MOST_SOURCES, plain_table, whole
from zpipe.report.words import number, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "zpipe.comparison/1"
#: Characters of a topology's name over a column of figures; baselines have short ones.
MOST_HEADING = 12


def comparison(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reports of several runs as one document, in the order in which they ran."""
    return {"schema": SCHEMA, "runs": list(runs)}


def render_comparison(document: dict[str, Any]) -> RenderableType:
    """One row per run, for 80 columns and more; of several sources also the mean latency of each."""
    from rich.console import Group
    from rich.text import Text

    runs = document["runs"]
    columns = ("result/s", "good/s", "accuracy", "mean ms", "p95 ms", "B/sample", "M madds")
    rows = plain_table(("run", "left"), *[(name, "right") for name in columns])
    for run in runs:
        macs = run["mean_macs"]
        rows.add_row(
            _short(run["topology"], runs[0]["topology"]),
            number(run["throughput_hz"]),
            number(run["goodput_hz"]),
            percent(run["accuracy"]),
            number(run["latency_ms"]["mean"]),
            number(run["latency_ms"]["p95"]),
            number(run["bytes_per_sample"], ",.0f"),
            number(None if macs is None else macs / 1e6),
        )
    first = runs[0]
    head = Text()
    head.append(f"{first['bundle']}", style="bold")
    head.append(f" · seed {first['seed']} · {'simulated' if first['simulated'] else 'live'}", style="dim")
    notes = [
        f"{run['topology']}: {run['raw_inputs_sent']:,} raw inputs sent on to other nodes"
        for run in runs
        if run["raw_inputs_sent"] and "missing" not in run
    ]
    sources = [Text(), _sources(runs)] if 1 < len(first["sources"]) <= MOST_SOURCES else []
    return Group(Text(), head, whole(rows), *sources, *[Text(note, style="dim") for note in notes])


def _sources(runs: Sequence[dict[str, Any]]) -> RenderableType:
    """Mean latencies, a row per source, the most urgent first, and a column per run."""
    first = runs[0]["topology"]
    own = first if len(first) <= MOST_HEADING else f"{first[: MOST_HEADING - 1]}…"
    table = plain_table(
        ("mean ms", "left"), (own, "right"), *[(_short(run["topology"], first).strip(), "right") for run in runs[1:]]
    )
    means = [{row["rank"]: row["latency_ms"]["mean"] for row in run["sources"]} for run in runs]
    for row in sorted(runs[0]["sources"], key=lambda row: (-row["priority"], -row["weight"], row["rank"])):
        table.add_row(row["name"], *[number(each[row["rank"]]) for each in means])
    return whole(table)


def _short(name: str, first: str) -> str:
    """A baseline by its own name, indented below the topology's."""
    return f"  {name.removeprefix(first + '/')}" if name.startswith(first + "/") else name

"""Figures as text, and the sentences that say what they mean; for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def number(value: float | None, form: str | None = None, *, none: str = "–") -> str:
    """A figure, or a dash where there is none; with one decimal, from 1,000 on without, where no form is given."""
    if value is None:
        return none
    return format(value, form or (",.1f" if abs(value) < 999.95 else ",.0f"))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def source_words(row: dict[str, Any]) -> str:
    """A source as people know it: `source camera`, or `source 0` where it has no name of its own."""
    return f"source {row['rank']}" if row["name"] == f"source-{row['rank']}" else f"source {row['name']}"


def accuracy_lines(report: dict[str, Any]) -> list[str]:
    """What sources wanted, what they were promised, what came out."""
    lines = []
    for row in report["sources"]:
        promised = row["promised"]
        if promised is not None:
            who = f"{source_words(row)}: " if len(report["sources"]) > 1 else ""
            test = "" if promised["test"] is None else f", {percent(promised['test'])} on test"
            said = f"the table has {percent(promised['calibration'])} on calibration{test}"
            lines.append(f"{who}accuracy wanted {percent(row['accuracy_wanted'])}: {said}, here {percent(row['accuracy'])}")
    return lines


def drift_lines(report: dict[str, Any]) -> list[str]:
    """A warning for each source whose answers are not like those on the calibration data."""
    return [_drift(row) for row in report["sources"] if row["drift"] is not None and row["drift"]["drifted"]]


def _drift(row: dict[str, Any]) -> str:
    drift = row["drift"]
    stage = max(range(len(drift["shares"])), key=lambda at: abs(drift["shares"][at] - drift["expected_shares"][at]))
    return (
        f"{source_words(row)}: {'harder' if drift['harder'] else 'easier'} inputs than the calibration data "
        f"(p = {drift['p_value']:.1g}): {percent(drift['shares'][stage], 0)} left at stage {stage}, "
        f"{percent(drift['expected_shares'][stage], 0)} did there; its accuracies need not hold here"
    )


def fault_lines(chaos: dict[str, Any]) -> list[str]:
    """What the faults cost, and whether any answer changed."""
    throughput, labels = chaos["throughput"], chaos["labels"]
    lines = [f"results/s with faults {number(throughput['faults_hz'])}"]
    if throughput["ratio"] is not None:
        lines[0] += f", without {number(throughput['calm_hz'])}: {percent(throughput['ratio'])}"
    if labels is not None:
        lines.append(f"other answers than without faults: {labels['other_label']:,} labels, {labels['other_exit']:,} exits")
    lines += _repairs(chaos.get("sources", []))
    damage = {key: sum(row[key] for row in chaos["damage"].values()) for key in ("messages", "corrupted", "flipped")}
    if damage["corrupted"] or damage["flipped"]:
        said = f"{damage['corrupted']:,} of {damage['messages']:,} messages damaged, {damage['flipped']:,} bits of streams flipped"
        ended = chaos["nodes_ended"]
        besides = (
            f", besides what {ended:,} {'process' if ended == 1 else 'processes'} ended on purpose took along" if ended else ""
        )
        lines.append(f"{said}; nodes refused {chaos['bad_frames']:,} frames{besides}")
    return lines


def _repairs(sources: list[dict[str, Any]]) -> list[str]:
    """Of several sources, how long their samples took that were open during a repair."""
    if len(sources) < 2:
        return []
    told = [
        f"node {row['rank']} (class {row['class']}) {_milliseconds(row['repair_ms'])}, else {_milliseconds(row['else_ms'])}"
        for row in sources
    ]
    return [f"mean latency of what was open during a repair: {'; '.join(told)}"]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


def policy_words(exit_point: str, admissions: Iterable[str], redundancy: str) -> str:
    """The policy of a run; no redundancy where there is one chain."""
    return ", ".join(filter(None, [exit_point, " ".join(admissions), redundancy]))


def parts_words(parts: Sequence[int]) -> str:
    """A set of parts that were not in."""
    return ", ".join(map(str, parts)) or "none"


def footnotes(report: dict[str, Any]) -> list[str]:
    """What has to be known to read the figures."""
    overhead = report["overhead_us_per_task"]
    lines = []
    if "missing" not in report:
        lines.append(f"multiply-adds per sample: {percent(report['mean_macs_share'])} of the full network")
    if report["bytes_per_sample"]:
        lines.append(f"activations and inputs over links: {report['bytes_per_sample']:,.0f} bytes per result")
    if "missing" in report:
        answers = report["counts"]["result"]
        lines += [f"raw inputs sent to students: {report['raw_inputs_sent'] / answers:.2f} per result"] if answers else []
        lines += _copies(report["counts"])
    elif report["raw_inputs_sent"]:
        lines.append(f"raw inputs sent on to other nodes: {report['raw_inputs_sent']:,}")
    restarted = [str(row["rank"]) for row in report["nodes"] if row.get("restarted")]
    if restarted:
        lines.append(f"counters of nodes {', '.join(restarted)}: since they were last started")
    if report["generated_inputs"]:
        lines.append("made-up inputs, labelled by the network itself: accuracy says how far answers agree with its own, no more")
    if report["simulated"]:
        lines.append(
            f"simulated: {report['events']:,} events, {percent(report['nodes_running_share'])} of the nodes ran a stage; "
            f"service times of {report['service']}"
        )
    else:
        lines += [*_ran_on(report["nodes"]), *filter(None, [report.get("executor_choice")])]
        lines.append(f"CPU in stages {percent(report['cpu_efficiency'])}, outside them {number(overhead, '.0f')} µs a task")
    if report["shared_machine"] and len(report["nodes"]) > 1:
        cores = report["machine"]["cores"]
        lines.append(
            f"all nodes shared {cores} cores of this machine: throughput measures the sum of their computing, not a line of boards"
        )
    return lines


def _copies(counts: dict[str, int]) -> list[str]:
    """Of students: how many copies went out, and how many of them a second time; reports of older versions do not say."""
    copies = counts.get("copies", 0)
    if not copies:
        return []
    return [f"copies sent to students: {copies:,}, {percent(counts['hedged'] / copies)} of them hedged, as an earlier one was late"]


def _ran_on(nodes: list[dict[str, Any]]) -> list[str]:
    """Which executor ran the stages, node by node where they differ."""
    ranks: dict[str, list[str]] = {}
    for row in nodes:
        if row["executor"] is not None:
            ranks.setdefault(row["executor"], []).append(str(row["rank"]))
    if len(ranks) == 1:
        return [f"stages ran on {next(iter(ranks))}"]
    at = [f"{name} at node{'s' if len(listed) > 1 else ''} {', '.join(listed)}" for name, listed in ranks.items()]
    return [f"stages ran on {'; '.join(at)}"] if at else []

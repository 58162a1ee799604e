"""The results as one HTML page that needs nothing else: no script from elsewhere, no font, no image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from zpipe.bench.suites import frame
from zpipe.bench.suites.rocoin import figures
from zpipe.bench.suites.rocoin.claims import ratio
from zpipe.bench.suites.rocoin.groups import SOUND
from zpipe.bench.suites.rocoin.settings import (
    BANDWIDTH,
    CODEC,
    DEAD,
    DEADLINE_SECONDS,
    DEVICE,
    DYING,
    HEDGED,
    LATENCY,
    LOAD,
    REDUNDANCIES,
    STALLING_SHARE,
    STALLINGS,
    SYSTEMS,
)
from zpipe.bench.suites.rocoin.sweep import SIZES_PROBABILITY
from zpipe.bundle import parts_of
from zpipe.report.page.markup import Value, bullets, figure, folded, grid, paragraph, section, table

Found = dict[str, Any]
Row = dict[str, Any]

_LINKS = {
    "verdict": "verdict",
    "failures": "boards that fail",
    "groups": "groups",
    "stalls": "boards that stall",
    "sizes": "up to 100 boards",
    "students": "students",
    "live": "live",
    "settings": "settings",
    "summary": "all figures",
    "made-on": "made on",
}
_MODELS = {DEAD: "dead from the start", DYING: "dying at a random time of the run"}
_TITLES = {system.name: f"{system.name}: {system.title}" for system in SYSTEMS}


def render_page(found: Found) -> str:
    """The page.

    Args:
        found: what `run_suite` returned.
    """
    sections = (
        _verdict(found),
        _failures(found),
        _groups(found),
        _stalls(found),
        _sizes(found),
        _students(found),
        _live(found),
        _settings(found),
        _summary(found),
        frame.made_on(found, f"pieces of the chain go as {CODEC} where links are limited, inputs as they are"),
    )
    return frame.whole_page(found, sections, _LINKS)


def _legend(rows: Sequence[Row]) -> str:
    marks = "".join(f"<span>{mark}{escape(title)}</span>" for mark, title in figures.legend(rows, _TITLES))
    return f'<div class="legend">{marks}</div>'


def _percent(name: str) -> Callable[[Row], list[float] | None]:
    def take(row: Row) -> list[float] | None:
        value = row[name]
        return None if value is None else [100.0 * value[0], 100.0 * value[1]]

    return take


# ---- the verdict -------------------------------------------------------------------------------------


def _verdict(found: Found) -> str:
    claimed = [claim for claim in found["claims"] if claim["claimed"]]
    held = sum(claim["holds"] for claim in claimed)
    return section(
        "verdict",
        "Verdict",
        bullets(_headlines(found)),
        frame.promise(found),
        "<h3>What was to be shown</h3>",
        paragraph(
            f"{held} of {len(claimed)} claims hold wherever they are asked. Beside each claim: in how many of its cases it "
            "holds, in the simulator and live. A line opens to show them."
        ),
        *(frame.claim_shown(claim, found) for claim in found["claims"]),
    )


def _headlines(found: Found) -> list[str]:
    lines = []
    rows = {(row["system"], row["model"], row["probability"]): row for row in found["failures"]}
    worst = max(row["probability"] for row in found["failures"])
    parts = [
        f"{name} {100 * rows[name, DEAD, worst]['right'][0]:.0f} %"
        for name in ("rocoin-hedged", "chain-replicas", "chain", "one-board", "copies")
    ]
    lines.append(f"Right answers when each board is dead with probability {worst:g}: {', '.join(parts)}.")
    drops = [row for row in found["groups"] if row["gone"].startswith("group ")]
    if drops:
        most = max(drops, key=lambda row: float(row["drop"][0]))
        lines.append(f"Without a whole group accuracy falls by at most {100 * most['drop'][0]:.2f} points ({most['gone']}).")
    value = ratio(found["stalls"], "long")
    if value is not None:
        lines.append(f"While a fifth of the boards stalls, hedged takes {value[0]:.2f} of failover's time at the 99th percentile.")
    return lines


# ---- what was run ------------------------------------------------------------------------------------


def _failures(found: Found) -> str:
    parts = []
    for model, title in _MODELS.items():
        rows = [row for row in found["failures"] if row["model"] == model]
        if not rows:
            continue
        drawn = [
            figure("right answers, of all samples", _drawn(rows, _percent("right"), "of all samples (%)", title, log=False)),
            figure("mean latency, of those answered", _drawn(rows, _value("latency_ms"), "mean (ms)", title, log=True)),
            figure("99th percentile, likewise", _drawn(rows, _value("latency_p99_ms"), "99th percentile (ms)", title, log=True)),
        ]
        parts.append(f"<h3>{escape(title[0].upper() + title[1:])}</h3>{grid(drawn)}")
    systems = found["systems"]
    said = (
        f"Every system has the same {systems['boards']} boards, and the same of them fail; a camera, which never fails, offers "
        f"the same samples to all, {systems['rate_hz']:.2f} a second. No answer within {DEADLINE_SECONDS:g} s is wrong. Each "
        f"point is a mean over {len(found['seeds'])} seeds, for each of which {systems['draws']} runs of {systems['samples']} "
        "samples with other failing boards are pooled; bars are 95 % intervals."
    )
    return section("failures", "Boards that fail", paragraph(said), _legend(found["failures"]), *parts, _given(systems))


def _drawn(rows: Sequence[Row], take: Callable[[Row], Any], y: str, title: str, *, log: bool) -> str:
    says = f"{y} of each system over the probability that a board fails, {title}"
    return figures.over_probability(rows, take, y=y, log=log, says=says)


def _value(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


def _given(systems: Row) -> str:
    rows: list[list[Value]] = [
        [
            row["system"],
            row["title"],
            f"{row['used']} of {row['boards']}",
            "; ".join(_stages(stages) for stages in row["groups"]),
            row["most_bytes"] / 1e3,
            "; ".join(f"{value:.0f}" for value in row["compute_ms"]),
        ]
        for row in systems["rows"]
    ]
    header = ("system", "", "boards used", "stages of each group", "the most a board holds (kB)", "its time for a sample (ms)")
    return folded("What each system makes of the boards", table(header, rows))


def _stages(stages: Sequence[int]) -> str:
    return f"{stages[0]}" if len(stages) == 1 else f"{stages[0]} to {stages[-1]}"


def _groups(found: Found) -> str:
    by_redundancy = {name: [row for row in found["groups"] if row["redundancy"] == name] for name in REDUNDANCIES}
    said = (
        "The whole evaluation set, answer by answer beside the run with all boards. Without a group the answers come from the "
        "students that are left, as sure as calibration found them to be without that part. Points less with their 95 % interval "
        "over digits."
    )
    others = [folded(f"Redundancy {name}", _gone(rows)) for name, rows in by_redundancy.items() if rows and name != HEDGED]
    return section("groups", "Groups", paragraph(said), _gone(by_redundancy[HEDGED]), *others)


def _gone(groups: Sequence[Row]) -> str:
    rows: list[list[Value]] = [
        [
            row["gone"],
            "" if row["gone"] == SOUND else "from the start" if row["when"] == DEAD else "from the middle of the run on",
            100.0 * row["accuracy"],
            [100.0 * value for value in row["drop"]],
            row["other_answers"],
            row["submitted"] - row["answered"],
            row["latency_ms"],
            row["latency_p99_ms"],
        ]
        for row in groups
    ]
    header = (
        "boards that are gone",
        "",
        "accuracy (%)",
        "points less",
        "other answers",
        "without an answer",
        "mean (ms)",
        "99th percentile (ms)",
    )
    return table(header, rows)


def _stalls(found: Found) -> str:
    kinds = [f"{kind.name}: {STALLING_SHARE:.0%} of the boards {kind.title}" for kind in STALLINGS]
    rows: list[list[Value]] = [
        [
            "no stalls" if row["stalling"] == "none" else row["stalling"],
            row["system"],
            _hundred(row["right"]),
            row["latency_ms"],
            row["latency_p50_ms"],
            row["latency_p99_ms"],
            row["tasks"],
            row["busy_ms"],
            row["sent_kb"],
            row["resubmitted"],
        ]
        for row in found["stalls"]
    ]
    header = (
        "stalls",
        "system",
        "right (%)",
        "mean (ms)",
        "median (ms)",
        "99th percentile (ms)",
        "tasks per sample",
        "computing per sample (ms)",
        "kB sent per sample",
        "copies sent again",
    )
    systems = found["systems"]
    said = (
        f"{systems['stalling_boards']} boards, of which a fifth stalls: a board stands still and goes on where it was, its "
        f"connections stay. {systems['stalling_samples']} samples a run, {len(found['seeds'])} seeds."
    )
    drawn = figures.tails(found["stalls"], says="Latency from median to 99th percentile of each system under each kind of stall")
    return section(
        "stalls",
        "Boards that stall",
        paragraph(said),
        bullets(kinds),
        _legend(found["stalls"]),
        grid([figure("latency, and what each redundancy makes of a stall", drawn)], "wide"),
        folded("All figures, and the work that each redundancy costs", table(header, rows)),
    )


def _hundred(value: Sequence[float] | None) -> list[float] | None:
    return None if value is None else [100.0 * each for each in value]


def _sizes(found: Found) -> str:
    rows = found["sizes"]
    says = "of each system over the number of boards"
    drawn = [
        figure(
            "right answers",
            figures.over_devices(rows, _percent("right"), y="of all samples (%)", log=False, says=f"Right answers {says}"),
        ),
        figure(
            "99th percentile",
            figures.over_devices(rows, _value("latency_p99_ms"), y="99th percentile (ms)", log=True, says=f"Latency {says}"),
        ),
        figure(
            "tasks per sample", figures.over_devices(rows, _value("tasks"), y="tasks per sample", log=True, says=f"Work {says}")
        ),
    ]
    said = (
        f"The same camera and arrivals with more and more boards, each dead with probability {SIZES_PROBABILITY:g}: "
        f"{found['systems']['parts']} groups that grow to {max(row['boards'] for row in rows)} boards."
    )
    return section("sizes", "Up to 100 boards", paragraph(said), _legend(rows), grid(drawn))


def _students(found: Found) -> str:
    students = found["students"]
    rows: list[list[Value]] = [
        [
            f"part {row['part']}",
            _stages(row["stages"]),
            row["filters"],
            row["parameters"],
            row["bytes"] / 1e3,
            row["int8_bytes"] / 1e3,
            row["macs"] / 1e6,
        ]
        for row in students["rows"]
    ]
    rows.append(
        [
            f"the network, {students['network']}",
            "",
            None,
            students["network_parameters"],
            students["network_bytes"] / 1e3,
            None,
            students["network_macs"] / 1e6,
        ]
    )
    header = ("student", "stages", "filters", "parameters", "kB", "kB in int8", "million multiply-adds")
    sets: list[list[Value]] = [
        [", ".join(map(str, parts_of(mask))), 100.0 * accuracy] for mask, accuracy in enumerate(students["accuracy"]) if mask
    ]
    said = (
        f"Accuracy on the test split: {100 * students['accuracy'][-1]:.2f} % with all students, "
        f"{100 * students['network_accuracy']:.2f} % for the network they come from (without early exits; "
        f"{100 * students['network_default_accuracy']:.2f} % at its default operating point, which the chain uses)."
    )
    return section(
        "students",
        "Students",
        paragraph(said),
        table(header, rows),
        folded("Accuracy by the set of parts that is in", table(("parts", "accuracy (%)"), sets)),
    )


# ---- live, settings, all figures ---------------------------------------------------------------------


def _live(found: Found) -> str:
    if not found["live"]:
        return section("live", "Live", paragraph("Live parts: not run."))
    rows: list[list[Value]] = [
        [
            row["title"],
            row["system"],
            row["boards"],
            _hundred(row["right"]),
            _hundred(row["simulated_right"]),
            row["latency_ms"],
            row["simulated_latency_ms"],
            _hundred(row["difference_latency_ms"]),
            row["latency_p99_ms"],
            row["simulated_latency_p99_ms"],
            f"{row['answered']} of {row['samples']}",
            row["broken"],
        ]
        for row in found["live"]
    ]
    header = (
        "what happens",
        "system",
        "boards",
        "right (%)",
        "simulated (%)",
        "mean (ms)",
        "simulated (ms)",
        "simulated less live (%)",
        "99th percentile (ms)",
        "simulated (ms)",
        "answered",
        "lost, twice or hanging",
    )
    first = found["live"][0]
    busy = max(row["cores_busy"] for row in found["live"])
    said = (
        f"{first['runs']} runs of each row. {first['how']} They kept this machine's cores busy for {busy:.0%} of the time at most."
    )
    return section("live", "Live against simulated", paragraph(said), table(header, rows))


def _settings(found: Found) -> str:
    systems = found["systems"]
    lines = [
        f"Boards: {DEVICE}, {systems['macs_per_second'] / 1e9:.2f} G multiply-adds a second, so many that groups are equal.",
        f"Links: each board to the camera, and to the boards with the next piece of the chain; {BANDWIDTH}, {LATENCY} one way.",
        f"Arrivals: Poisson, {LOAD:.0%} of what one board computes alone: {systems['rate_hz']:.2f} samples a second, for all.",
        f"A sample expires after {DEADLINE_SECONDS:g} s, and counts as wrong.",
        "The chain has as many pieces as there are students, cut where the dearest is cheapest, early exits counted.",
        "Every piece is on as many boards as a student. The chain runs at its default operating point.",
        "A board fails by itself, whatever others do: who fails at one probability fails at every higher one, under every system.",
        "copies is for the record: where every board can hold the network, nothing beats it. Students are for boards that cannot.",
    ]
    known = (
        "RoCoIn (arXiv:2406.14185) is known to us by its abstract and what others say of it: students distilled to parts of a "
        "teacher's features, groups of boards that hold the same one, answers from what arrives. Its boards, failure rates and "
        "figures are not at hand: none stands here beside ours."
    )
    return section("settings", "Settings", paragraph(known), bullets(lines))


def _summary(found: Found) -> str:
    parts = []
    for model, title in _MODELS.items():
        rows: list[list[Value]] = [
            [
                row["system"],
                row["probability"],
                _hundred(row["right"]),
                _hundred(row["answered"]),
                _hundred(row["right_of_answered"]),
                row["latency_ms"],
                row["latency_p50_ms"],
                row["latency_p99_ms"],
                row["tasks"],
                row["sent_kb"],
                row["resubmitted"],
            ]
            for row in found["failures"]
            if row["model"] == model
        ]
        if rows:
            parts.append(folded(f"Boards that fail, {title}", table(_HEADER, rows)))
    sizes: list[list[Value]] = [
        [
            row["system"],
            row["boards"],
            *[_hundred(row[name]) for name in ("right", "answered", "right_of_answered")],
            *[row[name] for name in ("latency_ms", "latency_p50_ms", "latency_p99_ms", "tasks", "sent_kb", "resubmitted")],
        ]
        for row in found["sizes"]
    ]
    parts.append(folded("Up to 100 boards", table(("system", "boards", *_HEADER[2:]), sizes)))
    return section("summary", "All figures", *parts)


_HEADER = (
    "system",
    "a board fails",
    "right, of all (%)",
    "answered (%)",
    "right, of those (%)",
    "mean (ms)",
    "median (ms)",
    "99th percentile (ms)",
    "tasks per sample",
    "kB sent per sample",
    "copies sent again",
)

"""What the evaluation of RoCoIn was to show, computed from its tables, with the reason where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zpipe.bench.suites.judging import case, judged
from zpipe.bench.suites.rocoin.groups import GROUP, ONE_OF_EACH
from zpipe.bench.suites.statistics import interval

Row = dict[str, Any]
#: {setting: its cases, or why the claim is not asked there}
Found = dict[str, "list[Row] | str"]

#: Wanted: accuracy lost with a whole group; parameters of all students over the network's; bytes of a student with weights in int8;
#: hedged over failover at the 99th percentile; the simulator against live runs.
MOST_DROP, MOST_PARAMETERS, MOST_BYTES, MOST_TAIL, LIVE_GOAL = 0.03, 0.4, 500_000, 0.5, 0.05
#: Stalls in which the 99th percentile is asked for. One that lasts for good costs a few samples once: too few for a percentile.
ASKED_STALLS = ("short", "long")
#: Where claims are judged: short, as there is little room beside a claim.
STUDENTS, SIMULATED, LIVE = "bundle", "sim", "live"
_ROCOIN = "rocoin"


def claims(found: Mapping[str, Any]) -> list[Row]:
    """Each claim: what it says, whether it holds in each setting, and a line for every case that it rests on."""
    return [
        _one_of_each(found),
        _whole_group(found),
        _parameters(found["students"]),
        _bytes(found["students"]),
        _tail(found),
        _promise(found),
        *([_live(found["live"])] if found["live"] else []),
        _more_right(found["failures"]),
        _work(found["stalls"]),
    ]


def _live_case(found: Mapping[str, Any], name: str) -> Row | None:
    return next((row for row in found["live"] if row["case"] == name), None)


# ---- boards that are gone ----------------------------------------------------------------------------


def _one_of_each(found: Mapping[str, Any]) -> Row:
    cases = [
        case(
            f"{row['redundancy']}, {row['when']}",
            row["other_answers"] == 0 and row["answered"] == row["submitted"],
            f"{row['other_answers']} of {row['submitted']} answers differ, accuracy {row['accuracy']:.2%}",
            bound="0 answers",
        )
        for row in found["groups"]
        if row["gone"] == ONE_OF_EACH
    ]
    live = _live_case(found, "one-of-each")
    return judged(
        _ROCOIN,
        "answers as it does with all boards when a board of every group is gone",
        {STUDENTS: "nothing runs", SIMULATED: cases, LIVE: "not run live" if live is None else [_all_answered(live)]},
    )


def _all_answered(row: Row) -> Row:
    """Live: no answer may be missing, and accuracy is what the simulator has of the same samples."""
    same = abs(row["right"][0] - row["simulated_right"][0]) < 0.5 / row["samples"]
    figures = (
        f"{row['answered']} of {row['samples']} answered, accuracy {row['right'][0]:.2%}, simulated {row['simulated_right'][0]:.2%}"
    )
    return case(row["title"], same and row["answered"] == row["samples"], figures, bound="")


def _whole_group(found: Mapping[str, Any]) -> Row:
    cases = [
        case(
            f"{row['redundancy']}, {row['gone']} {row['when']}",
            row["drop"][0] <= MOST_DROP and row["answered"] == row["submitted"],
            f"{_points(row['drop'])} points less, {row['answered']} of {row['submitted']} answered",
            bound="",
            why=_why_dropped(row),
        )
        for row in found["groups"]
        if row["gone"].startswith(f"{GROUP} ")
    ]
    live = _live_case(found, "group")
    return judged(
        _ROCOIN,
        f"loses at most {100 * MOST_DROP:g} points, and no answer, when a whole group is gone",
        {
            STUDENTS: _on_the_test_split(found["students"]),
            SIMULATED: cases,
            LIVE: "not run live" if live is None else [_all_answered(live)],
        },
    )


def _on_the_test_split(students: Row) -> list[Row]:
    """What the bundle says of its test split, of which the evaluation set may be a part."""
    accuracy = students["accuracy"]
    everything = len(accuracy) - 1
    found = []
    for row in students["rows"]:
        left = accuracy[everything ^ 1 << row["part"]]
        less = accuracy[everything] - left
        figures = f"{100 * less:.2f} points less: {left:.2%}, {accuracy[everything]:.2%} with all"
        found.append(case(f"test split, group {row['part']}", less <= MOST_DROP, figures, bound=""))
    return found


def _points(share: Sequence[float]) -> str:
    return f"{100 * share[0]:.2f} ± {100 * share[1]:.2f}"


def _why_dropped(row: Row) -> str:
    if row["answered"] < row["submitted"]:
        return f"{row['submitted'] - row['answered']} samples without an answer"
    return "the other students know too little of that part" if row["drop"][0] > MOST_DROP else ""


# ---- how small students are --------------------------------------------------------------------------


def _parameters(students: Row) -> Row:
    whole, parts = students["network_parameters"], sum(row["parameters"] for row in students["rows"])
    cases: list[Row] | str = f"{students['network']} does not say how many parameters it has"
    if whole:
        figures = f"{parts:,} of {whole:,}: {parts / whole:.1%}"
        cases = [case(f"{len(students['rows'])} students", parts <= MOST_PARAMETERS * whole, figures, bound="")]
    text = f"has at most {MOST_PARAMETERS:.0%} of the network's parameters in all students together"
    return judged(_ROCOIN, text, _of_students(cases))


def _bytes(students: Row) -> Row:
    cases = [
        case(
            f"part {row['part']}",
            row["int8_bytes"] <= MOST_BYTES,
            f"{row['int8_bytes'] / 1e3:.0f} kB with weights in int8, {row['bytes'] / 1e3:.0f} kB as it is",
            bound="",
        )
        for row in students["rows"]
    ]
    return judged(_ROCOIN, f"has no student of more than {MOST_BYTES / 1e3:.0f} kB at int8", _of_students(cases))


def _of_students(cases: list[Row] | str) -> Found:
    return {STUDENTS: cases, SIMULATED: "nothing to run", LIVE: "nothing to run"}


# ---- stalls ------------------------------------------------------------------------------------------


def ratio(rows: Sequence[Row], stalling: str) -> list[float] | None:
    """Hedged over failover at the 99th percentile, over pairs of one seed; None where either has no answers."""
    of_systems = {row["system"]: row for row in rows if row["stalling"] == stalling}
    if not {"rocoin-hedged", "rocoin-failover"} <= of_systems.keys():
        return None
    pairs = zip(of_systems["rocoin-hedged"]["p99_ms_of_seeds"], of_systems["rocoin-failover"]["p99_ms_of_seeds"], strict=True)
    values = [mine / theirs for mine, theirs in pairs if mine is not None and theirs]
    return interval(values) if values else None


def _tail(found: Mapping[str, Any]) -> Row:
    cases = []
    for name in ASKED_STALLS:
        value = ratio(found["stalls"], name)
        if value is None:
            continue
        times = {row["system"]: row["latency_p99_ms"] for row in found["stalls"] if row["stalling"] == name}
        sound = {row["system"]: row["latency_p99_ms"] for row in found["stalls"] if row["stalling"] == "none"}
        figures = f"{_ms(times['rocoin-hedged'])} against {_ms(times['rocoin-failover'])}: {value[0]:.2f} ± {value[1]:.2f} of it"
        least = f"{_ms(sound['rocoin-hedged'])} where nothing stalls"
        cases.append(case(f"{name} stalls", value[0] <= MOST_TAIL, figures, bound=least))
    hedged, failover = _live_case(found, "stall-hedged"), _live_case(found, "stall-failover")
    live: list[Row] | str = "not run live"
    if hedged is not None and failover is not None:
        mine, theirs = hedged["latency_p99_ms"], failover["latency_p99_ms"]
        live = [case("long stalls", mine[0] <= MOST_TAIL * theirs[0], f"{_ms(mine)} against {_ms(theirs)}", bound="")]
    return judged(
        "hedged",
        f"takes at most {MOST_TAIL:.0%} of failover's time at the 99th percentile while a fifth of the boards stalls",
        {STUDENTS: "nothing runs", SIMULATED: cases, LIVE: live},
    )


def _work(rows: Sequence[Row]) -> Row:
    """What redundancy costs: tasks that boards ran for each sample, over failover's."""
    cases = []
    for name in dict.fromkeys(row["stalling"] for row in rows):
        of_systems = {row["system"]: row["tasks"][0] for row in rows if row["stalling"] == name}
        base = of_systems["rocoin-failover"]
        more = {system: of_systems[f"rocoin-{system}"] / base for system in ("hedged", "all")}
        figures = ", ".join(f"{system} {value:.2f}x" for system, value in more.items())
        cases.append(case(f"stalls: {name}", more["hedged"] <= 1.5, f"{figures} of the tasks of failover", bound=""))
    text = "costs at most half as much work again as failover; for the record"
    return judged("hedged", text, {STUDENTS: "nothing runs", SIMULATED: cases, LIVE: "see the table"}, claimed=False)


# ---- all of it ---------------------------------------------------------------------------------------


def _promise(found: Mapping[str, Any]) -> Row:
    tables = {SIMULATED: ("failures", "groups", "stalls", "sizes"), LIVE: ("live",)}
    cases: Found = {STUDENTS: "nothing runs"}
    for setting, names in tables.items():
        rows = [(name, [row["broken"] for row in found[name]]) for name in names if found[name]]
        lines = [case(name, not sum(broken), f"{sum(broken)} samples in {len(broken)} rows", bound="0") for name, broken in rows]
        cases[setting] = lines or "not run live"
    return judged(_ROCOIN, "loses no sample, and answers none twice", cases)


def _live(rows: Sequence[Row]) -> Row:
    cases = []
    for row in rows:
        for name, what in (("right", "accuracy"), ("latency_ms", "mean latency")):
            off = row[f"difference_{name}"]
            said = (
                f"live {row[name][0]:.2%}, simulated {row[f'simulated_{name}'][0]:.2%}"
                if name == "right"
                else f"live {_ms(row[name])}, simulated {_ms(row[f'simulated_{name}'])}"
            )
            figures = f"{said}: {off[0]:+.1%} ± {off[1]:.1%}"
            holds = abs(off[0]) <= LIVE_GOAL
            again = row["resubmitted"], row["simulated_resubmitted"]
            chance = f"copies sent again: live {again[0]}, simulated {again[1]}, which ones is chance"
            why = chance if any(again) else "this machine took another time for its hops than just before"
            said = f"{row['case']}, {row['system']}, {what}"
            cases.append(case(said, holds, figures, bound="", why="" if holds else why))
    text = f"tells accuracy and mean latency of live runs within {LIVE_GOAL:.0%}"
    return judged("the simulator", text, {STUDENTS: "nothing runs", SIMULATED: "against live runs", LIVE: cases})


def _more_right(rows: Sequence[Row]) -> Row:
    """Beside the same boards as a chain: not claimed, as boards that can hold the network are better off with all of it."""
    cases = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_systems: dict[str, dict[float, float]] = {}
        for row in rows:
            if row["model"] == model:
                of_systems.setdefault(row["system"], {})[row["probability"]] = row["right"][0]
        for other in ("chain-replicas", "chain", "one-board", "copies"):
            mine, theirs = of_systems["rocoin-hedged"], of_systems[other]
            listed = ", ".join(f"{at:g}: {100 * (mine[at] - theirs[at]):+.1f}" for at in sorted(mine))
            failing = [at for at in mine if at > 0.0]
            holds = all(mine[at] >= theirs[at] for at in failing)
            cases.append(case(f"{other}, {model}", holds, f"points more right by probability: {listed}", bound=""))
    text = "is right more often than the other systems wherever boards fail; for the record"
    return judged(_ROCOIN, text, {STUDENTS: "nothing runs", SIMULATED: cases, LIVE: "not asked"}, claimed=False)


def _ms(value: Sequence[float] | None) -> str:
    if value is None:
        return "no answer"
    return f"{value[0]:.0f} ± {value[1]:.0f} ms" if value[1] else f"{value[0]:.0f} ms"

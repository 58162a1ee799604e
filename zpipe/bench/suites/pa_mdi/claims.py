"""What the evaluation of PA-MDI was to show, computed from its tables, with the reason where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from zpipe.bench.suites.judging import apart, case, judged
from zpipe.bench.suites.pa_mdi.settings import BASELINES, CLOSED, COMPARED, OPEN, PA_MDI

Row = dict[str, Any]
#: {policy: {load: row}}
Policies = dict[str, dict[float, Row]]
#: {(setting, number of sources, kind of load): its rows}
Sweeps = dict[tuple[str, int, str], Policies]

#: Loads from which on boxes are busy nearly all the time: arrivals as a share of the capacity, data points of each source at once.
HEAVY = {OPEN: 0.9, CLOSED: 4.0}
#: Under open load a policy that answers fewer data points a second than this share of the best policy's does not carry the load:
#: its queues grow as long as arrivals come, and its mean inference time tells how long that was.
CARRIED = 0.95
#: Two means closer than this are the same: a closed loop is as good as free of chance, and so are its intervals.
TIE = 0.02
#: A mean inference time closer to the least possible one than this is the least: samples of one source meet, too.
NEAR = 0.1
#: Wanted of the simulator against live runs.
LIVE_GOAL = 0.05


def sweeps(rows: Sequence[Row]) -> Sweeps:
    """The rows by what they are asked for."""
    found: Sweeps = {}
    for row in rows:
        of_policies = found.setdefault((row["setting"], row["sources"], row["kind"]), {})
        of_policies.setdefault(row["policy"], {})[row["load"]] = row
    return found


def claims(found: Mapping[str, Any]) -> list[Row]:
    """Each claim: what it says, whether it holds in each setting, and a line for every case that it rests on."""
    known = {row["name"]: row for row in found["settings"]}
    table = sweeps(found["sweep"])
    asked = [*_reductions(known, table), *_others(known, table), _answered(known, table)]
    if found["live"]:
        asked.append(_live(known, found["live"]))
    return [claim for claim in asked if claim["cases"]]


# ---- the time-sensitive source -----------------------------------------------------------------------


def _reductions(known: Mapping[str, Row], table: Sweeps) -> Iterator[Row]:
    heavy = f"{HEAVY[OPEN]:g} of the capacity, {HEAVY[CLOSED]:g} data points at once, and on"
    for name in BASELINES:
        text = f"takes as much off the time-sensitive source's mean inference time under {name} as was published"
        where = "at some load of each sweep (published are the largest, too)"
        yield _asked(f"{text}, {where}", known, table, partial(_largest, name))
    for name in BASELINES:
        text = f"does so against {name} at some load that {name} carries; for the record"
        yield _asked(text, known, table, partial(_largest, name, only_carried=True), claimed=False)
    for name in BASELINES:
        text = f"does so against {name} at every heavy load ({heavy}); for the record"
        yield _asked(text, known, table, partial(_heavy, name), claimed=False)
    for name in COMPARED:
        text = f"is at no load slower for the time-sensitive source than {name}"
        yield _asked(text, known, table, partial(_never_slower, name))


#: (setting, label, rows) -> a case, None where it cannot be asked.
_Judge = Callable[[Row, str, Policies], "Row | None"]


def _asked(text: str, known: Mapping[str, Row], table: Sweeps, judge: _Judge, *, claimed: bool = True) -> Row:
    """A case for each sweep of each setting."""
    cases: dict[str, list[Row] | str] = {}
    for name, setting in known.items():
        answers = [
            judge(setting, f"{sources} sources, {kind}", policies)
            for (where, sources, kind), policies in table.items()
            if where == name
        ]
        cases[name] = [answer for answer in answers if answer is not None]
    return judged(PA_MDI, text, cases, claimed=claimed)


def _largest(baseline: str, setting: Row, label: str, policies: Policies, *, only_carried: bool = False) -> Row | None:
    mine, theirs = policies.get(PA_MDI, {}), policies.get(baseline)
    if not mine or theirs is None:
        return None
    asked = {load: row for load, row in mine.items() if not only_carried or carries(policies, baseline, load)}
    listed = _listed(policies, baseline)
    if not asked:
        return case(label, False, listed, bound="", why=f"{baseline} carries none of these loads")
    wanted = setting["published"][baseline]
    best = max(asked.values(), key=lambda row: float(row["reduction"][baseline][0]))
    reached = best["reduction"][baseline]
    holds = reached[0] >= wanted
    most = _most(setting, theirs[best["load"]])
    figures = f"{-reached[0]:+.1%} at {best['load']:g}, published {-wanted:+.1%}; all loads: {listed}"
    why = "" if holds else _why(reached[0], most, wanted)
    return case(label, holds, figures, bound=f"{-most:+.1%} at {best['load']:g}", why=why)


def carries(policies: Policies, policy: str, load: float) -> bool:
    """Whether a policy answers as many data points a second as any does at that load."""
    most = max(rows[load]["rate_hz"][0] for rows in policies.values() if load in rows)
    kept: bool = policies[policy][load]["rate_hz"][0] >= CARRIED * most
    return kept or policies[policy][load]["kind"] == CLOSED


def _listed(policies: Policies, baseline: str) -> str:
    """What pa-mdi changes at each load; a star where the baseline does not carry it."""
    rows = sorted(policies[PA_MDI].items())
    parts = [(f"{load:g}{'' if carries(policies, baseline, load) else '*'}", row["reduction"][baseline]) for load, row in rows]
    starred = f" (*: more than {baseline} carries)" if any("*" in load for load, _ in parts) else ""
    return ", ".join(f"{load}: {_share(change)}" for load, change in parts) + starred


def _heavy(baseline: str, setting: Row, label: str, policies: Policies) -> Row | None:
    least = HEAVY[CLOSED if CLOSED in label else OPEN]
    mine = {load: row for load, row in policies.get(PA_MDI, {}).items() if load >= least}
    theirs = policies.get(baseline)
    if not mine or theirs is None:
        return None
    wanted = setting["published"][baseline]
    short = {load: row for load, row in mine.items() if row["reduction"][baseline][0] < wanted}
    figures = ", ".join(f"{load:g}: {_share(row['reduction'][baseline])}" for load, row in sorted(mine.items()))
    bounds = ", ".join(f"{load:g}: {-_most(setting, theirs[load]):+.0%}" for load in sorted(mine))
    why = "; ".join(
        f"{load:g}: {_why(row['reduction'][baseline][0], _most(setting, theirs[load]), wanted)}"
        for load, row in sorted(short.items())
    )
    return case(label, not short, f"{figures}; published {-wanted:+.1%}", bound=bounds, why=why)


def _never_slower(other: str, setting: Row, label: str, policies: Policies) -> Row | None:
    mine, theirs = policies.get(PA_MDI, {}), policies.get(other)
    if not mine or theirs is None:
        return None
    slower = [load for load, row in sorted(mine.items()) if _slower(row["latency_ms"][0], theirs[load]["latency_ms"][0])]
    pairs = ", ".join(
        f"{load:g}: {_ms(row['latency_ms'][0])} against {_ms(theirs[load]['latency_ms'][0])}" for load, row in sorted(mine.items())
    )
    why = f"slower at {', '.join(f'{load:g}' for load in slower)}" if slower else ""
    bounds = ", ".join(f"{load:g}: {least_ms(setting, row['kind'], load):.0f} ms" for load, row in sorted(mine.items()))
    return case(label, not slower, pairs, bound=bounds, why=why)


def _slower(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    return apart(mine, theirs) and mine[0] > (1.0 + TIE) * theirs[0]


def least_ms(setting: Row, kind: str, load: float) -> float:
    """The least mean inference time of the time-sensitive source that any policy could reach.

    Open load: what a data point takes where all boxes are idle. Closed load: so many of its data points are under way all the time,
    and all boxes together end no more than their capacity (Little's law: under way = rate x time), even if nobody else had any.
    """
    alone = float(setting["least_ms"])
    return max(alone, 1e3 * load / float(setting["capacity_hz"])) if kind == CLOSED else alone


def _most(setting: Row, baseline: Row) -> float:
    """What any policy could take off a baseline's mean inference time."""
    return 1.0 - least_ms(setting, baseline["kind"], baseline["load"]) / float(baseline["latency_ms"][0][0])


def _why(reached: float, most: float, wanted: float) -> str:
    if most < wanted:
        return "nothing could: the least time possible is longer than that"
    left = (most - reached) / (1.0 - most)
    return "the least time possible is nearly reached" if left <= NEAR else f"takes {1.0 + left:.2f}x the least time possible"


# ---- the others, and all -----------------------------------------------------------------------------


def _others(known: Mapping[str, Row], table: Sweeps) -> Iterator[Row]:
    """What priority costs those without it."""
    for name in COMPARED:
        text = f"lets the other sources wait no longer than {name} does, at every load; for the record"
        yield _asked(text, known, table, partial(_paid, name), claimed=False)


def _paid(other: str, setting: Row, label: str, policies: Policies) -> Row | None:
    mine, theirs = policies.get(PA_MDI, {}), policies.get(other)
    if not mine or theirs is None:
        return None
    ratios = {load: others_ms(row) / others_ms(theirs[load]) for load, row in sorted(mine.items())}
    longer = [load for load, ratio in ratios.items() if ratio > 1.0 + TIE]
    figures = ", ".join(f"{load:g}: {ratio:.2f}x" for load, ratio in ratios.items())
    why = f"longer at {', '.join(f'{load:g}' for load in longer)}: what one source waits less others wait more" if longer else ""
    return case(label, not longer, f"their mean inference time over that under {other}: {figures}", bound="", why=why)


def others_ms(row: Row) -> float:
    """Mean inference time of the sources without priority, which all offer the same."""
    others = [value[0] for value in row["latency_ms"][1:]]
    return float(sum(others) / len(others))


def _answered(known: Mapping[str, Row], table: Sweeps) -> Row:
    def judge(setting: Row, label: str, policies: Policies) -> Row | None:
        rows = policies.get(PA_MDI)
        if rows is None:
            return None
        least = min(share[0] for row in rows.values() for share in row["answered"])
        return case(label, least == 1.0, f"{least:.2%} of the data points of each source, at least", bound="")

    return _asked("starves nobody: every data point of every source is answered, in overload, too", known, table, judge)


def _live(known: Mapping[str, Row], rows: Sequence[Row]) -> Row:
    cases: dict[str, list[Row] | str] = dict.fromkeys(known, "not run live")
    for row in rows:
        for index, rank in enumerate(row["ranks"]):
            apart_by = row["difference"][index]
            figures = f"live {_ms(row['latency_ms'][index])}, simulated {_ms(row['simulated_ms'][index])}: {_share(apart_by)}"
            said = f"{row['policy']}, {row['kind']} {row['load']:g}, source at rank {rank}"
            answer = case(said, abs(apart_by[0]) <= LIVE_GOAL, figures, bound="")
            mine = cases[row["setting"]]
            cases[row["setting"]] = [*mine, answer] if isinstance(mine, list) else [answer]
    return judged("the simulator", f"tells mean inference times of live runs within {LIVE_GOAL:.0%}, source by source", cases)


def _share(value: Sequence[float]) -> str:
    """A change, in per cent: a reduction is less than nothing."""
    return f"{-value[0]:+.1%}" + (f" ± {value[1]:.1%}" if value[1] else "")


def _ms(value: Sequence[float]) -> str:
    return f"{value[0]:.0f} ± {value[1]:.0f} ms" if value[1] else f"{value[0]:.0f} ms"

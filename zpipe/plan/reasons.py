"""Why groups are as they are, in a few lines: who hosts what, how often a part is missing, what limits it, what would help."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from zpipe.plan.explain import FACTOR, LEAST_GAIN, LEAST_GAP, MOST_ASKED, faster_link_name, some_names
from zpipe.plan.grouping import TooFew, find_groups
from zpipe.plan.groups import percent
from zpipe.plan.problem import Problem, named
from zpipe.plan.rocoin import GroupPlan, group_case

#: Steps of the exact search for each question: what would help need not be proven.
ASKED_STEPS = 5_000


def explain_groups(found: GroupPlan) -> list[str]:
    """A line on the whole, one for each part, then what misses, what limits, what nothing could exceed and what would help."""
    lines = [_gives(found), *(_part(found, part) for part in found.case.parts), _missing(found)]
    lines += [_limits(found), _bound(found)]
    lines += [f"device: {_said(found, list(_boards(found)))}", f"link: {_said(found, list(_links(found)))}"]
    return lines + _left_out(found)


# ---- what it gives -----------------------------------------------------------------------------


def _gives(found: GroupPlan) -> str:
    plan = found.plan
    point = "without exits" if plan.point is None else f"at point {plan.point.name}"
    hosting = sum(map(len, found.groups))
    rate = f"{plan.rate_hz:.4g} results/s while all live" if plan.rate_hz < math.inf else "no limit of results/s"
    return (
        f"plan: {plan.topology.bundle} {point}, {len(found.groups)} students on {hosting} devices, {found.redundancy}: slowest "
        f"group {_ms(plan.latency_seconds)}, all parts in after {_ms(found.all_in_seconds)} for a sample alone, {rate}"
    )


def _part(found: GroupPlan, part: int) -> str:
    case, group = found.case, found.groups[part]
    quick = sorted(group, key=lambda board: case.seconds[part][board])
    who = some_names([f"{found.boards[board].name} {_ms(case.seconds[part][board])}" for board in quick])
    stages = ", ".join(map(str, found.chains[part]))
    return (
        f"part {part}: stages [{stages}] on {who}: {_ms(case.part_seconds(part, group))} until the fastest that lives answers, "
        f"missing {percent(case.part_missing(group))}"
    )


def _missing(found: GroupPlan) -> str:
    case, groups = found.case, found.groups
    most = max(case.part_missing(group) for group in groups)
    line = f"missing: a part {percent(most)} at most (asked: {case.missing:g}); all parts are in for {percent(case.all_in(groups))}"
    if found.accuracy is None:
        return line
    return line + f"; accuracy {found.accuracy:.4f} expected on calibration, {found.by_parts[-1]:.4f} with all parts"


def _limits(found: GroupPlan) -> str:
    case, problem = found.case, found.plan.problem
    part = max(case.parts, key=lambda part: case.part_seconds(part, found.groups[part]))
    board = min(found.groups[part], key=lambda board: case.seconds[part][board])
    computing = sum(problem.reach[stage] * problem.lone_seconds(board, stage) for stage in found.chains[part])
    way = case.seconds[part][board] - computing
    there = f"{named(found.boards[board])} computes {_ms(computing)}"
    there += f", the way there and back takes {_ms(way)}" if way > 0.0 else ""
    line = f"bottleneck: part {part}, whose fastest is {there}"
    rate, loads = found.plan.rate_hz, found.plan.loads
    return line + (f"; at {rate:.4g} results/s {loads[0].name} is always busy" if rate < math.inf else "")


def _bound(found: GroupPlan) -> str:
    grouping, case = found.grouping, found.case
    without = case.slowest_seconds(grouping.needed)
    line = f"bound: no grouping has a slowest group below {_ms(grouping.bound)} ({found.plan.layout.method})"
    gap = without / grouping.bound - 1.0 if grouping.bound > 0.0 else 0.0
    line += f"; this one {f'{100 * gap:.1f} % more' if gap > LEAST_GAP else 'as much'}"
    spare = sum(map(len, grouping.groups)) - sum(map(len, grouping.needed))
    if not spare:
        return line
    several = f"{spare} spare devices answer" if spare > 1 else "1 spare device answers"
    return line + f" before its spares: {several} where a part would be missing, and count as late"


def _left_out(found: GroupPlan) -> list[str]:
    problem = found.plan.problem
    source = problem.boards.source
    hosting = {board for group in found.groups for board in group} | {source}
    out = [at for at in range(len(found.boards)) if at not in hosting]
    far = [at for at in out if problem.boards.link(source, at) is None]
    small = [at for at in out if at not in far]
    why = [
        f"{some_names([found.boards[at].name for at in some])} ({reason})"
        for some, reason in ((far, "no link to the source"), (small, "too little memory for a student"))
        if some
    ]
    return [f"left out: {', '.join(why)}"] if why else []


# ---- what would help ---------------------------------------------------------------------------


def _boards(found: GroupPlan) -> Iterator[tuple[str, Problem]]:
    """The fastest ones of the slowest groups, and one more of each kind."""
    case, problem = found.case, found.plan.problem
    slow = sorted(case.parts, key=lambda part: -case.part_seconds(part, found.groups[part]))
    for part in slow[: MOST_ASKED // 2]:
        board = min(found.groups[part], key=lambda board: case.seconds[part][board])
        yield f"{found.boards[board].name} twice as fast", problem.with_faster_board(board, FACTOR)
    kinds = {(board.device, board.memory_bytes): at for at, board in reversed(list(enumerate(found.boards)))}
    for board in sorted(kinds.values())[:MOST_ASKED]:
        if board != problem.boards.source:
            yield f"another {found.boards[board].name}", problem.with_one_more(board)


def _links(found: GroupPlan) -> Iterator[tuple[str, Problem]]:
    """Those of the slowest groups that have a limit."""
    case, problem = found.case, found.plan.problem
    slow = sorted(case.parts, key=lambda part: -case.part_seconds(part, found.groups[part]))
    hosts = [board for part in slow for board in sorted(found.groups[part], key=lambda board: case.seconds[part][board])]
    seen: set[str] = set()
    for board in hosts:
        pair = {problem.boards.source, board}
        for at, link in enumerate(problem.boards.links):
            if set(link.between) == pair and link.bandwidth_bps < math.inf and len(seen) < MOST_ASKED:
                name = faster_link_name(problem, at)
                if name not in seen:
                    seen.add(name)
                    yield name, problem.with_faster_link(at, FACTOR)


def _said(found: GroupPlan, changes: Sequence[tuple[str, Problem]]) -> str:
    if not changes:
        return "none of them limits this plan"
    gains = sorted(((_gain(found, problem), change) for change, problem in changes), reverse=True)
    helping = [(gain, change) for gain, change in gains if gain >= LEAST_GAIN]
    if not helping:
        return f"no single one would help ({gains[0][1]}: nothing)"
    return "; ".join(f"{change}: -{100 * gain:.0f} %" for gain, change in helping[:2])


def _gain(found: GroupPlan, changed: Problem) -> float:
    """Of the slowest group's time, spares left aside."""
    case = group_case(changed, found.chains, missing=found.case.missing, redundancy=found.redundancy)
    before = found.case.slowest_seconds(found.grouping.needed)
    try:
        after = case.slowest_seconds(find_groups(case, start=found.grouping.needed, most_steps=ASKED_STEPS).needed)
    except TooFew:  # a medium that one more board would share
        return 0.0
    return 1.0 - after / before if before > 0.0 else 0.0


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"

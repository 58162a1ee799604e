"""Why a plan is as it is, in five lines: what it gives, what limits it, what nothing could exceed, what would help.

A sixth tells of a deadline that is not the usual one, a last one warns where nodes are seen to reach less than was computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zpipe.errors import ConfigError
from zpipe.plan.mesh import mesh_bound
from zpipe.plan.planner import Plan, full_seconds, solve
from zpipe.plan.problem import Problem
from zpipe.plan.program import Clock, still
from zpipe.topology import SourceSpec

#: What is asked about: a board or a link so many times as fast.
FACTOR = 2.0
#: So many boards, kinds of boards and links are asked about, the busiest first.
MOST_ASKED = 4
#: Busier than this share of the busiest it may hold the others up.
BUSY_ENOUGH = 0.5
#: As busy as the busiest, but for the solver's rounding and the slack for fewer replicas.
ALWAYS_BUSY = 0.97
#: A gain below it is none; a plan that is closer to its bound has reached it.
LEAST_GAIN, LEAST_GAP = 0.005, 5e-4
#: A trial that gives so much less than what was computed is told.
MOST_LOST = 0.05
#: So many names of a kind, or slices of a line, are told; of more than that the first ones and their number.
MOST_NAMED = 4


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A change, and what it would give.

    Attributes:
        change: in words.
        gain: relative, 0..: so much more samples per second, or so much less time; None where its time was over.
    """

    change: str
    gain: float | None


def explain(plan: Plan, *, time_limit: float, clock: Clock = still) -> list[str]:
    """The five lines, and one on its deadline and a warning where there is reason.

    Args:
        plan: as `make_plan` gave it.
        time_limit: seconds the solver may take for all questions together, where it is a mesh.
        clock: monotonic seconds; without one each solver's run is limited, not their sum.
    """
    boards = better_boards(plan, time_limit=time_limit / 2.0, clock=clock)
    links = better_links(plan, time_limit=time_limit / 2.0, clock=clock)
    lines = [_gives(plan), _limits(plan), _bound(plan), f"device: {_said(plan, boards)}", f"link: {_said(plan, links)}"]
    return lines + _deadline(plan) + _warning(plan)


# ---- what it gives -----------------------------------------------------------------------------


def _gives(plan: Plan) -> str:
    bundle = plan.topology.bundle
    point = "without exits" if plan.point is None else f"at point {plan.point.name}"
    accuracy = "" if plan.point is None else f", accuracy {plan.point.calibration.accuracy:.3f} on calibration"
    rate = f"{plan.sustained_hz:.4g} results/s" if plan.sustained_hz < math.inf else "no limit of results/s"
    if plan.tried_hz is not None:
        slower = plan.tried_hz < plan.rate_hz
        rate += f" simulated ({plan.rate_hz:.4g} on paper)" if slower else f" (simulated {plan.tried_hz:.4g})"
    alone = f"{1e3 * plan.latency_seconds:.3g} ms for a sample alone"
    figures = f"{rate}, {alone}" if plan.goal == "throughput" else f"{alone}, {rate}"
    return f"plan: {bundle} {point} on {_boards(plan)}: {figures}{accuracy}"


def _boards(plan: Plan) -> str:
    hosting = {board: stages for board, stages in plan.layout.hosted.items() if stages}
    names = {board: plan.problem.boards.boards[board].name for board in hosting}
    if plan.layout.replicated:
        groups: dict[tuple[int, ...], list[str]] = {}
        for board, stages in hosting.items():
            groups.setdefault(stages, []).append(names[board])
        if any(len(alike) > MOST_NAMED for alike in groups.values()):
            return "; ".join(f"{some_names(alike)} {list(stages)}" for stages, alike in groups.items())
        return ", ".join(f"{names[board]} {list(stages)}" for board, stages in hosting.items())
    return " -> ".join(f"{names[board]} {list(stages)}" for board, stages in hosting.items())


def some_names(names: Sequence[str]) -> str:
    """Those that there are, or the first and how many more."""
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 2])} and {len(names) - MOST_NAMED + 2} more"


def _limits(plan: Plan) -> str:
    if not plan.loads or plan.rate_hz == math.inf:
        return "bottleneck: nothing here takes time"
    if plan.goal == "latency":
        return f"bottleneck: {_slowest(plan)}"
    busiest = [load for load in plan.loads if load.seconds * plan.rate_hz >= ALWAYS_BUSY]
    rest = plan.loads[len(busiest) :]
    each = f"{1e3 * plan.loads[0].seconds:.3g} ms per sample"
    line = f"bottleneck: {some_names([load.name for load in busiest])} (always busy at that rate: {each})"
    return line + (f"; then {rest[0].name} ({100 * rest[0].seconds * plan.rate_hz:.0f} %)" if rest else "")


def _slowest(plan: Plan) -> str:
    """For a lone sample: on what its time goes."""
    problem, layout = plan.problem, plan.layout
    parts: dict[str, float] = {}
    for (board, stage), tasks in layout.run.items():
        name = f"board {problem.boards.boards[board].name}"
        parts[name] = parts.get(name, 0.0) + tasks * problem.lone_seconds(board, stage)
    on_links = plan.latency_seconds - sum(parts.values())
    if on_links > 0.0:
        parts["links"] = on_links
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in ordered) + " of each sample, on average"


def _bound(plan: Plan) -> str:
    bound = plan.layout.bound
    if plan.goal == "latency":
        return f"bound: no placement takes less than {1e3 * bound:.3g} ms ({plan.layout.method})"
    if bound == math.inf:
        return f"bound: no placement gives more than any rate ({plan.layout.method})"
    line = f"bound: no placement gives more than {bound:.4g} results/s on paper ({plan.layout.method})"
    line += f"; this one {_below(plan.rate_hz, bound)}"
    return line if plan.tried_hz is None else f"{line}, simulated {_below(plan.tried_hz, bound)}"


def _below(rate: float, bound: float) -> str:
    """How far a rate is from a bound. A trial replays other samples than those that were computed with, and may do more."""
    gap = 1.0 - rate / bound
    return f"{100 * gap:.1f} % less" if gap > LEAST_GAP else "as much" if gap > -LEAST_GAP else f"{-100 * gap:.1f} % more"


def _deadline(plan: Plan) -> list[str]:
    topology, usual = plan.topology, SourceSpec(0).deadline_seconds
    deadline = topology.sources[0].deadline_seconds
    if deadline == usual:
        return []
    waits = full_seconds(plan.rate_hz, topology.nodes[0], topology.links)
    why = f"a sample that finds every place taken takes {waits:.0f} s (usual: {usual:g} s)"
    return [f"deadline: {deadline:g} s, as {why}; where the newest alone counts, set `when_full: latest`"]


def _warning(plan: Plan) -> list[str]:
    if plan.tried_hz is None or plan.tried_hz >= (1.0 - MOST_LOST) * plan.rate_hz:
        return []
    less = 100 * (1.0 - plan.tried_hz / plan.rate_hz)
    why = "each decides by what it sees around it"
    advice = "count on the simulated rate, or compare a line (`--shape line`)"
    return [f"warning: nodes reach {less:.0f} % less than was computed, in the simulator: {why}; {advice}"]


# ---- what would help ---------------------------------------------------------------------------


def better_boards(plan: Plan, *, time_limit: float, clock: Clock = still) -> list[WhatIf]:
    """What a faster or a further board would give, the best first."""
    return _answers(plan, list(_board_changes(plan)), time_limit, clock)


def better_links(plan: Plan, *, time_limit: float, clock: Clock = still) -> list[WhatIf]:
    """What a faster link would give, the best first."""
    return _answers(plan, list(_link_changes(plan)), time_limit, clock)


def _board_changes(plan: Plan) -> Iterator[tuple[str, Problem]]:
    problem, least = plan.problem, BUSY_ENOUGH * (plan.loads[0].seconds if plan.loads else 0.0)
    boards = problem.boards.boards
    busy = [load.boards[0] for load in plan.loads if len(load.boards) == 1 and (load.seconds >= least or plan.goal == "latency")]
    for board in busy[:MOST_ASKED]:
        yield f"{boards[board].name} twice as fast", problem.with_faster_board(board, FACTOR)
    kinds = {(board.device, board.memory_bytes): at for at, board in reversed(list(enumerate(boards)))}
    for board in sorted(kinds.values())[:MOST_ASKED]:
        if plan.goal == "throughput":
            yield f"another {boards[board].name}", problem.with_one_more(board)


def _link_changes(plan: Plan) -> Iterator[tuple[str, Problem]]:
    """Links that may hold something up: busy ones, and those that are not used because they are slow."""
    problem = plan.problem
    used = {frozenset(load.boards): load.seconds for load in plan.loads if len(load.boards) == 2}
    order = sorted(
        (at for at, link in enumerate(problem.boards.links) if link.bandwidth_bps < math.inf),
        key=lambda at: (-used.get(frozenset(problem.boards.links[at].between), 0.0), problem.boards.links[at].bandwidth_bps),
    )
    seen: set[str] = set()
    for at in order:
        name = faster_link_name(problem, at)
        if name not in seen and len(seen) < MOST_ASKED:
            seen.add(name)
            yield name, problem.with_faster_link(at, FACTOR)


def faster_link_name(problem: Problem, index: int) -> str:
    """What is asked about: the link, or its medium, with `FACTOR` times the bandwidth."""
    link, boards = problem.boards.links[index], problem.boards.boards
    a, b = link.between
    name = f"medium {link.medium}" if link.medium else f"{boards[a].name}-{boards[b].name}"
    return f"{name} at {_mbit(FACTOR * link.bandwidth_bps)}"


def _mbit(bps: float) -> str:
    return f"{bps / 1e6:g} Mbit/s"


def _answers(plan: Plan, changes: list[tuple[str, Problem]], time_limit: float, clock: Clock) -> list[WhatIf]:
    ends = clock() + time_limit
    found = []
    for at, (change, problem) in enumerate(changes):
        left = ends - clock()
        gain: float | None = None
        if plan.shape == "line" or left > 0.0:
            try:
                gain = _gain(plan, problem, left / (len(changes) - at))
            except ConfigError:  # no answer in its time; or a further board makes too many ways
                pass
        found.append(WhatIf(change, gain))
    return sorted(found, key=lambda answer: -math.inf if answer.gain is None else answer.gain, reverse=True)


def _gain(plan: Plan, changed: Problem, time_limit: float) -> float | None:
    """By what is proven for each: the best there is, before and after; None where that is not known in time."""
    if plan.layout.timed_out:
        return None
    if plan.shape == "mesh" and plan.goal == "throughput":
        after, late = mesh_bound(changed, time_limit=time_limit)
    else:
        layout = solve(changed, plan.goal, plan.shape, time_limit=time_limit)
        after, late = layout.bound, layout.timed_out
    before = plan.layout.bound
    if late:
        return None
    if not 0.0 < before < math.inf or not 0.0 < after < math.inf:
        return 0.0
    return after / before - 1.0 if plan.goal == "throughput" else 1.0 - after / before


def _said(plan: Plan, answers: list[WhatIf]) -> str:
    if not answers:
        return "none of them limits this plan"
    known = [(answer.change, answer.gain) for answer in answers if answer.gain is not None]
    helping = [(change, gain) for change, gain in known if gain >= LEAST_GAIN]
    if not helping and len(known) < len(answers):
        return f"not known within the time ({answers[-1].change}?); give it longer (`--time-limit`)"
    if not helping:
        return f"no single one would help ({known[0][0]}: nothing)"
    more = "+" if plan.goal == "throughput" else "-"
    return "; ".join(f"{change}: {more}{100 * gain:.0f} %" for change, gain in helping[:2])

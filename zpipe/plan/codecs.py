"""Which codec each link of a layout gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zpipe.model import AUTO_CODEC
from zpipe.plan.layout import Goal, Layout, latency_seconds, loads, rate_hz
from zpipe.plan.problem import Problem
from zpipe.topology import LinkSpec

#: A codec that costs less accuracy is taken where it gives up no more of the goal than this: its encoding is not in the numbers.
CODEC_SLACK = {"throughput": 1e-6, "latency": 0.01}
#: Share of a link's time that may be planned for what nodes might send over it (as `zpipe.codecs.choice.BUSY`).
BUSY = 0.8


def choose_codecs(problem: Problem, layout: Layout, goal: Goal) -> dict[tuple[int, int], str]:
    """For each link of the layout the most accurate codec that costs the goal nothing to speak of.

    1. The layout was found with one family of codecs (`Problem.families`), on each link the one with the fewest bytes for what
       crosses it; that is what has to be kept.
    2. The first family in order of accuracy (`none` alone, then `none` beside one lossy codec) that keeps it is taken.
    3. Link by link, from the least used, the most accurate of the family that still keeps it. Where stages have several hosts,
       nodes choose whom to send what, and may send more over a link than the plan does: there a codec must leave it room for
       all that may come.
    """
    links = [link for link in problem.boards.links if link.between in layout.links]
    every = problem.families
    last = layout.codecs or every[-1]
    smallest = {link.between: _tightest(problem, layout, link, last) for link in links}
    best = _cost(problem, layout, smallest, goal) * (1.0 + CODEC_SLACK[goal])
    rate = rate_hz(loads(problem, layout, {}))
    used = {link.between: 0.0 for link in links}
    for (a, b, stage), tasks in layout.sent.items():
        used[min(a, b), max(a, b)] += tasks * problem.stages[stage].input.bytes
    for family in every:
        chosen = {link.between: _tightest(problem, layout, link, family) for link in links}
        crowded = goal != "latency" and not all(_has_room(problem, layout, link, chosen[link.between], rate) for link in links)
        if family != last and (crowded or not _keeps(problem, layout, smallest, chosen, goal, best)):
            continue
        for link in sorted(links, key=lambda link: used[link.between]):
            if link.codec == AUTO_CODEC:
                able = [name for name in family if goal == "latency" or _has_room(problem, layout, link, name, rate)]
                tries = [{**chosen, link.between: name} for name in able]
                chosen = next((each for each in tries if _keeps(problem, layout, chosen, each, goal, best)), chosen)
        return chosen
    raise AssertionError("the layout's own family is taken whatever it costs")


def _tightest(problem: Problem, layout: Layout, link: LinkSpec, family: Sequence[str]) -> str:
    """The link's own codec, else the one with the fewest bytes for what crosses it, else for what may."""
    if link.codec != AUTO_CODEC:
        return link.codec
    crossing = {stage: tasks for (a, b, stage), tasks in layout.sent.items() if {a, b} == set(link.between)}

    def size(name: str) -> tuple[float, float]:
        sizes = problem.link_bytes(link, name)
        most = sum(share * each for share, each in zip(problem.reach, sizes, strict=True))
        return sum(tasks * sizes[stage] for stage, tasks in crossing.items()), most

    return min(family, key=size)


def _keeps(
    problem: Problem,
    layout: Layout,
    now: Mapping[tuple[int, int], str],
    then: Mapping[tuple[int, int], str],
    goal: Goal,
    best: float,
) -> bool:
    """Whether other codecs still give the best, and no link that had time to spare loses it: queues grow steeply above BUSY."""
    if goal == "latency":
        return _cost(problem, layout, then, goal) <= best
    before = {load.name: load.seconds for load in loads(problem, layout, now)}
    after = [load for load in loads(problem, layout, then) if not load.name.startswith("board ")]
    return all(load.seconds <= max(BUSY * best, before[load.name]) for load in after)


def _has_room(problem: Problem, layout: Layout, link: LinkSpec, codec: str, rate: float) -> bool:
    """Whether the link could carry, one way, every sample at each stage that one of its ends may send the other, at this rate."""
    if not layout.replicated:
        return True
    seconds = problem.link_seconds(link, codec)
    for a, b in (link.between, link.between[::-1]):
        lanes = [stage for stage in layout.hosted[b] if stage - 1 in layout.hosted[a]]
        if rate * sum(problem.reach[stage] * seconds[stage] for stage in lanes) > BUSY:
            return False
    return True


def _cost(problem: Problem, layout: Layout, codecs: Mapping[tuple[int, int], str], goal: Goal) -> float:
    """Seconds, the less the better."""
    if goal == "latency":
        return latency_seconds(problem, layout, codecs)
    found = loads(problem, layout, codecs)
    return found[0].seconds if found else 0.0

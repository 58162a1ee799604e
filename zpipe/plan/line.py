"""Plans for a line: each board at most one slice of consecutive stages, none twice; exact (`zpipe.plan.chain`)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from zpipe.plan.chain import Chain, Costs, best_chain, leanest_chain, shared_chain
from zpipe.plan.cuts import cannot_hold, link_costs
from zpipe.plan.layout import Goal, Layout
from zpipe.plan.problem import Problem


def plan_line(problem: Problem, goal: Goal) -> Layout:
    """The best line, whatever codecs its links get: a link of a line carries what waits for one stage, so one codec is its best.

    Raises:
        ConfigError: no line of these boards holds the network.
    """
    found = [_best_line(problem.within(family), goal) for family in problem.smallest_families]
    return min(found, key=lambda layout: layout.bound) if goal == "latency" else max(found, key=lambda layout: layout.bound)


def _best_line(problem: Problem, goal: Goal) -> Layout:
    """With the codecs that are open here."""
    boards = problem.boards
    count, reach = len(problem.stages), np.asarray(problem.reach)
    slices = np.stack([_slices(problem, board, goal) for board in range(len(boards.boards))])
    slices[boards.source, 0, 0] = 0.0
    crossing = partial(problem.link_bytes, alone=goal == "latency")
    links, airtime = link_costs(boards, crossing, reach, latency=goal == "latency")
    found: Chain | None
    if goal == "latency":
        found = best_chain(slices, links + airtime, source=boards.source, combine="sum")
    elif airtime.any():
        found = shared_chain(slices, links, airtime, source=boards.source)
    else:
        found = leanest_chain(slices, links, source=boards.source)
    if found is None:
        raise cannot_hold(boards, weights=sum(problem.weight_bytes), stages=count)
    hosted = {each.device: tuple(range(each.first, each.end)) for each in found.slices}
    run = {(each.device, stage): problem.reach[stage] for each in found.slices for stage in range(each.first, each.end)}
    sent = {(a.device, b.device, b.first): problem.reach[b.first] for a, b in pairwise(found.slices)}
    bound = found.cost if goal == "latency" else 1.0 / found.cost if found.cost else np.inf
    pairs = frozenset((min(a, b), max(a, b)) for a, b, _ in sent)
    method = "exact, by dynamic programming over all lines of these boards and all codecs they may have"
    return Layout(hosted, run, sent, pairs, float(bound), method, problem.open)


def _slices(problem: Problem, board: int, goal: Goal) -> Costs:
    """`[stages + 1, stages + 1]`: seconds per sample; inf where the board cannot hold the slice."""
    count = len(problem.stages)
    costs = np.full((count + 1, count + 1), np.inf)
    for first in range(count):
        total = 0.0
        for end in range(first + 1, count + 1):
            stage = end - 1
            lone = goal == "latency"
            total += problem.reach[stage] * (problem.lone_seconds(board, stage) if lone else problem.seconds(board, stage, first))
            if problem.holds(board, range(first, end)):
                costs[first, end] = total
    return costs

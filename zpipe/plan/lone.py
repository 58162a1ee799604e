"""Plans for a lone sample on any graph of boards: the way that takes least, one board for each stage; a mixed-integer program.

Binary: stage k runs at board i. Continuous: the sample comes there from j. The sum of computing, links and the answer's way back,
by the probability that a sample gets so far, is least; stages that share a board share its memory.

An answer takes as few links as there are, so what its way costs depends on the whole placement. It is never quicker than over the
quickest links: with these the program gives a bound. Placements are then tried in the order of that bound, each with the way back
it really has, until the next bound shows that no better one is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from zpipe.errors import ConfigError
from zpipe.plan.layout import Layout, latency_seconds
from zpipe.plan.problem import Problem
from zpipe.plan.program import Found, Name, OutOfTime, Program, memory_unit

#: A placement this close to what is proven is good enough.
CLOSE = 0.002
#: So many placements are tried at most.
MOST_TRIED = 60


def plan_lone(problem: Problem, *, time_limit: float) -> Layout:
    """The placement with the least mean time of a lone sample, whatever codecs its links get.

    Raises:
        ConfigError: no placement exists, or none was found in time.
        BackendUnavailable: scipy is not here.
    """
    families = problem.smallest_families
    tried = [_in_time(problem.within(family), time_limit / len(families)) for family in families]
    found = [each for each in tried if isinstance(each, Layout)]
    late = next((each for each in tried if isinstance(each, OutOfTime)), None)
    if not found and late is not None:
        raise late
    best = min(found, key=lambda layout: _cost(problem, layout))
    # A family without an answer may take no time at all.
    return replace(best, bound=0.0 if late is not None else min(layout.bound for layout in found))


def _in_time(problem: Problem, time_limit: float) -> Layout | OutOfTime:
    """The best, or why there is none."""
    try:
        return _best(problem, time_limit)
    except OutOfTime as exc:
        return exc


def _best(problem: Problem, time_limit: float) -> Layout:
    """With the codecs that are open here."""
    program = _program(problem, _quickest_back(problem), twice=False)
    best, bound = _guess(problem, time_limit / 4.0), 0.0
    for tried in range(MOST_TRIED):
        try:
            found = program.solve(problem, time_limit=time_limit / 4.0)
        except OutOfTime:
            if best is None:
                raise
            break
        except ConfigError:
            if best is None:
                raise
            bound = _cost(problem, best)  # there is no further placement
            break
        bound = max(bound, found.bound)
        layout = _layout(problem, found)
        if best is None or _cost(problem, layout) < _cost(problem, best):
            best = layout
        if bound >= (1.0 - CLOSE) * _cost(problem, best) or found.timed_out:
            break
        placed = {name: 1.0 for name, value in found.values.items() if name[0] == "hosts" and value > 0.5}
        program.most(("another", tried), placed, len(problem.stages) - 1.0)
    assert best is not None, "the first search found one, or raised"
    bound = min(bound, _cost(problem, best))
    gap = 1.0 - bound / _cost(problem, best)
    said = "proven by HiGHS, " + (f"gap {100 * gap:.1f} %" if gap > CLOSE else "no gap")
    return Layout(best.hosted, best.run, best.sent, best.links, bound, said, problem.open)


def _cost(problem: Problem, layout: Layout) -> float:
    return latency_seconds(problem, layout, {})


def _guess(problem: Problem, time_limit: float) -> Layout | None:
    """A good placement to begin with: answers go back along the way the sample came, as they do where there are no other links."""
    nothing = dict.fromkeys(_quickest_back(problem), 0.0)
    try:
        return _layout(problem, _program(problem, nothing, twice=True).solve(problem, time_limit=time_limit))
    except ConfigError:
        return None


def _program(problem: Problem, back: Mapping[int, float], *, twice: bool) -> Program:
    """The way of a lone sample that takes least.

    Args:
        problem: the numbers.
        back: {board: seconds of an answer from there}; boards that are not in it are not used.
        twice: whether each link's latency counts for the way back as well.
    """
    boards, reach = problem.boards, (*problem.reach, 0.0)
    everyone, last = range(len(boards.boards)), len(problem.stages) - 1
    program = Program()
    for board in everyone:
        room = problem.room(board)
        program.highs["memory", board] = room / memory_unit(problem, board) if room < math.inf else math.inf
        for stage in range(last + 1):
            name: Name = ("hosts", board, stage)
            program.column(name, high=float(board in back), whole=True)
            answers = (reach[stage] - reach[stage + 1]) * back.get(board, 0.0)
            program.cost[name] = reach[stage] * problem.lone_seconds(board, stage) + answers
            program.rows["once", stage][name] = 1.0
            program.lows["once", stage] = program.highs["once", stage] = 1.0
            program.rows["memory", board][name] = problem.memory(board, stage) / memory_unit(problem, board)
            # What runs here came from somewhere, and goes on from where it ran.
            program.balance(f"into {stage}", board)[name] = -1.0
            if stage < last:
                program.balance(f"out of {stage + 1}", board)[name] = -1.0
    program.balance("out of 0", boards.source)[("start",)] = -1.0
    program.column(("start",), low=1.0, high=1.0)
    for a, b, stage, seconds in _moves(problem, 2.0 if twice else 1.0):
        name = ("send", a, b, stage)
        program.column(name, high=1.0)
        program.cost[name] = reach[stage] * seconds
        program.balance(f"into {stage}", b)[name] = 1.0
        program.balance(f"out of {stage}", a)[name] = 1.0
    return program


def _quickest_back(problem: Problem) -> dict[int, float]:
    """{board: seconds of the quickest way to the source}, whatever links it takes: no answer is quicker."""
    back = {problem.boards.source: 0.0}
    for _ in problem.boards.boards:
        for link in problem.boards.links:
            for a, b in (link.between, link.between[::-1]):
                if a in back:
                    back[b] = min(back.get(b, math.inf), back[a] + link.latency_seconds)
    return back


def _moves(problem: Problem, ways: float) -> Iterator[tuple[int, int, int, float]]:
    """From where to where a sample may go for a stage, and what that takes; staying takes nothing."""
    for stage in range(len(problem.stages)):
        for board in range(len(problem.boards.boards)):
            yield board, board, stage, 0.0
        for link in problem.boards.links:
            seconds = ways * link.latency_seconds + problem.link_seconds(link, alone=True)[stage]
            for a, b in (link.between, link.between[::-1]):
                if stage or a == problem.boards.source:
                    yield a, b, stage, seconds


def _layout(problem: Problem, found: Found) -> Layout:
    where = {name[2]: name[1] for name, value in found.values.items() if name[0] == "hosts" and value > 0.5}
    hosted: dict[int, tuple[int, ...]] = {problem.boards.source: ()}
    run: dict[tuple[int, int], float] = {}
    sent: dict[tuple[int, int, int], float] = {}
    before = problem.boards.source
    for stage in range(len(problem.stages)):
        board: Any = where[stage]
        hosted[board] = (*hosted.get(board, ()), stage)
        run[board, stage] = problem.reach[stage]
        if board != before:
            sent[before, board, stage] = problem.reach[stage]
        before = board
    way = frozenset((min(a, b), max(a, b)) for a, b, _ in sent)
    every = frozenset(link.between for link in problem.boards.links if all(board in hosted for board in link.between))
    # A slow link that tasks do not use may be better left out.
    made = [Layout(hosted, run, sent, links, found.bound, "", problem.open) for links in (way, every)]
    return min(made, key=lambda layout: latency_seconds(problem, layout, {}))

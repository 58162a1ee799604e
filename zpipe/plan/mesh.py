"""Plans for throughput on any graph of boards, with replicas: a mixed-integer program.

Binary: board i hosts stage k. Continuous: the rate let in at the source; tasks of stage k run at i, and sent over each link
direction. Constraints: those of `zpipe.plan.bounds` (conservation, one second of computing in a second, bandwidth, what came over a
link runs before it goes on, raw inputs only away from their source); only hosts run; memory; each host of a stage hosts the next
one or has a link to a host of it (`zpipe.topology.check`). The solver's own dual bound says what no placement can exceed.

Nodes decide by what they see around them, and some plans they cannot follow: where the only host of a late stage takes early ones
as well, its neighbours give it too many of these. So there is a choice of plans, each a little worse on paper and simpler: with as
few replicas as a part of the rate allows, and in layers.

Source: ours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from zpipe.errors import ConfigError
from zpipe.plan.cuts import cannot_hold
from zpipe.plan.layout import Layout
from zpipe.plan.problem import Problem
from zpipe.plan.program import Found, Name, Program, memory_unit, method

#: A flow below this share of the rate is the solver's rounding.
LEAST_FLOW = 1e-6
#: The second search, for fewer replicas, may give up so much of the rate; the first is what a plan without trials takes.
RATE_SLACKS = (0.01, 0.03, 0.06, 0.1)
#: What a task sent per sample weighs there against a stage hosted: of plans with as few replicas the one that sends least.
SEND_WEIGHT = 0.1


def plan_mesh(problem: Problem, *, time_limit: float) -> Layout:
    """The placement with about the highest rate; every link with the smallest codec it may have.

    Args:
        problem: the numbers.
        time_limit: seconds the solver may take.

    Raises:
        ConfigError: no placement exists, or none was found in time.
        BackendUnavailable: scipy is not here.
    """
    return next(mesh_choices(problem, time_limit=time_limit))


def mesh_choices(problem: Problem, *, time_limit: float) -> Iterator[Layout]:
    """Placements that differ, the best on paper first; all with the bound of any placement.

    Raises:
        ConfigError, BackendUnavailable: as `plan_mesh`, for the first.
    """
    program, most = _flow_program(problem), _most(problem)
    found = program.solve(problem, time_limit=time_limit)
    bound, how = -found.bound * most, method(found)
    seen = []
    for slack in RATE_SLACKS:
        layout = _flow_layout(problem, _leanest(problem, program, found, slack, time_limit / 2.0), bound=bound, method=how)
        if layout.hosted not in seen:
            seen.append(layout.hosted)
            yield layout
    try:
        program = _flow_program(problem)
        _add_layers(program, problem)
        found = program.solve(problem, time_limit=time_limit)
        layout = _flow_layout(problem, _leanest(problem, program, found, RATE_SLACKS[0], time_limit / 2.0), bound=bound, method=how)
    except ConfigError:  # in layers it does not fit, or not within the time
        return
    if layout.hosted not in seen:
        yield layout


def _leanest(problem: Problem, program: Program, best: Found, slack: float, time_limit: float) -> Mapping[Name, float]:
    """About the same rate, with as few replicas as it takes: they cost memory and buy little."""
    rate = best.values["rate",]
    program.least("enough", {("rate",): 1.0}, rate * (1.0 - slack))
    weights = {"hosts": 1.0, "send": SEND_WEIGHT / rate} if rate else {"hosts": 1.0}
    program.cost = {name: weights[kind] for name in program.columns if (kind := str(name[0])) in weights}
    try:
        return program.solve(problem, time_limit=time_limit).values
    except ConfigError:  # not within its time
        return best.values


def _flow_program(problem: Problem) -> Program:
    boards, stages = problem.boards, range(len(problem.stages))
    everyone = range(len(boards.boards))
    hops = _hops(problem)
    program = Program()
    # Flows are shares of what the boards could do at most, so that all numbers are of about one size: the solver's tolerances are
    # absolute.
    most = _most(problem)
    program.column(("rate",), high=1.0)
    program.cost = {("rate",): -1.0}
    program.balance("0", boards.source)["rate",] = 1.0
    for board in everyone:
        for stage in stages:
            program.column(("hosts", board, stage), high=1.0, whole=True)
            program.column(("run", board, stage), high=1.0)
            seconds = problem.seconds(board, stage) * most
            able = min(problem.reach[stage], 1.0 / seconds if seconds > 0.0 else math.inf)
            program.most(("able", board, stage), {("run", board, stage): 1.0, ("hosts", board, stage): -able}, 0.0)
            program.balance(str(stage), board)["run", board, stage] = -1.0
            program.rows["busy", board]["run", board, stage] = seconds
            program.rows["memory", board]["hosts", board, stage] = problem.memory(board, stage) / memory_unit(problem, board)
            if stage + 1 < len(problem.stages):
                program.balance(str(stage + 1), board)["run", board, stage] = problem.survive[stage]
                program.rows["leaves", board, stage + 1]["run", board, stage] = -problem.survive[stage]
        program.highs["busy", board] = 1.0
        room = problem.room(board)
        program.highs["memory", board] = room / memory_unit(problem, board) if room < math.inf else math.inf
    for name in list(program.rows):
        if name[0] == "leaves":
            program.highs[name] = 0.0
    _add_sends(program, problem, hops)
    _add_ways_on(program, problem)
    return program


def _add_sends(program: Program, problem: Problem, hops: Mapping[int, int]) -> None:
    boards, most = problem.boards, _most(problem)
    for link in boards.links:
        seconds = [each * most for each in problem.link_seconds(link)]
        for a, b in (link.between, link.between[::-1]):
            for stage in range(len(problem.stages)):
                if stage == 0 and not hops.get(a, math.inf) < hops.get(b, -math.inf):
                    continue
                name: Name = ("send", a, b, stage)
                program.column(name)
                program.balance(str(stage), a)[name] = -1.0
                program.balance(str(stage), b)[name] = 1.0
                if stage:
                    program.rows["leaves", a, stage][name] = 1.0
                elif a != boards.source:
                    # Raw inputs go on from a node that hosts stage 0 (policy rule S3).
                    able = program.high["run", a, 0]
                    program.most(("passes", a, b), {name: 1.0, ("hosts", a, 0): -able}, 0.0)
                if seconds[stage] > 0.0:
                    row: Name = ("medium", link.medium) if link.medium else ("link", a, b)
                    program.rows[row][name] = seconds[stage]
                    program.highs[row] = 1.0


def _add_ways_on(program: Program, problem: Problem) -> None:
    """Each host of a stage hosts the next one or has a link to a host of it; the source the same for stage 0."""
    boards = problem.boards
    near = _near(problem)
    for board in range(len(boards.boards)):
        for stage in range(len(problem.stages)):
            here: dict[Name, float] = {("hosts", other, stage): -1.0 for other in (board, *near[board])}
            if stage:
                program.most(("on", board, stage), {**here, ("hosts", board, stage - 1): 1.0}, 0.0)
            elif board == boards.source:
                program.most(("on", board, stage), here, -1.0)


def _add_layers(program: Program, problem: Problem) -> None:
    """Between two stages is a cut or none: without one every board has both or neither, with one nobody has both."""
    stages = range(len(problem.stages))
    for stage in stages[1:]:
        cut: Name = ("cut", stage)
        program.column(cut, high=1.0, whole=True)
        for board in range(len(problem.boards.boards)):
            here, before = ("hosts", board, stage), ("hosts", board, stage - 1)
            program.most(("alike", board, stage), {here: 1.0, before: -1.0, cut: -1.0}, 0.0)
            program.most(("alike too", board, stage), {before: 1.0, here: -1.0, cut: -1.0}, 0.0)
            program.most(("apart", board, stage), {here: 1.0, before: 1.0, cut: 1.0}, 2.0)
    for board in range(len(problem.boards.boards)):
        for stage in stages:
            began: Name = ("begins", board, stage)
            program.column(began, high=1.0)
            row: dict[Name, float] = {("hosts", board, stage): 1.0, began: -1.0}
            if stage:
                row["hosts", board, stage - 1] = -1.0
            program.most(("begins", board, stage), row, 0.0)
        program.most(("one slice", board), {("begins", board, stage): 1.0 for stage in stages}, 1.0)


def _most(problem: Problem) -> float:
    """Samples per second that all boards together could do, each the whole network, without links."""
    whole = [
        sum(share * problem.seconds(board, stage) for stage, share in enumerate(problem.reach))
        for board in range(len(problem.boards.boards))
    ]
    return sum(1.0 / max(1e-12, seconds) for seconds in whole)


def _flow_layout(problem: Problem, values: Mapping[Name, float], *, bound: float, method: str) -> Layout:
    rate = values["rate",]
    if rate <= 0.0:
        raise cannot_hold(problem.boards, weights=sum(problem.weight_bytes), stages=len(problem.stages))
    run: dict[Any, float] = {}
    sent: dict[Any, float] = {}
    needed: dict[Any, set[Any]] = defaultdict(set)
    for (kind, *where), value in values.items():
        share = value / rate
        if kind == "run" and share > LEAST_FLOW:
            run[tuple(where)] = share
        elif kind == "send" and share > LEAST_FLOW:
            sent[tuple(where)] = share
        elif kind == "hosts" and value > 0.5:
            needed[where[0]].add(where[1])
    source = problem.boards.source
    order = sorted((board for board in needed if board != source), key=lambda board: (min(needed[board]), board))
    hosted = {board: tuple(sorted(needed[board])) for board in (source, *order)}
    pairs = frozenset((min(a, b), max(a, b)) for a, b, _ in sent)
    return Layout(hosted, run, sent, pairs, dict.fromkeys(hosted, 0), bound, method)


def _near(problem: Problem) -> dict[int, list[int]]:
    near: dict[int, list[int]] = {board: [] for board in range(len(problem.boards.boards))}
    for link in problem.boards.links:
        a, b = link.between
        near[a].append(b)
        near[b].append(a)
    return near


def _hops(problem: Problem) -> dict[int, int]:
    """{board: links from the source}."""
    near, hops = _near(problem), {problem.boards.source: 0}
    ring = [problem.boards.source]
    while ring:
        farther = [far for board in ring for far in near[board] if far not in hops]
        hops.update(dict.fromkeys(farther, hops[ring[0]] + 1))
        ring = list(dict.fromkeys(farther))
    return hops

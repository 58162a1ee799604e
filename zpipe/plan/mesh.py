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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from zpipe.errors import ConfigError
from zpipe.plan.cuts import cannot_hold
from zpipe.plan.layout import Layout
from zpipe.plan.problem import Problem
from zpipe.plan.program import Clock, Found, Name, OutOfTime, Program, memory_unit, still

#: A flow below this share of the rate is the solver's rounding.
LEAST_FLOW = 1e-6
#: Seconds of work, where a profile says none.
LEAST_WORK = 1e-12
#: The second search, for fewer replicas, may give up so much of the rate; the first is what a plan without trials takes.
RATE_SLACKS = (0.01, 0.03, 0.06, 0.1)
#: What a task sent per sample weighs there against a stage hosted: of plans with as few replicas the one that sends least.
SEND_WEIGHT = 0.1


def mesh_bound(problem: Problem, *, time_limit: float) -> tuple[float, bool]:
    """What no placement exceeds with any codecs, as `mesh_choices` gives it, without a placement; and whether time was over.

    Raises:
        ConfigError: no placement exists.
        BackendUnavailable: scipy is not here.
    """
    families = problem.smallest_families
    bounds = [_full_bound(problem.within(family), time_limit / len(families)) for family in families]
    return max(bound for bound, _ in bounds), any(late for _, late in bounds)


class _Searched(NamedTuple):
    """One family of codecs: its problem, the program and the best values."""

    problem: Problem
    program: Program
    found: Found

    @property
    def rate(self) -> float:
        return self.found.values["rate",] * _most(self.problem)


def plan_mesh(problem: Problem, *, time_limit: float, clock: Clock = still) -> Layout:
    """The placement with about the highest rate.

    Args:
        problem: the numbers.
        time_limit: seconds the search may take, roughly.
        clock: monotonic seconds; without one each solver's run is limited, not their sum.

    Raises:
        ConfigError: no placement exists.
        OutOfTime: none was found in time.
        BackendUnavailable: scipy is not here.
    """
    return next(mesh_choices(problem, time_limit=time_limit, clock=clock))


def mesh_choices(problem: Problem, *, time_limit: float, clock: Clock = still) -> Iterator[Layout]:
    """Placements that differ, the best on paper first; all with the bound of any placement with any codecs.

    A link has one codec for all that crosses it; the program takes the smallest of a family for each stage, so its bound holds
    whatever the codecs. It is solved for each family (`Problem.smallest_families`), and half of the time is for that.

    Raises:
        ConfigError, OutOfTime, BackendUnavailable: as `plan_mesh`, for the first.
    """
    ends = clock() + time_limit
    searched, bound, late = _searched(problem, time_limit / 2.0)
    seen = []
    for search in searched:
        for layout in _layouts(search, lambda: ends - clock(), time_limit):
            if layout.hosted not in seen:
                seen.append(layout.hosted)
                yield replace(layout, bound=bound, method="proven by HiGHS" + ", as far as its time went" * late, timed_out=late)


def _searched(problem: Problem, time_limit: float) -> tuple[list[_Searched], float, bool]:
    """Each family's search, the best first; what no placement exceeds; whether time was over in one."""
    families, alike = problem.smallest_families, not _batches_matter(problem)
    time_limit = time_limit if alike else time_limit / 2.0
    searched, bound, late, cut = [], 0.0, None, False
    for family in families:
        there = problem.within(family)
        program = _flow_program(there)
        try:
            found = program.solve(there, time_limit=time_limit / len(families))
        except OutOfTime as exc:
            late, bound = exc, max(bound, _most(there))
            continue
        searched.append(_Searched(there, program, found))
        full, out = (-found.bound * _most(there), False) if alike else _full_bound(there, time_limit / len(families))
        bound, cut = max(bound, full), cut or out or found.timed_out
    if not searched and late is not None:
        raise late
    searched.sort(key=lambda search: -search.rate)
    return searched, bound, late is not None or cut


def _batches_matter(problem: Problem) -> bool:
    """Whether some board does more of a stage when samples come to it there, in full batches."""
    boards, stages = range(len(problem.boards.boards)), range(len(problem.stages))
    return any(problem.seconds(board, stage) > problem.seconds(board, stage, stage) for board in boards for stage in stages)


def _full_bound(problem: Problem, time_limit: float) -> tuple[float, bool]:
    """What no placement exceeds, whatever comes to a board where: as if all its batches were full; and whether time was over."""
    try:
        found = _flow_program(problem, full=True).solve(problem, time_limit=time_limit)
    except OutOfTime:
        return _most(problem), True
    return -found.bound * _most(problem), found.timed_out


def _layouts(search: _Searched, left: Clock, time_limit: float) -> Iterator[Layout]:
    """With fewer and fewer replicas, then in layers; when the time is over, only the first."""
    problem, program, found = search
    for slack in RATE_SLACKS:
        if left() <= 0.0 and slack != RATE_SLACKS[0]:
            return
        yield _flow_layout(problem, _leanest(problem, program, found, slack, min(left(), time_limit / 8.0)))
    if left() <= 0.0:
        return
    try:
        program = _flow_program(problem)
        _add_layers(program, problem)
        found = program.solve(problem, time_limit=min(left(), time_limit / 4.0))
        values = _leanest(problem, program, found, RATE_SLACKS[0], min(left(), time_limit / 8.0))
        layout = _flow_layout(problem, values)
    except ConfigError:  # in layers it does not fit, or not within the time
        return
    yield layout


def _leanest(problem: Problem, program: Program, best: Found, slack: float, time_limit: float) -> Mapping[Name, float]:
    """About the same rate, with as few replicas as it takes: they cost memory and buy little."""
    rate = best.values["rate",]
    if time_limit <= 0.0:
        return best.values
    program.least("enough", {("rate",): 1.0}, rate * (1.0 - slack))
    weights = {"hosts": 1.0, "send": SEND_WEIGHT / rate} if rate else {"hosts": 1.0}
    program.cost = {name: weights[kind] for name in program.columns if (kind := str(name[0])) in weights}
    try:
        return program.solve(problem, time_limit=time_limit).values
    except ConfigError:  # not within its time
        return best.values


def _flow_program(problem: Problem, *, full: bool = False) -> Program:
    """Shares of `_most` for rates.

    Args:
        problem: the numbers.
        full: whether all batches are full, which they are where samples come in; else all samples come in at stage 0.
    """
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
            seconds = problem.seconds(board, stage, stage if full else 0) * most
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
    """Samples per second that no placement exceeds: the stage of which all that can hold it together do least.

    The whole network on each board would be no bound: where a stage has a price of its own, boards that share stages out do more.
    """
    rates = []
    for stage, share in enumerate(problem.reach):
        able = [board for board in range(len(problem.boards.boards)) if problem.holds(board, [stage])]
        if share > 0.0:
            rates.append(sum(1.0 / max(LEAST_WORK, share * problem.seconds(board, stage, stage)) for board in able))
    return max(LEAST_WORK, min(rates))


def _flow_layout(problem: Problem, values: Mapping[Name, float]) -> Layout:
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
    pairs = {(min(a, b), max(a, b)) for a, b, _ in sent}
    pairs |= _ways_on(problem, hosted, pairs)
    return Layout(hosted, run, sent, frozenset(pairs), 0.0, "", problem.open)


def _ways_on(problem: Problem, hosted: Mapping[int, Sequence[int]], pairs: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Links over which nothing is planned to go, but without which a host has no way to the next stage; the fastest there are."""
    added: set[tuple[int, int]] = set()
    for board, stages in hosted.items():
        wanted = {stage + 1 for stage in stages if stage + 1 < len(problem.stages)} | (
            {0} if board == problem.boards.source else set()
        )
        for stage in sorted(wanted - set(stages)):
            able = [
                link
                for link in problem.boards.links
                if board in link.between and stage in hosted.get(sum(link.between) - board, ())
            ]
            if able and not any(link.between in pairs or link.between in added for link in able):
                added.add(min(able, key=lambda link: problem.link_seconds(link)[stage]).between)
    return added


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

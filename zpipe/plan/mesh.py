"""Plans for any graph of boards, with replicas: a mixed-integer program, solved by HiGHS.

*Throughput.* Binary: board i hosts stage k. Continuous: the rate let in at the source; tasks of stage k run at i, and sent over
each link direction. Constraints: those of `zpipe.plan.bounds` (conservation, one second of computing in a second, bandwidth,
what came over a link runs before it goes on, raw inputs only away from their source); only hosts run; memory; each host of a stage
hosts the next one or has a link to a host of it (`zpipe.topology.check`). Of the placements with about the best rate one with the
fewest replicas.

*Latency.* Binary: stage k of a lone sample runs at i. Continuous: it comes there from j. The sum of computing, links and the
answer's way back, by the probability that a sample gets so far, is least; memory as above.

The solver's own dual bound says what no placement can exceed.

Source: ours; HiGHS (Huangfu and Hall, doi:10.1007/s12532-017-0130-5) through scipy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.plan.chain import Costs
from zpipe.plan.cuts import cannot_hold
from zpipe.plan.layout import Goal, Layout, latency_seconds, ways_back
from zpipe.plan.problem import Problem

#: A flow below this share of the rate is the solver's rounding.
LEAST_FLOW = 1e-6
#: The second search, for fewer replicas, may give up so much of the rate: nodes find their way to a simple plan more exactly.
RATE_SLACK = 0.01
#: What a task sent per sample weighs there against a stage hosted: of plans with as few replicas the one that sends least.
SEND_WEIGHT = 0.1
#: scipy's status of a search that ended at its limit of time.
_LIMIT = 1

Name = tuple[Hashable, ...]


class _Found(NamedTuple):
    values: Mapping[Name, float]
    objective: float
    bound: float
    gap: float
    timed_out: bool


def plan_mesh(problem: Problem, goal: Goal, *, time_limit: float, layers: bool = False) -> Layout:
    """The best placement found; every link with the smallest codec it may have.

    Args:
        problem: the numbers.
        goal: what is best.
        time_limit: seconds the solver may take.
        layers: throughput: only placements where each board has one slice of consecutive stages, and two boards the same or none
            in common: a line of groups. Nodes decide by what they see around them; where the only host of a late stage takes
            early ones as well, they give it too many of these, and a better plan on paper does worse.

    Raises:
        ConfigError: no placement exists, or none was found in time.
        BackendUnavailable: scipy is not here.
    """
    return _throughput(problem, time_limit, layers) if goal == "throughput" else _latency(problem, time_limit)


# ---- throughput --------------------------------------------------------------------------------


def _throughput(problem: Problem, time_limit: float, layers: bool) -> Layout:
    program = _flow_program(problem)
    if layers:
        _add_layers(program, problem)
    found = program.solve(problem, time_limit=time_limit)
    rate = found.values["rate",]
    most = _most(problem)
    # The same rate, with as few replicas as it takes: they cost memory and buy nothing.
    program.least("enough", {("rate",): 1.0}, rate * (1.0 - RATE_SLACK))
    weights = {"hosts": 1.0, "send": SEND_WEIGHT / rate} if rate else {"hosts": 1.0}
    program.cost = {name: weights[kind] for name in program.columns if (kind := str(name[0])) in weights}
    try:
        lean = program.solve(problem, time_limit=time_limit / 2.0)
    except ConfigError:  # not within its time
        lean = found
    return _flow_layout(problem, lean.values, bound=-found.bound * most, method=_method(found))


def _flow_program(problem: Problem) -> _Program:
    boards, stages = problem.boards, range(len(problem.stages))
    everyone = range(len(boards.boards))
    hops = _hops(problem)
    program = _Program()
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
            program.rows["memory", board]["hosts", board, stage] = problem.memory(board, stage) / _unit(problem, board)
            if stage + 1 < len(problem.stages):
                program.balance(str(stage + 1), board)["run", board, stage] = problem.survive[stage]
                program.rows["leaves", board, stage + 1]["run", board, stage] = -problem.survive[stage]
        program.highs["busy", board] = 1.0
        room = problem.room(board)
        program.highs["memory", board] = room / _unit(problem, board) if room < math.inf else math.inf
    for name in list(program.rows):
        if name[0] == "leaves":
            program.highs[name] = 0.0
    _add_sends(program, problem, hops)
    _add_ways_on(program, problem)
    return program


def _add_sends(program: _Program, problem: Problem, hops: Mapping[int, int]) -> None:
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


def _add_ways_on(program: _Program, problem: Problem) -> None:
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


def _add_layers(program: _Program, problem: Problem) -> None:
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


# ---- latency -----------------------------------------------------------------------------------


def _latency(problem: Problem, time_limit: float) -> Layout:
    """Answers take as few links as there are, so which links a topology has matters twice.

    No answer is quicker than over the quickest links: that gives the bound. Layouts are looked for with three guesses of its way
    (the quickest, the fewest links of all there are, back along the way it came), and the best of them is taken.
    """
    quickest = _quickest_back(problem)
    fewest = ways_back(problem, {link.between for link in problem.boards.links})
    first = _path(problem, quickest, twice=False, time_limit=time_limit / 3.0)
    others = [
        _path(problem, fewest, twice=False, time_limit=time_limit / 3.0),
        _path(problem, dict.fromkeys(quickest, 0.0), twice=True, time_limit=time_limit / 3.0),
    ]
    made = [_path_layout(problem, found, first) for found in (first, *others)]
    return min(made, key=lambda layout: latency_seconds(problem, layout, {}))


def _path(problem: Problem, back: Mapping[int, float], *, twice: bool, time_limit: float) -> _Found:
    """The way of a lone sample that takes least.

    Args:
        problem: the numbers.
        back: {board: seconds of an answer from there}; boards that are not in it are not used.
        twice: whether each link's latency counts for the way back as well.
        time_limit: seconds for the solver.
    """
    boards, reach = problem.boards, (*problem.reach, 0.0)
    everyone, last = range(len(boards.boards)), len(problem.stages) - 1
    program = _Program()
    for board in everyone:
        room = problem.room(board)
        program.highs["memory", board] = room / _unit(problem, board) if room < math.inf else math.inf
        for stage in range(last + 1):
            name: Name = ("hosts", board, stage)
            program.column(name, high=float(board in back), whole=True)
            answers = (reach[stage] - reach[stage + 1]) * back.get(board, 0.0)
            program.cost[name] = reach[stage] * problem.lone_seconds(board, stage) + answers
            program.rows["once", stage][name] = 1.0
            program.lows["once", stage] = program.highs["once", stage] = 1.0
            program.rows["memory", board][name] = problem.memory(board, stage) / _unit(problem, board)
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
    return program.solve(problem, time_limit=time_limit)


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
            seconds = ways * link.latency_seconds + problem.link_seconds(link)[stage]
            for a, b in (link.between, link.between[::-1]):
                if stage or a == problem.boards.source:
                    yield a, b, stage, seconds


def _path_layout(problem: Problem, found: _Found, proof: _Found) -> Layout:
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
    made = [Layout(hosted, run, sent, links, dict.fromkeys(hosted, 0), proof.bound, _method(proof)) for links in (way, every)]
    return min(made, key=lambda layout: latency_seconds(problem, layout, {}))


def _unit(problem: Problem, board: int) -> float:
    """Bytes that memory is counted in: all stages together are about 1."""
    return max(1.0, sum(problem.memory(board, stage) for stage in range(len(problem.stages))))


# ---- the solver --------------------------------------------------------------------------------


class _Program:
    """Rows and columns by name; minimises `cost`."""

    def __init__(self) -> None:
        self.columns: dict[Name, int] = {}
        self.cost: dict[Name, float] = {}
        self.low: dict[Name, float] = {}
        self.high: dict[Name, float] = {}
        self.whole: set[Name] = set()
        self.rows: dict[Name, dict[Name, float]] = defaultdict(dict)
        self.lows: dict[Name, float] = {}  #: of rows; -inf where absent
        self.highs: dict[Name, float] = {}

    def column(self, name: Name, *, low: float = 0.0, high: float = math.inf, whole: bool = False) -> None:
        """A variable."""
        self.columns[name] = len(self.columns)
        self.low[name], self.high[name] = low, high
        if whole:
            self.whole.add(name)

    def balance(self, what: str, board: int) -> dict[Name, float]:
        """A row that is 0."""
        name: Name = ("balance", what, board)
        self.lows[name] = self.highs[name] = 0.0
        return self.rows[name]

    def most(self, name: Name, row: Mapping[Name, float], high: float) -> None:
        """A row that is at most so much."""
        self.rows[name] = dict(row)
        self.highs[name] = high

    def least(self, name: str, row: Mapping[Name, float], low: float) -> None:
        """A row that is at least so much."""
        self.rows[name,] = dict(row)
        self.lows[name,] = low

    def solve(self, problem: Problem, *, time_limit: float) -> _Found:
        """The best values found.

        Raises:
            ConfigError: there are none, or none were found in time.
            BackendUnavailable: scipy is not here.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
            from scipy.sparse import csr_matrix
        except ImportError as exc:
            raise BackendUnavailable(
                "found no scipy, expected it for plans of a mesh; run: pip install 'zpipe[suite]', or plan a line (`--shape line`)"
            ) from exc
        names = list(self.columns)
        rows = {name: row for name, row in self.rows.items() if row}
        entries = [(at, self.columns[name], value) for at, row in enumerate(rows.values()) for name, value in row.items()]
        places, columns, values = zip(*entries, strict=True)
        matrix = csr_matrix((values, (places, columns)), shape=(len(rows), len(names)))
        lows = np.array([self.lows.get(name, -math.inf) for name in rows])
        highs = np.array([self.highs.get(name, math.inf) for name in rows])
        done = milp(
            np.array([self.cost.get(name, 0.0) for name in names]),
            integrality=np.array([name in self.whole for name in names], int),
            bounds=Bounds(_each(self.low, names), _each(self.high, names)),
            constraints=LinearConstraint(matrix, lows, highs),
            options={"time_limit": time_limit, "mip_rel_gap": 1e-6},
        )
        if done.x is None:
            if done.status == _LIMIT:
                raise ConfigError(
                    f"--time-limit: found no placement in {time_limit:g} s, expected one; give it longer, or plan a line "
                    "(`--shape line`)"
                )
            raise cannot_hold(problem.boards, weights=sum(problem.weight_bytes), stages=len(problem.stages))
        found = {name: float(value) for name, value in zip(names, done.x, strict=True)}
        bound = done.fun if done.mip_dual_bound is None else done.mip_dual_bound
        return _Found(found, done.fun, float(bound), abs(bound - done.fun) / max(1e-12, abs(done.fun)), done.status == _LIMIT)


def _each(values: Mapping[Name, float], names: list[Name]) -> Costs:
    return np.array([values[name] for name in names])


def _method(found: _Found) -> str:
    gap = f"gap {100 * found.gap:.1f} %" if found.gap > 5e-4 else "no gap"
    return f"proven by HiGHS, {gap}" + (" when its time was over" if found.timed_out else "")


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

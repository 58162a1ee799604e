"""A mixed-integer program whose rows and columns have names, and the solver behind it: HiGHS, through scipy.

Source: Huangfu and Hall, Parallelizing the dual revised simplex method (doi:10.1007/s12532-017-0130-5).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.plan.cuts import cannot_hold
from zpipe.plan.problem import Problem
from zpipe.plan.quiet import solver_quiet

#: scipy's status of a search that ended at its limit of time, and of one that showed that there is nothing.
_LIMIT, _INFEASIBLE = 1, 2
#: A solver that gets less does not begin.
LEAST_SECONDS = 0.01

Name = tuple[Hashable, ...]


#: Monotonic seconds, as `time.monotonic` gives them: nothing here looks at the host's clock by itself.
Clock: TypeAlias = Callable[[], float]


def still() -> float:
    """The clock of callers who only limit each solver's run."""
    return 0.0


class OutOfTime(ConfigError):
    """The solver found nothing within its time; there may be something."""


class Found(NamedTuple):
    """What the solver came to: values by name, what they cost, what no values cost less than, and whether its time was over."""

    values: Mapping[Name, float]
    objective: float
    bound: float
    timed_out: bool


class Program:
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

    def solve(self, problem: Problem, *, time_limit: float) -> Found:
        """The best values found.

        Raises:
            ConfigError: there are none.
            OutOfTime: none were found in time.
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
        places, columns, shares = zip(*entries, strict=True)
        matrix = csr_matrix((shares, (places, columns)), shape=(len(rows), len(names)))
        lows = np.array([self.lows.get(name, -math.inf) for name in rows])
        highs = np.array([self.highs.get(name, math.inf) for name in rows])
        whole = np.array([name in self.whole for name in names])
        cost, low, high = (np.array([values.get(name, 0.0) for name in names]) for values in (self.cost, self.low, self.high))
        rules = LinearConstraint(matrix, lows, highs)
        with solver_quiet():
            done = milp(
                cost,
                integrality=whole.astype(int),
                bounds=Bounds(low, high),
                constraints=rules,
                options={"time_limit": max(LEAST_SECONDS, time_limit), "mip_rel_gap": 1e-6},
            )
        if done.x is None:
            # A solver may also end with "infeasible or unbounded": the rate has a limit, so that is the first.
            if done.status == _INFEASIBLE or (done.status != _LIMIT and "ime limit" not in done.message):
                raise cannot_hold(problem.boards, weights=sum(problem.weight_bytes), stages=len(problem.stages))
            raise OutOfTime(
                f"--time-limit: found no placement of the network within the time ({done.message.split('.')[0]}), expected one; "
                "give it longer, or plan a line (`--shape line`)"
            )
        bound = float(done.fun if done.mip_dual_bound is None else done.mip_dual_bound)
        # What is whole is so within a tolerance; with exactly whole values the rest is what it says it is.
        low, high = (np.where(whole, np.round(done.x), limits) for limits in (low, high))
        with solver_quiet():
            exact = milp(cost, bounds=Bounds(low, high), constraints=rules)
        x, least = (done.x, float(done.fun)) if exact.x is None else (exact.x, float(exact.fun))
        values = {name: float(value) for name, value in zip(names, x, strict=True)}
        return Found(values, least, min(bound, least), done.status == _LIMIT)


def memory_unit(problem: Problem, board: int) -> float:
    """Bytes that memory is counted in: all stages together are about 1."""
    return max(1.0, sum(problem.memory(board, stage) for stage in range(len(problem.stages))))

"""A mixed-integer program whose rows and columns have names, and the solver behind it: HiGHS, through scipy.

Source: Huangfu and Hall, Parallelizing the dual revised simplex method (doi:10.1007/s12532-017-0130-5).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.plan.chain import Costs
from zpipe.plan.cuts import cannot_hold
from zpipe.plan.problem import Problem

#: scipy's status of a search that ended at its limit of time.
_LIMIT = 1

Name = tuple[Hashable, ...]


class Found(NamedTuple):
    """What the solver came to: values by name, what they cost, what no values cost less than, and how far apart these are."""

    values: Mapping[Name, float]
    objective: float
    bound: float
    gap: float
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
        return Found(found, done.fun, float(bound), abs(bound - done.fun) / max(1e-12, abs(done.fun)), done.status == _LIMIT)


def _each(values: Mapping[Name, float], names: list[Name]) -> Costs:
    return np.array([values[name] for name in names])


def method(found: Found) -> str:
    """How a bound is known, in words."""
    gap = f"gap {100 * found.gap:.1f} %" if found.gap > 5e-4 else "no gap"
    return f"proven by HiGHS, {gap}" + (" when its time was over" if found.timed_out else "")


def memory_unit(problem: Problem, board: int) -> float:
    """Bytes that memory is counted in: all stages together are about 1."""
    return max(1.0, sum(problem.memory(board, stage) for stage in range(len(problem.stages))))

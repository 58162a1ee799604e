"""The search for groups: which boards host which student, so that no part is missing too often and the slowest group is fast.

1. *Group*: boards by speed, cut into as many groups as there are students, each until its part is missing as seldom as asked.
   Twice: neighbours in speed together, so that heavy students find a group of fast boards; and dealt out one by one. Where memory
   or few boards defeat both, a mixed-integer program finds groups that miss least, or shows what no grouping can.
2. *Assign* students to groups: linear assignment (Kuhn-Munkres, scipy), of all assignments with the least slowest group the one
   with the least sum.
3. *Improve*: a board moves, two boards change places, students are assigned anew, as long as the slowest group, or else the next
   slowest, gets faster; then again from some boards exchanged at random. A board may also be left out.
4. *Prove*: a depth-first search over all groupings (`exact`), which leaves off where no rest of the boards can help. Where it
   ends within `MOST_STEPS` the grouping is the best there is; else a board that never fails for each part is a bound.
5. *Spare* boards join the group whose part is missing most. There they answer when all others are dead: a part comes late that
   would be missing, which makes no answer slower. The group's mean counts it and may rise all the same.

Source: RoCoIn (arXiv:2406.14185), our reading: grouping by capacity and failure probability, Kuhn-Munkres; differs: 3 to 5 are ours
(`python -m bench.plan rocoin` says what each is worth).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from zpipe.errors import BackendUnavailable
from zpipe.plan.exact import GAIN, ExactSearch
from zpipe.plan.groups import Case, Groups
from zpipe.plan.quiet import solver_quiet

#: Boards that the exact search may place, over all branches: a second or two. Enough for 10 boards and 4 students, mostly.
MOST_STEPS = 100_000
#: How often boards are exchanged at random to start anew, each time so many pairs, and tries to find one that holds.
KICKS, KICK_PAIRS, KICK_TRIES = 24, 2, 50
#: Seconds for the program that says what no grouping can exceed.
COVER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Grouping:
    """What the search found.

    Attributes:
        groups: boards by part; boards in none host nothing.
        needed: the same before spare boards joined.
        bound: seconds; no grouping has a faster slowest group (without spare boards).
        proven: whether all groupings were looked at, so that the bound is what the best one has.
    """

    groups: Groups
    needed: Groups
    bound: float
    proven: bool


class TooFew(Exception):
    """No grouping misses as seldom as asked.

    Attributes:
        least: P(a part is missing) of the group that misses most, in the best grouping; 1.0 where some part has no board at all.
        groups: that grouping; () where some part has no board.
        proven: whether none is better, or only none was found in time.
    """

    def __init__(self, least: float, groups: Groups, *, proven: bool) -> None:
        super().__init__(f"{least:.3g}")
        self.least, self.groups, self.proven = least, groups, proven


def find_groups(case: Case, *, start: Groups = (), most_steps: int = MOST_STEPS) -> Grouping:
    """The grouping with the fastest slowest group.

    Args:
        case: what there is.
        start: a grouping that holds, to begin with as well.
        most_steps: of the exact search; 0 leaves it out.

    Raises:
        TooFew: none misses as seldom as asked.
        BackendUnavailable: scipy is not here.
    """
    assign = linear_assignment()
    starts = [groups for groups in (*first_groups(case, assign), *([start] if start else ())) if holds(case, groups)]
    starts = starts or [_covering(case)]
    best = min((improved(case, groups, assign) for groups in starts), key=lambda groups: _order(case.part_seconds, groups))
    best = _kicked(case, best, assign)
    search = ExactSearch(case, best, most_steps)
    proven = search.run()
    seconds = case.slowest_seconds(search.best)
    bound = seconds if proven else min(seconds, _least_seconds(case, assign))
    return Grouping(with_spares(case, search.best), search.best, bound, proven)


# ---- 1. group ----------------------------------------------------------------------------------


def first_groups(case: Case, assign: Any) -> Iterator[Groups]:
    """Boards cut into groups by speed, students assigned; may miss too often, or not fit."""
    quick = sorted(case.boards, key=lambda board: case.speed(board))
    for cut in (_neighbours, _dealt):
        yield assigned(case, cut(case, quick), assign)


def _neighbours(case: Case, quick: Sequence[int]) -> Groups:
    """The fastest until they are enough, then the next: alike in speed."""
    groups: list[tuple[int, ...]] = [() for _ in case.parts]
    at = 0
    for board in quick:
        if at < len(groups):
            groups[at] += (board,)
            at += case.enough(groups[at])
    return tuple(groups)


def _dealt(case: Case, quick: Sequence[int]) -> Groups:
    """Each to the group that misses most, the first ones to one each, until none misses too often."""
    groups: list[tuple[int, ...]] = [() for _ in case.parts]
    for board in quick:
        if all(groups) and all(map(case.enough, groups)):
            break
        neediest = max(case.parts, key=lambda part: (not groups[part], case.part_missing(groups[part]), -part))
        groups[neediest] += (board,)
    return tuple(groups)


def _covering(case: Case) -> Groups:
    """Groups that miss as seldom as asked, by a mixed-integer program that maximises the least of all groups' -ln P(missing).

    Raises:
        TooFew: there are none.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    parts, boards = len(case.parts), len(case.boards)
    weights = [case.weight(board) for board in case.boards]
    fits = np.array([[seconds < math.inf for seconds in row] for row in case.seconds])
    # Columns: part * boards + board, then the least weight of all groups.
    rows = np.zeros((boards + parts + parts, parts * boards + 1))
    for part in case.parts:
        columns = slice(part * boards, (part + 1) * boards)
        rows[:boards, columns] = np.eye(boards)  # a board hosts one student at most
        rows[boards + part, columns] = weights
        rows[boards + part, -1] = -1.0
        rows[boards + parts + part, columns] = 1.0  # and each student has one at least
    low = np.concatenate([np.full(boards, -np.inf), np.zeros(parts), np.ones(parts)])
    high = np.concatenate([np.ones(boards), np.full(2 * parts, np.inf)])
    cost = np.zeros(parts * boards + 1)
    cost[-1] = -1.0
    most = np.append(fits.astype(float).ravel(), case.wanted)
    with solver_quiet():
        done = milp(
            cost,
            integrality=np.append(np.ones(parts * boards), 0),
            bounds=Bounds(np.zeros(parts * boards + 1), most),
            constraints=LinearConstraint(rows, low, high),
            options={"time_limit": COVER_SECONDS},
        )
    if done.x is None:
        raise TooFew(1.0, (), proven=done.status == 2)
    hosted = done.x[:-1].reshape(parts, boards) > 0.5
    groups = tuple(tuple(int(board) for board in np.flatnonzero(row)) for row in hosted)
    if not holds(case, groups):
        raise TooFew(max(case.part_missing(group) for group in groups), groups, proven=done.status == 0)
    return groups


def holds(case: Case, groups: Groups) -> bool:
    """Whether every part is hosted, where it fits, and missing as seldom as asked."""
    return all(_fits(case, part, group) for part, group in enumerate(groups))


# ---- 2. assign ---------------------------------------------------------------------------------


def linear_assignment() -> Any:
    """scipy's linear assignment.

    Raises:
        BackendUnavailable: scipy is not here.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as exc:
        raise BackendUnavailable(
            "found no scipy, expected it to assign students to groups of devices; run: pip install 'zpipe[suite]'"
        ) from exc
    return linear_sum_assignment


def assigned(case: Case, groups: Groups, assign: Any) -> Groups:
    """The same groups, each with the student that makes the slowest group fastest, and then their sum least.

    As they are where some student fits no group that the others leave.
    """
    costs = np.array([[case.part_seconds(part, group) for group in groups] for part in case.parts])
    found = _bottleneck(costs, assign)
    return groups if found is None else tuple(groups[group] for group in found)


def _bottleneck(costs: np.ndarray[Any, Any], assign: Any) -> list[int] | None:
    """A column for each row: the least maximum, of those the least sum; None where infinite costs leave no way."""
    steps = np.unique(costs[np.isfinite(costs)])
    low, high, best = 0, len(steps), None
    while low < high:
        middle = (low + high) // 2
        try:
            _, columns = assign(np.where(costs <= steps[middle], costs, np.inf))
        except ValueError:  # no way below this step
            low = middle + 1
            continue
        high, best = middle, [int(column) for column in columns]
    return best


def _least_seconds(case: Case, assign: Any) -> float:
    """No slowest group is faster than this: each part at a board of its own that never fails."""
    costs = np.array(case.seconds)
    found = _bottleneck(costs, assign)
    return math.inf if found is None else max(float(costs[part, board]) for part, board in enumerate(found))


# ---- 3. improve --------------------------------------------------------------------------------


def _order(seconds: Callable[[int, tuple[int, ...]], float], groups: Groups) -> list[float]:
    """Groupings compare by their slowest group, then the next slowest."""
    return sorted((seconds(part, group) for part, group in enumerate(groups)), reverse=True)


def improved(case: Case, groups: Groups, assign: Any) -> Groups:
    """No single move and no single exchange makes this any faster."""
    seconds = cache(case.part_seconds)  # most groups stay as they are
    order = _order(seconds, groups)
    while True:
        tried = ((_order(seconds, each), each) for each in _changes(case, groups))
        best = min(tried, default=(order, groups))
        other = assigned(case, groups, assign)
        best = min(best, (_order(seconds, other), other))
        if not _faster(best[0], order):
            return groups
        order, groups = best


def _kicked(case: Case, groups: Groups, assign: Any) -> Groups:
    """The best of what is found from neighbours at random, always the same ones."""
    rng, seconds = random.Random(0), cache(case.part_seconds)
    for _ in range(KICKS):
        start = groups
        for _ in range(KICK_PAIRS):
            start = _exchanged(case, start, rng)
        found = improved(case, start, assign)
        if _faster(_order(seconds, found), _order(seconds, groups)):
            groups = found
    return groups


def _exchanged(case: Case, groups: Groups, rng: random.Random) -> Groups:
    """Two boards of different groups, or one of a group and one of none, have changed places; as it was where no try holds."""
    where = _where(case, groups)
    for _ in range(KICK_TRIES if len(case.boards) > 1 else 0):
        board, other = rng.sample(case.boards, 2)
        if where[board] != where[other]:
            change = {board: where[other], other: where[board]}
            found = _changed(groups, change)
            if all(_fits(case, part, found[part]) for part in change.values() if part is not None):
                return found
    return groups


def _where(case: Case, groups: Groups) -> dict[int, int | None]:
    where: dict[int, int | None] = dict.fromkeys(case.boards)
    where.update({board: part for part, group in enumerate(groups) for board in group})
    return where


def _faster(after: Sequence[float], before: Sequence[float]) -> bool:
    """Which group is the first to differ by more than rounding, and how."""
    for new, old in zip(after, before, strict=True):
        if abs(new - old) > GAIN * old:
            return new < old
    return False


def _changes(case: Case, groups: Groups) -> Iterator[Groups]:
    """Those that change the slowest group, and hold.

    Cases: a board leaves it, for another group or for none; one joins it; one of it changes places with any other.
    """
    slowest = max(case.parts, key=lambda part: case.part_seconds(part, groups[part]))
    where = _where(case, groups)
    mine = groups[slowest]
    others = [board for board in case.boards if where[board] != slowest]
    changes = [{board: to} for board in mine for to in (None, *(part for part in case.parts if part != slowest))]
    changes += [{board: slowest} for board in others]
    changes += [{board: where[other], other: slowest} for board in mine for other in others]
    for change in changes:
        found = _changed(groups, change)
        touched = {part for board, to in change.items() for part in (where[board], to) if part is not None}
        if all(_fits(case, part, found[part]) for part in touched):
            yield found


def _changed(groups: Groups, change: dict[int, int | None]) -> Groups:
    return tuple(
        tuple(sorted([*(board for board in group if board not in change), *(board for board, to in change.items() if to == part)]))
        for part, group in enumerate(groups)
    )


def _fits(case: Case, part: int, group: Sequence[int]) -> bool:
    return bool(group) and case.enough(group) and all(case.seconds[part][board] < math.inf for board in group)


# ---- 5. spare boards ---------------------------------------------------------------------------


def with_spares(case: Case, groups: Groups) -> Groups:
    """With the boards that are in no group yet, each where a part is missing most; first those that can host few students."""
    used = {board for group in groups for board in group}
    able = {board: [part for part in case.parts if case.seconds[part][board] < math.inf] for board in case.boards}
    spare = [board for board in case.boards if board not in used and able[board]]
    for board in sorted(spare, key=lambda board: (len(able[board]), case.speed(board), board)):
        neediest = max(able[board], key=lambda part: (case.part_missing(groups[part]), -part))
        groups = _changed(groups, {board: neediest})
    return groups

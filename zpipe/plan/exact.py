"""A depth-first search for the best groups of boards, and the proof that there are none better (`zpipe.plan.grouping`, 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from zpipe.plan.groups import ROUNDING, Case, Groups

#: A change must gain this share, or rounding could go round in circles.
GAIN = 1e-9


@dataclass(slots=True)
class ExactSearch:
    """All groupings, board by board from the fastest on, but for those that cannot be better than the best so far.

    Attributes:
        case: what there is.
        best: a grouping that holds to begin with, then the best that was found.
        most_steps: boards that may be placed, over all branches.
    """

    case: Case
    best: Groups
    most_steps: int
    steps: int = 0
    seconds: float = math.inf
    order: list[int] = field(default_factory=list)
    #: `soonest[part][at]`: the fastest of the boards from `order[at]` on.
    soonest: list[list[float]] = field(default_factory=list)
    #: -ln P(missing) that the boards from `order[at]` on could add.
    rest: list[float] = field(default_factory=list)

    #: -ln P(missing) that a group must have.
    wanted: float = 0.0
    facts: dict[tuple[int, tuple[int, ...]], tuple[list[tuple[float, float]], float]] = field(default_factory=dict)

    def run(self) -> bool:
        """Whether the search came to its end; `best` is then the best there is."""
        case = self.case
        self.seconds, self.wanted = case.slowest_seconds(self.best), case.wanted
        self.order = sorted(case.boards, key=lambda board: (case.speed(board), board))
        self.soonest = [
            [min((seconds[board] for board in self.order[at:]), default=math.inf) for at in range(len(self.order) + 1)]
            for seconds in case.seconds
        ]
        weights = [case.weight(board) for board in self.order]
        self.rest = [sum(weights[at:]) for at in range(len(weights) + 1)]
        return self._place(0, [() for _ in case.parts], 0)

    def _place(self, at: int, groups: list[tuple[int, ...]], first: int) -> bool:
        """Whether all ways to place the boards from `order[at]` on were looked at.

        Args:
            at: which board is next.
            groups: of those before.
            first: no lower part for it: where it is like the one before, what that one's ways were need not be tried twice.
        """
        case = self.case
        if not self._can_help(at, groups):
            return True
        found = tuple(groups)
        if all(groups) and all(map(case.enough, groups)):
            seconds = case.slowest_seconds(found)
            if seconds < self.seconds * (1.0 - GAIN):
                self.best, self.seconds = found, seconds
        if at == len(self.order):
            return True
        self.steps += 1
        if self.steps > self.most_steps:
            return False
        board = self.order[at]
        alike = at + 1 < len(self.order) and self._alike(board, self.order[at + 1])
        for part in self._ways(at, groups, first):
            kept = groups[part]
            groups[part] = (*kept, board)
            done = self._place(at + 1, groups, part if alike else 0)
            groups[part] = kept
            if not done:
                return False
        return self._place(at + 1, groups, len(groups) if alike else 0)

    def _alike(self, board: int, other: int) -> bool:
        case = self.case
        return case.failures[board] == case.failures[other] and all(row[board] == row[other] for row in case.seconds)

    def _ways(self, at: int, groups: list[tuple[int, ...]], first: int) -> list[int]:
        """Parts for this board, the neediest first; of students alike that have no board yet, the first alone."""
        case, board = self.case, self.order[at]
        ways: list[int] = []
        for part in case.parts[first:]:
            alike = any(not groups[other] and case.seconds[other] == case.seconds[part] for other in range(part))
            if case.seconds[part][board] < math.inf and not (not groups[part] and alike):
                ways.append(part)
        return sorted(ways, key=lambda part: -case.part_missing(groups[part]))

    def _can_help(self, at: int, groups: list[tuple[int, ...]]) -> bool:
        """Whether the boards that are left could make all groups enough, and each faster than the best so far.

        A group with further boards, none faster than m, has no less than the mean of min(t, m) over what it has now.
        """
        needed = 0.0
        for part, group in enumerate(groups):
            soonest = self.soonest[part][at]
            if not group:
                least, lacking = soonest, self.wanted
            else:
                answers, lacking = self._facts(part, group)
                least = sum(min(seconds, soonest) * share for seconds, share in answers)
            if least >= self.seconds * (1.0 - GAIN):
                return False
            needed += lacking
        return needed <= self.rest[at] + ROUNDING * max(1.0, needed)

    def _facts(self, part: int, group: tuple[int, ...]) -> tuple[list[tuple[float, float]], float]:
        """When answers come, with probabilities that add up to 1; and the -ln P(missing) that is lacking."""
        known = self.facts.get((part, group))
        if known is None:
            answers = self.case.answers(part, group)
            alive = sum(share for _, share in answers)
            lacking = max(0.0, self.wanted - sum(self.case.weight(board) for board in group))
            known = [(seconds, share / alive) for seconds, share in answers], lacking
            self.facts[part, group] = known
        return known

"""Groups of boards that host the same student, as numbers: what a group takes, what it misses, what all together give.

A *student* is the small network for one *part*; a *group* hosts it on each of its boards, its *replicas*; the source joins the
parts. Replicas fail independently of each other, each with its own probability.

What a group takes is the mean time of its fastest replica that lives, where one does: `failover` and `hedged` send a copy to the
replica that promises to be first among those that are connected, and a death is seen at once by its connection; with `all` the
first to answer is the fastest that lives. So the three redundancies differ by what they send, and by what a replica costs that
stalls without dying, and not in this mean.

Source: RoCoIn (arXiv:2406.14185), our reading; differs: there a group's time is that of its fastest device alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

#: Boards by part, each rising: `groups[part]`.
Groups = tuple[tuple[int, ...], ...]

#: Of a percentage, behind the point.
MOST_DIGITS = 6
#: -ln P(missing) that counts as never: e ** -700 is about the least that a float can tell from 0.
NEVER = 700.0
#: P(missing) above what was asked by this share is rounding.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Case:
    """Students and boards, as numbers.

    Attributes:
        seconds: `seconds[part][board]` from a sample's start at the source to this part's scores there, alone; `inf` where that
            board cannot host that student.
        failures: P(a board does not answer), 0..1, by board.
        missing: P(a part is missing) may be so much at most, 0..1.
    """

    seconds: tuple[tuple[float, ...], ...]
    failures: tuple[float, ...]
    missing: float

    @property
    def parts(self) -> range:
        """All of them."""
        return range(len(self.seconds))

    @property
    def boards(self) -> range:
        """All of them."""
        return range(len(self.failures))

    @property
    def wanted(self) -> float:
        """-ln P(missing) that a group needs."""
        return min(NEVER, -math.log(self.missing)) if self.missing > 0.0 else NEVER

    def weight(self, board: int) -> float:
        """-ln P(it fails): what the boards of a group add up."""
        failure = self.failures[board]
        return min(NEVER, -math.log(failure)) if failure > 0.0 else NEVER

    def speed(self, board: int) -> tuple[float, float]:
        """How boards compare, the fastest first: mean seconds over the students that it can host, those that host fewer later.

        Of equally fast ones the safest first.
        """
        able = [seconds[board] for seconds in self.seconds if seconds[board] < math.inf]
        mean = sum(able) / len(able) if able else math.inf
        return mean * len(self.parts) / max(1, len(able)), self.failures[board]

    def part_missing(self, group: Iterable[int]) -> float:
        """P(none of these boards answers)."""
        return math.prod(self.failures[board] for board in group)

    def enough(self, group: Iterable[int]) -> bool:
        """Whether a part of this group is missing as seldom as asked."""
        return self.part_missing(group) <= self.missing * (1.0 + ROUNDING)

    def answers(self, part: int, group: Iterable[int]) -> list[tuple[float, float]]:
        """When its first answer comes, and with which probability: by rising seconds; the rest to 1 is P(missing)."""
        found, dead = [], 1.0
        for board in sorted(group, key=lambda board: self.seconds[part][board]):
            found.append((self.seconds[part][board], dead * (1.0 - self.failures[board])))
            dead *= self.failures[board]
        return found

    def part_seconds(self, part: int, group: Iterable[int]) -> float:
        """Mean time of the fastest replica that lives, where one does; `inf` of no replica."""
        answers = self.answers(part, group)
        if not answers or answers[-1][0] == math.inf:
            return math.inf
        alive = sum(share for _, share in answers)
        return sum(seconds * share for seconds, share in answers) / alive if alive > 0.0 else math.inf

    def slowest_seconds(self, groups: Groups) -> float:
        """What a grouping is judged by: of the slowest group."""
        return max(self.part_seconds(part, groups[part]) for part in self.parts)

    def sample_seconds(self, groups: Groups) -> float:
        """Mean time until all parts are in, where all come: the mean of the latest of them, not the latest mean."""
        steps = sorted({seconds for part in self.parts for seconds, _ in self.answers(part, groups[part])})
        total, before = 0.0, 0.0
        for seconds in steps:
            now = math.prod(self._in_by(part, groups[part], seconds) for part in self.parts)
            total += seconds * (now - before)
            before = now
        return total

    def _in_by(self, part: int, group: Sequence[int], seconds: float) -> float:
        answers = self.answers(part, group)
        alive = sum(share for _, share in answers)
        return sum(share for at, share in answers if at <= seconds) / alive if alive > 0.0 else 0.0

    def all_in(self, groups: Groups) -> float:
        """P(no part is missing)."""
        return math.prod(1.0 - self.part_missing(group) for group in groups)

    def accuracy(self, groups: Groups, by_parts: Sequence[float]) -> float:
        """What to expect when every sample finds other boards dead.

        Args:
            groups: whose failures count.
            by_parts: accuracy by the bits of the parts that are in (bit p: part p), `[2 ** parts]`.
        """
        missing = [self.part_missing(group) for group in groups]
        total = 0.0
        for there in product((False, True), repeat=len(missing)):
            probability = math.prod(1.0 - each if is_in else each for is_in, each in zip(there, missing, strict=True))
            total += probability * by_parts[sum(1 << part for part, is_in in enumerate(there) if is_in)]
        return total


def percent(probability: float) -> str:
    """For people: close to 0 and close to 1 alike with digits that tell."""
    if probability in (0.0, 1.0):
        return f"{100 * probability:.0f} %"
    digits = max(1, 1 - math.floor(math.log10(min(probability, 1.0 - probability) * 100)))
    if digits <= MOST_DIGITS:
        return f"{100 * probability:.{digits}f} %"
    return f"{100 * probability:.1g} %" if probability < 0.5 else "100 %"

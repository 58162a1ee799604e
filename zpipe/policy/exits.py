"""Which thresholds a sample carries: a walk along the bundle's operating points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from zpipe.model import NEVER_EXIT, GateSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zpipe.model import GateRule, Task


@dataclass(frozen=True, slots=True)
class ExitLadder:
    """The operating points a source may use, cheapest first, and the one in use when nothing adapts.

    Attributes:
        thresholds: per point, one threshold per stage `[points][stages]`; the last stage's is not looked at.
        default: index of the point fixed before the test data was looked at.
    """

    thresholds: tuple[tuple[float, ...], ...]
    default: int

    def __len__(self) -> int:
        return len(self.thresholds)


def no_exit(stage_count: int) -> ExitLadder:
    """The baseline without exits: every sample runs the whole network."""
    return ExitLadder(((NEVER_EXIT,) * stage_count,), 0)


@dataclass(frozen=True, slots=True)
class ExitGates:
    """What this node needs to know of every stage's gate.

    Attributes:
        temperatures: one per stage, from calibration (arXiv:2010.16335).
        rule: the confidence measure.
        ends: per stage, whether it is the last one of its student, where every row exits; not given: of one chain.
        scores: whether raw logits are wanted beside each answer, since it is one part of several.
    """

    temperatures: tuple[float, ...]
    rule: GateRule = "max-probability"
    ends: tuple[bool, ...] = ()
    scores: bool = False

    def __post_init__(self) -> None:
        if not self.ends:
            last = len(self.temperatures) - 1
            object.__setattr__(self, "ends", tuple([stage == last for stage in range(last + 1)]))

    @property
    def parts(self) -> tuple[int, ...]:
        """Per stage, the part whose student it belongs to; all 0 in a chain."""
        return tuple([sum(self.ends[:stage]) for stage in range(len(self.ends))])

    def gate(self, stage: int, tasks: Sequence[Task]) -> GateSpec:
        """The gate for one batch; a row without thresholds never leaves early."""
        if len(tasks) == 1:
            thresholds = tasks[0].thresholds[:1] or _NEVER
        else:
            thresholds = tuple([task.thresholds[0] if task.thresholds else NEVER_EXIT for task in tasks])
        return _gate(self.rule, self.temperatures[stage], thresholds, self.ends[stage], self.scores)


_NEVER = (NEVER_EXIT,)


@lru_cache(maxsize=256)
def _gate(rule: GateRule, temperature: float, thresholds: tuple[float, ...], last: bool, scores: bool) -> GateSpec:
    """Gates repeat from batch to batch, and a frozen value costs 1 µs to make."""
    return GateSpec(rule, temperature, thresholds, last, scores)

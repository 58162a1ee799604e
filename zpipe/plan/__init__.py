"""What a topology could do at best, and which topology is best: computed and not run; deterministic.

`make_plan` decides which board hosts what: exactly for lines (`chain`, `line`), by a mixed-integer program for meshes (`mesh`);
`explain` says why, `to_yaml` and `draw_plan` write it down. Of a bundle of students `plan_groups` decides which boards host which
student (`rocoin`, `grouping`); `explain_groups` says why. `choose_cuts` cuts a network that has no stages yet; `rate_bound` is what
a given topology can sustain at most. Nothing here reads files but for a bundle's own.

The model: a busy board takes the sum of its tasks' times, a link the bits of what crosses it, and each stage counts with the
probability that a sample gets there. No queues, no dice: what a plan promises is reached where samples are always waiting.
"""

from __future__ import annotations

from zpipe.plan.bounds import Bound, exit_reach, rate_bound
from zpipe.plan.cuts import Cuts, Piece, choose_cuts, equal_cuts
from zpipe.plan.drawing import draw_groups, draw_plan
from zpipe.plan.explain import explain
from zpipe.plan.planner import Plan, make_plan
from zpipe.plan.reasons import explain_groups
from zpipe.plan.rocoin import GroupPlan, plan_groups, with_failures
from zpipe.plan.writing import to_yaml

__all__ = [
    "Bound",
    "Cuts",
    "GroupPlan",
    "Piece",
    "Plan",
    "choose_cuts",
    "draw_groups",
    "draw_plan",
    "equal_cuts",
    "exit_reach",
    "explain",
    "explain_groups",
    "make_plan",
    "plan_groups",
    "rate_bound",
    "to_yaml",
    "with_failures",
]

"""The walk over all states of a case, breadth first, so that the first violation found is one of the shortest.

In every state the nodes' own invariants and those between nodes are asserted; and from every state the case is run on, without any
further fault and in one fixed order, until it is at rest: every sample has its outcome and no node holds a task. Then one more
sample is submitted, which must come through and leave every sender with all its credit. Two runs that meet in a state go on as
one, so this costs little more than the exploration itself.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from tests.policy.explore.nodes import MOMENT_SECONDS, Violation
from tests.policy.explore.rules import Rules
from tests.policy.explore.tale import tale
from tests.policy.explore.world import Action, Case, World

#: Without faults everything is at rest within this: four timers in a row (1, 2, 4, 8 s) and a silent link's reset.
REST_SECONDS = 30.0


@dataclass(slots=True)
class Found:
    """What exploring a case showed.

    Attributes:
        states: distinct ones, all of them checked and run on to rest.
        transitions: actions carried out between them.
        run_on: further states met only on the way to rest.
        depth: actions to the farthest state.
        complete: no limit cut it short.
        violation: what went wrong and the way there, line by line; empty when nothing did.
    """

    case: Case
    states: int = 0
    transitions: int = 0
    run_on: int = 0
    depth: int = 0
    node_states: int = 0
    node_steps: int = 0
    seconds: float = 0.0
    complete: bool = False
    violation: list[str] = field(default_factory=list)


class Search:
    """One exploration."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rules = Rules(case)
        self._came: dict[World, tuple[World, Action] | None] = {}
        self._rests: set[World] = set()

    def run(self, *, most: int = 10_000_000) -> Found:
        """Explores until there is no new state, or `most` were seen."""
        started, found = time.perf_counter(), Found(self.case)
        try:
            found.complete = self._explore(found, most)
        except _Way as way:
            found.violation = tale(self.rules, way.actions, str(way.violation))
        found.states = len(self._came)
        found.run_on = len(self._rests) - len({self.rules.without_faults(world) for world in self._came} & self._rests)
        found.node_states, found.node_steps = len(self.rules.nodes.states), self.rules.nodes.steps_computed
        found.seconds = time.perf_counter() - started
        return found

    def _explore(self, found: Found, most: int) -> bool:
        rules, came = self.rules, self._came
        start = rules.start()
        came[start] = None
        self._run_on(start)
        todo = deque([(start, 0)])
        while todo:
            world, depth = todo.popleft()
            found.depth = depth
            for action in rules.actions(world):
                if action[0] in ("tick", "slow") and world.moment >= self.case.moments:
                    continue
                found.transitions += 1
                try:
                    after = rules.after(world, action)
                    if after in came:
                        continue
                    came[after] = world, action
                    rules.check(after)
                except Violation as violation:
                    raise _Way([*self._way(world), action], violation) from violation
                self._run_on(after)
                if len(came) >= most:
                    return False
                todo.append((after, depth + 1))
        return True

    def _way(self, world: World) -> list[Action]:
        actions = []
        step = self._came[world]
        while step is not None:
            world, action = step
            actions.append(action)
            step = self._came[world]
        return actions[::-1]

    def _run_on(self, world: World) -> None:
        """To rest, or to a state from which that is known to be reached."""
        rules, passed = self.rules, []
        at, since, taken = rules.without_faults(world), world.moment, []
        try:
            while at not in self._rests:
                passed.append(at)
                action = rules.actions(at)[0]
                if action[0] == "tick":
                    unsettled, probes = rules.unsettled(at), rules.probes(at)
                    if not unsettled and not probes:
                        break
                    if not unsettled:
                        action = probes[0]
                    elif (at.moment - since) * MOMENT_SECONDS > REST_SECONDS:
                        raise Violation(f"{REST_SECONDS:.0f} s without faults later: {unsettled}")
                taken.append(action)
                at = rules.after(at, action)
                rules.check(at)
        except Violation as violation:
            raise _Way([*self._way(world), ("calm",), *taken], violation) from violation
        self._rests.update(passed)


class _Way(Exception):
    """A violation with the actions that lead to it."""

    def __init__(self, actions: list[Action], violation: Violation) -> None:
        super().__init__(str(violation))
        self.actions, self.violation = actions, violation


def explore(case: Case, *, most: int = 10_000_000) -> Found:
    """Every state of a case; `most` bounds how many."""
    return Search(case).run(most=most)

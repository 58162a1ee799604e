"""The delivery protocol explored exhaustively, small: the larger cases are in bench/model_check.py.

Each mutation below breaks one rule in the policy; an explorer that does not find it would prove nothing about the rest.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.policy.explore.cases import BACK2, FRONTS, LINE2, LINE3, NARROW2, OFFLOAD, POOL, REPLICAS, SMALL, TRIANGLE, TWO
from tests.policy.explore.freeze import NO_DICE, copier, freeze
from tests.policy.explore.nodes import Nodes, Running, Step
from tests.policy.explore.rules import Rules
from tests.policy.explore.search import Found, Search, explore
from tests.policy.explore.world import FAR, Case, Faults
from tests.policy.mesh import Shape
from zpipe.model import Credit, ResultRow, Task
from zpipe.policy.answers import Answers
from zpipe.policy.clearance import Clearance
from zpipe.policy.credit import IncomingLink, OutgoingLink
from zpipe.policy.delivery import OpenSample, Source
from zpipe.policy.links import Links
from zpipe.policy.messages import Event, PeerLost, PeerUp, Resolve, SampleSubmitted, StageCompleted, TaskReceived
from zpipe.policy.node import NodePolicy
from zpipe.policy.tasks import TaskTable


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.name}: {case.faults}")
def test_every_order_of_events_keeps_the_promise(case: Case) -> None:
    found = explore(case)
    assert not found.violation, "\n" + "\n".join(found.violation)
    assert found.complete
    assert found.states > 200


def test_offloaded_tasks_are_explored() -> None:
    search = Search(Case("both host the last stage", OFFLOAD, Faults(lose=1), TWO, moments=1))
    found = search.run()
    assert not found.violation, "\n" + "\n".join(found.violation)
    sent = [task.stage for event in search.rules.nodes.messages if isinstance(event, TaskReceived) for task in event.tasks]
    assert 1 in sent


# ---- what the explorer rests on ------------------------------------------------------------------


def test_copy_goes_its_own_way() -> None:
    node = NodePolicy(TRIANGLE.config(0, 1), rng=NO_DICE)
    copy = copier(node)()
    assert freeze(copy) == freeze(node)
    untouched = freeze(node)
    copy.handle(SampleSubmitted(0, math.inf, 0.0), now=0.0)
    assert freeze(node) == untouched
    assert freeze(copy) != untouched
    assert copy._outlet._load.backlog(0.0) == {0: 0.0}
    copy.handle(StageCompleted(0, [False], [0], [0.9], 0.25), now=0.0)
    copy.handle(SampleSubmitted(1, math.inf, 0.0), now=0.0)
    assert (copy._outlet._load.backlog(0.0), node._outlet._load.backlog(0.0)) == ({0: 0.25}, {0: 0.0})


def test_copies_of_copies_do_what_the_node_itself_would() -> None:
    nodes = Nodes(LINE3, {})
    state = nodes.born(1, 1)
    node = nodes.states[state].copy()
    steps: list[tuple[tuple[Any, ...], Event]] = [
        (("up", 0, 1, False), PeerUp(0, 1, outgoing=False)),
        (("up", 2, 1, True), PeerUp(2, 1, outgoing=True)),
        (("lost", 2, True), PeerLost(2, outgoing=True, reason="cut")),
        (("up", 2, 2, True), PeerUp(2, 2, outgoing=True)),
    ]
    for told, event in steps:
        state = nodes.tell(state, told, 0).state
        node.handle(event, now=0.0)
        assert freeze(nodes.states[state].copy()) == freeze(node)
    node.handle(PeerLost(0, outgoing=False, reason="cut"), now=0.0)
    assert freeze(nodes.states[state].copy()) != freeze(node)


@pytest.mark.parametrize("seed", range(8))
def test_merged_state_does_what_its_own_history_would(seed: int) -> None:
    """What was left out of the state makes no difference: nodes with a history of their own go beside random walks through it."""
    rng = random.Random(seed)
    faults = Faults(lose=2, repeat=2, cut=1, linger=1, restart=1, stop=1, fail=1, cancel=1, slow=2, together=2)
    case = Case("", rng.choice([LINE2, LINE3, BACK2, REPLICAS, TRIANGLE]), faults, (FAR, FAR, 1.5), moments=12, ranks=(0, 1))
    rules = Rules(case)
    for _ in range(3):  # later walks come to states that an earlier one met by another way
        _walk_beside(rules, rng)


def _walk_beside(rules: Rules, rng: random.Random, steps: int = 120) -> None:
    real: dict[int, tuple[NodePolicy, Running | None]] = {}
    world = rules.start()
    ranks = range(len(world.nodes))
    for rank, number in enumerate(world.nodes):
        real[rank] = rules.nodes.states[number].copy(), None

    def beside(rank: int, event: tuple[Any, ...], step: Step) -> None:
        node, running = real[rank]
        running, outputs = rules.nodes.carry_out(node, running, event, moment)
        real[rank] = node, running
        merged = rules.nodes.states[step.state]
        assert freeze(node) == freeze(merged.copy())
        assert tuple(outputs) == step.outputs
        assert (running and running[1:]) == (merged.running and merged.running[1:])

    rules.tell_tale = beside
    for _ in range(steps):
        actions = rules.actions(world)
        action = rng.choice(actions)
        moment = world.moment
        if action[0] == "rise":
            real[action[1]] = rules.nodes.states[rules.nodes.born(action[1], 2)].copy(), None
        world = rules.after(world, action)
    rules.tell_tale = None
    assert len(real) == len(ranks)


def test_state_knows_which_objects_are_one() -> None:
    one, other = [1], [1]
    assert freeze({"a": one, "b": one}) != freeze({"a": one, "b": other})


def test_unknown_kind_of_state_is_refused() -> None:
    with pytest.raises(TypeError, match=r"say in tests/policy/explore/freeze\.py"):
        freeze({"a": object()})


# ---- broken rules, each found ----------------------------------------------------------------------

result, lost, accept, credit = Source.result, Source.lost, IncomingLink.accept, IncomingLink.credit
take_credit, tick, release, next_task = OutgoingLink.credit, Source.tick, IncomingLink.release, Source.next_task
resolve, on_tasks = Source._resolve, NodePolicy._on_tasks


def second_result_resolves_again(self: Source, row: ResultRow, *, now: float) -> None:
    if row.key.sample in self._open:
        result(self, row, now=now)
    else:
        self.told.append(Resolve(row.key.sample, "result", 0.0, row.attempt, row, ""))


def result_without_regard_to_session(self: Source, row: ResultRow, *, now: float) -> None:
    result(self, ResultRow(row.key._replace(session=self.config.session), *_rest(row)), now=now)


def _rest(row: ResultRow) -> tuple[Any, ...]:
    return row.attempt, row.exit_stage, row.label, row.confidence, row.queued_seconds, row.service_seconds, row.part, row.hops


def lost_is_obeyed_twice(self: Source, row: Any, *, held: bool, now: float) -> None:
    entry = self._open.get(row.key.sample)
    if entry is not None and not entry.again and row.key.session == self.config.session:
        self._submit_again(entry)


def lies_are_seen_everywhere(self: OutgoingLink, told: Credit) -> bool:
    return not told.held


def lost_is_ignored(self: Source, row: Any, *, held: bool, now: float) -> None:
    """And the timer with it, in `no_timer`."""


def no_timer(self: Source, **told: Any) -> None:
    self._retransmits.clear()
    tick(self, **told)


def deadline_is_missed(self: Source, **told: Any) -> None:
    self._deadlines.clear()
    tick(self, **told)


def deadline_is_early(self: Source, *, now: float, **told: Any) -> None:
    tick(self, now=now + 0.5, **told)


def held_numbers_forgotten(self: IncomingLink, *, now: float) -> Credit:
    told = credit(self, now=now)
    return Credit(told.epoch, told.expected, (), told.limit, told.carried, told.holding_seconds)


def repeats_accepted(self: IncomingLink, task: Task, *, now: float) -> bool:
    if task.number < self.expected:
        self.held[task.number] = task.stage
        return True
    return accept(self, task, now=now)


def tasks_of_any_epoch(self: NodePolicy, event: TaskReceived, now: float) -> None:
    link = self.neighbour(event.peer).incoming
    assert link is not None
    on_tasks(self, TaskReceived(event.peer, link.epoch or 0, event.tasks), now)


def credit_adds_up(self: OutgoingLink, told: Credit, *, now: float) -> list[Any]:
    """Relative instead of absolute (C3): a repeated Credit counts twice."""
    limit, missed = self.limit, take_credit(self, told, now=now)
    if limit:
        self.limit = limit + 1
    return missed


def slot_leaks(self: IncomingLink, connection: int, number: int) -> None:
    if connection == self.connection:
        release(self, connection, number)


def blocked_is_not_answered(self: Links, event: Any, now: float) -> None:
    self.heard(event.peer, now)


def blocked_leaves_gaps(self: IncomingLink, next_number: int) -> None:
    self._urgent = True
    self._see_due()


def carried_forgotten(self: IncomingLink) -> None:
    self.held, self.epoch, self.expected = {}, None, 0
    self._told_limit = self._told_expected = 0
    self._urgent = self.due = False


def outcome_without_custody(self: Source, sample: int, kind: Any, **told: Any) -> None:
    resolve(self, sample, kind, **told)
    if kind == "failed":
        self._open[sample] = self._waiting[sample] = OpenSample(sample, 0.0, FAR, 0, 1.0)


def results_are_dropped_on_the_way(self: Answers, row: ResultRow, now: float) -> None:
    if self._source is not None:
        self._source.result(row, now=now)


def both_attempts_stay(self: TaskTable, task: Task) -> bool:
    return True


def attempts_start_twice(self: Source, *, now: float) -> Task | None:
    task = next_task(self, now=now)
    if task is not None and task.attempt == 1:
        self._again.append(task.key.sample)
    return task


Patch = tuple[type, str, Callable[..., Any]]
NO_TIMER: Patch = (Source, "tick", no_timer)
MUTATIONS: dict[str, tuple[list[Patch], Case, str]] = {
    "a second result resolves again": (
        [(Source, "result", second_result_resolves_again)],
        Case("", LINE2, Faults(repeat=1)),
        "second outcome",
    ),
    "a result of an earlier session counts": (
        [(Source, "result", result_without_regard_to_session)],
        Case("", LINE2, Faults(restart=1), TWO, ranks=(0,)),
        "wrong answer",
    ),
    "Lost is obeyed twice": (
        [(Source, "lost", lost_is_obeyed_twice)],
        Case("", LINE3, Faults(cut=1, repeat=1), moments=1),
        "attempts, with reason for 2",
    ),
    "no Lost, no timer": (
        [(Source, "lost", lost_is_ignored), NO_TIMER],
        Case("", LINE2, Faults(cut=1), moments=1),
        "samples without an outcome",
    ),
    "no timer": ([NO_TIMER], Case("", LINE2, Faults(lose=1), moments=1), "samples without an outcome"),
    "a deadline is missed": (
        [(Source, "tick", deadline_is_missed)],
        Case("", LINE2, Faults(lose=1), (0.5,)),
        "its deadline was",
    ),
    "a deadline comes early": (
        [(Source, "tick", deadline_is_early)],
        Case("", LINE2, Faults(slow=2), (1.0,)),
        "its deadline is",
    ),
    "Credit forgets held numbers": ([(IncomingLink, "credit", held_numbers_forgotten)], Case("", LINE2, Faults(), TWO), "forgot"),
    "repeated frames are accepted": ([(IncomingLink, "accept", repeats_accepted)], Case("", NARROW2, Faults(repeat=1)), "broke"),
    "tasks of an ended connection count": (
        [(NodePolicy, "_on_tasks", tasks_of_any_epoch)],
        Case("", LINE2, Faults(linger=1), moments=0),
        "forgot|broke",
    ),
    "Credit adds up": ([(OutgoingLink, "credit", credit_adds_up)], Case("", NARROW2, Faults(repeat=1), TWO), "2 of 1 credits"),
    "a carried task keeps its slot": ([(IncomingLink, "release", slot_leaks)], Case("", NARROW2, Faults(cut=1)), "broke"),
    "Blocked is not answered": (
        [(Links, "on_blocked", blocked_is_not_answered)],
        Case("", NARROW2, Faults(lose=1), moments=1),
        "which is awake and answers",
    ),
    "Blocked leaves the gap open": (
        [(IncomingLink, "settle_blocked", blocked_leaves_gaps)],
        Case("", NARROW2, Faults(lose=1), moments=1),
        "attempts|without an outcome|calm",
    ),
    "what was held is not carried": ([(IncomingLink, "close", carried_forgotten)], Case("", NARROW2, Faults(cut=1)), "broke"),
    "a failed sample stays open": (
        [(Source, "_resolve", outcome_without_custody)],
        Case("", NARROW2, Faults(cancel=1)),
        "second outcome|broke",
    ),
    "results get lost on the way": (
        [(Answers, "result", results_are_dropped_on_the_way)],
        Case("", LINE3, Faults(), moments=0),
        "without an outcome",
    ),
    "an honest neighbour is banned": (
        [(OutgoingLink, "believable", lies_are_seen_everywhere)],
        Case("", LINE2, Faults(), TWO, moments=0),
        "which keeps the rules",
    ),
    "both attempts stay": ([(TaskTable, "_replaces", both_attempts_stay)], Case("", LINE2, Faults(slow=3), moments=3), "broke"),
    "every sample starts twice": ([(Source, "next_task", attempts_start_twice)], Case("", LINE2, Faults()), "with reason for 1"),
}


def pool_for_each(self: Clearance, link: IncomingLink) -> dict[int, int]:
    return {each: pool * (link.asked or link.uses_pool) for each, pool in self._pools.items()}


pool_for_each.__name__ = "of"  # links keep the bound method, which is copied by its name


def nobody_asks(self: OutgoingLink, lane: int, priority: int, *, owed: bool = False) -> bool:
    return (
        priority not in self.clear
        or sum(1 for sent in self.outstanding.values() if sent.priority <= priority) < self.clear[priority]
    )


def classes_get_mixed_up(self: IncomingLink, task: Task, *, now: float) -> bool:
    task.priority = 1
    return accept(self, task, now=now)


CLASSES: dict[str, tuple[list[Patch], Shape, str]] = {
    "the pool is cleared twice": ([(Clearance, "of", pool_for_each)], POOL, "broke"),
    "a lane's own slot does not ask": ([(OutgoingLink, "is_clear", nobody_asks)], FRONTS, "without an outcome"),
    "a lower task counts as a higher one": ([(IncomingLink, "accept", classes_get_mixed_up)], FRONTS, "for another class"),
}
for name, (patches, shape, words) in CLASSES.items():
    case = Case("", shape, Faults(), moments=0, others={rank: (FAR,) for rank in shape.sources if rank})
    MUTATIONS[name] = patches, case, words


def mutated(monkeypatch: pytest.MonkeyPatch, patches: list[Patch], case: Case) -> Found:
    for owner, name, wrong in patches:
        monkeypatch.setattr(owner, name, wrong)
    return explore(case, most=60_000)


@pytest.mark.parametrize("what", MUTATIONS)
def test_broken_rule_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, case, words = MUTATIONS[what]
    found = mutated(monkeypatch, patches, case)
    assert found.violation, f"{found.states} states and nothing found"
    assert re.search(words, found.violation[-1]), found.violation[-1]


def test_way_to_a_violation_is_told_and_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, case, _ = MUTATIONS["a second result resolves again"]
    assert mutated(monkeypatch, patches, case).violation == [
        "   1   0.0 s  node 0: the next sample is submitted",
        "                  node 0: (runs stage 0 on 1.0)",
        "   2   0.0 s  node 0: its executor is done",
        "                  node 0: to 1: tasks of epoch 1 #0 (sample 1.0, attempt 1, stage 1)",
        "   3   0.0 s  0 -> 1: tasks of epoch 1 #0 (sample 1.0, attempt 1, stage 1)",
        "                  node 1: (runs stage 1 on 1.0)",
        "   4   0.0 s  node 1: its executor is done",
        "                  node 1: to 0: Result 1.0 attempt 1; to 0: Credit(epoch 1, expected 1, held [], limit 3)",
        "   5   0.0 s  1 -> 0: ARRIVES, AND WILL AGAIN: Result 1.0 attempt 1",
        "                  node 0: SAMPLE 0 ENDS AS result (attempt 1)",
        "      ---- no more faults from here on; Reports and the time that goes by are left out",
        "   6   0.0 s  1 -> 0: Result 1.0 attempt 1",
        "                  node 0: SAMPLE 0 ENDS AS result (attempt 1)",
        "      ==> sample 1.0 has a second outcome, result (D1)",
    ]

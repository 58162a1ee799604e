"""Students on random meshes whose replicas die, stall, reconnect, lose frames: one outcome each, and `missing` is true (F1-F6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.policy.mesh import Mesh, Shape, leaves_at
from tests.policy.test_mesh_properties import _arrivals, _assert_empties
from tests.properties import examples
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import Forward, GrantCredit, SampleCancelled, SendBlocked, SendLost, SendReport, SendResults

FRAMES = (Forward, GrantCredit, SendBlocked, SendReport, SendResults, SendLost)


@st.composite
def shared_shapes(draw: st.DrawFn) -> Shape:
    """One to three students of one or two stages, on nodes of their own, on one that hosts all, at the source, or on all."""
    students = tuple(draw(st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=3)))
    stages: list[tuple[int, ...]] = [()]
    links = []
    first = 0
    for count in students:
        hosted = tuple(range(first, first + count))
        if draw(st.integers(0, 3)) == 0:
            stages[0] += hosted  # the source is one of the replicas
        for _ in range(draw(st.integers(1, 2)) if first else draw(st.integers(1, 3))):
            rank = len(stages)
            links.append((0, rank))
            if count == 2 and draw(st.booleans()):  # the second stage runs on another node
                stages += [hosted[:1], hosted[1:]]
                links.append((rank, rank + 1))
                if draw(st.booleans()):
                    links.append((0, rank + 1))
            else:
                stages.append(hosted)
        first += count
    if draw(st.booleans()):  # one node for everything
        links.append((0, len(stages)))
        stages.append(tuple(range(first)))
    return Shape(
        stages=tuple(stages),
        links=tuple(links),
        window=draw(st.sampled_from([1, 2, 8])),
        max_batch=draw(st.sampled_from([1, 4])),
        own_slots=draw(st.sampled_from([1, 2, 16])),
        offload=draw(st.sampled_from(["local", "cheapest", "mdi"])),
        admission=draw(st.sampled_from(["fixed", "aimd"])),
        ladder=ExitLadder(tuple((threshold,) * first for threshold in (0.3, 0.5, 0.7, 0.9)), 1),
        students=students,
        redundancy=draw(st.sampled_from(["failover", "hedged", "all"])),
    )


def assert_true_answers(mesh: Mesh, count: int, *, kinds: tuple[str, ...] = ("result",), whole: bool = False) -> None:
    """Exactly one outcome of these kinds for each of the samples, and every result is joined of just the parts it says."""
    found = mesh.kinds()
    assert found.keys() == set(range(count))
    assert all(len(outcomes) == 1 and outcomes[0] in kinds for outcomes in found.values()), found
    full = (1 << len(mesh.shape.students)) - 1
    for _, _, resolve in mesh.outcomes:
        if resolve.row is not None:
            assert resolve.row.label == full & ~resolve.missing, resolve
            assert resolve.row.key.sample == resolve.sample
            assert resolve.missing == 0 or not whole, resolve


@given(shape=shared_shapes(), count=st.integers(1, 30), gap=st.sampled_from([0.0, 0.002, 0.01]), seed=st.integers(0, 999))
@examples(60)
def test_without_faults_every_part_of_every_sample_is_in(shape: Shape, count: int, gap: float, seed: int) -> None:
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, gap, deadline=float("inf"))
    mesh.run(until=1000.0)
    assert_true_answers(mesh, count, whole=True)
    _assert_empties(mesh, 2.0)


@given(
    shape=shared_shapes(),
    count=st.integers(1, 30),
    seed=st.integers(0, 999),
    loss=st.sampled_from([0.0, 0.05, 0.4]),
    repeat=st.sampled_from([0.0, 0.3]),
)
@examples(60)
def test_lost_and_repeated_frames_cost_time_and_no_outcome(shape: Shape, count: int, seed: int, loss: float, repeat: float) -> None:
    mesh = Mesh(shape, seed=seed)
    dice = random.Random(seed)
    mesh.lose = lambda sender, receiver, command: isinstance(command, FRAMES) and mesh.now < 4.0 and dice.random() < loss
    mesh.repeat = lambda sender, receiver, command: dice.random() < repeat
    _arrivals(mesh, count, 0.005, deadline=100.0)
    mesh.run(until=200.0)
    assert_true_answers(mesh, count)
    mesh.checked = False
    _assert_empties(mesh, 100.0, whole=False)


@given(
    shape=shared_shapes(),
    count=st.integers(1, 30),
    seed=st.integers(0, 999),
    deadline=st.sampled_from([0.02, 0.3, 60.0]),
    faults=st.lists(
        st.tuples(st.sampled_from(["restart", "gone", "cut", "stall", "cancel"]), st.floats(0.0, 0.3), st.integers(0, 99)),
        min_size=1,
        max_size=6,
    ),
)
@examples(120)
def test_dead_stalled_and_reconnecting_replicas_leave_one_true_outcome_each(
    shape: Shape, count: int, seed: int, deadline: float, faults: list[tuple[str, float, int]]
) -> None:
    stalls: list[tuple[int, float]] = []
    mesh = Mesh(shape, seed=seed)
    mesh.service = lambda rank, stage: 0.004 + sum(1.0 for at, since in stalls if at == rank and since <= mesh.now < since + 1.0)
    _arrivals(mesh, count, 0.005, deadline=deadline)
    for kind, when, pick in faults:
        rank = 1 + pick % (len(shape.stages) - 1)
        actions: dict[str, Callable[[], Any]] = {
            "restart": lambda rank=rank: mesh.restart(rank),  # type: ignore[misc]
            "gone": lambda rank=rank: mesh.restart(rank, after=50.0),  # type: ignore[misc]
            "cut": lambda pick=pick: mesh.cut(*shape.links[pick % len(shape.links)]),  # type: ignore[misc]
            "stall": lambda rank=rank: stalls.append((rank, mesh.now)),  # type: ignore[misc]
            "cancel": lambda pick=pick: mesh.tell(0, SampleCancelled(pick % count, "enough")),  # type: ignore[misc]
        }
        mesh.at(when, actions[kind])
    mesh.run(until=1000.0)
    late = ("expired",) if deadline < 60.0 else ()
    cancelled = ("failed",) if any(kind == "cancel" for kind, _, _ in faults) else ()
    assert_true_answers(mesh, count, kinds=("result", *late, *cancelled))
    assert all(resolve.latency_seconds <= deadline + 1e-6 for _, _, resolve in mesh.outcomes)
    mesh.checked = False
    _assert_empties(mesh, 60.0, whole=False)


@given(shape=shared_shapes(), count=st.integers(1, 20), seed=st.integers(0, 999), poisoned=st.sets(st.integers(0, 19), max_size=4))
@examples(60)
def test_a_part_that_fails_on_its_own_is_missing_and_nothing_else(shape: Shape, count: int, seed: int, poisoned: set[int]) -> None:
    """F4, R4: the last part's student raises on some samples."""
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)
    mesh.poison = {(sample, shape.stage_count - 1) for sample in poisoned}
    _arrivals(mesh, count, 0.001, deadline=600.0)
    mesh.run(until=2000.0)
    alone = len(shape.students) == 1
    assert_true_answers(mesh, count, kinds=("result", "failed") if alone else ("result",))
    for _, _, resolve in mesh.outcomes:
        hit = resolve.sample in poisoned
        assert resolve.kind == ("failed" if hit and alone else "result")
        assert resolve.missing == (1 << len(shape.students) - 1 if hit and not alone else 0)

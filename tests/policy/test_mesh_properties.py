"""Random meshes, random arrivals, random faults: one outcome each, credits in range, no deadlock, queues drain (S, C, D, R)."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.mesh import Mesh, Shape, leaves_at
from zpipe.policy.messages import Forward, GrantCredit, SendBlocked, SendLost, SendReport, SendResults


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Lines, rings and full meshes whose stages are cut into slices, alternate, or are hosted everywhere."""
    nodes = draw(st.integers(2, 4))
    stage_count = draw(st.integers(2, 8))
    hosting = draw(st.sampled_from(["sliced", "alternating", "everywhere", "replicated"]))
    if hosting == "sliced":
        stage_count = max(stage_count, nodes)
        cuts = sorted(draw(st.sets(st.integers(1, stage_count - 1), min_size=nodes - 1, max_size=nodes - 1)))
        bounds = [0, *cuts, stage_count]
        stages = [tuple(range(bounds[n], bounds[n + 1])) for n in range(nodes)]
    elif hosting == "alternating":
        stages = [tuple(stage for stage in range(stage_count) if stage % nodes == n) or (stage_count - 1,) for n in range(nodes)]
    elif hosting == "everywhere":
        stages = [tuple(range(stage_count))] * nodes
    else:  # the source hosts the front, every other node all the rest
        stages = [(0,)] + [tuple(range(1, stage_count))] * (nodes - 1)
    links = [(n, (n + 1) % nodes) for n in range(nodes if nodes > 2 else 1)]
    if draw(st.booleans()) or hosting == "replicated":
        links = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    return Shape(
        stages=tuple(stages),
        links=tuple(links),
        window=draw(st.sampled_from([1, 2, 3, 8])),
        max_batch=draw(st.sampled_from([1, 4])),
        own_slots=draw(st.sampled_from([1, 2, 16])),
        offload=draw(st.sampled_from(["local", "cheapest"])),
    )


def _arrivals(mesh: Mesh, count: int, gap: float, *, deadline: float) -> None:
    for sample in range(count):
        mesh.submit_at(sample * gap, sample, deadline=deadline)


def _assert_empty(mesh: Mesh) -> None:
    for node in mesh.nodes:
        assert node.held_count == 0, node
        assert node.input_length == node.output_length == 0, node


@given(
    shape=shapes(), count=st.integers(1, 40), gap=st.sampled_from([0.0, 0.001, 0.01]), seed=st.integers(0, 999), deep=st.booleans()
)
@settings(max_examples=300)
def test_without_faults_every_sample_is_a_result_and_every_queue_drains(
    shape: Shape, count: int, gap: float, seed: int, deep: bool
) -> None:
    exits = leaves_at(lambda sample: 99) if deep else None
    mesh = Mesh(shape, answer=exits, seed=seed)
    _arrivals(mesh, count, gap, deadline=float("inf"))
    mesh.run(until=1000.0)
    assert mesh.kinds() == {sample: ["result"] for sample in range(count)}
    mesh.run_for(2.0)  # the last Credits come in
    _assert_empty(mesh)
    assert all(node.counts.stale == node.counts.met_again == node.counts.bad_credit == 0 for node in mesh.nodes)


@given(
    shape=shapes(),
    count=st.integers(1, 40),
    seed=st.integers(0, 999),
    loss=st.sampled_from([0.0, 0.05, 0.4]),
    repeat=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=300)
def test_lost_and_repeated_frames_of_every_kind_cost_time_and_no_outcome(
    shape: Shape, count: int, seed: int, loss: float, repeat: float
) -> None:
    mesh = Mesh(shape, seed=seed)
    dice = random.Random(seed)
    frames = (Forward, GrantCredit, SendBlocked, SendReport, SendResults, SendLost)
    mesh.lose = lambda sender, receiver, command: isinstance(command, frames) and mesh.now < 20.0 and dice.random() < loss
    mesh.repeat = lambda sender, receiver, command: dice.random() < repeat
    _arrivals(mesh, count, 0.005, deadline=600.0)
    mesh.run(until=2000.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(len(outcomes) == 1 for outcomes in kinds.values())
    assert {outcomes[0] for outcomes in kinds.values()} == {"result"}, mesh.nodes
    mesh.run_for(700.0)
    _assert_empty(mesh)


@given(
    shape=shapes(),
    count=st.integers(1, 40),
    seed=st.integers(0, 999),
    faults=st.lists(
        st.tuples(st.sampled_from(["restart", "cut"]), st.floats(0.0, 0.5), st.integers(0, 99)), min_size=1, max_size=6
    ),
)
@settings(max_examples=300)
def test_cut_links_and_restarted_nodes_leave_one_outcome_each(
    shape: Shape, count: int, seed: int, faults: list[tuple[str, float, int]]
) -> None:
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, 0.005, deadline=120.0)
    for kind, when, pick in faults:
        if kind == "restart":
            rank = 1 + pick % (len(shape.stages) - 1)
            mesh.at(when, lambda rank=rank: mesh.restart(rank))
        else:
            a, b = shape.links[pick % len(shape.links)]
            mesh.at(when, lambda a=a, b=b: mesh.cut(a, b))
    mesh.run(until=1000.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(outcomes == ["result"] for outcomes in kinds.values()), kinds
    mesh.run_for(200.0)
    _assert_empty(mesh)


@given(shape=shapes(), count=st.integers(1, 30), seed=st.integers(0, 999), poisoned=st.sets(st.integers(0, 29), max_size=4))
@settings(max_examples=150)
def test_a_poison_sample_fails_alone(shape: Shape, count: int, seed: int, poisoned: set[int]) -> None:
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)
    mesh.poison = {(sample, shape.stage_count - 1) for sample in poisoned}
    _arrivals(mesh, count, 0.001, deadline=600.0)
    mesh.run(until=2000.0)
    expected = {sample: ["failed" if sample in poisoned else "result"] for sample in range(count)}
    assert mesh.kinds() == expected


@given(shape=shapes(), count=st.integers(1, 40), seed=st.integers(0, 999), deadline=st.sampled_from([0.0, 0.02, 0.1]))
@settings(max_examples=150)
def test_under_a_short_deadline_everything_ends_by_then(shape: Shape, count: int, seed: int, deadline: float) -> None:
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, 0.0, deadline=deadline)
    mesh.run(until=100.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(outcomes in (["result"], ["expired"]) for outcomes in kinds.values())
    assert all(when <= deadline + 1e-6 for when, _ in mesh.outcomes)
    mesh.run_for(5.0)
    _assert_empty(mesh)

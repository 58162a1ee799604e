"""Random meshes, random arrivals, random faults: one outcome each, credits in range, no deadlock, queues drain (S, C, D, R)."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.policy.mesh import LINK_SECONDS, SERVICE_SECONDS, Mesh, Shape, leaves_at
from tests.properties import examples
from zpipe.policy.exits import ExitLadder
from zpipe.policy.messages import Forward, GrantCredit, SampleCancelled, SendBlocked, SendLost, SendReport, SendResults
from zpipe.policy.node import NodePolicy


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
        runs=draw(st.sampled_from([1, 2])),
        own_slots=draw(st.sampled_from([1, 2, 16])),
        offload=draw(st.sampled_from(["local", "cheapest", "ddi", "mdi", "mdi"])),
        offload_input=draw(st.booleans()),
        output_threshold=draw(st.sampled_from([0, 3, 50])),
        admission=draw(st.sampled_from(["fixed", "mdi-rate", "mdi-threshold", "aimd"])),
        ladder=ExitLadder(tuple((threshold,) * stage_count for threshold in (0.3, 0.5, 0.7, 0.9)), 1),
    )


def _arrivals(mesh: Mesh, count: int, gap: float, *, deadline: float) -> None:
    for sample in range(count):
        mesh.submit_at(sample * gap, sample, deadline=deadline)


def _is_empty(node: NodePolicy) -> bool:
    return node.held_count == node.input_length == node.output_length == 0


def _assert_empties(mesh: Mesh, seconds: float, *, whole: bool = True) -> None:
    """Every node is empty after so many seconds; not the `whole` time: or at three looks, half a second apart, before that.

    What follows is heartbeats, and most of what a run costs; frames between two nodes at one look are in a node at the next.
    """
    until, looks = mesh.now + seconds, 0
    while mesh.now < until and looks < 3:
        mesh.run_for(until - mesh.now if whole else min(0.5, until - mesh.now))
        looks = looks + 1 if all(_is_empty(node) for node in mesh.nodes) else 0
    for node in mesh.nodes:
        assert _is_empty(node), node


@given(
    shape=shapes(), count=st.integers(1, 40), gap=st.sampled_from([0.0, 0.001, 0.01]), seed=st.integers(0, 999), deep=st.booleans()
)
@examples(300)
def test_without_faults_every_sample_is_a_result_and_every_queue_drains(
    shape: Shape, count: int, gap: float, seed: int, deep: bool
) -> None:
    exits = leaves_at(lambda sample: 99) if deep else None
    mesh = Mesh(shape, answer=exits, seed=seed)
    _arrivals(mesh, count, gap, deadline=float("inf"))
    mesh.run(until=1000.0)
    assert mesh.kinds() == {sample: ["result"] for sample in range(count)}
    _assert_empties(mesh, 2.0)  # the last Credits come in
    assert all(node.counts.stale == node.counts.met_again == node.counts.wrong_epoch_credit == 0 for node in mesh.nodes)


@given(
    shape=shapes(),
    count=st.integers(1, 40),
    seed=st.integers(0, 999),
    loss=st.sampled_from([0.0, 0.05, 0.4]),
    repeat=st.sampled_from([0.0, 0.3]),
)
@examples(300)
def test_lost_and_repeated_frames_of_every_kind_cost_time_and_no_outcome(
    shape: Shape, count: int, seed: int, loss: float, repeat: float
) -> None:
    mesh = Mesh(shape, seed=seed)
    dice = random.Random(seed)
    frames = (Forward, GrantCredit, SendBlocked, SendReport, SendResults, SendLost)
    mesh.lose = lambda sender, receiver, command: isinstance(command, frames) and mesh.now < 4.0 and dice.random() < loss
    mesh.repeat = lambda sender, receiver, command: dice.random() < repeat
    _arrivals(mesh, count, 0.005, deadline=100.0)
    mesh.run(until=200.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(len(outcomes) == 1 for outcomes in kinds.values())
    assert {outcomes[0] for outcomes in kinds.values()} == {"result"}, mesh.nodes
    mesh.checked = False  # what is left is heartbeats
    _assert_empties(mesh, 100.0, whole=seed % 16 == 0)


@given(
    shape=shapes(),
    count=st.integers(1, 40),
    seed=st.integers(0, 999),
    faults=st.lists(
        st.tuples(st.sampled_from(["restart", "cut"]), st.floats(0.0, 0.5), st.integers(0, 99)), min_size=1, max_size=6
    ),
)
@examples(300)
def test_cut_links_and_restarted_nodes_leave_one_outcome_each(
    shape: Shape, count: int, seed: int, faults: list[tuple[str, float, int]]
) -> None:
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, 0.005, deadline=60.0)
    for kind, when, pick in faults:
        if kind == "restart":
            rank = 1 + pick % (len(shape.stages) - 1)
            mesh.at(when, lambda rank=rank: mesh.restart(rank))  # type: ignore[misc]
        else:
            a, b = shape.links[pick % len(shape.links)]
            mesh.at(when, lambda a=a, b=b: mesh.cut(a, b))  # type: ignore[misc]
    mesh.run(until=1000.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(outcomes == ["result"] for outcomes in kinds.values()), kinds
    mesh.checked = False  # what is left is heartbeats
    _assert_empties(mesh, 60.0, whole=seed % 16 == 0)


@given(shape=shapes(), count=st.integers(1, 30), seed=st.integers(0, 999), poisoned=st.sets(st.integers(0, 29), max_size=4))
@examples(150)
def test_a_poison_sample_fails_alone(shape: Shape, count: int, seed: int, poisoned: set[int]) -> None:
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)
    mesh.poison = {(sample, shape.stage_count - 1) for sample in poisoned}
    _arrivals(mesh, count, 0.001, deadline=600.0)
    mesh.run(until=2000.0)
    expected = {sample: ["failed" if sample in poisoned else "result"] for sample in range(count)}
    assert mesh.kinds() == expected


@given(shape=shapes(), count=st.integers(1, 40), seed=st.integers(0, 999), deadline=st.sampled_from([0.0, 0.02, 0.1]))
@examples(150)
def test_under_a_short_deadline_everything_ends_by_then(shape: Shape, count: int, seed: int, deadline: float) -> None:
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, 0.0, deadline=deadline)
    mesh.run(until=100.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(outcomes in (["result"], ["expired"]) for outcomes in kinds.values())
    assert all(when <= deadline + 1e-6 for when, _, _ in mesh.outcomes)
    _assert_empties(mesh, 5.0)


@given(
    shape=shapes(),
    count=st.integers(1, 60),
    gap=st.sampled_from([0.0, 0.002, 0.02]),
    seed=st.integers(0, 999),
    when_full=st.sampled_from(["block", "latest", "deadline"]),
    waiting=st.integers(1, 3),
    deadline=st.sampled_from([0.03, 0.3, 30.0]),
)
@examples(150)
def test_a_small_room_gives_each_sample_one_outcome_in_every_mode(
    shape: Shape, count: int, gap: float, seed: int, when_full: str, waiting: int, deadline: float
) -> None:
    """D1, D4; the newest frame is never the one that `latest` turns away."""
    shape.when_full, shape.waiting = when_full, waiting
    mesh = Mesh(shape, seed=seed)
    _arrivals(mesh, count, gap, deadline=deadline)
    mesh.run(until=200.0)
    kinds = mesh.kinds()
    assert kinds.keys() == set(range(count))
    assert all(outcomes in (["result"], ["rejected"], ["expired"]) for outcomes in kinds.values()), kinds
    if when_full == "latest":
        assert kinds[count - 1] != ["rejected"]
    if when_full == "block" and deadline == 30.0:
        assert all(outcomes != ["expired"] for outcomes in kinds.values()), kinds
    _assert_empties(mesh, 2.0 if deadline == 30.0 else deadline + 2.0)


@given(shape=shapes(), first=st.integers(1, 30), second=st.integers(1, 30), seed=st.integers(0, 999), when=st.floats(0.0, 0.3))
@examples(150)
def test_a_restarted_source_gets_its_own_answers_and_no_others(
    shape: Shape, first: int, second: int, seed: int, when: float
) -> None:
    """S1, S5, D2: the network still works for the dead session; its answers are strangers to the new one."""
    mesh = Mesh(shape, seed=seed)
    for sample in range(first):
        mesh.at(sample * 0.002, lambda sample=sample: mesh.submit(sample, deadline=20.0))  # type: ignore[misc]
    mesh.at(when, lambda: mesh.restart(0))
    mesh.run_for(when + 0.3)
    while mesh.nodes[0].source is None or mesh.nodes[0].source.config.session == 1:
        mesh.run_for(0.01)
    for sample in range(second):
        mesh.submit_at(mesh.now + sample * 0.002, sample, deadline=20.0)
    mesh.run(until=100.0)
    assert mesh.kinds(session=2) == {sample: ["result"] for sample in range(second)}
    assert all(len(outcomes) == 1 for outcomes in mesh.kinds(session=1).values())
    assert all(resolve.row.key.session == session for _, session, resolve in mesh.outcomes if resolve.row is not None)
    _assert_empties(mesh, 21.0, whole=seed % 16 == 0)


@given(shape=shapes(), count=st.integers(1, 60), seed=st.integers(0, 999))
@examples(100)
def test_after_arrivals_stop_every_queue_drains_in_the_time_the_work_takes(shape: Shape, count: int, seed: int) -> None:
    """papers.md section 1: no deadline, no further event from outside, every stage for every sample, as if one by one."""
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)
    _arrivals(mesh, count, 0.0, deadline=float("inf"))
    mesh.run(until=1000.0)
    paced = count / 50.0 if shape.admission == "mdi-rate" else 0.0
    hops = shape.stage_count * len(shape.stages)
    assert mesh.now <= 0.5 + paced + count * (shape.stage_count * SERVICE_SECONDS + hops * 3 * LINK_SECONDS)
    _assert_empties(mesh, 2.0)


def _sizes(value: Any, path: str, sizes: dict[str, int], seen: set[int]) -> None:
    """Adds the length of every container reachable from `value`, by the way to it; entries of one container share a way."""
    if id(value) in seen or isinstance(value, (int, float, str, type, random.Random)) or value is None:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        sizes[path] = sizes.get(path, 0) + len(value)
        children = [(path + "{}", child) for child in (*value.keys(), *value.values())]
    elif isinstance(value, (list, tuple, deque, set)):
        sizes[path] = sizes.get(path, 0) + len(value)
        children = [(path + "[]", child) for child in value]
    elif callable(value):
        return
    else:
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        children = [(f"{path}.{name}", getattr(value, name)) for name in names]
    for way, child in children:
        _sizes(child, way, sizes, seen)


def test_nothing_in_a_node_grows_with_run_time() -> None:
    """Three times the samples, the same tables: over lost frames, cuts, restarts, cancelled and expired samples."""
    shape = Shape(
        stages=((0,), (1, 2), (1, 3), (2, 3)),
        links=((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)),
        window=6,
        max_batch=2,
        own_slots=8,
        admission="aimd",
        when_full="latest",
        waiting=4,
        ladder=ExitLadder(((0.5,) * 4,), 0),
    )
    mesh = Mesh(shape, seed=1)
    mesh.checked = False
    dice = random.Random(1)
    mesh.lose = lambda sender, receiver, command: dice.random() < 0.01
    most: dict[str, int] = {}

    def look() -> None:
        for node in mesh.nodes:
            sizes: dict[str, int] = {}
            _sizes(node, "node", sizes, set())
            for way, size in sizes.items():
                most[way] = max(most.get(way, 0), size)

    def run(samples: range) -> None:
        for sample in samples:
            mesh.submit(sample, deadline=2.0)
            if sample % 97 == 0:
                mesh.tell(0, SampleCancelled(sample, "enough"))
            if sample % 501 == 0:
                mesh.cut(*shape.links[sample % 5])
            if sample % 1201 == 0:
                mesh.restart(1 + sample % 3)
            mesh.run_for(0.005)
            if sample % 50 == 0:
                look()

    run(range(2000))
    assert len(most) > 30
    bounds = {way: 2 * size + 64 for way, size in most.items()}
    run(range(2000, 6000))
    grown = {way: (size, bounds.get(way, 64)) for way, size in most.items() if size > bounds.get(way, 64)}
    assert not grown
    assert len(mesh.kinds()) > 5900

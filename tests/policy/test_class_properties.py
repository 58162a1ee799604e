"""Two sources of different class in random meshes with faults: one outcome each, no deadlock (C8), A7 at every node."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.mesh import SERVICE_SECONDS, Mesh, Shape, leaves_at
from tests.policy.test_mesh_properties import shapes
from tests.properties import examples
from zpipe.policy.messages import Forward, GrantCredit, RunStage, SendBlocked, SendLost, SendReport, SendResults

LOW, HIGH = 0, 3
FRAMES = (Forward, GrantCredit, SendBlocked, SendReport, SendResults, SendLost)


@st.composite
def shared(draw: st.DrawFn) -> Shape:
    """As `shapes`, with a second source: another node that hosts stage 0, or one without stages before a node that does."""
    shape = draw(shapes())
    fronts = [rank for rank, hosted in enumerate(shape.stages) if 0 in hosted]
    stages, links, second = shape.stages, shape.links, fronts[-1]
    if second == 0 or draw(st.booleans()):
        second = len(stages)
        stages, links = (*stages, ()), (*links, (fronts[-1], second))
    classes = draw(st.sampled_from([(LOW, HIGH), (HIGH, LOW)]))
    return replace(
        shape,
        stages=stages,
        links=links,
        sources={0: classes[0], second: classes[1]},
        offload=draw(st.sampled_from(["pa-mdi", "pa-mdi", "pa-mdi", "cheapest", "mdi", "local"])),
        order=draw(st.sampled_from(["priority", "priority", "priority", "fifo"])),
        min_share=draw(st.sampled_from([0.0, 0.05, 0.5])),
        max_batch_low=draw(st.sampled_from([0, 1])),
        ageing_seconds=draw(st.sampled_from([0.0, 0.0, 0.02])),
    )


def _offer(mesh: Mesh, counts: dict[int, int], gap: float, *, deadline: float) -> None:
    for source, count in counts.items():
        for sample in range(count):
            mesh.submit_at(sample * gap, sample, deadline=deadline, source=source)


def _assert_results(mesh: Mesh, counts: dict[int, int]) -> None:
    for source, count in counts.items():
        assert mesh.kinds(source=source) == {sample: ["result"] for sample in range(count)}, (source, mesh.nodes)


def _assert_empties(mesh: Mesh, seconds: float) -> None:
    until = mesh.now + seconds
    while mesh.now < until and any(node.held_count for node in mesh.nodes):
        mesh.run_for(0.5)
    assert all(node.held_count == node.input_length == node.output_length == 0 for node in mesh.nodes), mesh.nodes


@given(
    shape=shared(), first=st.integers(0, 30), second=st.integers(1, 30), gap=st.sampled_from([0.0, 0.002]), seed=st.integers(0, 999)
)
@examples(60)
def test_two_classes_without_faults_are_all_results_and_every_queue_drains(
    shape: Shape, first: int, second: int, gap: float, seed: int
) -> None:
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)
    counts = dict(zip(shape.sources, (first, second), strict=True))
    _offer(mesh, counts, gap, deadline=float("inf"))
    mesh.run(until=1000.0)
    _assert_results(mesh, counts)
    _assert_empties(mesh, 2.0)


@given(
    shape=shared(),
    count=st.integers(1, 20),
    seed=st.integers(0, 999),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    repeat=st.sampled_from([0.0, 0.3]),
    faults=st.lists(st.tuples(st.sampled_from(["restart", "cut"]), st.floats(0.0, 0.3), st.integers(0, 99)), max_size=4),
)
@examples(60)
def test_two_classes_through_lost_frames_cut_links_and_restarts_have_one_outcome_each(
    shape: Shape, count: int, seed: int, loss: float, repeat: float, faults: list[tuple[str, float, int]]
) -> None:
    mesh = Mesh(shape, seed=seed)
    dice = random.Random(seed)
    mesh.lose = lambda sender, receiver, command: isinstance(command, FRAMES) and mesh.now < 2.0 and dice.random() < loss
    mesh.repeat = lambda sender, receiver, command: dice.random() < repeat
    between = [rank for rank in range(len(shape.stages)) if rank not in shape.sources]
    for kind, when, pick in faults:
        if kind == "restart" and between:
            rank = between[pick % len(between)]
            mesh.at(when, lambda rank=rank: mesh.restart(rank))  # type: ignore[misc]
        else:
            a, b = shape.links[pick % len(shape.links)]
            mesh.at(when, lambda a=a, b=b: mesh.cut(a, b))  # type: ignore[misc]
    counts = dict.fromkeys(shape.sources, count)
    _offer(mesh, counts, 0.005, deadline=100.0)
    mesh.run(until=200.0)
    _assert_results(mesh, counts)
    mesh.checked = False  # what is left is heartbeats
    _assert_empties(mesh, 100.0)


def _waiting(mesh: Mesh, rank: int) -> set[int]:
    """Classes that wait in a node's I."""
    return {task.priority for queue in mesh.nodes[rank]._tasks.input.values() for task in queue}


@given(shape=shared(), count=st.integers(1, 40), gap=st.sampled_from([0.0, 0.003]), seed=st.integers(0, 999))
@examples(50)
def test_no_low_task_starts_while_a_high_one_waits_where_nothing_is_owed(shape: Shape, count: int, gap: float, seed: int) -> None:
    shape = replace(shape, order="priority", min_share=0.0, ageing_seconds=0.0)
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=seed)

    def ran(rank: int, command: RunStage) -> None:
        (priority,) = {task.priority for task in command.tasks}  # a batch is of one class
        assert all(each <= priority for each in _waiting(mesh, rank)), (priority, mesh.nodes[rank])

    mesh.ran = ran
    counts = dict.fromkeys(shape.sources, count)
    _offer(mesh, counts, gap, deadline=float("inf"))
    mesh.run(until=1000.0)
    _assert_results(mesh, counts)


@pytest.mark.parametrize("min_share", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("max_batch", [1, 4])
def test_of_a_node_that_both_classes_want_the_lower_gets_its_least_share_and_no_more(min_share: float, max_batch: int) -> None:
    """A7 at the first board of a line, where the high source always has samples waiting; the low ones all end once it stops."""
    shape = Shape(
        stages=((), (0,), (1,), ()),
        links=((0, 1), (1, 2), (1, 3)),
        sources={0: HIGH, 3: LOW},
        window=16,
        max_batch=max_batch,
        own_slots=16,
        waiting=2000,
        offload="pa-mdi",
        order="priority",
        min_share=min_share,
    )
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), service=lambda rank, stage: SERVICE_SECONDS / (rank or 1))
    spent: dict[int, float] = defaultdict(float)

    def ran(rank: int, command: RunStage) -> None:
        if rank == 1 and 1.0 <= mesh.now < 5.0:
            spent[command.tasks[0].priority] += SERVICE_SECONDS * len(command.tasks)

    mesh.ran = ran
    mesh.checked = False
    for source, count in ((0, 1500), (3, 400)):
        _offer(mesh, {source: count}, 0.0, deadline=float("inf"))
    mesh.run_for(5.0)
    assert spent[LOW] / sum(spent.values()) == pytest.approx(min_share, abs=0.01 + 0.1 * min_share)
    assert sum(spent.values()) == pytest.approx(4.0, rel=0.05), "the board is never idle"
    mesh.run(until=60.0)
    assert len(mesh.kinds(source=3)) == 400
    assert {kind for kinds in mesh.kinds(source=3).values() for kind in kinds} == {"result"}


@pytest.mark.parametrize("min_share", [0.05, 0.2])
def test_behind_a_link_that_the_higher_class_keeps_full_the_lower_has_its_share_too(min_share: float) -> None:
    """A7, C8: the second board is the slow one, so every slot there is taken, always, and no lane has room to ask."""
    shape = Shape(
        stages=((), (0,), (1,), ()),
        links=((0, 1), (1, 2), (1, 3)),
        sources={0: HIGH, 3: LOW},
        window=8,
        own_slots=16,
        waiting=2000,
        offload="pa-mdi",
        order="priority",
        min_share=min_share,
    )
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), service=lambda rank, stage: SERVICE_SECONDS * rank)
    ran: dict[int, int] = defaultdict(int)

    def note(rank: int, command: RunStage) -> None:
        if rank == 2 and mesh.now >= 1.0:
            ran[command.tasks[0].priority] += 1

    mesh.ran = note
    mesh.checked = False
    for source, count in ((0, 1000), (3, 200)):
        _offer(mesh, {source: count}, 0.0, deadline=float("inf"))
    mesh.run_for(5.0)
    assert ran[LOW] / sum(ran.values()) == pytest.approx(min_share, abs=0.01 + 0.1 * min_share)


def test_with_ageing_a_lower_class_waits_no_longer_than_that_beyond_the_higher_one() -> None:
    """A7, without any share: 40 low samples one by one, while the high source always has eight on its way to each board."""
    shape = Shape(
        stages=((), (0,), (1,), ()),
        links=((0, 1), (1, 2), (1, 3)),
        sources={0: 1, 3: 0},
        window=8,
        own_slots=16,
        waiting=2000,
        offload="pa-mdi",
        order="priority",
        min_share=0.0,
        ageing_seconds=0.05,
    )
    ended: dict[float, Mesh] = {}
    for ageing in (0.0, 0.05):
        mesh = ended[ageing] = Mesh(replace(shape, ageing_seconds=ageing), answer=leaves_at(lambda sample: 99))
        mesh.checked = False
        _offer(mesh, {0: 1000}, 0.0, deadline=float("inf"))
        for sample in range(40):
            mesh.submit_at(0.5 + 0.05 * sample, sample, source=3)
        mesh.run_for(3.0)
    assert not ended[0.0].ended[3], "starved while the other goes on"
    delays = _delays(ended[0.05], 3)
    assert len(delays) == 40
    slowest = max(_delays(ended[0.05], 3))
    assert slowest < 2 * (shape.ageing_seconds + 16 * SERVICE_SECONDS) + 0.02, "at each board: that, and those before it there"


def _delays(mesh: Mesh, source: int) -> list[float]:
    return [resolve.latency_seconds for _, _, resolve in mesh.ended[source]]


@pytest.mark.parametrize("disturb", [lambda mesh: mesh.restart(2), lambda mesh: mesh.cut(1, 2)], ids=["restart", "cut"])
def test_after_a_fault_the_high_class_is_repaired_first(disturb: Callable[[Mesh], None]) -> None:
    """Both classes lose the same board at the same time, under overload by the low one."""
    shape = Shape(
        stages=((0,), (0, 1), (1, 2), (1, 2)),
        links=((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
        sources={0: HIGH, 1: LOW},
        window=8,
        own_slots=32,
        offload="pa-mdi",
        order="priority",
    )
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99), seed=1)
    for sample in range(60):
        mesh.submit_at(0.010 * sample, sample, source=0, deadline=60.0)
    for sample in range(300):
        mesh.submit_at(0.001 * sample, sample, source=1, deadline=60.0)
    mesh.at(0.2, lambda: disturb(mesh))
    mesh.run(until=60.0)
    assert mesh.kinds(source=0) == {sample: ["result"] for sample in range(60)}
    assert mesh.kinds(source=1) == {sample: ["result"] for sample in range(300)}
    high, low = _delays(mesh, 0), _delays(mesh, 1)
    assert sum(high) / len(high) < 0.5 * sum(low) / len(low)

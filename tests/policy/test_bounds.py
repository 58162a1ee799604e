"""Nothing that a node's policy keeps grows with run time, whatever happens to the mesh; a stall stops the source in a window."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.policy.mesh import Mesh, Shape, leaves_at
from zpipe.model import Task
from zpipe.policy import bounds
from zpipe.policy.delivery import Source
from zpipe.policy.estimates import LinkEstimate
from zpipe.policy.messages import Forward, GrantCredit, SampleCancelled, SendBlocked, SendLost, SendReport, SendResults
from zpipe.policy.offload import Candidate
from zpipe.policy.outlet import Outlet

FRAMES = (Forward, GrantCredit, SendBlocked, SendReport, SendResults, SendLost)
MESH = Shape(
    stages=((0,), (0, 1, 2), (1, 2), (2, 3)),
    links=((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)),
    window=8,
    own_slots=16,
    max_batch=4,
    offload="mdi",
    offload_input=True,
    admission="aimd",
    when_full="latest",
    waiting=16,
)
#: A source offers about twice what the mesh can do.
GAP_SECONDS = 0.002
#: A table may be this much longer late in a run than it ever was in the first quarter: chance, not growth.
CHANCE = 1.5, 24


class Stress:
    """A mesh in which something breaks all the time, and the most that each table held in each quarter of the run."""

    def __init__(self, shape: Shape, samples: int, *, seed: int = 0) -> None:
        self.mesh = Mesh(shape, answer=leaves_at(lambda sample: sample % 7), seed=seed)
        self.mesh.checked = False
        self.dice = random.Random(seed)
        self.samples = samples
        self.peaks: list[Counter[str]] = [Counter() for _ in range(4)]
        self.broken: set[str] = set()
        self.mesh.lose = lambda sender, receiver, command: isinstance(command, FRAMES) and self.dice.random() < 0.01
        self.mesh.poison = {(sample, 1) for sample in range(0, samples, 97)}

    def run(self) -> None:
        for sample in range(self.samples):
            self._offer(sample)
            self.mesh.run_for(GAP_SECONDS)
            if sample % 10 == 0:
                self._look(self.peaks[4 * sample // self.samples])

    def _offer(self, sample: int) -> None:
        mesh, dice = self.mesh, self.dice
        deadline = dice.choice((0.05, 0.7, 60.0))  # 0.7: less than a lost answer waits for its timer (R3)
        mesh.submit(sample, deadline=deadline)
        if sample % 13 == 0:
            mesh.tell(0, SampleCancelled(sample, "given up"))
        if sample % 500 == 250:
            mesh.restart(dice.randrange(1, len(mesh.nodes)), after=0.1)
        if sample % 300 == 100:
            mesh.cut(*dice.choice(mesh.shape.links))

    def _look(self, peaks: Counter[str]) -> None:
        for rank, node in enumerate(self.mesh.nodes):
            most = bounds.limits(node)
            for name, size in bounds.sizes(node).items():
                table = f"node {rank}: {name}"
                peaks[table] = max(peaks[table], size)
                if size > most[name]:
                    self.broken.add(table)

    @property
    def grown(self) -> set[str]:
        """Tables that were longer in the last quarter than chance explains."""
        factor, few = CHANCE
        return {table for table, size in self.peaks[3].items() if size > factor * self.peaks[0][table] + few}


@pytest.mark.parametrize(
    ("mode", "samples"),
    [("latest", 6_000), ("block", 6_000), ("deadline", 6_000), pytest.param("latest", 20_000, marks=pytest.mark.slow)],
)
def test_no_table_grows_with_run_time_or_beyond_its_limit(mode: str, samples: int) -> None:
    """Losses, cuts, restarts, poison, cancels and expiries, at twice the load the mesh can take."""
    stress = Stress(replace(MESH, when_full=mode), samples)
    stress.run()
    assert not stress.broken
    assert not stress.grown
    kinds = Counter(resolve.kind for _, _, resolve in stress.mesh.outcomes)
    assert min(kinds[kind] for kind in ("result", "rejected", "expired", "failed")) > 10, "each kind of end was met"
    source = stress.mesh.nodes[0].source
    assert source is not None
    assert source.counts.resubmitted > 50


def _never(self: Source) -> None:
    """Forgets nothing."""


def _throw_for_each(self: Outlet, task: Task, candidate: Candidate) -> bool:
    """Remembers the dice of every task, not only of the head of each lane."""
    self._thrown[task.key.sample, candidate.peer] = (task.key, task.attempt, candidate.report)
    return True


LEAKS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "deadlines": (Source, "_forget_past", _never),
    "dice thrown": (Outlet, "_may_throw", _throw_for_each),
    "sent, arrival not known": (LinkEstimate, "credited", lambda self, *args, **names: None),
}


@pytest.mark.parametrize("table", LEAKS)
def test_a_planted_leak_is_found(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    owner, name, leak = LEAKS[table]
    monkeypatch.setattr(owner, name, leak)
    stress = Stress(MESH, 3000)
    stress.run()
    found = stress.grown | stress.broken
    assert any(found_in.endswith(table) for found_in in found), found


@pytest.mark.parametrize("admission", ["fixed", "aimd", "mdi-rate", "mdi-threshold"])
@pytest.mark.parametrize("mode", ["block", "latest", "deadline"])
def test_a_stalled_link_stops_the_source_within_its_windows(admission: str, mode: str) -> None:
    """A link at 0 bit/s: what is let out after the stall fits into slots and windows, and there it ends."""
    shape = Shape(
        stages=((0,), (1,), (2,)), links=((0, 1), (1, 2)), window=4, own_slots=8, admission=admission, when_full=mode, waiting=20
    )
    mesh = Mesh(shape, answer=leaves_at(lambda sample: 99))
    mesh.checked = False
    source = mesh.nodes[0].source
    assert source is not None
    for sample in range(200):
        mesh.submit(sample, deadline=1000.0)
        mesh.run_for(0.002)
    before = source.counts.admitted
    mesh.lose = lambda sender, receiver, command: {sender, receiver} == {1, 2}
    held, admitted = [], []
    for sample in range(200, 1200):
        mesh.submit(sample, deadline=1000.0)
        mesh.run_for(0.002)
        held.append(sum(node.held_count for node in mesh.nodes))
        admitted.append(source.counts.admitted)
    slots = shape.own_slots + 2 * shape.window
    assert source.counts.admitted - before <= slots
    assert max(held) <= slots
    assert source.waiting_count <= shape.waiting
    assert admitted[-1] == admitted[len(admitted) // 2], "nothing is let in any more"

"""What NodePolicy costs per task and hop: `make bench-micro`, or `python -m bench.micro micro_policy`.

One task's passage through a node makes a few events - it is received, run, sent, its credit comes back, its result passes - and
everything the node's policy does about them counts: each `handle_all`, and the `next_wakeup` that the driver asks for after it, for
tasks, credits, results, reports and timers alike. The events are those of one node of a simulated run that is saturated, recorded
with their grouping into rounds and played again to a fresh policy, which has to answer as the recorded one did. The simulator tells
a node nearly every event in a round of its own, where a live node under load finds several at once, so this is the dearer end
(`python -m bench.hotpath --parts` shows the policy inside a live node, with caches that others have used).
"""

from __future__ import annotations

import json
import pickle
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from zpipe.policy import NodePolicy
from zpipe.policy.messages import Command, Event, StageCompleted, TaskReceived
from zpipe.policy.state import NodeConfig
from zpipe.sim import SimOptions
from zpipe.sim.run import _Run
from zpipe.topology import Topology, from_dict, load_topology

#: (topology, max_batch); a node of `mesh-3` has three neighbours: four nodes, as issue 7 counts.
CASES = [(name, batch) for name in ("line4", "mesh-3") for batch in (1, 8)]
CASES += [(f"{shape}-{neighbours}", 1) for shape in ("hub", "mesh") for neighbours in (2, 4, 8, 16)]
#: Seconds of a row, at random between these: about what a stage of the digits bundle takes on a PC. Faster stages mean fewer
#: reports and timers per task.
ROW_SECONDS = (0.0008, 0.0012)
SEED = 1
#: Samples of a recorded run, and more for each node of a mesh, which share them; the first part is played without the clock.
SAMPLES, SAMPLES_PER_NODE, UNTIMED_SHARE = 1000, 60, 0.2

Round = tuple[float, list[Event]]


@dataclass
class Recorded:
    """What one node's policy was told in a simulated run.

    Attributes:
        config: the node's.
        rounds: pickled, since a policy changes the tasks it is given.
        answers: {kind of command: how many} in the whole run.
        tasks: that came to the node in the timed part: received, or its own.
        events: in the timed part.
    """

    config: NodeConfig
    seed: str
    rounds: list[bytes] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    events: int = 0

    @property
    def untimed(self) -> int:
        return round(UNTIMED_SHARE * len(self.rounds))

    def policy(self) -> NodePolicy:
        return NodePolicy(self.config, rng=random.Random(self.seed))


class Tap:
    """Stands in for one node's policy and keeps what it is told."""

    def __init__(self, policy: NodePolicy, recorded: Recorded) -> None:
        self._policy = policy
        self._recorded = recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def handle_all(self, events: list[Event], *, now: float) -> list[Command]:
        self._recorded.rounds.append(pickle.dumps((now, [_as_live(event) for event in events])))
        commands = self._policy.handle_all(events, now=now)
        self._recorded.answers.update(type(command).__name__ for command in commands)
        return commands


def _as_live(event: Event) -> Event:
    """With the tokens that a live node keeps payloads under; to the policy they are opaque, but it handles them."""
    if isinstance(event, StageCompleted):
        event.tokens = list(range(1, len(event.exited) + 1))
    return event


@cache
def recorded(name: str, max_batch: int) -> Recorded:
    """The events of one node: rank 1 of `line4`, the middle of `hub-K`, a node without a source of `mesh-K`."""
    topology = _topology(name)
    rank = len(topology.nodes) // 2 if name.startswith("hub") else 1
    with tempfile.TemporaryDirectory() as folder:
        service = Path(folder) / "service.json"
        batches = {"1": list(ROW_SECONDS), "8": [4 * seconds for seconds in ROW_SECONDS]}
        service.write_text(json.dumps({"schema": "zpipe.service/1", "stages": {str(stage): batches for stage in range(5)}}))
        options = SimOptions(
            topology,
            count=SAMPLES + SAMPLES_PER_NODE * len(topology.nodes),
            window=64,
            admission="fixed",
            exit_point="no-exit",
            max_batch=max_batch,
            service=service,
            seed=SEED,
            warm_up=0,
        )
        run = _Run(options, lambda line, done: None)
        policy = run.world.nodes[rank]
        found = Recorded(policy.config, f"{SEED}/{rank}")
        run.world.nodes[rank] = Tap(policy, found)  # type: ignore[call-overload]
        run.run()
    counts = [_play(found, found.policy(), part) for part in (slice(0, found.untimed), slice(0, None))]
    assert counts[1] == found.answers, f"{name}: the policy answered {counts[1]}, in the run {found.answers}"
    timed = [pickle.loads(each) for each in found.rounds[found.untimed :]]
    found.events = sum(len(events) for _, events in timed)
    found.tasks = sum(len(event.tasks) for _, events in timed for event in events if isinstance(event, TaskReceived))
    assert found.tasks > 0
    return found


def _play(found: Recorded, policy: NodePolicy, part: slice) -> Counter[str]:
    answers: Counter[str] = Counter()
    for each in found.rounds[part]:
        now, events = pickle.loads(each)
        answers.update(type(command).__name__ for command in policy.handle_all(events, now=now))
        policy.next_wakeup()
    return answers


def _topology(name: str) -> Topology:
    """By name.

    `line4`; `hub-K`: K/2 sources, a node, K/2 nodes that take what it forwards; `mesh-K`: K + 1 nodes, each linked to all others,
    with the whole network, every other one a source.
    """
    shape, _, neighbours = name.partition("-")
    if shape == "line4":
        return load_topology("line4.yaml")
    if shape == "mesh":
        nodes: list[dict[str, Any]] = [{"rank": rank, "stages": [0, 1, 2, 3, 4]} for rank in range(int(neighbours) + 1)]
        sources = [{"rank": rank} for rank in range(0, len(nodes), 2)]
        mesh = {"name": name, "bundle": "digits-mobilenetv2", "nodes": nodes, "links": "mesh", "sources": sources}
        return from_dict({**mesh, "policy": "mdi"})
    half = int(neighbours) // 2
    stages = [[0, 1]] * half + [[2]] + [[3, 4]] * half
    return from_dict(
        {
            "name": name,
            "bundle": "digits-mobilenetv2",
            "nodes": [{"rank": rank, "stages": hosted} for rank, hosted in enumerate(stages)],
            "links": [{"between": sorted((half, rank))} for rank in range(2 * half + 1) if rank != half],
            "sources": [{"rank": rank} for rank in range(half)],
        }
    )


def by_event(fresh: Callable[[], tuple[tuple[NodePolicy, list[Round]], dict[str, Any]]]) -> dict[str, float]:
    """{kind of event: microseconds of a round that has it alone}, the mean over rounds of the least of five plays."""
    least: list[float] = []
    kinds: list[str] = []
    for _ in range(5):
        (policy, rounds), _ = fresh()
        took = []
        for now, events in rounds:
            begin = time.perf_counter()
            policy.handle_all(events, now=now)
            policy.next_wakeup()
            took.append(time.perf_counter() - begin)
        least = [min(pair) for pair in zip(least, took, strict=True)] if least else took
        kinds = [type(events[0]).__name__ if len(events) == 1 else "" for _, events in rounds]
    found: dict[str, list[float]] = {}
    for kind, seconds in zip(kinds, least, strict=True):
        if kind:
            found.setdefault(kind, []).append(1e6 * seconds)
    return {kind: statistics.fmean(costs) for kind, costs in sorted(found.items()) if len(costs) >= 20}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(("name", "max_batch"), CASES)
def test_policy_per_task_and_hop(benchmark: Any, name: str, max_batch: int) -> None:
    found = recorded(name, max_batch)

    def fresh() -> tuple[tuple[NodePolicy, list[Round]], dict[str, Any]]:
        policy = found.policy()
        _play(found, policy, slice(0, found.untimed))
        return (policy, [pickle.loads(each) for each in found.rounds[found.untimed :]]), {}

    def play(policy: NodePolicy, rounds: list[Round]) -> None:
        handle_all, next_wakeup = policy.handle_all, policy.next_wakeup
        for now, events in rounds:
            handle_all(events, now=now)
            next_wakeup()

    benchmark.extra_info["units"] = found.tasks
    benchmark.extra_info["events"] = found.events / found.tasks
    benchmark.extra_info["rounds_per_task"] = (len(found.rounds) - found.untimed) / found.tasks
    benchmark.pedantic(play, setup=fresh, rounds=7)
    benchmark.extra_info["us_by_event"] = by_event(fresh)

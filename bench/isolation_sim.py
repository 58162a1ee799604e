"""Two sources of different class over emulated boards, in the simulator: what bench.isolation measures, by class.

Boards have stages of equal length and no exits, so that every board of a line is as full as the others: the hardest case for a
sample that has to get past others' work at each hop. What a node takes beside its stages and links is the measured hop profile.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.peers.spin import write_bundle
from zpipe.configure import node_config, prepare, source_config
from zpipe.load import poisson
from zpipe.model import GateSpec
from zpipe.policy.messages import Forward, Resolve, RunStage, SampleSubmitted
from zpipe.sim.hop import HopProfile, load_hop_profile
from zpipe.sim.packing import Packing
from zpipe.sim.world import World
from zpipe.topology import NO_EXIT, Topology, from_dict

HOP = Path(__file__).parent / "results" / "hop.json"
STAGES = 4
STAGE_SECONDS = 0.020
#: Classes of the two sources; gamma of PA-MDI beside them.
HIGH, LOW = 1, 0
WEIGHTS = {HIGH: 4.0, LOW: 1.0}
#: Samples that enter before any counts.
WARM_UP_SECONDS = 5.0
#: How often it is looked who waits.
LOOK_SECONDS = 0.010
#: Samples under way of a source that always has some: more than its slots.
SATURATING = 80


@dataclass(frozen=True, slots=True)
class Shape:
    """Boards and links.

    Attributes:
        name: in tables.
        stages: by rank; ranks without any are boards that only submit.
        links: pairs of ranks.
        sources: {class: rank}.
        bandwidth_bps, activation_bytes: of every link, and of what crosses it.
    """

    name: str
    stages: tuple[tuple[int, ...], ...]
    links: tuple[tuple[int, int], ...]
    sources: dict[int, int] = field(hash=False)
    bandwidth_bps: float
    activation_bytes: int

    @property
    def frame_seconds(self) -> float:
        """One sample's activation on a link."""
        return 8.0 * self.activation_bytes / self.bandwidth_bps


_LINE = {
    "stages": ((), (), *((stage,) for stage in range(STAGES))),
    "links": ((0, 2), (1, 2), *((2 + stage, 3 + stage) for stage in range(STAGES - 1))),
    "sources": {HIGH: 0, LOW: 1},
}
_MESH = {
    "stages": (tuple(range(STAGES)),) * 5,
    "links": tuple((a, b) for a in range(5) for b in range(a + 1, 5)),
    "sources": {HIGH: 0, LOW: 1},
}
#: A wired network, where boards are what is scarce; and 20 Mbit/s with 100 KB to carry, where links are.
_FAST: dict[str, Any] = {"bandwidth_bps": 1e9, "activation_bytes": 16_384}
_SLOW: dict[str, Any] = {"bandwidth_bps": 20e6, "activation_bytes": 100_000}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("line", **_LINE, **_FAST),  # type: ignore[arg-type]
        Shape("line-slow", **_LINE, **_SLOW),  # type: ignore[arg-type]
        Shape("mesh", **_MESH, **_FAST),  # type: ignore[arg-type]
        Shape("mesh-slow", **_MESH, **_SLOW),  # type: ignore[arg-type]
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """One run: who offers what, and by which policy.

    Attributes:
        rates: {class: arrivals a second, Poisson; `inf`: always some under way}; a class that is not in it is silent.
        seconds: of arrivals; what entered in them is followed to its end.
        policy: the topology's `policy:`.
    """

    shape: str
    rates: dict[int, float] = field(hash=False)
    seconds: float
    policy: dict[str, Any] = field(hash=False)
    max_batch: int
    seed: int
    deadline: float = 60.0
    stage_seconds: float = STAGE_SECONDS
    admission: str = "fixed"


def topology(case: Case, bundle: Path | str, **node: Any) -> Topology:
    """The case's, checked; `node`: further keys of every node."""
    shape = SHAPES[case.shape]
    admission = {"name": case.admission, "waiting": SATURATING}  # else a source that replaces what is rejected never ends
    link = {"bandwidth": shape.bandwidth_bps, "latency": 0.0005}
    return from_dict(
        {
            "name": case.shape,
            "bundle": str(bundle),
            "nodes": [
                {"rank": rank, "stages": list(hosted), "max_batch": case.max_batch, **node}
                for rank, hosted in enumerate(shape.stages)
            ],
            "links": [{"between": list(pair), **link} for pair in shape.links],
            "sources": [
                {"rank": rank, "priority": each, "weight": WEIGHTS[each], "admission": admission, "deadline": case.deadline}
                for each, rank in shape.sources.items()
            ],
            "policy": {**case.policy, "exit": NO_EXIT},
        }
    )


class _Watched(World):
    """A world that notes what its nodes' time and links went into."""

    def watch(self, since: float, until: float) -> None:
        self.since, self.until = since, until
        self.classes = {
            spec.rank: spec.priority for spec in self.topology.sources
        }  # of a source: not every policy has tasks keep it
        self.runs: dict[tuple[int, int], list[float]] = defaultdict(list)  #: {(rank, class): seconds of each batch}
        self.shared: dict[int, float] = defaultdict(float)  #: {class: seconds of batches at all nodes}
        self.waited: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))  #: {class: {rank: seconds}}
        self._look_for_waiting()
        self.sent: dict[int, int] = defaultdict(int)  #: {class: tasks sent on}
        self.inputs_sent: dict[int, int] = defaultdict(int)  #: {class: of these, raw inputs}
        self.frames: dict[int, list[int]] = defaultdict(list)  #: {class: tasks in each frame between boards}

    def _look_for_waiting(self) -> None:
        """Where tasks of a class wait that the board could run: in I, or in O for somebody who may as well be this board."""
        if self.since <= self.now < self.until:
            for rank, node in enumerate(self.nodes):
                tasks = node._tasks
                hosted = (*tasks.input.values(), *(queue for lane, queue in tasks.output.items() if lane in tasks.input))
                for each in {self.classes[task.key.source] for queue in hosted for task in queue}:
                    self.waited[each][rank] += LOOK_SECONDS
        if self.now < self.until:
            self.call_at(self.now + LOOK_SECONDS, self._look_for_waiting)

    def _run_stage(self, rank: int, command: RunStage) -> None:
        if self.since <= self.now < self.until:
            rows, seconds = len(command.tasks), self._service(rank, command.stage, len(command.tasks))
            for each in {self.classes[task.key.source] for task in command.tasks}:
                self.runs[rank, each].append(seconds)
            for task in command.tasks:
                self.shared[self.classes[task.key.source]] += seconds / rows
        super()._run_stage(rank, command)

    def _forward(self, rank: int, command: Forward) -> None:
        if self.since <= self.now < self.until:
            for task in command.tasks:
                self.sent[self.classes[task.key.source]] += 1
                self.inputs_sent[self.classes[task.key.source]] += command.stage == 0
            if command.stage:
                self.frames[self.classes[command.tasks[0].key.source]].append(len(command.tasks))
        super()._forward(rank, command)


class _Program:
    """Submits one source's samples and keeps their outcomes: an open loop of a rate, or one with so many always under way."""

    def __init__(self, world: World, rank: int, priority: int, case: Case, until: float) -> None:
        self.world, self.rank, self.priority, self.until = world, rank, priority, until
        self.deadline = case.deadline
        self.submitted: list[float] = []
        self.outcomes: dict[int, list[Resolve]] = defaultdict(list)
        rate = case.rates[priority]
        self.times: Iterator[float] = iter(())
        self.saturating = math.isinf(rate)
        if self.saturating:
            for _ in range(SATURATING):
                self.offer()
        else:
            self.times = poisson(rate, seed=1000 * case.seed + priority)
            self._next()

    def offer(self) -> None:
        now, sample = self.world.now, len(self.submitted)
        self.submitted.append(now)
        self.world.indices[self.rank].append(0)
        event = SampleSubmitted(sample, now + self.deadline, now, self.priority, WEIGHTS[self.priority])
        self.world.tell(self.rank, event)

    def _next(self) -> None:
        due = next(self.times)
        if due < self.until:
            self.world.call_at(due, self._arrive)

    def _arrive(self) -> None:
        self.offer()
        self._next()

    def resolved(self, resolve: Resolve) -> None:
        self.outcomes[resolve.sample].append(resolve)
        if self.saturating and self.world.now < self.until:
            self.offer()

    @property
    def open_count(self) -> int:
        return len(self.submitted) - len(self.outcomes)

    def found(self, since: float, until: float) -> dict[str, Any]:
        """Of what entered in a time: latencies, and what became of it."""
        kinds: dict[str, int] = defaultdict(int)
        latencies: list[float] = []
        for sample, at in enumerate(self.submitted):
            ends = self.outcomes.get(sample, [])
            kinds["lost"] += not ends
            kinds["duplicate"] += len(ends) > 1
            if ends and since <= at < until:
                kinds[ends[0].kind] += 1
                if ends[0].kind == "result":
                    latencies.append(ends[0].latency_seconds)
        span = until - since
        ended = sum(
            1
            for sample, ends in self.outcomes.items()
            if ends[0].kind == "result" and since <= self.submitted[sample] + ends[0].latency_seconds < until
        )
        mean = sum(latencies) / len(latencies) if latencies else math.nan
        return {"mean": mean, "max": max(latencies, default=math.nan), "hz": ended / span, "kinds": dict(kinds)}


def _answers(stage: int, rows: Sequence[int], gate: GateSpec) -> tuple[list[bool], list[int], list[float], tuple[bytes, ...]]:
    """Nothing exits before the last stage."""
    return [gate.last] * len(rows), [0] * len(rows), [1.0] * len(rows), ()


def simulate(case: Case, *, hop: HopProfile | None = None) -> dict[str, Any]:
    """One run; figures by class."""
    with tempfile.TemporaryDirectory(prefix="zpipe-isolation-") as folder:
        chain = Path(folder) / "chain"
        write_bundle(chain, spin_seconds=case.stage_seconds, activation_bytes=SHAPES[case.shape].activation_bytes)
        return _simulated(case, chain, hop or load_hop_profile(HOP))


def _simulated(case: Case, chain: Path, hop: HopProfile) -> dict[str, Any]:
    shape = SHAPES[case.shape]
    checked, bundle = prepare(topology(case, chain))
    sources = {spec.rank: replace(source_config(spec, bundle, exit_point=NO_EXIT), session=1) for spec in checked.sources}
    world = _Watched(
        checked,
        [node_config(checked, bundle, node.rank, source=sources.get(node.rank)) for node in checked.nodes],
        service=lambda rank, stage, rows: rows * case.stage_seconds,
        answers=[_answers],
        pack=Packing(checked, bundle).pack,
        hop=hop,
        seed=case.seed,
    )
    until = WARM_UP_SECONDS + case.seconds
    world.watch(WARM_UP_SECONDS, until)
    programs: dict[int, _Program] = {}
    by_rank: dict[int, _Program] = {}
    world.resolved = lambda rank, resolve: by_rank[rank].resolved(resolve)
    for each in case.rates:
        programs[each] = by_rank[shape.sources[each]] = _Program(world, shape.sources[each], each, case, until)

    def look() -> None:
        """Ends the run once nothing is open, or much too late."""
        over = world.now > until + case.deadline + 5.0
        if over or (world.now >= until and not any(program.open_count for program in programs.values())):
            world.stop()
        else:
            world.call_at(world.now + 0.5, look)

    look()
    world.run()
    return _figures(case, world, programs, until)


def _figures(case: Case, world: _Watched, programs: dict[int, _Program], until: float) -> dict[str, Any]:
    shape = SHAPES[case.shape]
    boards = [rank for rank, hosted in enumerate(shape.stages) if hosted]
    found: dict[str, Any] = {}
    for each, program in programs.items():
        here = program.found(WARM_UP_SECONDS, until)
        runs = [world.runs[rank, each] for rank in boards if world.runs[rank, each]]
        ran = sum(len(batches) for batches in runs)
        sizes = world.frames[each]
        entered = sum(WARM_UP_SECONDS <= at < until for at in program.submitted)
        here |= {
            "share": world.shared[each] / (case.seconds * len(boards)),
            "waited": sum(world.waited[each].values()) / (case.seconds * len(boards)),
            "share_by_board": [sum(world.runs[rank, each]) / case.seconds for rank in boards],
            "waited_by_board": [world.waited[each][rank] / case.seconds for rank in boards],
            "batch_mean": sum(map(sum, runs)) / case.stage_seconds / ran if ran else 0.0,
            "residual": _mean([residual(batches) for batches in runs]),
            "frame_rows": _mean(sizes),
        }
        if entered:
            sent, inputs = world.sent[each] / entered, world.inputs_sent[each] / entered
            own_board = bool(shape.stages[shape.sources[each]])
            # Where it has to get past others' work: boards it ran at, and links it shares; its source's, where that is a board.
            here |= {"boards": sent - inputs + 1.0, "links": sent if own_board else sent - inputs}
        found[str(each)] = here
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def residual(batches: Sequence[float]) -> float:
    """What is left, on average, of the service that somebody meets who comes at a random time of one: E[S^2] / 2 E[S]."""
    return sum(each * each for each in batches) / (2.0 * sum(batches))

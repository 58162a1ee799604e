"""From a bundle and the boards somebody has to a topology: which board hosts what, over which links, packed by which codec."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from zpipe.boards import Boards
from zpipe.bundle import Bundle
from zpipe.errors import ConfigError, TopologyError
from zpipe.model import NO_CODEC, OperatingPoint
from zpipe.plan.codecs import choose_codecs
from zpipe.plan.layout import Goal, Layout, Load, latency_seconds, loads, rate_hz
from zpipe.plan.line import plan_line
from zpipe.plan.lone import plan_lone
from zpipe.plan.mesh import mesh_choices, plan_mesh
from zpipe.plan.problem import MOST_LOST, Problem, check_useful, make_problem
from zpipe.plan.program import Clock, still
from zpipe.policy.delivery import WAITING_SAMPLES
from zpipe.topology import NO_EXIT, LinkSpec, NodeSpec, PolicySpec, SourceSpec, Topology, check

Shape = Literal["auto", "line", "mesh"]
PlanGoal: TypeAlias = Literal["throughput", "latency", "accuracy-at-rate"]

TIME_LIMIT_SECONDS = 30.0
#: Windows are multiples of a step, and no larger than needed for a few milliseconds of a fast link: what they hold is memory.
WINDOW_STEP, MOST_WINDOW = 8, 128
#: A deadline is so many times what a sample that finds every place taken takes on average, in steps of seconds; and the longest
#: there is. At twice as much 34 of 1408 expired on a mesh that was never idle (ResNet-50 at 224 pixels).
DEADLINE_FACTOR, DEADLINE_STEP, MOST_DEADLINE = 3.0, 10.0, 1e6
#: On a shared medium a Report waits behind frames; that makes no neighbour suspect (policy rule R5) if in two of its intervals each
#: link can send a batch. In steps of seconds. ResNet-50 over one channel of 20 Mbit/s: at 0.1 s three in four samples went twice.
REPORTS_PER_ROUND, REPORT_STEP, MOST_REPORT = 2.0, 0.1, 60.0
#: The strategy where a stage has several hosts, and where each has one.
CHOOSING, FIXED = "cheapest", "local"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run where, and what that will give.

    Attributes:
        goal: what it is best for.
        shape: `line` or `mesh`.
        problem: the numbers it was made from.
        layout: who runs what.
        codecs: {link, lower board first: codec}.
        point: the operating point, None = no exits.
        topology: the same as a topology; ranks in the layout's order.
        loads: of everything that works, per sample let in, the busiest first.
        rate_hz: samples per second at which the busiest has no time left.
        latency_seconds: mean time of a sample that is alone.
        tried_hz: what a trial gave; None where there was none.
    """

    goal: Goal
    shape: str
    problem: Problem
    layout: Layout
    codecs: Mapping[tuple[int, int], str]
    point: OperatingPoint | None
    topology: Topology
    loads: tuple[Load, ...]
    rate_hz: float
    latency_seconds: float
    tried_hz: float | None = None

    @property
    def sustained_hz(self) -> float:
        """What can be counted on: on paper, and in the trial where there was one."""
        return self.rate_hz if self.tried_hz is None else min(self.rate_hz, self.tried_hz)

    @property
    def measured_files(self) -> dict[int, Path]:
        """{rank: the file of what was measured there}, for the simulator."""
        boards = [self.problem.boards.boards[board] for board in self.layout.hosted]
        return {rank: board.measured.file for rank, board in enumerate(boards) if board.measured is not None}

    @property
    def value(self) -> float:
        """What the goal is about: samples per second, or seconds."""
        return self.rate_hz if self.goal == "throughput" else self.latency_seconds


#: Results per second of a plan when samples are always there.
Trial: TypeAlias = Callable[[Plan], float]


def make_plan(
    bundle: Bundle,
    boards: Boards,
    *,
    goal: PlanGoal = "throughput",
    rate: float | None = None,
    point: str | None = None,
    shape: Shape = "auto",
    most_lost: float = MOST_LOST,
    time_limit: float = TIME_LIMIT_SECONDS,
    name: str = "plan",
    out: Path | None = None,
    trial: Trial | None = None,
    clock: Clock = still,
) -> Plan:
    """The best topology of these boards for a bundle.

    Args:
        bundle: whose stages are placed; its exit shares on calibration data say how many samples get how far.
        boards: who may host them.
        goal: `throughput`: the highest rate; `latency`: the least mean time of a lone sample; `accuracy-at-rate`: the operating
            point with the highest accuracy (on calibration) at which the boards still sustain `rate`.
        rate: samples per second, for `accuracy-at-rate` alone.
        point: an operating point or `no-exit`; the bundle's default if not given.
        shape: `line`: each board one slice, none twice; `mesh`: any board any stages, stages on several boards; `auto`: a line
            where the boards are linked as one.
        most_lost: a codec may cost so much accuracy, 0..1, where a link leaves the codec open.
        time_limit: seconds for the search of a mesh, roughly; trials are cut short when it is over.
        name: of the topology.
        out: where the topology will be written: its bundle is named from there.
        trial: results per second of a plan when samples are always there, as a simulator gives them. With it the best of
            several plans of a mesh is taken (`zpipe.plan.mesh`): what nodes reach that decide by what they see is not in the
            numbers.
        clock: monotonic seconds; without one each solver's run is limited, not their sum.

    Raises:
        ConfigError: no placement exists, or an argument is wrong.
        BackendUnavailable: scipy is not here (meshes alone need it).
    """
    if rate is not None and not 0.0 < rate < math.inf:
        raise ConfigError(f"--rate: found {rate:g}, expected samples per second, a finite number above 0")
    if (goal == "accuracy-at-rate") != (rate is not None):
        found = "none" if rate is None else f"{rate:g} Hz with goal {goal}"
        raise ConfigError(f"--rate: found {found}, expected a rate with `--goal accuracy-at-rate`, and there alone")
    search = _Search(bundle, boards, "line" if _is_line(boards, shape) else "mesh", most_lost, time_limit, name, out, trial, clock)
    if rate is None:
        return search.plan("latency" if goal == "latency" else "throughput", named_point(bundle, point))
    if point is not None:
        raise ConfigError(f"--policy: found {point} with goal accuracy-at-rate, expected none: that goal chooses the point")
    return _most_accurate(search, bundle, rate)


def _is_line(boards: Boards, shape: Shape) -> bool:
    return shape == "line" or (shape == "auto" and boards.shape == "line")


def named_point(bundle: Bundle, name: str | None) -> OperatingPoint | None:
    """The operating point of that name, the bundle's default without one; None for `no-exit`.

    Raises:
        BundleError: there is none.
    """
    if name == NO_EXIT:
        return None
    return bundle.default_point if name in (None, "default") else bundle.point(name)


def _most_accurate(search: _Search, bundle: Bundle, rate: float) -> Plan:
    """Of the operating points whose best plan sustains the rate the one with the highest accuracy, of equal ones the cheapest."""
    search = replace(search, time_limit=search.time_limit / max(1, len(bundle.operating_points)))
    ordered = sorted(bundle.operating_points, key=lambda point: (-point.calibration.accuracy, point.calibration.mean_macs))
    best: Plan | None = None
    for point in ordered:
        plan = search.plan("throughput", point, rate=rate)
        if plan.sustained_hz >= rate:
            return plan
        best = plan if best is None or plan.sustained_hz > best.sustained_hz else best
    if best is None or best.point is None:
        raise ConfigError(f"bundle {bundle.name}: found no operating points, expected some to choose from; run `zpipe calibrate`")
    raise ConfigError(
        f"--rate: found {rate:g} Hz, expected at most {best.sustained_hz:.4g} Hz, what these devices sustain at point "
        f"{best.point.name} (accuracy {best.point.calibration.accuracy:.3f}); ask for less, or add a device"
    )


@dataclass(frozen=True, slots=True)
class _Search:
    """All but goal and operating point."""

    bundle: Bundle
    boards: Boards
    shape: str
    most_lost: float
    time_limit: float
    name: str
    out: Path | None
    trial: Trial | None
    clock: Clock

    def plan(self, goal: Goal, point: OperatingPoint | None, *, rate: float = 0.0) -> Plan:
        """The best plan; one that stays below `rate` even on paper is not tried."""
        problem = make_problem(self.bundle, self.boards, point=point, most_lost=self.most_lost)
        check_useful(problem)
        if self.trial is None or goal != "throughput":
            return self._made(problem, goal, point, solve(problem, goal, self.shape, time_limit=self.time_limit, clock=self.clock))
        best: Plan | None = None
        wrong: TopologyError | None = None
        ends, late = self.clock() + self.time_limit, False
        for layout in self._choices(problem):
            if late and layout.replicated:
                continue  # the line that comes last is quick
            try:
                plan = self._made(problem, goal, point, layout)
            except TopologyError as exc:  # nodes could not follow it; another will do
                wrong = exc
                continue
            if best is not None and plan.rate_hz <= (best.tried_hz or 0.0):
                continue  # on paper no better than another is in fact
            if plan.rate_hz >= rate:
                plan = replace(plan, tried_hz=self.trial(plan))
            if best is None or plan.sustained_hz > best.sustained_hz:
                best = plan
            late = self.clock() > ends
        if best is None:
            assert wrong is not None, "there is one choice at least, or an error"
            raise wrong
        return best

    def _choices(self, problem: Problem) -> Iterator[Layout]:
        if self.shape == "line":
            yield plan_line(problem, "throughput")
            return
        bounded: Layout | None = None
        for bounded in mesh_choices(problem, time_limit=self.time_limit, clock=self.clock):
            yield bounded
        # Where nodes have nothing to choose they reach what is computed: on few links that may be more than they get by choosing.
        try:
            line = plan_line(problem, "throughput")
        except ConfigError:  # no board is left for a slice, or there are several media
            return
        if bounded is not None:
            yield replace(line, bound=bounded.bound, method=bounded.method, timed_out=bounded.timed_out)

    def _made(self, problem: Problem, goal: Goal, point: OperatingPoint | None, layout: Layout) -> Plan:
        codecs = choose_codecs(problem, layout, goal)
        found = tuple(loads(problem, layout, codecs))
        topology = self._topology(problem, layout, codecs, point)
        lone = latency_seconds(problem, layout, codecs)
        return Plan(goal, self.shape, problem, layout, codecs, point, topology, found, rate_hz(list(found)), lone)

    def _topology(
        self, problem: Problem, layout: Layout, codecs: Mapping[tuple[int, int], str], point: OperatingPoint | None
    ) -> Topology:
        topology = to_topology(problem, layout, codecs, exit_point=exit_point_name(self.bundle, point), name=self.name)
        check(replace(topology, bundle=self.bundle.name), len(self.bundle.stages))
        return replace(topology, bundle=bundle_name(self.bundle, self.out))


def solve(problem: Problem, goal: Goal, shape: str, *, time_limit: float, clock: Clock = still) -> Layout:
    """The best layout, whatever codecs its links get.

    Raises:
        ConfigError, BackendUnavailable: as `make_plan`.
    """
    if shape == "line":
        return plan_line(problem, goal)
    if goal == "throughput":
        return plan_mesh(problem, time_limit=time_limit, clock=clock)
    return plan_lone(problem, time_limit=time_limit)


# ---- as a topology -----------------------------------------------------------------------------


def to_topology(
    problem: Problem,
    layout: Layout,
    codecs: Mapping[tuple[int, int], str],
    *,
    exit_point: str = "default",
    name: str = "plan",
) -> Topology:
    """The layout as a topology without a bundle's name; ranks in its order, the source is rank 0.

    Args:
        problem: with the boards.
        layout: who hosts what.
        codecs: of the links.
        exit_point: operating point.
        name: of the topology.
    """
    boards, ranks = problem.boards, {board: rank for rank, board in enumerate(layout.hosted)}
    rate, rounds = rate_hz(loads(problem, layout, codecs)), _rounds(problem, layout, codecs)
    nodes = []
    for board, rank in ranks.items():
        there = boards.boards[board]
        device = "" if there.measured is not None else there.device
        nodes.append(NodeSpec(rank, layout.hosted[board], there.address, "", there.executor, device, there.max_batch))
    links = []
    for link in boards.links:
        if link.between in layout.links:
            low, high = sorted(ranks[board] for board in link.between)
            codec = codecs.get(link.between, NO_CODEC)
            window = _window(problem, layout, link, codec, rate, rounds.get(link.medium, 0.0))
            links.append(replace(link, between=(low, high), codec=codec, window=window))
    source = layout.hosted[boards.source]
    raw_goes_out = any(stage == 0 for _, _, stage in layout.sent) and 0 in source
    policy = PolicySpec(
        offload=CHOOSING if layout.replicated else FIXED,
        exit_point=exit_point,
        report_interval_seconds=_report_interval(rounds),
        offload_input="yes" if raw_goes_out else "no",
    )
    links.sort(key=lambda link: link.between)
    deadline = max(SourceSpec(0).deadline_seconds, _least_deadline(rate, nodes[0], links))
    sources = (SourceSpec(0, deadline_seconds=deadline),)
    return Topology(name, "", tuple(nodes), tuple(links), sources=sources, policy=policy)


def full_seconds(rate: float, source: NodeSpec, links: Iterable[LinkSpec]) -> float:
    """What a sample takes that finds every place taken: in the waiting room, at the source and on the way, at this rate."""
    return (WAITING_SAMPLES["block"] + source.slots + sum(link.window for link in links)) / rate


def _least_deadline(rate: float, source: NodeSpec, links: Iterable[LinkSpec]) -> float:
    """With which samples that are always there get results: on slow boards the usual one ends them while they wait."""
    needed = DEADLINE_FACTOR * full_seconds(rate, source, links)
    return min(MOST_DEADLINE, DEADLINE_STEP * math.ceil(needed / DEADLINE_STEP))


def _rounds(problem: Problem, layout: Layout, codecs: Mapping[tuple[int, int], str]) -> dict[str, float]:
    """{medium: seconds in which each link that shares it sends a batch}."""
    there = problem.within(layout.codecs)
    rounds: dict[str, float] = defaultdict(float)
    for a, b, stage in layout.sent:
        link = there.boards.link(a, b)
        assert link is not None, "tasks go over links"
        if link.medium:
            rows = max(there.boards.boards[board].max_batch for board in (a, b))
            rounds[link.medium] += rows * there.link_seconds(link, codecs.get(link.between, ""))[stage]
    return rounds


def _report_interval(rounds: Mapping[str, float]) -> float:
    """The usual one, or longer where links share a medium that their frames occupy for long."""
    steps = max(rounds.values(), default=0.0) / REPORTS_PER_ROUND / REPORT_STEP
    return min(MOST_REPORT, max(PolicySpec().report_interval_seconds, round(REPORT_STEP * math.ceil(steps), 1)))


def _window(problem: Problem, layout: Layout, link: LinkSpec, codec: str, rate: float, round_seconds: float) -> int:
    """Slots with which a link does not wait for Credits at the planned rate: two batches, and what is under way both ways.

    On a shared medium a task and its Credit wait for a round of everybody's frames (`_rounds`).
    """
    most = link.window
    for a, b in (link.between, link.between[::-1]):
        sent = {stage: tasks for (x, y, stage), tasks in layout.sent.items() if (x, y) == (a, b)}
        batch = problem.boards.boards[b].max_batch
        for stage in sent if rate < math.inf else ():
            frames = max(batch * problem.link_seconds(link, codec)[stage], round_seconds)
            way = 2.0 * link.latency_seconds + 2.0 * frames
            under_way = 2.0 * batch + rate * sum(sent.values()) * way
            most = max(most, min(MOST_WINDOW, WINDOW_STEP * math.ceil(under_way / WINDOW_STEP)))
    return most


def exit_point_name(bundle: Bundle, point: OperatingPoint | None) -> str:
    """As the topology file should say it."""
    return NO_EXIT if point is None else "default" if point == bundle.default_point else point.name


def bundle_name(bundle: Bundle, out: Path | None) -> str:
    """As the topology file should say it: the name where that is enough, else the way there from the file."""
    if bundle.path.parent.name == "engines" and bundle.path.name == bundle.name:
        return bundle.name
    folder = (out.absolute().parent if out is not None else Path.cwd()).resolve()
    return os.path.relpath(bundle.path.resolve(), folder)

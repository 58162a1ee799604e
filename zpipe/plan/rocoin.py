"""Plans for a bundle of students: which boards form a group and host which student, so that a dead board costs nothing.

The source sends each sample to a host of every student and joins what comes back, so only boards with a link to the source may
host, each one student with all of its stages. `zpipe.plan.grouping` says how groups are found, `zpipe.plan.groups` what they are
judged by.

What a board takes for a student, for a sample that is alone: the input on its link, the stages at batch 1, by P(a sample gets so
far), and the scores' way back. Inputs that share a medium go one after the other: each counts as the last of them. A source that
hosts a student needs no link, and never fails: where it does, nobody waits for an answer.

Source: RoCoIn (arXiv:2406.14185), our reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zpipe.boards import Board, Boards
from zpipe.bundle import Bundle
from zpipe.errors import ConfigError
from zpipe.model import AUTO_CODEC, NO_CODEC
from zpipe.plan.grouping import Grouping, TooFew, find_groups
from zpipe.plan.groups import Case, Groups
from zpipe.plan.layout import Layout, loads, rate_hz
from zpipe.plan.planner import FIXED, Plan, bundle_name, exit_point_name, named_point, to_topology
from zpipe.plan.problem import MOST_LOST, Problem, answer_seconds, make_problem, named
from zpipe.topology import LinkSpec, Redundancy, Topology, check

#: P(a part is missing) that is asked for unless one says.
MISSING = 0.01
GROUPS_SHAPE = "groups"
#: Of a board whose time is not known to be more: shares of no time at all are even.
LEAST_SECONDS = 1e-9


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Who hosts which student, and what that gives.

    Attributes:
        plan: boards, links and loads, as of any plan; its latency is that of the slowest group.
        chains: stages of each student, by part.
        case: seconds and failures by board; boards that may not host have `inf`.
        grouping: what was found.
        redundancy: how many hosts of a student get a sample.
        by_parts: accuracy on calibration by the set of parts that are in; () where the bundle does not know.
    """

    plan: Plan
    chains: tuple[range, ...]
    case: Case
    grouping: Grouping
    redundancy: Redundancy
    by_parts: tuple[float, ...]

    @property
    def groups(self) -> Groups:
        """Boards by part."""
        return self.grouping.groups

    @property
    def boards(self) -> tuple[Board, ...]:
        """All there are, in the file's order."""
        return self.plan.problem.boards.boards

    @property
    def all_in_seconds(self) -> float:
        """Mean time of a lone sample until all parts are in, where all come."""
        return self.case.sample_seconds(self.groups)

    @property
    def accuracy(self) -> float | None:
        """On calibration, when every sample finds other boards dead."""
        return self.case.accuracy(self.groups, self.by_parts) if self.by_parts else None


def plan_groups(
    bundle: Bundle,
    boards: Boards,
    *,
    missing: float = MISSING,
    redundancy: Redundancy = "hedged",
    point: str | None = None,
    most_lost: float = MOST_LOST,
    name: str = "plan",
    out: Path | None = None,
) -> GroupPlan:
    """The groups with the fastest slowest one in which each part is missing as seldom as asked.

    Args:
        bundle: of students.
        boards: who may host them; all but the source say how often they fail (`with_failures`).
        missing: P(a part is missing) may be so much at most, 0..1.
        redundancy: how many hosts of a student get a sample.
        point: an operating point or `no-exit`; the bundle's default if not given.
        most_lost: as `make_plan`: of a codec that a link names.
        name: of the topology.
        out: where the topology will be written: its bundle is named from there.

    Raises:
        ConfigError: the bundle has no students, a board does not say how often it fails, or no grouping misses as seldom as asked.
        BackendUnavailable: scipy is not here.
    """
    if bundle.join is None:
        raise ConfigError(f"bundle {bundle.name}: found one chain, expected students, which groups of devices could host")
    if not 0.0 <= missing <= 1.0:
        raise ConfigError(f"--missing: found {missing:g}, expected P(a part is missing), a number from 0 to 1, such as {MISSING:g}")
    operating = named_point(bundle, point)
    problem = make_problem(bundle, boards, point=operating, most_lost=most_lost)
    case = group_case(problem, bundle.chains, missing=missing, redundancy=redundancy)
    try:
        grouping = find_groups(case)
    except TooFew as few:
        raise too_few(problem, bundle.chains, case, few) from few
    layout = _layout(problem, bundle.chains, case, grouping, redundancy)
    codecs = {link.between: _codec(link) for link in problem.boards.links if link.between in layout.links}
    found = tuple(loads(problem, layout, codecs))
    topology = to_topology(problem, layout, codecs, exit_point=exit_point_name(bundle, operating), name=name)
    topology = _with_students(topology, bundle, redundancy)
    check(replace(topology, bundle=bundle.name), len(bundle.stages), bundle.student_stages)
    topology = replace(topology, bundle=bundle_name(bundle, out))
    slowest = case.slowest_seconds(grouping.groups)
    plan = Plan("latency", GROUPS_SHAPE, problem, layout, codecs, operating, topology, found, rate_hz(list(found)), slowest)
    return GroupPlan(plan, bundle.chains, case, grouping, redundancy, bundle.join.calibration)


def with_failures(boards: Boards, everywhere: float | None, by_name: Mapping[str, float]) -> Boards:
    """The same boards, each but the source with P(it does not answer).

    Args:
        boards: what their file says is kept where nothing else is said by name.
        everywhere: of those whose file says nothing.
        by_name: of single ones, or of all that one entry of the file is for; a board's own name goes first.

    Raises:
        ConfigError: a name is none of them, the source is said to fail, or of some board nothing is said.
    """
    names, source = [board.name for board in boards.boards], boards.boards[boards.source]
    nobody = f"found the source {source.name}, expected others: where it fails nobody waits for an answer"
    if by_name.get(source.name):
        raise ConfigError(f"--failure: {nobody}")
    if source.failure and not source.entry:  # an entry for several says it of the others
        raise ConfigError(f"{boards.path or boards.name}: failure: {nobody}; leave it out there")
    for name in by_name:
        if name not in names and all(name != board.entry for board in boards.boards):
            raise ConfigError(f"--failure: found {name}, expected a device of {boards.path or boards.name}: {', '.join(names)}")
    known = [everywhere if board.failure is None else board.failure for board in boards.boards]
    known = [by_name.get(board.name, by_name.get(board.entry, usual)) for board, usual in zip(boards.boards, known, strict=True)]
    unsaid = [name for at, name in enumerate(names) if known[at] is None and at != boards.source]
    if unsaid:
        raise ConfigError(
            f"--failure: found none for {', '.join(unsaid)}, expected P(it does not answer) of every device but the source; "
            "say `--failure 0.1`, or `failure: 0.1` in the devices file"
        )
    return replace(boards, boards=tuple(replace(board, failure=known[at]) for at, board in enumerate(boards.boards)))


# ---- the numbers -------------------------------------------------------------------------------


def group_case(problem: Problem, chains: tuple[range, ...], *, missing: float, redundancy: Redundancy) -> Case:
    """What each board takes for each student, and how often it fails."""
    boards = problem.boards
    failures = [board.failure or 0.0 for board in boards.boards]
    failures[boards.source] = 0.0
    inputs = _inputs(problem, len(chains), redundancy)
    seconds = [[_seconds(problem, board, chain, inputs) for board in range(len(boards.boards))] for chain in chains]
    return Case(tuple(map(tuple, seconds)), tuple(failures), missing)


def _inputs(problem: Problem, parts: int, redundancy: Redundancy) -> dict[str, int]:
    """{medium: inputs of one sample that share it}: of each student one, or one for each board that may be a replica."""
    media = [link.medium for link in problem.boards.links if problem.boards.source in link.between]
    return {medium: media.count(medium) if redundancy == "all" else min(parts, media.count(medium)) for medium in media if medium}


def _seconds(problem: Problem, board: int, chain: range, inputs: Mapping[str, int]) -> float:
    """From a lone sample's start to this student's scores at the source; `inf` where it cannot host it."""
    if not problem.holds(board, chain):
        return math.inf
    computing = sum(problem.reach[stage] * problem.lone_seconds(board, stage) for stage in chain)
    if board == problem.boards.source:
        return computing
    link = problem.boards.link(problem.boards.source, board)
    if link is None:
        return math.inf
    sending = problem.link_seconds(link, _codec(link), alone=True)[chain[0]] * inputs.get(link.medium, 1)
    classes = next(stage.exit_head.classes for stage in reversed(problem.stages) if stage.exit_head is not None)
    return computing + sending + answer_seconds(link, classes) + 2.0 * link.latency_seconds


def _codec(link: LinkSpec) -> str:
    """The link's own; raw inputs go as they are where the planner may choose."""
    return NO_CODEC if link.codec == AUTO_CODEC else link.codec


# ---- as a plan ---------------------------------------------------------------------------------


def _layout(problem: Problem, chains: tuple[range, ...], case: Case, grouping: Grouping, redundancy: Redundancy) -> Layout:
    """The groups as a layout, all boards alive and busy.

    Replicas share a student's samples by how many each can take. With `all` each gets every sample, but what has its answer is
    dropped where it still waits: slow ones fall behind the fastest, and no sample waits for them.
    """
    source = problem.boards.source
    hosted: dict[int, tuple[int, ...]] = {source: ()}
    run: dict[tuple[int, int], float] = {}
    sent: dict[tuple[int, int, int], float] = {}
    for part, group in enumerate(grouping.groups):
        rates = {board: _rate_hz(problem, chains[part], board) for board in group}
        whole = max(rates.values()) if redundancy == "all" else sum(rates.values())
        shares = {board: rate / whole for board, rate in rates.items()}
        for board in sorted(group, key=lambda board: case.seconds[part][board]):
            hosted[board] = tuple(chains[part])
            run.update({(board, stage): shares[board] * problem.reach[stage] for stage in chains[part]})
            if board != source:
                sent[source, board, chains[part][0]] = shares[board]
    links = frozenset((min(source, board), max(source, board)) for board in hosted if board != source)
    how = "all groupings were looked at" if grouping.proven else "a board each that never fails; not all groupings were looked at"
    return Layout(hosted, run, sent, links, grouping.bound, how)


def _rate_hz(problem: Problem, chain: range, board: int) -> float:
    """Samples a second that this board can take for this student, full batches, its link's included."""
    busy = sum(problem.reach[stage] * problem.batch_share(board, stage, 1.0) for stage in chain)
    link = problem.boards.link(problem.boards.source, board)
    sending = problem.link_seconds(link, _codec(link))[chain[0]] if link is not None else 0.0
    return 1.0 / max(busy, sending, LEAST_SECONDS)


def _with_students(topology: Topology, bundle: Bundle, redundancy: Redundancy) -> Topology:
    policy = replace(topology.policy, offload=FIXED, offload_input="no", redundancy=redundancy)
    return replace(topology, students=bundle.student_stages, policy=policy)


# ---- what does not work ------------------------------------------------------------------------


def too_few(problem: Problem, chains: tuple[range, ...], case: Case, few: TooFew) -> ConfigError:
    """Why no grouping does: somebody's student fits nowhere, there are too few boards, or they fail too often."""
    boards, where = problem.boards, problem.boards.path or problem.boards.name
    for part, chain in enumerate(chains):
        if all(seconds == math.inf for seconds in case.seconds[part]):
            linked = [at for at in range(len(boards.boards)) if at == boards.source or boards.link(boards.source, at)]
            there = ", ".join(named(boards.boards[at], memory=True) for at in linked)
            roomy = max(linked, key=problem.room)
            needed = boards.boards[roomy].memory_bytes - problem.room(roomy) + sum(problem.memory(roomy, stage) for stage in chain)
            return ConfigError(
                f"{where}: found no device with room for student {part} among the source and those linked to it ({there}), "
                f"expected one with {math.ceil(needed / 1e6)} MB or more (the node itself and all of its stages); give one more "
                "memory, or train smaller students"
            )
    if not few.groups:
        able = sum(min(row[board] for row in case.seconds) < math.inf for board in case.boards)
        return ConfigError(
            f"{where}: found {able} devices that could host a student, expected {len(chains)} or more, each with room for another "
            "student and linked to the source; add devices or memory, or train fewer students"
        )
    least = _rounded_up(few.least)
    how = "the best that these devices can do" if few.proven else "the best that was found in time"
    groups = "; ".join(
        f"{part}: {', '.join(boards.boards[board].name for board in group)}" for part, group in enumerate(few.groups)
    )
    return ConfigError(
        f"--missing: found {case.missing:g}, expected {least:g} or more, {how} (students {groups}); ask for that, or add a device"
    )


def _rounded_up(probability: float) -> float:
    """To three digits, so that asking for it succeeds."""
    if probability <= 0.0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(probability)) - 2)
    return min(1.0, float(f"{step * math.ceil(probability / step - 1e-9):.3g}"))

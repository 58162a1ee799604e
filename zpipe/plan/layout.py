"""Who runs what: what both searches give, and what a layout comes down to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from zpipe.plan.problem import Problem

Goal = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A placement and how tasks flow through it.

    Attributes:
        hosted: {board: its stages}, in the order of ranks, the source first; boards without stages are left out but for the source.
        run: {(board, stage): tasks run per sample that is let in}.
        sent: {(board, board, stage): tasks sent per sample that is let in}.
        links: pairs of boards that are linked, lower first.
        bound: what no placement exceeds (throughput, samples per second) or falls below (latency, seconds).
        method: how that is known, in words.
        codecs: of a link that leaves its codec open, until one is chosen for it; () = as the problem says.
        timed_out: whether the bound might be closer, had the solver had more time.
    """

    hosted: Mapping[int, tuple[int, ...]]
    run: Mapping[tuple[int, int], float]
    sent: Mapping[tuple[int, int, int], float]
    links: frozenset[tuple[int, int]]
    bound: float
    method: str
    codecs: tuple[str, ...] = ()
    timed_out: bool = False

    @property
    def replicated(self) -> bool:
        """Whether some stage has several hosts."""
        hosted = [stage for stages in self.hosted.values() for stage in stages]
        return len(hosted) > len(set(hosted))


@dataclass(frozen=True, slots=True)
class Load:
    """What one board, link or medium has to do for each sample let in.

    Attributes:
        name: `board camera`, `link camera-arm`, `medium air`.
        boards: the board, or both ends of the link; () for a medium.
        seconds: busy per sample.
    """

    name: str
    boards: tuple[int, ...]
    seconds: float


def loads(problem: Problem, layout: Layout, codecs: Mapping[tuple[int, int], str]) -> list[Load]:
    """Of everything that works in this layout, the busiest first.

    Args:
        problem: the numbers.
        layout: the placement.
        codecs: {link, lower board first: its codec}, where they are chosen already.
    """
    problem, boards = problem.within(layout.codecs), problem.boards
    linked = {link.between: link for link in boards.links}
    busy: dict[tuple[str, tuple[int, ...]], float] = defaultdict(float)
    most: dict[int, float] = defaultdict(float)
    for (board, _), tasks in layout.run.items():
        most[board] = max(most[board], tasks)
    for (board, stage), tasks in layout.run.items():
        # The stage that runs most has full batches; what comes from elsewhere fills those of later ones as well.
        seconds = problem.batch_share(board, stage, tasks / most[board] if most[board] else 0.0)
        busy[f"board {boards.boards[board].name}", (board,)] += tasks * seconds
    for (a, b, stage), tasks in layout.sent.items():
        link = linked[min(a, b), max(a, b)]
        seconds = tasks * problem.link_seconds(link, codecs.get(link.between, ""))[stage]
        if link.medium:
            busy[f"medium {link.medium}", ()] += seconds
        else:
            busy[f"link {boards.boards[a].name}-{boards.boards[b].name}", (a, b)] += seconds
    every = [Load(name, ends, seconds) for (name, ends), seconds in busy.items()]
    return sorted(every, key=lambda load: -load.seconds)


def rate_hz(found: list[Load]) -> float:
    """Samples per second at which the busiest is always busy; `inf` where nothing takes time."""
    return 1.0 / found[0].seconds if found and found[0].seconds > 0.0 else math.inf


def latency_seconds(problem: Problem, layout: Layout, codecs: Mapping[tuple[int, int], str]) -> float:
    """Mean time of a sample that is alone: computing at batch 1, links there, and the answer's way back.

    An answer goes back over as few links as possible; of several such ways the quickest is taken.
    """
    total = sum(tasks * problem.lone_seconds(board, stage) for (board, stage), tasks in layout.run.items())
    problem, boards = problem.within(layout.codecs), problem.boards
    for (a, b, stage), tasks in layout.sent.items():
        link = boards.link(a, b)
        assert link is not None, "tasks go over links"
        total += tasks * (link.latency_seconds + problem.link_seconds(link, codecs.get(link.between, ""), alone=True)[stage])
    back = ways_back(problem, layout.links)
    for (board, stage), tasks in layout.run.items():
        goes_on = problem.survive[stage] if stage < len(problem.stages) - 1 else 0.0
        total += tasks * (1.0 - goes_on) * back[board]
    return total


def ways_back(problem: Problem, links: Collection[tuple[int, int]]) -> dict[int, float]:
    """{board: seconds an answer takes from it to the source} over these links, as few as possible."""
    linked = {link.between: link.latency_seconds for link in problem.boards.links if link.between in links}
    back = {problem.boards.source: 0.0}
    ring = dict(back)
    while ring:
        farther: dict[int, float] = {}
        for near, seconds in ring.items():
            for (a, b), latency in linked.items():
                far = b if near == a else a
                if near in (a, b) and far not in back:
                    farther[far] = min(seconds + latency, farther.get(far, math.inf))
        back |= farther
        ring = farther
    return back

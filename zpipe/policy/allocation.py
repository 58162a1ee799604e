"""Which stages a node serves for whom, decided again as measured rates change (rules A6, A8, A9)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zpipe.model import SampleKey, Task
    from zpipe.policy.state import Neighbour, NodeConfig

#: Shares of a node's time are means over so long, and stages are allocated anew so often: slower than queues, faster than people.
USAGE_SECONDS, ALLOCATE_SECONDS = 2.0, 0.5
#: A stage is withheld from a class where it takes that many times as long as elsewhere, and served again below the second figure.
WITHHOLD_FACTOR, SERVE_FACTOR = 2.0, 1.5
#: A neighbour that is used beyond this share is no place to send more.
FULL_USAGE = 0.85
#: The highest stage a set of them as bits can tell.
MOST_BITS = 62
#: What a source is left of a node's rate at least, however much others use it: who had nothing would never be seen to be faster.
LEAST_FREE = 0.05


class Usage:
    """Shares of this node's time by class and by source, smoothed.

    Args:
        classes, sources: of the topology; what belongs to no other is not counted, whatever a neighbour says.
        now: the time.

    Attributes:
        by_class, by_source: #: {class or source: 0..1}.
    """

    def __init__(self, classes: Iterable[int], sources: Iterable[int], *, now: float) -> None:
        self.by_class = dict.fromkeys(classes, 0.0)
        self.by_source = dict.fromkeys(sources, 0.0)
        self._classes = dict.fromkeys(self.by_class, 0.0)
        self._sources = dict.fromkeys(self.by_source, 0.0)
        self._since = now

    def ran(self, tasks: Sequence[Task], seconds: float) -> None:
        """A batch took so long."""
        each = seconds / len(tasks)
        for task in tasks:
            if task.priority in self._classes:
                self._classes[task.priority] += each
            if task.key.source in self._sources:
                self._sources[task.key.source] += each

    def look_around(self, now: float) -> None:
        """A report interval is over."""
        elapsed = now - self._since
        if elapsed <= 0.0:
            return
        weight = 1.0 - math.exp(-elapsed / USAGE_SECONDS)
        for shares, seconds in ((self.by_class, self._classes), (self.by_source, self._sources)):
            for each, old in shares.items():
                shares[each] = old + weight * (min(1.0, seconds[each] / elapsed) - old)
                seconds[each] = 0.0
        self._since = now

    def above(self, priority: int) -> float:
        """The share of higher classes."""
        return min(1.0, sum(share for each, share in self.by_class.items() if each > priority))

    def of_others(self, source: int) -> float:
        """The share of other sources."""
        return min(1.0, sum(share for each, share in self.by_source.items() if each != source))


class Lookahead:
    """Rule A6: how long what is left of a sample takes, if a node does all of it that it hosts.

    What it does not host counts as elsewhere, where it is fastest; so two nodes are compared for the same work.

    Args:
        config: of the node.
        service: its Gamma, which changes.
        neighbours: theirs, as last reported.
    """

    def __init__(self, config: NodeConfig, *, service: Mapping[int, float], neighbours: Mapping[int, Neighbour]) -> None:
        self._rank = config.rank
        self._reach = config.reach
        self._service = service
        self._neighbours = neighbours
        self._hosts = {config.rank: frozenset(config.stages)} | {n.rank: frozenset(n.stages) for n in config.neighbours}
        self._lasts: dict[int, dict[int, float]] = {}
        self._fastest: dict[int, float] = {}  #: {stage: the shortest that anybody told}; empty until it is asked for

    def forget(self) -> None:
        """Somebody's Gamma changed."""
        self._lasts.clear()
        self._fastest.clear()

    def here(self) -> Mapping[int, float]:
        """{stage: seconds} at this node."""
        return self.at(self._rank)

    def at(self, rank: int) -> Mapping[int, float]:
        """{stage: seconds} at a node."""
        found = self._lasts.get(rank)
        if found is None:
            found = self._lasts[rank] = self._compute(rank)
        return found

    def _compute(self, rank: int) -> dict[int, float]:
        fastest = self._fastest = self._fastest or self._find_fastest()
        own, stages = self._gamma(rank), len(self._reach)
        hosts = self._hosts[rank]
        lasts: dict[int, float] = {}
        rest = 0.0  # expected seconds from the next stage on, for a sample that is known to get there
        for stage in range(stages - 1, -1, -1):
            if stage + 1 < stages and self._reach[stage] > 0.0:
                rest *= min(1.0, self._reach[stage + 1] / self._reach[stage])
            seconds = own.get(stage) if stage in hosts else None
            if seconds is None:
                seconds = fastest.get(stage, 0.0)
            rest = lasts[stage] = seconds + rest
        return lasts

    def _gamma(self, rank: int) -> Mapping[int, float]:
        """Gamma of a node; where it says nothing of a stage, by how its others compare with ours."""
        if rank == self._rank:
            return self._service
        report = self._neighbours[rank].report
        told = report.service_seconds if report is not None else {}
        both = told.keys() & self._service.keys()
        ours = sum(self._service[stage] for stage in both)
        ratio = sum(told[stage] for stage in both) / ours if ours > 0.0 else 1.0
        return {stage: ratio * seconds for stage, seconds in self._service.items()} | told

    def _find_fastest(self) -> dict[int, float]:
        found = dict(self._service)
        for neighbour in self._neighbours.values():
            if neighbour.report is not None and neighbour.takes:
                for stage, seconds in neighbour.report.service_seconds.items():
                    found[stage] = min(found.get(stage, math.inf), seconds)
        return found


class Withholding:
    """Rule A8: the stages this node hosts and would rather not serve for a class.

    In the planner's terms a stage costs a class its service time, stretched by the share of the node's time that higher classes
    use. Where that is much more than at a neighbour with time to spare, the stage is withheld; a few at a time, and those who know
    nobody else still send them here.

    Args:
        config: of the node.
        service: its Gamma.
        usage: its own.
        neighbours: theirs, as last reported.

    Attributes:
        withheld: #: {class: stages as bits}, of classes with any.
        changes: stages withheld or served again since the start.
    """

    def __init__(
        self, config: NodeConfig, *, service: Mapping[int, float], usage: Usage, neighbours: Mapping[int, Neighbour]
    ) -> None:
        self._classes = config.classes
        self._service = service
        self._usage = usage
        self._hosts = {n.rank: frozenset(n.stages) for n in config.neighbours}
        self._neighbours = neighbours
        self._at_once = max(1, len(config.stages) // 4)
        self._next_at = -math.inf
        self.withheld: dict[int, int] = {}
        self.changes = 0

    def look_around(self, now: float) -> None:
        """A report interval is over."""
        if now < self._next_at:
            return
        self._next_at = now + ALLOCATE_SECONDS
        for each in self._classes:
            self._allocate(each)

    def _allocate(self, priority: int) -> None:
        bits, left = self.withheld.get(priority, 0), self._at_once
        stretch = 1.0 / max(LEAST_FREE, 1.0 - self._usage.above(priority))
        for stage, seconds in self._service.items():
            if not left or stage > MOST_BITS:
                break
            other = self._elsewhere(stage, priority)
            factor = SERVE_FACTOR if bits >> stage & 1 else WITHHOLD_FACTOR
            if bool(bits >> stage & 1) != (seconds * stretch > factor * other):
                bits ^= 1 << stage
                left -= 1
                self.changes += 1
        if bits:
            self.withheld[priority] = bits
        else:
            self.withheld.pop(priority, None)

    def _elsewhere(self, stage: int, priority: int) -> float:
        """Seconds at the best neighbour that could take more of that class; `inf` where none could."""
        best = math.inf
        for rank, neighbour in self._neighbours.items():
            report = neighbour.report
            if report is None or not neighbour.takes or stage not in self._hosts[rank] or neighbour.withholds(stage, priority):
                continue
            used = sum(share for each, share in report.usage.items() if each >= priority)
            seconds = report.service_seconds.get(stage)
            if seconds is not None and used < FULL_USAGE:
                best = min(best, seconds / max(LEAST_FREE, 1.0 - used))
        return best


class Chains:
    """Rule A9: how far along a source's chain of nodes this one's part of the network goes.

    Nodes tell both neighbours on a chain the sum of rates on their side, so each knows its part without anybody knowing all.

    Args:
        config: of the node.
        service: its Gamma.
        usage: its own, where what other sources leave free counts; None where a node's whole rate does.
        neighbours: theirs, as last reported.
    """

    def __init__(
        self, config: NodeConfig, *, service: Mapping[int, float], usage: Usage | None, neighbours: Mapping[int, Neighbour]
    ) -> None:
        self._chains = config.chains
        self._macs = config.macs
        self._service = service
        self._usage = usage
        self._neighbours = neighbours
        work = [macs * reach for macs, reach in zip(config.macs, config.reach, strict=True)]
        #: {stage: where its middle lies in the network, 0..1 of the multiply-adds that a sample takes on the mean}
        self._middles = {stage: (sum(work[:stage]) + work[stage] / 2.0) / sum(work) for stage in range(len(work))}
        self._ends: dict[int, float] = {}  #: {source: where this node's part ends, 0..1}
        self.rates: dict[int, tuple[float, float]] = {}  #: what it tells
        self.look_around()

    def look_around(self) -> None:
        """Rates may have changed."""
        for source, (before, behind) in self._chains.items():
            rate = self._rate(source)
            up, down = self._told(before, source)[0], self._told(behind, source)[1]
            self.rates[source] = up + rate, rate + down
            self._ends[source] = (up + rate) / (up + rate + down)

    def keeps(self, task: Task) -> bool:
        """Whether a task's next stage is still this node's part."""
        end = self._ends.get(task.key.source, 1.0)
        return self._middles[task.stage] < end

    def next(self, key: SampleKey) -> int:
        """The rank its tasks go to from here, -1: none."""
        return self._chains.get(key.source, (-1, -1))[1]

    def _rate(self, source: int) -> float:
        """Multiply-adds a second of this node, for that source."""
        seconds = sum(self._service.values())
        rate = sum(self._macs[stage] for stage in self._service) / seconds if seconds > 0.0 else self._guess()
        return rate * max(LEAST_FREE, 1.0 - self._usage.of_others(source)) if self._usage is not None else rate

    def _guess(self) -> float:
        """Of a node that never ran: as fast as its neighbours; one sample a second where none of them did."""
        reports = [neighbour.report for neighbour in self._neighbours.values() if neighbour.report is not None]
        told = [report.service_seconds for report in reports if sum(report.service_seconds.values()) > 0.0]
        if not told:
            return sum(self._macs)
        return sum(sum(self._macs[stage] for stage in each) / sum(each.values()) for each in told) / len(told)

    def _told(self, rank: int, source: int) -> tuple[float, float]:
        neighbour = self._neighbours.get(rank)
        if neighbour is None or not neighbour.up or neighbour.suspected or not neighbour.accepting or neighbour.report is None:
            return 0.0, 0.0
        return neighbour.report.rates.get(source, (0.0, 0.0))


def chain_of(start: int, neighbours: Mapping[int, Iterable[int]], hosts: Iterable[int]) -> list[int]:
    """A way from a source through nodes that host what it needs, each linked with the one before it and met once.

    At each step the next by rank, round from the source: in a full mesh the circle of AR-MDI. Where a way ends early it is short.

    Args:
        start: the source.
        neighbours: {rank: ranks it is linked with}.
        hosts: ranks that may be on it.
    """
    left, ranks = set(hosts) - {start}, len(neighbours)
    way = [start]
    while ahead := [rank for rank in neighbours[way[-1]] if rank in left]:
        way.append(min(ahead, key=lambda rank: (rank - way[-1]) % ranks))
        left.remove(way[-1])
    return way

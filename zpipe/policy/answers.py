"""Results and losses on their way to the source they belong to, this node's own or one hop on (rules D2, R1, R2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpipe.policy.messages import SendLost, SendResults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zpipe.model import LostRow, ResultRow
    from zpipe.policy.delivery import Source
    from zpipe.policy.messages import Command
    from zpipe.policy.state import Neighbour, NodeCounts
    from zpipe.policy.tasks import TaskTable


class Answers:
    """Routes rows: ours to the Source, others into one bundle per next hop, which `flush` hands over."""

    def __init__(
        self,
        *,
        rank: int,
        next_hop: Mapping[int, int],
        neighbours: Mapping[int, Neighbour],
        source: Source | None,
        tasks: TaskTable,
        counts: NodeCounts,
    ) -> None:
        self._rank = rank
        self._next_hop = next_hop
        self._neighbours = neighbours
        self._source = source
        self._tasks = tasks
        self._counts = counts
        self.waiting = False  #: there is something to flush
        self._results: dict[int, list[ResultRow]] = {}  #: {next hop: rows}
        self._lost: dict[int, list[LostRow]] = {}

    def result(self, row: ResultRow, now: float) -> None:
        """One answer, found here or passing through."""
        if row.key.source != self._rank:
            hop = self._hop(row.key.source)
            if hop is not None:
                self._results.setdefault(hop, []).append(row)
                self.waiting = True
        elif self._source is not None:
            self._source.result(row, now=now)
            self._tasks.drop_answered(row.key, row.part)

    def results(self, rows: Sequence[ResultRow], now: float) -> None:
        """Answers from a neighbour."""
        self._counts.relayed += len(rows)
        for row in rows:
            self.result(row, now)

    def lost(self, rows: Sequence[LostRow], now: float) -> None:
        """Attempts that will not come to a result."""
        for row in rows:
            if row.key.source != self._rank:
                hop = self._hop(row.key.source)
                if hop is not None:
                    self._lost.setdefault(hop, []).append(row)
                    self.waiting = True
            elif self._source is not None:
                self._source.lost(row, held=self._tasks.holds(row.key), now=now)

    def _hop(self, source: int) -> int | None:
        """The neighbour next on the way, None when none is up: the source's timer is the backstop (R3)."""
        hop = self._next_hop.get(source)
        if hop is None or not self._neighbours[hop].up:
            self._counts.unroutable += 1
            return None
        return hop

    def flush(self, commands: list[Command]) -> None:
        """One frame per next hop and kind."""
        commands.extend([SendResults(peer, rows) for peer, rows in self._results.items()])
        commands.extend([SendLost(peer, rows) for peer, rows in self._lost.items()])
        self._results, self._lost, self.waiting = {}, {}, False

    def check(self) -> None:
        """Asserts that nothing stays behind between two events."""
        assert not self.waiting
        assert not self._results, self._results
        assert not self._lost, self._lost

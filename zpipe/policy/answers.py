"""Results and losses on their way to the source they belong to, this node's own or one hop on (rules D2, R1, R2, R8)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from zpipe.model import LostRow
from zpipe.policy.messages import SendLost, SendResults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zpipe.model import ResultRow
    from zpipe.policy.delivery import Source
    from zpipe.policy.messages import Command
    from zpipe.policy.state import Neighbour, NodeCounts
    from zpipe.policy.tasks import TaskTable

#: Answers kept while no way to their source is up; the oldest give way, and the source's timer (R3) finds what they said.
MOST_STRANDED = 1024

#: Whence a row came that was made here.
HERE = -1


class Answers:
    """Routes rows: ours to the Source, others into one bundle per next hop, which `flush` hands over.

    Attributes:
        waiting: there is something to flush.
        stranded: #: (whence, row) of what has no way now; at most MOST_STRANDED.
    """

    def __init__(
        self,
        *,
        rank: int,
        nearer: Mapping[int, Sequence[int]],
        beside: Mapping[int, Sequence[int]],
        neighbours: Mapping[int, Neighbour],
        source: Source | None,
        tasks: TaskTable,
        counts: NodeCounts,
    ) -> None:
        self._rank = rank
        self._nearer = nearer
        self._beside = beside
        self._neighbours = neighbours
        self._source = source
        self._tasks = tasks
        self._counts = counts
        self.waiting = False
        self.stranded: deque[tuple[int, ResultRow | LostRow]] = deque()
        self._results: dict[int, list[ResultRow]] = {}  #: {next hop: rows}
        self._lost: dict[int, list[LostRow]] = {}

    def result(self, row: ResultRow, now: float) -> None:
        """One answer found here."""
        source = self._source
        if row.key[0] != self._rank:
            self._pass_on(row, HERE)
        elif source is not None:
            source.result(row, now=now)
            self._tasks.drop_answered(source.present(row.key), row.part)

    def results(self, peer: int, rows: Sequence[ResultRow], now: float) -> str:
        """Answers from a neighbour. Returns the lie that is its own (R7), "" where there is none."""
        self._counts.relayed += len(rows)
        lie, source = "", self._source
        for row in rows:
            key = row.key
            if key[0] != self._rank:
                self._pass_on(row.passed_on(), peer)
            elif source is None:
                continue
            elif source.never_let_out(key):
                self._counts.false_results += 1
                if row.hops == 0 and self._neighbours[peer].config.fed_by_us_alone:
                    lie = f"a result for sample {key.sample}, which never left node {self._rank}"
            else:
                source.result(row, now=now)
                self._tasks.drop_answered(source.present(key), row.part)
        return lie

    def lost(self, rows: Sequence[LostRow], now: float, *, peer: int = HERE) -> None:
        """Attempts that will not come to a result, as this node noticed or a neighbour says."""
        for row in rows:
            if row.key.source != self._rank:
                self._pass_on(row, peer)
            elif self._source is not None:
                self._source.lost(row, held=self._tasks.holds(row.key, row.part), now=now)

    def _pass_on(self, row: ResultRow | LostRow, whence: int) -> None:
        hop = self._hop(row.key[0], whence)
        if hop is None:
            self.stranded.append((whence, row))
            if len(self.stranded) > MOST_STRANDED:
                self.stranded.popleft()
                self._counts.unroutable += 1
            return
        if isinstance(row, LostRow):
            self._lost.setdefault(hop, []).append(row)
        elif hop in self._results:
            self._results[hop].append(row)
        else:
            self._results[hop] = [row]
        self.waiting = True

    def _hop(self, source: int, whence: int) -> int | None:
        """The neighbour next on the way, None when none is up (R8).

        1. The first nearer one that is up and speaks.
        2. Else one as far as this node, unless the row came from such a one: so no two of these steps follow each other, and
           no row goes in circles.
        3. Else a nearer one that is silent: its connection stands, and what it is sent it may yet read.
        """
        neighbours, nearer = self._neighbours, self._nearer.get(source, ())
        for rank in nearer:
            neighbour = neighbours[rank]
            if (neighbour.receives or neighbour.sends) and not neighbour.suspected:  # `up`, without a call
                return rank
        beside = self._beside.get(source, ())
        if whence not in beside:
            for rank in beside:
                if neighbours[rank].up and not neighbours[rank].suspected:
                    return rank
        return next((rank for rank in nearer if neighbours[rank].up), None)

    def retry(self) -> None:
        """A way may be open again for what is stranded."""
        stranded, self.stranded = self.stranded, deque()
        for whence, row in stranded:
            self._pass_on(row, whence)

    def flush(self, commands: list[Command]) -> None:
        """One frame per next hop and kind."""
        if self._results:
            for peer, rows in self._results.items():
                commands.append(SendResults(peer, rows))
            self._results.clear()
        if self._lost:
            for peer, lost in self._lost.items():
                commands.append(SendLost(peer, lost))
            self._lost.clear()
        self.waiting = False

    def check(self) -> None:
        """Asserts that nothing stays behind between two events."""
        assert not self.waiting
        assert not self._results, self._results
        assert not self._lost, self._lost
        assert len(self.stranded) <= MOST_STRANDED

"""Clear to compute: how many tasks of lower classes each neighbour may have here at once (rule C8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zpipe.policy.credit import IncomingLink


class Clearance:
    """Shares a pool of slots for the classes below the highest among the links that use it.

    A link that brought such a task of late has asked (RTC); those that have, share the pool evenly, the others are told 0 and ask
    by the slot that every lane has (C2). What one was told before counts until it is told less, so that two nodes never fill a
    third at once. The lower of several classes have less of the pool.

    Source: RTC and CTC of PA-MDI (arXiv:2412.12371), our reading: a credit granted for a class.

    Args:
        lower: classes below the highest, rising.
        links: the receiving ends at this node.
        pool: slots for all of them; half of a window, so that the rest of each is the highest class's, and two batches.
    """

    def __init__(self, lower: Sequence[int], links: Iterable[IncomingLink], *, pool: int) -> None:
        self._links = list(links)
        self._pools = {each: max(1, pool * (index + 1) // len(lower)) for index, each in enumerate(lower)}
        for link in self._links:
            link.clear, link.clearance = dict.fromkeys(lower, 0), self.of

    def look_around(self) -> None:
        """A report interval is over: who asked in it, or still has such tasks here, uses the pool."""
        for link in self._links:
            link.uses_pool = link.asked or bool(link.lower)
            link.asked = False

    def of(self, link: IncomingLink) -> dict[int, int]:
        """What this link may be told now, {class: tasks of it and of those below}."""
        if link.asked:
            link.uses_pool = True
        if not link.uses_pool:
            return dict.fromkeys(self._pools, 0)
        using = sum(1 for each in self._links if each.uses_pool)
        most = link.window - len(link.lanes) - 1
        granted = {}
        for each, pool in self._pools.items():
            others = sum(max(other.clear[each], other.lower_held(each)) for other in self._links if other is not link)
            granted[each] = max(0, min(pool // using, pool - others, most))
        return granted

    def check(self) -> None:
        """Asserts that what the links were told is no more than there is."""
        for each, pool in self._pools.items():
            told = [link.clear[each] for link in self._links]
            assert min(told) >= 0, (each, told)
            assert sum(told) <= pool, (each, told, pool)

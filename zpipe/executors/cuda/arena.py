"""Regions of one block of memory: what is handed out grows with what it holds, not with the largest batch there may be."""

from __future__ import annotations

from bisect import bisect_left

#: Regions begin at multiples of it, as driver allocations do.
ALIGNMENT = 256


def aligned(nbytes: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Arena:
    """Which bytes of a block are taken. Offsets alone: it works for any memory, and touches none. Not thread-safe.

    First fit by address, and a region given back joins the free ones beside it. A block holds some dozens of regions at most, of
    which the first given is about the first to come back: no cleverer rule earns its keep.

    Args:
        nbytes: of the block.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._holes = [(0, nbytes)] if nbytes > 0 else []  #: (begin, end), ascending, never touching each other
        self._taken: dict[int, int] = {}  #: {begin: end}

    def __len__(self) -> int:
        """Regions that are taken."""
        return len(self._taken)

    def take(self, nbytes: int) -> int | None:
        """Offset of a region of so many bytes (>= 1), None where there is no room."""
        size = aligned(nbytes)
        for place, (begin, end) in enumerate(self._holes):
            if end - begin < size:
                continue
            if end - begin == size:
                del self._holes[place]
            else:
                self._holes[place] = (begin + size, end)
            self._taken[begin] = begin + size
            return begin
        return None

    def shrink(self, begin: int, nbytes: int) -> None:
        """Gives back what a region has beyond its first `nbytes` (>= 1)."""
        end, new_end = self._taken[begin], begin + aligned(nbytes)
        if new_end < end:
            self._taken[begin] = new_end
            self._free(new_end, end)

    def give(self, begin: int) -> None:
        """Gives a region back."""
        self._free(begin, self._taken.pop(begin))

    def _free(self, begin: int, end: int) -> None:
        place = bisect_left(self._holes, (begin, end))
        if place < len(self._holes) and self._holes[place][0] == end:
            end = self._holes.pop(place)[1]
        if place > 0 and self._holes[place - 1][1] == begin:
            begin = self._holes.pop(place - 1)[0]
            place -= 1
        self._holes.insert(place, (begin, end))

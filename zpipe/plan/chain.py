"""Which device of a line runs which slice of a chain of pieces: exact, by dynamic programming over sets of devices.

A line begins at its source; every further device runs at least one piece, the source may run none; tasks go over one link from each
device to the next. Best is the least maximum of all costs (what limits the rate) or their least sum (what a lone sample takes).

1. A state is: which devices were used, which of them came last, how many pieces are done. Its value is the best cost so far.
2. From a state every unused device with a link from the last one takes the next slice, of any length, over that link.
3. Devices that may change places without changing any cost are alike: a state counts them instead of naming them, so that twenty
   equal boards are twenty states and not a million.

For n devices that all differ this takes 2^n * n^2 steps on matrices of pieces x pieces: 10 devices and 5 pieces a fraction of a
second. Nothing is left out, so no line on these devices is better.

Source: Held and Karp's dynamic programming over subsets (doi:10.1137/0110015), with a slice in place of a visit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from zpipe.errors import ConfigError

Combine = Literal["max", "sum"]
Costs: TypeAlias = npt.NDArray[np.float64]

#: About a minute of work; ten devices that all differ are 5,120.
MOST_STATES = 300_000
#: Two costs that differ by less are the same: the difference is rounding.
SAME = 1e-9


class Slice(NamedTuple):
    """The pieces `first` to `end - 1` at one device."""

    device: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Chain:
    """The best line there is.

    Attributes:
        cost: its maximum, or its sum.
        slices: in the order of the line; the source's first, which may be empty.
    """

    cost: float
    slices: tuple[Slice, ...]


class _State(NamedTuple):
    """How one (used, last) was reached, per number of pieces done.

    Attributes:
        cost: `[pieces + 1]`, inf where that cannot be.
        before: `[pieces + 1]`, the number of pieces that were done before the last device's slice.
        parent: `[pieces + 1]`, the class of the device before it; -1 for the source.
    """

    cost: Costs
    before: npt.NDArray[np.intp]
    parent: npt.NDArray[np.intp]


#: How many of each class are used, the source not counted; and the class of the last.
_Key: TypeAlias = tuple[tuple[int, ...], int]


def best_chain(slices: Costs, links: Costs, *, source: int, combine: Combine) -> Chain | None:
    """The best line; None where no line runs all pieces.

    Args:
        slices: `[devices, pieces + 1, pieces + 1]`, cost of running pieces a to b - 1 at a device; inf = it cannot. Costs with
            a >= b are not looked at, but for the source's at [0, 0].
        links: `[devices, devices, pieces + 1]`, cost of sending from one device to another what waits for piece k; inf = no link.
        source: the device where samples enter.
        combine: `max` or `sum`, of all costs along the line.

    Raises:
        ConfigError: so many devices differ that it would take too long.
    """
    return _Search(slices, links, source, combine).run()


def leanest_chain(slices: Costs, links: Costs, *, source: int) -> Chain | None:
    """Of the lines with the least maximum the one with the least sum: no device takes on more than the maximum asks for."""
    best = best_chain(slices, links, source=source, combine="max")
    if best is None:
        return None
    limit = best.cost * (1.0 + SAME)
    allowed = [np.where(costs <= limit, costs, np.inf) for costs in (slices, links)]
    leanest = best_chain(*allowed, source=source, combine="sum")
    assert leanest is not None, "the best line is among them"
    return Chain(best.cost, leanest.slices)


def shared_chain(slices: Costs, links: Costs, airtime: Costs, *, source: int) -> Chain | None:
    """The line with the least maximum of all costs and of the *sum* of airtime, which its links share.

    The least sum that is possible while no other cost exceeds T falls as T grows, so the best maximum lies where the two cross:
    found by bisection over the costs there are, exactly.

    Args:
        slices, links, source: as for `best_chain`.
        airtime: as `links`: seconds of the shared medium; 0 on links that do not use it.
    """

    def within(limit: float) -> Chain | None:
        fits = np.where(links <= limit, airtime, np.inf)
        return best_chain(np.where(slices <= limit, 0.0, np.inf), fits, source=source, combine="sum")

    every = np.unique(np.concatenate([slices.ravel(), links.ravel()]))
    every = every[np.isfinite(every)]
    low, high = 0, len(every)  #: all below `low` are too small; at `high` the sum is no more than the limit, or there is no more
    while low < high:
        middle = (low + high) // 2
        found = within(every[middle])
        if found is not None and found.cost <= every[middle]:
            high = middle
        else:
            low = middle + 1
    chains = [(max(found.cost, every[at]), found) for at in (low - 1, low) if 0 <= at < len(every) and (found := within(every[at]))]
    if not chains:
        return None
    cost, found = min(chains, key=lambda pair: pair[0])
    limit = cost * (1.0 + SAME)
    # Of the lines that reach it one of the least sums, as `leanest_chain` does; the airtime decides first.
    weight = SAME * cost / max(1.0, float(every[-1]) * (len(slices) + 1))
    fits = np.where(links <= limit, airtime + weight * links, np.inf)
    leanest = best_chain(np.where(slices <= limit, weight * slices, np.inf), fits, source=source, combine="sum")
    assert leanest is not None, "the best line is among them"
    return Chain(cost, leanest.slices)


def classes_of(slices: Costs, links: Costs, source: int) -> list[int]:
    """Per device the number of its class: devices of one class may change places. The source is a class of its own, 0."""
    classes = [-1] * len(slices)
    classes[source] = 0
    firsts = [source]
    for device in range(len(slices)):
        if device == source:
            continue
        found = next((number for number, first in enumerate(firsts) if number and _alike(slices, links, device, first)), None)
        if found is None:
            found = len(firsts)
            firsts.append(device)
        classes[device] = found
    return classes


def _alike(slices: Costs, links: Costs, a: int, b: int) -> bool:
    """Whether exchanging the two changes nothing."""
    if not np.array_equal(slices[a], slices[b]):
        return False
    places = np.arange(len(slices))
    places[[a, b]] = b, a
    return np.array_equal(links, links[np.ix_(places, places)])


class _Search:
    """The program, level by level: all lines of so many devices."""

    def __init__(self, slices: Costs, links: Costs, source: int, combine: Combine) -> None:
        self._classes = classes_of(slices, links, source)
        self._members: list[list[int]] = [[] for _ in range(max(self._classes) + 1)]
        for device, number in enumerate(self._classes):
            self._members[number].append(device)
        firsts = [members[0] for members in self._members]
        self._pieces = slices.shape[1] - 1
        # A slice that ends where it began, or before, is none; the source's may be empty.
        real = np.triu(np.ones(slices.shape[1:], bool), 1)
        self._slices = np.where(real, slices[firsts], np.inf)
        self._links = links[np.ix_(firsts, firsts)]
        for number, members in enumerate(self._members):
            if len(members) > 1:
                self._links[number, number] = links[members[0], members[1]]
        self._idle = float(slices[source, 0, 0])
        self._combine: Any = np.maximum if combine == "max" else np.add

    def run(self) -> Chain | None:
        """Every level in turn; the best state in which all pieces are done."""
        start = self._slices[0, 0].copy()
        start[0] = self._idle
        nothing = np.zeros(self._pieces + 1, np.intp)
        level: dict[_Key, _State] = {((0,) * len(self._members), 0): _State(start, nothing, nothing - 1)}
        levels = [level]
        best, where = np.inf, None
        count = 1
        while level:
            for key, state in level.items():
                # Fewer devices come first, and win where the cost is the same.
                if state.cost[-1] < best * (1.0 - SAME):
                    best, where = float(state.cost[-1]), (len(levels) - 1, key)
            level = self._next(level, best)
            levels.append(level)
            count += len(level)
            if count > MOST_STATES:
                raise ConfigError(
                    f"devices: found {len(self._classes)} that may follow each other in more than {MOST_STATES} ways, expected "
                    "fewer; list them in the order of the line with `links: line`, or make boards of one kind alike"
                )
        return None if where is None else Chain(best, self._slices_to(levels, *where))

    def _next(self, level: dict[_Key, _State], best: float) -> dict[_Key, _State]:
        """All states with one device more."""
        found: dict[_Key, _State] = {}
        for (used, last), state in level.items():
            if not (state.cost[:-1] < best).any():
                continue
            for number in range(1, len(self._members)):
                link = self._links[last, number]
                if used[number] == len(self._members[number]) or not np.isfinite(link).any():
                    continue
                arriving = self._combine(state.cost, link)
                costs = self._combine(arriving[:, None], self._slices[number])
                before = costs.argmin(axis=0)
                cost = costs[before, np.arange(self._pieces + 1)]
                if np.isfinite(cost).any():
                    key = ((*used[:number], used[number] + 1, *used[number + 1 :]), number)
                    self._keep(found, key, _State(cost, before, np.full(self._pieces + 1, last, np.intp)))
        return found

    @staticmethod
    def _keep(found: dict[_Key, _State], key: _Key, state: _State) -> None:
        """The better of two ways to a state, for each number of pieces."""
        old = found.get(key)
        if old is None:
            found[key] = state
            return
        better = state.cost < old.cost
        found[key] = _State(*(np.where(better, new, known) for new, known in zip(state, old, strict=True)))

    def _slices_to(self, levels: list[dict[_Key, _State]], depth: int, key: _Key) -> tuple[Slice, ...]:
        """Back from the last device to the source."""
        end, reached = self._pieces, []
        left = [list(members) for members in self._members]
        while depth:
            used, last = key
            state = levels[depth][key]
            begin, parent = int(state.before[end]), int(state.parent[end])
            reached.append((last, begin, end))
            key = ((*used[:last], used[last] - 1, *used[last + 1 :]), parent)
            end, depth = begin, depth - 1
        line = [Slice(self._members[0][0], 0, end)]
        return (*line, *(Slice(left[number].pop(0), begin, end) for number, begin, end in reversed(reached)))

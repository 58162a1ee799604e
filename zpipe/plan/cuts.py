"""Where to cut a network that has no stages yet: a line of devices, one slice for each, from what lies between the candidates.

A *piece* is what lies between two neighbouring places where the network may be cut. `choose_cuts` is exact (`zpipe.plan.chain`);
`equal_cuts` is what one does without knowing the devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zpipe.boards import Board, Boards
from zpipe.errors import ConfigError
from zpipe.plan.chain import Costs, best_chain, leanest_chain, shared_chain
from zpipe.plan.memory import PROCESS_BYTES, slice_memory
from zpipe.topology import LinkSpec

CutGoal = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a network, for one sample.

    Attributes:
        macs: multiply-adds.
        weight_bytes: of its parameters, as stored.
        output_bytes: of what crosses the cut behind it; of the last piece it does not count.
    """

    macs: float
    weight_bytes: float
    output_bytes: float


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where to cut, and what that gives.

    Attributes:
        after: pieces after which to cut, rising: `(2, 5)` makes stages of the pieces 0-2, 3-5 and 6 on.
        boards: who runs each stage, by its place in the devices file; the source's comes first and may have no stage.
        cost_seconds: throughput: what the slowest device or link takes per sample; latency: what a lone sample takes.
    """

    after: tuple[int, ...]
    boards: tuple[int, ...]
    cost_seconds: float


def choose_cuts(
    pieces: Sequence[Piece],
    boards: Boards,
    *,
    input_bytes: float,
    reach: Sequence[float] | None = None,
    bytes_factor: float = 1.0,
    goal: CutGoal = "throughput",
) -> Cuts:
    """The cuts with which a line of these boards does best; each board runs one stage at most.

    Args:
        pieces: of the network, in order.
        boards: who may run them, and over which links.
        input_bytes: of one sample as it enters.
        reach: P(a sample gets to piece k), 1 at first; all 1 where there are no exits.
        bytes_factor: of activations on links: 0.25 for int8 in place of float32. The input goes as it is.
        goal: `throughput`: the least time per sample of the slowest device or link; `latency`: of a lone sample from end to end.

    Raises:
        ConfigError: no line of these boards can hold the network; says what is missing.
    """
    if not pieces:
        raise ConfigError("pieces: found none, expected at least one")
    reached = np.ones(len(pieces)) if reach is None else np.asarray(reach, float)
    crossing = [input_bytes, *(piece.output_bytes * bytes_factor for piece in pieces[:-1])]
    slices = np.stack([_slice_costs(pieces, board, reached, crossing) for board in boards.boards])
    slices[boards.source, 0, 0] = 0.0
    links, airtime = link_costs(boards, lambda link: crossing, reached, latency=goal == "latency")
    if goal == "latency":
        found = best_chain(slices, links + airtime, source=boards.source, combine="sum")
    elif airtime.any():
        found = shared_chain(slices, links, airtime, source=boards.source)
    else:
        found = leanest_chain(slices, links, source=boards.source)
    if found is None:
        raise cannot_hold(boards, weights=sum(piece.weight_bytes for piece in pieces))
    hosting = [each for each in found.slices if each.first < each.end]
    return Cuts(tuple(each.first - 1 for each in hosting[1:]), tuple(each.device for each in hosting), found.cost)


def _slice_costs(pieces: Sequence[Piece], board: Board, reach: Costs, crossing: Sequence[float]) -> Costs:
    """`[pieces + 1, pieces + 1]`: seconds per sample; inf where the board cannot hold the slice."""
    count = len(pieces)
    costs = np.full((count + 1, count + 1), np.inf)
    # What a batch costs however short the piece is counts once for a slice, not for each of its pieces.
    once = board.piece_seconds(0.0)
    each = [reach[k] * (board.piece_seconds(piece.macs) - once) for k, piece in enumerate(pieces)]
    for first in range(count):
        seconds = reach[first] * once
        weights = 0.0
        for end in range(first + 1, count + 1):
            seconds += each[end - 1]
            weights += pieces[end - 1].weight_bytes
            leaving = pieces[end - 1].output_bytes if end < count else 0.0
            if slice_memory(weights, crossing[first] + leaving, board.max_batch) > board.memory_bytes:
                break
            costs[first, end] = seconds
    return costs


def link_costs(
    boards: Boards, crossing: Callable[[LinkSpec], Sequence[float]], reach: Costs, *, latency: bool
) -> tuple[Costs, Costs]:
    """`[boards, boards, pieces + 1]` twice: seconds per sample of each link on its own, inf where there is none; and of airtime.

    Airtime is what links with a bandwidth take of the one medium they name; a line's plan knows one such medium.

    Args:
        boards: which are linked.
        crossing: bytes on a link of what waits for piece k.
        reach: P(a sample gets to piece k).
        latency: whether one-way latencies count, there and for the answer on its way back.

    Raises:
        ConfigError: links name more than one medium.
    """
    media = sorted({link.medium for link in boards.links if link.medium and link.bandwidth_bps < math.inf})
    if len(media) > 1:
        raise ConfigError(
            f"{boards.path or boards.name}: links: found the media {', '.join(media)}, expected one at most for a line; "
            "plan a mesh (`--shape mesh`), or leave out what is not shared"
        )
    shape = (len(boards.boards), len(boards.boards), len(reach) + 1)
    own, shared = np.full(shape, np.inf), np.zeros(shape)
    for link in boards.links:
        seconds = 8.0 * np.asarray(crossing(link)) * reach / link.bandwidth_bps
        waits = 2.0 * link.latency_seconds * reach if latency else np.zeros(len(reach))
        for a, b in (link.between, link.between[::-1]):
            own[a, b, :-1] = waits if link.medium else seconds + waits
            shared[a, b, :-1] = seconds if link.medium else 0.0
    return own, shared


def cannot_hold(boards: Boards, *, weights: float, stages: int = 0) -> ConfigError:
    """Why no placement exists: nobody can hold the parts, or those that could are not linked."""
    there = ", ".join(f"{board.name} {board.memory_bytes / 1e6:.0f} MB" for board in boards.boards if board.memory_bytes < math.inf)
    network = f"the network ({f'{stages} stages, ' if stages else ''}{weights / 1e6:.0f} MB of weights)"
    return ConfigError(
        f"{boards.path or boards.name}: found no way to place {network} on {len(boards.boards)} devices"
        + (f" ({there}; a node alone takes {PROCESS_BYTES / 1e6:.0f} MB)" if there else "")
        + ", expected devices that hold it, each linked to the next from the source on; add a device or memory, link more of them, "
        "or cut the network finer (`zpipe split`)"
    )


def equal_cuts(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Pieces after which to cut so that the costliest of `parts` stages costs least; exact.

    Args:
        costs: of the pieces, in order.
        parts: how many stages.

    Raises:
        ConfigError: there are fewer pieces than parts.
    """
    if not 1 <= parts <= len(costs):
        raise ConfigError(f"parts: found {parts}, expected 1 to {len(costs)}, the number of pieces; offer more places to cut")
    count = len(costs)
    sums = np.concatenate([[0.0], np.cumsum(costs)])
    slices = np.tile(sums[None, :] - sums[:, None], (parts, 1, 1))
    slices[:, np.arange(count + 1), np.arange(count + 1)] = np.inf
    links = np.full((parts, parts, count + 1), np.inf)
    links[np.arange(parts - 1), np.arange(1, parts)] = 0.0
    # The last part has to be there: nobody else may do the last piece.
    slices[: parts - 1, :, count] = np.inf
    found = leanest_chain(slices, links, source=0)
    assert found is not None, "there are as many pieces as parts"
    return tuple(each.first - 1 for each in found.slices[1:])

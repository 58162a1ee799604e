"""Places where a network may be cut: found, chosen, and checked when a user names them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from zpipe.boards import Boards
from zpipe.errors import ConfigError
from zpipe.plan import Piece, choose_cuts, equal_cuts
from zpipe.split.graph import crossings, needed
from zpipe.split.network import Network, weight_bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two stages.

    Attributes:
        tensors: what crosses, in the order in which it is made; one tensor mostly.
        after: index of the last node before it.
        bytes: of one sample's tensors.
        macs_before, macs_after: multiply-adds of one sample, on either side.
    """

    tensors: tuple[str, ...]
    after: int
    bytes: int
    macs_before: int
    macs_after: int

    @property
    def name(self) -> str:
        """As the user says it to `--cut`."""
        return ",".join(self.tensors)


# ---- found -------------------------------------------------------------------------------------


def find_cuts(network: Network, *, most: int = 1) -> list[Cut]:
    """Every place where at most so many tensors carry everything, in topological order.

    The network's input may be one of several, where later layers read it too. Several tensors must have one dtype, a float, since
    they travel as one tensor.

    Args:
        network: to be cut.
        most: tensors that may cross.
    """
    found: list[Cut] = []
    for after, names in enumerate(_crossings(network)):
        if 1 <= len(names) <= most and _may_travel(network, names) and (not found or found[-1].tensors != names):
            found.append(_cut(network, names, after))
    return found


def worthwhile(cuts: Sequence[Cut]) -> list[Cut]:
    """Of cuts between which nothing is multiplied, the one with the fewest bytes, and of these the last.

    A convolution so stays with the normalisation and activation that follow it, which ONNX Runtime computes in one go. Cuts with
    nothing to multiply on one side are left out.
    """
    total = cuts[0].macs_before + cuts[0].macs_after if cuts else 0
    if total == 0:
        return list(cuts)
    best: dict[int, Cut] = {}
    for cut in cuts:
        there = best.get(cut.macs_before)
        if 0 < cut.macs_before < total and (there is None or cut.bytes <= there.bytes):
            best[cut.macs_before] = cut
    return sorted(best.values(), key=lambda cut: cut.after)


def crossing_for(network: Network, *, places: int) -> int | None:
    """The fewest tensors that have to be let cross for so many places worth a cut; None where no number is enough."""
    every = find_cuts(network, most=max(map(len, _crossings(network))))
    for most in sorted({len(cut.tensors) for cut in every}):
        if len(worthwhile([cut for cut in every if len(cut.tensors) <= most])) >= places:
            return most
    return None


def _crossings(network: Network) -> list[tuple[str, ...]]:
    return crossings(network.nodes, network.live, network.input, network.output)


def _may_travel(network: Network, names: Sequence[str]) -> bool:
    if tuple(names) == (network.input,) or any(name not in network.tensors or name == network.output for name in names):
        return False
    dtypes = {network.tensors[name].dtype for name in names}
    return len(names) == 1 or (len(dtypes) == 1 and dtypes <= {"float32", "float16"})


def _cut(network: Network, names: tuple[str, ...], after: int) -> Cut:
    before = sum(network.macs[: after + 1])
    return Cut(names, after, sum(network.tensors[name].bytes for name in names), before, sum(network.macs) - before)


# ---- chosen ------------------------------------------------------------------------------------


def cut_equally(network: Network, cuts: Sequence[Cut], stages: int) -> list[Cut]:
    """The cuts with which the costliest of so many stages costs least; by nodes where nothing is multiplied.

    Raises:
        ConfigError: there are too few places.
    """
    if stages - 1 > len(cuts):
        more = crossing_for(network, places=stages - 1)
        remedy = "" if more is None else f", or let more tensors cross: --crossing {more} (`zpipe split MODEL --list` shows them)"
        raise ConfigError(
            f"--stages: found {stages}, expected at most {len(cuts) + 1}: {network.original.name} can be cut in {len(cuts)} "
            f"place{'s' * (len(cuts) != 1)}; ask for fewer{remedy}"
        )
    pieces = pieces_of(network, cuts)
    costs = [piece.macs for piece in pieces]
    if not any(costs):
        ends = [-1, *(cut.after for cut in cuts), len(network.nodes) - 1]
        costs = [float(b - a) for a, b in pairwise(ends)]
    return [cuts[after] for after in equal_cuts(costs, stages)]


def cut_for_boards(network: Network, cuts: Sequence[Cut], boards: Boards) -> list[Cut]:
    """The cuts with which a line of these devices gives most results per second.

    Raises:
        ConfigError: no line of these devices can hold the network.
    """
    chosen = choose_cuts(pieces_of(network, cuts), boards, input_bytes=network.takes.bytes)
    return [cuts[after] for after in chosen.after]


def pieces_of(network: Network, cuts: Sequence[Cut]) -> list[Piece]:
    """What lies between neighbouring cuts, for the planner."""
    weights = weight_bytes(network)
    total = sum(network.macs)
    pieces, begin, macs = [], 0, 0
    for cut in (*cuts, None):
        end = len(network.nodes) if cut is None else cut.after + 1
        until = total if cut is None else cut.macs_before
        brought = frozenset[tuple[str, int]]().union(*weights[begin:end])
        pieces.append(Piece(until - macs, sum(size for _, size in brought), 0 if cut is None else cut.bytes))
        begin, macs = end, until
    return pieces


# ---- named by the user -------------------------------------------------------------------------


def named_cuts(network: Network, names: Sequence[str]) -> list[Cut]:
    """The cuts a user names, each `TENSOR` or `TENSOR,TENSOR`, in topological order.

    Raises:
        ConfigError: there is no such tensor (says which come close), more crosses there (says what), or two cuts cross each other.
    """
    found = sorted((_named(network, text) for text in names), key=lambda cut: (cut.after, cut.name))
    given: set[str] = {network.input}
    for before, cut in zip([None, *found[:-1]], found, strict=True):
        _, read = needed(network.nodes, cut.tensors, given)
        if before is not None and (before.tensors == cut.tensors or read & network.live - given):
            raise ConfigError(
                f"--cut: found {before.name} and {cut.name}, expected the second behind the first, with all that it needs; cut at "
                "one of them"
            )
        given = set(cut.tensors)
    return found


def _named(network: Network, text: str) -> Cut:
    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not wanted:
        raise ConfigError(f"--cut: found {text!r}, expected the name of a tensor; `zpipe split MODEL --list` shows them")
    for name in wanted:
        _check_name(network, name, alone=len(wanted) == 1)
    makers = {network.input: -1}
    makers |= {output: index for index, node in enumerate(network.nodes) for output in node.output}
    names = tuple(sorted(wanted, key=lambda name: makers[name]))
    after = makers[names[-1]]
    _, read = needed(network.nodes, [network.output], set(names))
    if network.input in read - set(names):
        crossing = _crossings(network)[after]
        missing = [name for name in crossing if name not in names]
        remedy = f"cut at {','.join(crossing)}" if _may_travel(network, crossing) else "cut elsewhere"
        raise ConfigError(
            f"--cut {text}: found that {', '.join(missing[:4])}{' and more' * (len(missing) > 4)} crosses there as well, expected "
            f"all that later layers need; {remedy}, or at one of `zpipe split MODEL --list`"
        )
    if not _may_travel(network, names):
        kinds = ", ".join(sorted({network.tensors[name].dtype for name in names}))
        raise ConfigError(
            f"--cut {text}: found tensors of types {kinds}, expected one float type, as they travel in one frame; cut elsewhere"
        )
    return _cut(network, names, after)


def _check_name(network: Network, name: str, *, alone: bool) -> None:
    ends = {network.input, network.output} if alone else {network.output}
    known = sorted(network.live - ends)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else "`zpipe split MODEL --list` shows the places"
        raise ConfigError(f"--cut {name}: found no such tensor between input and output, expected one of {len(known)}; {meant}")
    if name not in network.tensors:
        raise ConfigError(
            f"--cut {name}: found a tensor that does not begin with the batch axis or whose type cannot travel, expected [batch, "
            "...] of floats or whole numbers; cut before or behind it"
        )

"""Cuts of a network that has none yet."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpipe.boards import Board, Boards
from zpipe.devices import load_device
from zpipe.errors import ConfigError
from zpipe.plan import Cuts, Piece, choose_cuts, equal_cuts
from zpipe.plan.memory import slice_memory
from zpipe.topology import LinkSpec

PI = load_device("raspberry-pi-3").macs_per_second
GPU = load_device("jetson-nano")


def piece(seconds: float, kilobytes: float = 0.0, weights: float = 0.0) -> Piece:
    """One that takes so long on a raspberry-pi-3."""
    return Piece(seconds * PI, weights, 1e3 * kilobytes)


def line(*boards: Board, bandwidth: float = math.inf, latency: float = 0.0, medium: str = "") -> Boards:
    links = tuple(LinkSpec((at, at + 1), bandwidth, latency, medium=medium) for at in range(len(boards) - 1))
    return Boards("hand", boards, links, shape="line")


def same(after: tuple[int, ...], boards: tuple[int, ...], seconds: float) -> Cuts:
    """Cuts that equal these, but for rounding."""
    return Cuts(after, boards, pytest.approx(seconds))  # type: ignore[arg-type]


def pi(**values: float) -> Board:
    return Board("pi", "raspberry-pi-3", **values)  # type: ignore[arg-type]


FIVE = [piece(seconds) for seconds in (1.0, 2.0, 3.0, 2.0, 2.0)]


def test_equal_boards_get_what_is_most_nearly_equal() -> None:
    assert choose_cuts(FIVE, line(pi(), pi()), input_bytes=0) == same((2,), (0, 1), 6.0)
    assert choose_cuts(FIVE, line(pi(), pi(), pi()), input_bytes=0) == same((1, 2), (0, 1, 2), 4.0)


def test_a_faster_board_gets_more() -> None:
    fast = Board("fast", "raspberry-pi-3/0.25")
    assert choose_cuts(FIVE, line(pi(), fast), input_bytes=0) == same((0,), (0, 1), 2.25)


def test_who_reaches_a_piece_counts() -> None:
    found = choose_cuts(FIVE, line(pi(), pi()), input_bytes=0, reach=(1.0, 0.5, 0.5, 0.1, 0.1))
    assert found == same((1,), (0, 1), 2.0), "1 + 2 * 0.5 here, 3 * 0.5 + 4 * 0.1 there"


def test_a_cut_is_where_little_crosses_if_the_link_is_slow() -> None:
    pieces = [piece(1.0, 100.0), piece(1.0, 10.0), piece(1.0, 100.0), piece(1.0)]
    slow = line(pi(), pi(), bandwidth=8e3 * 10.0)  # 10 kB/s
    assert choose_cuts(pieces, slow, input_bytes=0).after == (1,)
    assert choose_cuts(pieces, slow, input_bytes=0, bytes_factor=0.01).cost_seconds == pytest.approx(2.0)


def test_latency_cuts_only_where_it_pays() -> None:
    fast = Board("fast", "raspberry-pi-3/0.1")
    away = choose_cuts(FIVE, line(pi(), fast, latency=1.0), input_bytes=0, goal="latency")
    assert away == same((), (1,), 1.0 + 2.0), "all at the fast board, there and back"
    assert choose_cuts(FIVE, line(pi(), fast, latency=10.0), input_bytes=0, goal="latency") == same((), (0,), 10.0)


def test_airtime_of_one_medium_is_shared() -> None:
    pieces = [piece(1.0, 10.0), piece(1.0, 10.0), piece(1.0, 10.0)]
    boards = [pi(), pi(), pi()]
    alone = choose_cuts(pieces, line(*boards, bandwidth=8e3 * 10.0), input_bytes=0)
    assert alone.cost_seconds == pytest.approx(1.0)
    together = choose_cuts(pieces, line(*boards, bandwidth=8e3 * 10.0, medium="air"), input_bytes=0)
    assert together.cost_seconds == pytest.approx(2.0), "two links at 1 s each, or two pieces on one board"


def test_what_a_batch_costs_counts_once_for_a_slice() -> None:
    board = Board("gpu", "jetson-nano")
    found = choose_cuts([Piece(1e9, 0, 0), Piece(1e9, 0, 0)], Boards("one", (board,), ()), input_bytes=0)
    assert found.cost_seconds == pytest.approx(2e9 / GPU.macs_per_second + GPU.fixed_seconds / board.max_batch)


def test_memory_limits_what_a_board_gets() -> None:
    pieces = [piece(1.0, weights=50e6), piece(1.0, weights=50e6), piece(1.0, weights=50e6)]
    small = pi(memory_bytes=slice_memory(50e6, 0.0, 8))
    assert choose_cuts(pieces, line(small, pi()), input_bytes=0, goal="latency").after == ()
    assert choose_cuts(pieces, line(small, small, small), input_bytes=0).after == (0, 1)
    with pytest.raises(
        ConfigError, match=r"hand: found no way to place the network \(150 MB of weights\) on 2 devices .*pi 230 MB"
    ):
        choose_cuts(pieces, line(small, small), input_bytes=0)


def test_no_pieces_and_two_media_are_refused() -> None:
    with pytest.raises(ConfigError, match="pieces: found none"):
        choose_cuts([], line(pi()), input_bytes=0)
    two = Boards("two", (pi(), pi(), pi()), (LinkSpec((0, 1), 1e6, medium="a"), LinkSpec((1, 2), 1e6, medium="b")), shape="line")
    with pytest.raises(ConfigError, match="two: links: found the media a, b, expected one at most"):
        choose_cuts(FIVE, two, input_bytes=0)


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=7), st.data())
def test_equal_cuts_are_the_most_nearly_equal(costs: list[float], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    found = equal_cuts(costs, parts)
    assert len(found) == parts - 1

    def worst(after: tuple[int, ...]) -> float:
        ends = [0, *(at + 1 for at in after), len(costs)]
        return max(sum(costs[a:b]) for a, b in pairwise(ends))

    least = min(worst(after) for after in combinations(range(len(costs) - 1), parts - 1))
    assert worst(found) == pytest.approx(least)


def test_more_parts_than_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match="parts: found 3, expected 1 to 2"):
        equal_cuts([1.0, 2.0], 3)

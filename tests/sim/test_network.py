"""Links: when frames arrive, alone and in a world."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.worlds import Run, topology
from zpipe.sim import sizes
from zpipe.sim.network import CONTROL, DATA, Direction, Medium, directions

ROW_BYTES = 10_000


def ten_ms(rank: int, stage: int, rows: int) -> float:
    return 0.01


def direction(medium: Medium | None = None, *, jitter: float = 0.0) -> Direction:
    return Direction(0, 1, medium or Medium(), seconds_per_byte=1e-3, latency_seconds=0.5, jitter_seconds=jitter, codec="none")


def carry(link: Direction, size: int, *, at: float, plane: int = DATA, rng: random.Random | None = None) -> float:
    return link.carry(size, plane, 0.0, at, rng or random.Random(0))


def test_a_frame_takes_its_airtime_and_the_latency() -> None:
    assert carry(direction(), 100, at=2.0) == pytest.approx(2.0 + 0.1 + 0.5)


def test_frames_wait_for_the_one_before_whatever_their_plane() -> None:
    link = direction()
    assert carry(link, 1000, at=0.0) == pytest.approx(1.5)
    assert carry(link, 100, at=0.2, plane=CONTROL) == pytest.approx(1.0 + 0.1 + 0.5)
    assert carry(link, 100, at=5.0) == pytest.approx(5.6)


def test_links_of_one_medium_share_its_airtime_and_others_do_not() -> None:
    shared = Medium()
    first, second, alone = direction(shared), direction(shared), direction()
    carry(first, 1000, at=0.0)
    assert carry(second, 1000, at=0.0) == pytest.approx(2.5)
    assert carry(alone, 1000, at=0.0) == pytest.approx(1.5)
    assert shared.busy_seconds == pytest.approx(2.0)


@given(st.lists(st.tuples(st.integers(1, 2000), st.floats(0.0, 3.0), st.sampled_from([DATA, CONTROL])), max_size=40), st.integers())
def test_each_plane_keeps_its_order_whatever_the_jitter(frames: list[tuple[int, float, int]], seed: int) -> None:
    link, rng = direction(jitter=4.0), random.Random(seed)
    now, arrivals = 0.0, {DATA: [0.0], CONTROL: [0.0]}
    for size, gap, plane in frames:
        now += gap
        arrival = carry(link, size, at=now, plane=plane, rng=rng)
        assert arrival >= now + 0.5 + size * 1e-3
        arrivals[plane].append(arrival)
    assert all(times == sorted(times) for times in arrivals.values())


def test_a_topology_says_what_its_links_are_like() -> None:
    links = [
        {"between": [0, 1], "bandwidth": "8 kbit/s", "latency": "5 ms", "jitter": "1 ms", "medium": "wifi"},
        {"between": [1, 2], "bandwidth": "16 kbit/s", "medium": "wifi"},
        {"between": [0, 2]},
    ]
    found = directions(topology([[0], [1], [2, 3, 4]], links))
    assert found[0][1].seconds_per_byte == found[1][0].seconds_per_byte == 1e-3
    assert (found[0][1].latency_seconds, found[0][1].jitter_seconds) == (0.005, 0.001)
    assert found[0][1].medium is found[1][0].medium is found[1][2].medium is found[2][1].medium
    assert found[0][2].medium is not found[2][0].medium
    assert found[0][2].seconds_per_byte == 0.0


def test_a_sample_over_a_link_takes_service_airtime_and_latency_both_ways() -> None:
    links = [{"between": [0, 1], "bandwidth": "8 Mbit/s", "latency": "5 ms"}]
    run = Run(
        topology([[0], [1, 2, 3, 4]], links),
        service=lambda rank, stage, rows: 0.01,
        exit_stage=lambda row: 1,
        row_bytes=[ROW_BYTES] * 5,
    )
    (latency,) = run.offer([3.0])["latency"]
    header = run.world.links[0][1].bytes - ROW_BYTES
    (received,) = {traffic.received_bytes for traffic in run.world.traffic[1:]}
    assert received >= header + ROW_BYTES
    there = sizes.on_link(header, ROW_BYTES) * 1e-6 + 0.005
    back = sizes.on_link(60) * 1e-6 + 0.005  # a Result of one row has some 60 bytes
    assert latency == pytest.approx(0.01 + there + 0.01 + back, abs=2e-5)


@pytest.mark.parametrize(("medium", "share"), [("", 1.0), ("wifi", 0.5)])
def test_the_slowest_link_sets_the_rate_and_a_shared_medium_halves_it(medium: str, share: float) -> None:
    mbit = 8.0
    links = [{"between": list(pair), "bandwidth": f"{mbit} Mbit/s", "medium": medium} for pair in ((0, 1), (1, 2))]
    line = topology([[0], [1], [2, 3, 4]], links, node={"max_batch": 1})
    run = Run(line, service=lambda rank, stage, rows: 1e-4, exit_stage=lambda row: 2, row_bytes=[ROW_BYTES] * 5)
    count = 800
    run.offer([0.0] * count)
    frame = sizes.on_link(120, ROW_BYTES)
    bound = share * mbit * 1e6 / 8.0 / frame
    assert count / run.world.now == pytest.approx(bound, rel=0.06)
    assert count / run.world.now < bound


def test_results_and_credits_travel_too() -> None:
    links = [{"between": [0, 1], "latency": "50 ms"}]
    run = Run(topology([[0], [1, 2, 3, 4]], links), service=ten_ms, exit_stage=lambda row: 1)
    (latency,) = run.offer([1.0])["latency"]
    assert latency == pytest.approx(0.01 + 0.05 + 0.01 + 0.05)
    assert run.world.nodes[0].neighbour(1).outgoing.round_trip_seconds == pytest.approx(0.1, rel=0.01)  # type: ignore[union-attr]

"""One node as a queue: against what queueing theory says of it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from tests.sim.worlds import Run, topology
from zpipe.load import constant, poisson
from zpipe.service import Spread
from zpipe.sim.hop import HopProfile

SERVICE = 0.01
ALONE = topology([[0, 1, 2, 3, 4]], node={"max_batch": 1})


@pytest.mark.parametrize(("load", "count"), [(0.3, 8_000), (0.6, 16_000), (0.85, 40_000)])
def test_a_node_with_poisson_arrivals_and_constant_service_is_an_m_d_1_queue(load: float, count: int) -> None:
    """The fuller, the longer its queue remembers, and the more samples a mean takes."""
    run = Run(ALONE, service=lambda rank, stage, rows: SERVICE, checked=False)
    columns = run.offer(islice(poisson(load / SERVICE, seed=3), count))
    expected = SERVICE + load * SERVICE / (2.0 * (1.0 - load))  # Pollaczek-Khinchine
    assert columns["latency"].mean() == pytest.approx(expected, rel=0.03)
    assert columns["queued"].mean() == pytest.approx(expected - SERVICE, rel=0.06)


def test_without_chance_every_latency_is_the_service_time() -> None:
    run = Run(ALONE, service=lambda rank, stage, rows: SERVICE)
    latency = run.offer(islice(constant(0.99 / SERVICE), 500))["latency"]
    assert latency == pytest.approx(np.full(500, SERVICE))


def test_a_batch_ends_together_and_takes_what_the_service_says_for_its_rows() -> None:
    batched = topology([[0, 1, 2, 3, 4]], node={"max_batch": 4})
    run = Run(batched, service=lambda rank, stage, rows: 0.1 + 0.01 * rows)
    latency = run.offer([0.0, 0.05, 0.05, 0.05, 0.05, 0.05])["latency"]
    alone, four, last = 0.11, 0.14, 0.11
    expected = [alone, *[alone - 0.05 + four] * 4, alone - 0.05 + four + last]
    assert latency == pytest.approx(expected)


def test_what_happens_at_one_instant_is_decided_together() -> None:
    together = topology([[0, 1, 2, 3, 4]], node={"max_batch": 8})
    run = Run(together, service=lambda rank, stage, rows: 0.1)
    run.offer([1.0] * 8)
    assert run.world.nodes[0].counts.batches == 1


def test_a_hop_profile_delays_start_and_end_of_each_batch_but_keeps_the_service_time() -> None:
    hop = HopProfile(start=Spread((0.002,)), finish=Spread((0.003,)))
    run = Run(ALONE, service=lambda rank, stage, rows: SERVICE, hop=hop)
    columns = run.offer([0.0, 1.0])
    assert columns["latency"] == pytest.approx([SERVICE + 0.005] * 2)
    assert run.world.traffic[0].busy_seconds == pytest.approx(2 * SERVICE)
    assert dict(run.world.nodes[0].service_seconds) == pytest.approx({0: SERVICE})

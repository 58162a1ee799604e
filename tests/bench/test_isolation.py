"""What bench.isolation measures: the simulator's figures by class, and that they tell a policy with classes from one without."""

from __future__ import annotations

import math

import pytest

from bench.isolation import isolation_row, policy
from bench.isolation_sim import HIGH, LOW, SHAPES, Case, residual, simulate


def _run(offload: str, *, low: bool) -> dict[str, object]:
    rates = {HIGH: 15.0} | ({LOW: math.inf} if low else {})
    return simulate(Case("line", rates, 6.0, policy(offload), 1, seed=0))


@pytest.mark.parametrize(("offload", "held"), [("pa-mdi", True), ("fifo", False)])
def test_the_bound_holds_by_class_and_not_first_come_first_served(offload: str, held: bool) -> None:
    alone, both = _run("pa-mdi", low=False), _run(offload, low=True)
    row = isolation_row("line", 1, 0, "always", 50.0, [alone], [both])
    assert row["held"] == held
    assert row["broken"] == 0
    assert row["boards"] == pytest.approx(4.0, abs=0.2)
    assert row["links"] == pytest.approx(3.0, abs=0.2)
    assert row["residual_ms"] == pytest.approx(4 * 10.0, rel=0.1), "four boards, half a service of 20 ms each"
    assert row["frames_ms"] == pytest.approx(3 * 1e3 * SHAPES["line"].frame_seconds, rel=0.1)


def test_residual_is_longer_where_services_differ() -> None:
    assert residual([2.0, 2.0]) == 1.0
    assert residual([1.0, 3.0]) == 1.25  # (1 + 9) / (2 * 4)

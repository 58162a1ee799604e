"""Gates and ladders (S4)."""

from __future__ import annotations

from tests.policy.build import task
from zpipe.model import NEVER_EXIT, GateSpec
from zpipe.policy.exits import ExitGates, ExitLadder, no_exit


def test_a_gate_has_the_stages_temperature_and_one_threshold_per_row() -> None:
    """S4."""
    gates = ExitGates((1.5, 2.5, 1.0), rule="entropy")
    rows = [task(0, 1), task(1, 1)]
    rows[1].thresholds = (0.8, 0.6)
    assert gates.gate(1, rows) == GateSpec("entropy", 2.5, (0.5, 0.8), last=False)


def test_a_row_without_thresholds_never_leaves_early() -> None:
    row = task(0, 1)
    row.thresholds = ()
    assert ExitGates((1.0, 1.0)).gate(0, [row]).thresholds == (NEVER_EXIT,)


def test_at_the_last_stage_every_row_leaves() -> None:
    """S4."""
    assert ExitGates((1.0, 1.0)).gate(1, [task(0, 1)]).last
    assert not ExitGates((1.0, 1.0)).gate(0, [task(0, 0)]).last


def test_the_baseline_without_exits_is_a_ladder_of_one_point() -> None:
    assert no_exit(3) == ExitLadder(((NEVER_EXIT, NEVER_EXIT, NEVER_EXIT),), 0)
    assert len(no_exit(3)) == 1

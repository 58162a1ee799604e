"""What a topology sustains."""

from __future__ import annotations

import pytest

from tests.sim.worlds import bundle, topology
from zpipe.devices import load_device
from zpipe.sim import capacity

DEVICE = "raspberry-pi-3"


def test_a_line_sustains_what_its_slowest_board_does() -> None:
    line = topology([[0, 1, 2], [3, 4]], node={"device": DEVICE})
    every = sum(spec.macs for spec in bundle().stages[:1]) / load_device(DEVICE).macs_per_second
    assert capacity(line, samples=600) < 1.0 / every, "every sample runs stage 0 at the source"
    alone = topology([[0], [1, 2, 3, 4]], node={"device": DEVICE})
    assert capacity(alone, samples=600) == pytest.approx(1.0 / every, rel=0.02)

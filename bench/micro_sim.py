"""How many events a second the simulator handles: `python -m bench.micro micro_sim`.

An event is what a node's policy is told (a task, a finished batch, a credit, a report, a timer that is due ...). Each counts once:
the entry of the heap that brought it is not counted again, nor are entries that lead to none, such as timers that another one has
overtaken. Making the world and the report is not timed; the run is, with all its policies, links and draws.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from zpipe.load import run_span
from zpipe.sim import SimOptions, generated
from zpipe.sim.run import _Run
from zpipe.topology import Topology, load_topology

#: {name: (topology, Poisson arrivals a second or None for a closed loop, samples)}
CASES: dict[str, tuple[str, float | None, int]] = {
    "line4 closed loop": ("line4.yaml", None, 2000),
    "line4 poisson": ("line4.yaml", 60.0, 2000),
    "mesh3 closed loop": ("mesh3.yaml", None, 2000),
    "grid of 100": ("grid", 4000.0, 2000),
}


def _topology(name: str) -> Topology:
    return generated("grid", nodes=100, sources=10) if name == "grid" else load_topology(name)


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("case", CASES)
def test_simulator_event(benchmark: Any, case: str) -> None:
    name, rate_hz, count = CASES[case]
    options = SimOptions(_topology(name), count=count, rate_hz=rate_hz, admission="fixed", warm_up=0)
    events = set()

    def fresh() -> tuple[tuple[_Run], dict[str, Any]]:
        run = _Run(options, lambda line, done: None)
        world_run, run.world.run = run.world.run, lambda: None  # type: ignore[method-assign]
        run._offer(run_span(count=count, duration=None, arrivals=options.arrivals, evaluation_samples=len(run.samples)))
        run.world.run = world_run  # type: ignore[method-assign]
        return (run,), {}

    def simulate(run: _Run) -> None:
        run.world.run()
        events.add(run.world.events)
        assert run.ended == count

    benchmark.pedantic(simulate, setup=fresh, rounds=5)
    (benchmark.extra_info["units"],) = events  # the same in every round, or this is no measurement

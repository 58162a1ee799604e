"""One network measured on one backend: times on the device, bytes that cross, the line against the un-split engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpus.backends import MAX_BATCH, Backend
from bench.gpus.crossing import crossing
from bench.gpus.device import StageBench
from bench.gpus.line import Apart, Flow, flow
from bench.gpus.spread import spread
from bench.gpus.thresholds import median_thresholds
from zpipe.bundle import Bundle
from zpipe.executors.base import StageExecutor
from zpipe.executors.cuda.gate import Gate
from zpipe.model import NEVER_EXIT

#: Takes a line for people.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Network:
    """What is measured.

    Attributes:
        name: for people.
        bundle: in stages.
        whole: the same as one.
        inputs: `[samples, *shape]`, a multiple of `MAX_BATCH`.
    """

    name: str
    bundle: Bundle
    whole: Bundle
    inputs: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Plan:
    """How thoroughly.

    Attributes:
        batches: sizes.
        device_rounds: of each stage at each size.
        line_rounds: of each way to run the line, taken in turns; the size that the claims are about gets as many again.
        line_seconds: of one of them.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    device_rounds: int = 30
    line_rounds: int = 3
    line_seconds: float = 0.4


#: The batch size that the claims are about.
CLAIMED_BATCH = 32


def measure(network: Network, backend: Backend, plan: Plan, tell: Tell) -> dict[str, Any]:
    """All figures, as they go into the JSON."""
    for bundle in (network.bundle, network.whole):
        backend.prepare(bundle)
    tell("times on the device")
    stages = device_times(network.bundle, backend, plan) | {"whole": device_times(network.whole, backend, plan)["0"]}
    tell("bytes that cross")
    crossings = [asdict(crossing(backend, network.bundle, spec.index, CLAIMED_BATCH)) for spec in network.bundle.stages]
    tell("the line")
    return {"stages": stages, "crossings": crossings, "line": lines(network, backend, plan, tell)}


def device_times(bundle: Bundle, backend: Backend, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """{stage: a row per batch size}; see `device.StageTimes`."""
    found = {}
    with closing(backend.open()) as driver:
        gate = Gate(driver)
        for spec in bundle.stages:
            with (
                closing(backend.load(bundle, driver, spec.index, MAX_BATCH)) as engine,
                closing(StageBench(driver, gate, engine, spec, max(plan.batches))) as stage,
            ):
                found[str(spec.index)] = [asdict(stage.times(batch, plan.device_rounds)) for batch in plan.batches]
    return found


def lines(network: Network, backend: Backend, plan: Plan, tell: Tell) -> list[dict[str, Any]]:
    """Per batch size: samples per second un-split, and in stages with and without exits; all ways take turns."""
    bundle, whole, every = network.bundle, network.whole, [spec.index for spec in network.bundle.stages]
    with ExitStack() as stack:

        def opened(executor: StageExecutor) -> StageExecutor:
            stack.callback(executor.close)
            executor.warm_up(max(plan.batches))
            return executor

        unsplit = opened(backend.executor(whole, [0]))
        together = opened(backend.executor(bundle, every))
        apart = opened(Apart([backend.executor(bundle, [stage]) for stage in every]))
        half = median_thresholds(together, bundle, network.inputs, batch=CLAIMED_BATCH)
        never = (NEVER_EXIT,) * len(every)
        ways: dict[str, tuple[StageExecutor, Bundle, Sequence[float]]] = {
            "unsplit": (unsplit, whole, (0.0,)),
            "together": (together, bundle, never),
            "together, half leave": (together, bundle, half),
            "apart": (apart, bundle, never),
            "apart, half leave": (apart, bundle, half),
        }
        rows = []
        for batch in plan.batches:
            tell(f"the line at batch {batch}")
            rows.append(_row(ways, network.inputs, plan, batch))
        return rows


def _row(
    ways: Mapping[str, tuple[StageExecutor, Bundle, Sequence[float]]], inputs: npt.NDArray[np.uint8], plan: Plan, batch: int
) -> dict[str, Any]:
    counts = {name: _enough(way, inputs, plan.line_seconds, batch) for name, way in ways.items()}
    seen: dict[str, list[Flow]] = {name: [] for name in ways}
    for number in range(plan.line_rounds * (2 if batch == CLAIMED_BATCH else 1)):
        for name in in_turn(list(ways), number):
            executor, bundle, thresholds = ways[name]
            seen[name].append(flow(executor, bundle, inputs, thresholds, batch=batch, batches=counts[name]))
    rates = {name: spread(flow.rate_hz for flow in flows) for name, flows in seen.items()}
    # Of each round by itself: what slows a machine for a moment slows neighbours in time alike.
    ratios = {
        name: spread(one.rate_hz / base.rate_hz for one, base in zip(flows, seen["unsplit"], strict=True))
        for name, flows in seen.items()
        if name != "unsplit"
    }
    exits = {name: list(flows[-1].exits) for name, flows in seen.items()}
    return {"batch": batch, "rate_hz": rates, "of_unsplit": ratios, "exits": exits}


def in_turn(ways: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins with another, as what comes after an idle moment finds the device slow, or cool."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def _enough(way: tuple[StageExecutor, Bundle, Sequence[float]], inputs: npt.NDArray[np.uint8], seconds: float, batch: int) -> int:
    """Batches that take about so long: measured by a few, which also warms up what the first ones pay for."""
    executor, bundle, thresholds = way
    few = 4
    taken = flow(executor, bundle, inputs, thresholds, batch=batch, batches=few).seconds / few
    return max(2 * few, math.ceil(seconds / taken))

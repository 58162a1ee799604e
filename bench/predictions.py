"""What plans predict, and what the simulator gives: for the bundles that come along, and for the reference networks.

`python -m bench.plan simulated models` runs it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.references import NAMES
from zpipe.boards import Boards, load_boards, parse_boards
from zpipe.bundle import MANIFEST, Bundle, load_bundle
from zpipe.devices import load_device
from zpipe.errors import BackendUnavailable, ConfigError
from zpipe.models import make_untrained
from zpipe.plan import exit_reach, make_plan
from zpipe.plan.planner import Plan
from zpipe.sim import capacity, simulate

#: What the issue asks of a prediction.
PREDICTION_SLACK = 0.05
#: A run has as many samples as come in so many seconds, from a tenth of what is asked for up to all: those of slow boards are
#: hours of simulated time otherwise. Quick ones get more, for so many seconds: else the time until the last is out would count.
RUN_SECONDS, LEAST_SECONDS, LEAST_SHARE = 300.0, 8.0, 0.1
#: Of a run's samples, those of a trial of a plan.
TRIAL_SHARE = 0.3
BUNDLES = ("digits-mobilenetv2", "digits-mobilenetv2-half", "digits96-mobilenetv2")
#: Boards to plan for, beside those of topologies/devices: (name, devices in a row, links).
PIS = [{"name": "pi", "device": "raspberry-pi-3", "count": 4}]
MIXED = [{"name": "a", "device": "raspberry-pi-3"}, {"name": "b", "device": "raspberry-pi-4", "count": 2}]
FLEETS: dict[str, dict[str, Any]] = {
    "four alike, line": {"devices": PIS, "links": "line"},
    "mixed, slow line": {"devices": MIXED, "links": {"shape": "line", "bandwidth": "10 Mbit/s", "latency": "2 ms"}},
    "mixed, memory": {
        "devices": [{**each, "memory": "125 MB"} for each in MIXED],
        "links": {"shape": "mesh", "bandwidth": "100 Mbit/s"},
    },
    "mixed, mesh": {"devices": MIXED, "links": {"shape": "mesh", "bandwidth": "50 Mbit/s", "latency": "1 ms"}},
    "1 GB each, mesh": {
        "devices": [{"name": "c", "device": "raspberry-pi-4", "count": 4, "memory": "1 GB"}],
        "links": {"shape": "mesh", "bandwidth": "100 Mbit/s", "latency": "1 ms"},
    },
    "quick, far apart": {
        "devices": [{"name": "d", "device": "raspberry-pi-5"}, {"name": "e", "device": "jetson-nano", "count": 2}],
        "links": {"shape": "mesh", "bandwidth": "50 Mbit/s", "latency": "20 ms"},
    },
    "mixed, one channel": {"devices": MIXED, "links": {"shape": "mesh", "bandwidth": "20 Mbit/s", "medium": "air"}},
}

# ---- bundles that come along ---------------------------------------------------------------------


def simulated(count: int) -> dict[str, Any]:
    """A row for each bundle, set of boards and shape."""
    rows = [row for name in BUNDLES for row in rows_of(load_bundle(name, verify=False), count, every_shape=True)]
    tally(rows)
    return {"predictions": rows}


def rows_of(bundle: Bundle, count: int, *, every_shape: bool) -> list[dict[str, Any]]:
    """A row for each set of boards and shape, each printed as it comes.

    Args:
        bundle: to plan for.
        count: most samples of a run.
        every_shape: whether boards in a line are planned as a mesh as well.
    """
    reach = exit_reach(bundle.replay().confidences, bundle.default_point.thresholds)
    there, rows = at_reach(bundle, reach), []
    for fleet, boards in fleets(bundle).items():
        for shape in ("line", "mesh") if every_shape or boards.shape != "line" else ("line",):
            case = {"bundle": bundle.name, "stages": len(bundle.stages), "boards": fleet, "shape": shape}
            row = case | confirm(there, boards, shape, count)
            rows.append(row)
            said = row.get("refused") or (
                f"predicted {row['predicted']:8.2f}  simulated {row['simulated']:8.2f}  "
                f"{100 * row['difference']:+5.1f} %  {'holds' if row['holds'] else 'DIFFERS'}"
            )
            print(f"{bundle.name:<24} {len(bundle.stages)}  {fleet:<20} {shape}  {said}", flush=True)
    return rows


def tally(rows: Sequence[dict[str, Any]]) -> None:
    """How many hold, where a batch has a price beside its rows (GPUs) and where it has none."""
    for priced in (False, True):
        for shape in ("line", "mesh"):
            some = [row for row in rows if row.get("batch_price") is priced and row["shape"] == shape]
            if some:
                held, worst = sum(row["holds"] for row in some), max(some, key=lambda row: abs(row["difference"]))
                kind = "a GPU among them" if priced else "CPUs alone"
                print(f"{shape}, {kind}: {held} of {len(some)} hold, worst {100 * worst['difference']:+.1f} %", flush=True)


# ---- reference networks ----------------------------------------------------------------------------


def models(count: int, folder: Path | None, jobs: int) -> dict[str, Any]:
    """A row for each reference network in four and in five stages, set of boards and shape.

    Args:
        count: most samples of a run.
        folder: has bundles called NAME-STAGES, or gets them; None = they are made for this and thrown away.
        jobs: processes that share the networks.
    """
    with ExitStack() as stack:
        kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=get_context("spawn")))
        asked = [pool.submit(_model_rows, name, stages, kept, count) for stages in (4, 5) for name in NAMES]
        found = [each.result() for each in asked]
    rows = [row for each in found if not isinstance(each, str) for row in each]
    tally(rows)
    return {"models": rows, "models_skipped": [each for each in found if isinstance(each, str)]}


def _model_rows(name: str, stages: int, folder: Path, count: int) -> list[dict[str, Any]] | str:
    """Of one network; or why it cannot be made here."""
    at = folder / f"{name}-{stages}"
    try:
        there = (at / MANIFEST).exists()
        bundle = load_bundle(str(at), verify=False) if there else make_untrained(name, out=at, stages=stages)
    except BackendUnavailable as exc:
        print(f"SKIPPED {name}, {stages} stages: {exc}", flush=True)
        return f"{name}, {stages} stages: {exc}"
    return rows_of(bundle, count, every_shape=False)


# ---- both ------------------------------------------------------------------------------------------


def fleets(bundle: Bundle) -> dict[str, Boards]:
    """Boards to plan for, by name."""

    def none(file: str) -> Any:
        raise AssertionError(file)

    made = {name: parse_boards(value, file=name, path=None, measured=none) for name, value in FLEETS.items()}
    return made | {name: load_boards(name, bundle) for name in ("mixed", "robot")}


def at_reach(bundle: Bundle, reach: Sequence[float]) -> Bundle:
    """The bundle whose default point has these exit shares on calibration: what the simulator will see."""
    shares = tuple(a - b for a, b in pairwise([*reach, 0.0]))
    old = bundle.default_point
    point = replace(old, calibration=replace(old.calibration, exit_shares=shares))
    points = tuple(point if each == old else each for each in bundle.operating_points)
    return replace(bundle, default_point=point, operating_points=points)


def confirm(bundle: Bundle, boards: Boards, shape: Any, count: int) -> dict[str, Any]:
    """What a plan predicts and the simulator gives, always waiting samples; or why there is no such plan."""
    try:
        plan = make_plan(bundle, boards, shape=shape, trial=lambda plan: _trial(plan, count))
    except ConfigError as exc:
        return {"refused": str(exc)}
    # In whole rounds of the evaluation set, exits take the shares that the plan counts on.
    rounds = bundle.evaluation_samples
    count = rounds * math.ceil(samples_of(plan, count) / rounds)
    hosting = [boards.boards[board] for board, stages in plan.layout.hosted.items() if stages]
    report = simulate(plan.topology, rate_hz=math.inf, admission="fixed", count=count, warm_up=count // 5, seed=2)
    found = float(report["throughput_hz"])
    difference = found / plan.rate_hz - 1.0
    return {
        "samples": count,
        "predicted": plan.rate_hz,
        "tried": plan.tried_hz,
        "batch_price": any(load_device(board.device).fixed_seconds > 0.0 for board in hosting),
        "bound": plan.layout.bound,
        "sent_again": report["counts"]["resubmitted"],
        "without_result": report["counts"]["submitted"] - report["counts"]["result"],
        "simulated": found,
        "difference": difference,
        "holds": abs(difference) <= PREDICTION_SLACK,
        "hosted": {boards.boards[board].name: list(stages) for board, stages in plan.layout.hosted.items()},
    }


def samples_of(plan: Plan, most: int) -> int:
    """Of a run of this plan."""
    return int(max(LEAST_SHARE * most, min(most, RUN_SECONDS * plan.rate_hz), LEAST_SECONDS * plan.rate_hz))


def _trial(plan: Plan, most: int) -> float:
    return capacity(plan.topology, samples=int(TRIAL_SHARE * samples_of(plan, most)))


def trial(plan: Plan) -> float:
    """As `zpipe plan` tries it."""
    return capacity(plan.topology)
